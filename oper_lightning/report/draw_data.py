"""Pictures of a dataset and of its weights."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data.transitions import episode_of
from oper_lightning.report.describe import Facts
from oper_lightning.report.looks import COLOURS, canvas, colour_bar, look, marker, plain, same_axes
from oper_lightning.report.weighing import Weights
from oper_lightning.report.weights import episode_weights

POINTS = 20  # along an episode
SHOWN = 8  # dimensions of an action
DRAWN = 20_000  # rows; more points than that hide each other


def draw_data(transitions: TensorDict, facts: Facts, low: Tensor, high: Tensor) -> Any:
    """Returns, lengths, actions between their bounds ``[A]``, observations in their plane."""
    figure, (returns, lengths, actions, plane) = canvas(2, 2)
    returns.hist(facts.returns.numpy(), bins=40, color=COLOURS[0])
    returns.set(title="Return of an episode", xlabel="undiscounted return", ylabel="episodes")
    lengths.scatter(facts.lengths.numpy(), facts.returns.numpy(), s=10, alpha=0.5, color=COLOURS[0], linewidths=0)
    lengths.set(title="Length and return", xlabel="transitions", ylabel="return")
    for axis in (returns.yaxis, lengths.xaxis):
        axis.get_major_locator().set_params(integer=True)
    some = slice(None, None, max(1, len(transitions) // DRAWN))
    if facts.counts is not None:
        _draw_choices(actions, facts.counts, int(low))
    else:
        _draw_amounts(actions, ((transitions["action"][some] - low) / (high - low) * 2 - 1).flatten(1))
    points, by_row = facts.plane[some], facts.returns[episode_of(transitions["next", "done"])[some]]
    drawn = plane.scatter(points[:, 0], points[:, 1], c=by_row, s=3, alpha=0.5, linewidths=0, cmap="viridis")
    colour_bar(figure, plane, drawn, "return of the episode")
    plane.set(title="Observations", xlabel="first principal component", ylabel="second")
    return figure


def _draw_choices(panel: Any, counts: Tensor, first: int) -> None:
    """How often each discrete action was taken, as bars; a red cross where one never was."""
    import matplotlib.ticker

    numbers, taken = torch.arange(first, first + len(counts)), counts > 0
    panel.bar(numbers, counts, color=COLOURS[0])
    if not taken.all():  # no points at all would count as one in the corner of the picture
        panel.plot(numbers[~taken], counts[~taken], "x", color=COLOURS[1], label="never taken", clip_on=False)
        panel.legend(fontsize="small")
    panel.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    panel.set(title="Actions", xlabel="number of the action", ylabel="transitions")


def _draw_amounts(panel: Any, scaled: Tensor) -> None:
    """How each dimension of continuous actions ``[M, A]``, scaled to [-1, 1], is spread."""
    for column in range(min(scaled.shape[1], SHOWN)):
        panel.hist(scaled[:, column].numpy(), bins=60, histtype="step", density=True, label=str(column), **look(column))
    panel.set(title="Actions, their bounds at ±1", xlabel="action", ylabel="density")
    title = "dimension" if scaled.shape[1] <= SHOWN else f"the first {SHOWN} of {scaled.shape[1]}"
    panel.legend(title=title, fontsize="x-small", title_fontsize="x-small", ncols=2)


def draw_weights(known: list[Weights], transitions: TensorDict, plane: Tensor) -> Any:
    """Weight against return, along an episode, its distribution; where it is high; one seed against another."""
    used = [weights for weights in known if weights.used]
    # Of many the first and the last are enough to see.
    shown = used if len(used) < 5 else [*used[:3], used[-1]]
    mapped = [used[0]] if len(used) == 1 else [used[0], used[-1]]
    by_seed = next((weights for weights in reversed(known) if len(weights.seeds) > 1), None)
    count = 3 + len(mapped) + (by_seed is not None)
    columns = 2 if count == 4 else 3
    figure, panels = canvas(columns, -(-count // columns))
    against, along, spread, *others = panels
    ends = transitions["next", "done"]
    episode = episode_of(ends)
    length = torch.bincount(episode)
    first = torch.cumsum(length, 0) - length
    place = (torch.arange(len(ends)) - first[episode]) * POINTS // length[episode]
    for number, weights in enumerate(shown):
        returns, mean = episode_weights(transitions, weights.mean)
        step = max(1, len(returns) // 2000)
        against.scatter(
            returns[::step],
            mean[::step],
            s=11,
            alpha=0.5,
            linewidths=0,
            marker=marker(number),
            color=COLOURS[number],
            label=plain(weights.name),
        )
        # Each beside its own episode's mean: short episodes do not reach every point.
        heavy = mean[episode] > 0
        beside = weights.mean[heavy] / mean[episode][heavy]
        total = torch.zeros(POINTS, dtype=torch.float64).index_add_(0, place[heavy], beside)
        visits = torch.bincount(place[heavy], minlength=POINTS)
        along.plot((torch.arange(POINTS) + 0.5) / POINTS, total / visits, **look(number))
        spread.hist(weights.mean.numpy(), bins=80, histtype="step", **look(number))
    against.axhline(1, color="grey", linewidth=1, linestyle=":")
    against.set(title="Mean weight of an episode", xlabel="its return", ylabel="weight")
    against.legend(fontsize="small", markerscale=2)
    along.axhline(1, color="grey", linewidth=1, linestyle=":")
    along.set(title="Along an episode", xlabel="share of the episode", ylabel="weight, over its episode's mean")
    spread.set(title="Distribution", xlabel="weight", ylabel="transitions", yscale="log")
    maps = others[: len(mapped)]
    for panel, weights in zip(maps, mapped, strict=True):
        cells = panel.hexbin(plane[:, 0], plane[:, 1], C=weights.mean, gridsize=40, mincnt=3, cmap="viridis")
        colour_bar(figure, panel, cells, "mean weight")
        panel.set(
            title=f"Where {plain(weights.name.split(',')[0])} is high", xlabel="first principal component",
            ylabel="second",
        )  # fmt: skip
    same_axes(maps, up=True)
    if by_seed is not None:
        step = max(1, by_seed.seeds.shape[1] // 5000)
        panel = others[len(mapped)]
        panel.scatter(*by_seed.seeds[:2, ::step], s=5, alpha=0.4, color=COLOURS[0], linewidths=0)
        panel.axline((1, 1), slope=1, color="grey", linewidth=1, linestyle=":")
        panel.set(title=f"Two seeds: {plain(by_seed.name)}", xlabel="weight, first seed", ylabel="second seed")
    for panel in others[len(mapped) + (by_seed is not None) :]:
        panel.axis("off")
    return figure
