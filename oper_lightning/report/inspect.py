"""`oper inspect`: what one wants to know of a dataset and its weights before training on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data import matching
from oper_lightning.data.sources.bandit import Bandit
from oper_lightning.data.sources.d4rl import D4RL, known_names
from oper_lightning.data.sources.minari import Minari
from oper_lightning.data.sources.npz import Npz
from oper_lightning.data.sources.reacher import Reacher
from oper_lightning.data.sources.source import Source
from oper_lightning.data.storage import fill
from oper_lightning.data.transitions import episode_of, fingerprint, squeezed
from oper_lightning.errors import InputError, nearest
from oper_lightning.priorities.file import WeightsFile, weights_for
from oper_lightning.priorities.priority import mean_one, statistics
from oper_lightning.priorities.returns import OperR
from oper_lightning.report.describe import Facts, coverage, describe
from oper_lightning.report.page import Page, Table, canvas, plain
from oper_lightning.report.runs import read_config
from oper_lightning.report.weights import episode_weights, make

POINTS = 20  # along an episode
SHOWN = 8  # dimensions of an action


class Weights(NamedTuple):
    """One set of weights of the dataset's transitions."""

    name: str
    seeds: Tensor
    """float64 ``[S, N]``, mean 1"""

    @property
    def mean(self) -> Tensor:
        """Over seeds, ``[N]``."""
        return self.seeds.mean(0)


def inspect(
    files: Sequence[str] = (), source: Source | None = None, output: str = "runs/inspect", p_base: float = 0.0
) -> None:
    """Look at a dataset, and at weights for it, before training: inspect.html, inspect.md and pictures.

    Args:
        files: a dataset (a .hdf5 or .npz file, the name of a D4RL dataset, the id or folder of a Minari dataset, or the
            folder of a run for the data it was trained on), then weights of OPER-A, if there are any: files, folders of
            stage 1's runs, or templates in which {seed} stands for a number.
        source: the dataset, for sources that need arguments of their own; then all files are weights.
        output: folder to write to.
        p_base: of OPER-R, which is shown for every dataset.
    """
    if source is None:
        if not files:
            raise InputError("name a dataset: a file, a folder, a D4RL or Minari name, or --source")
        source, files = open_source(files[0]), files[1:]
    source.prepare()
    transitions = squeezed(fill(source, torch.device("cpu"))[:])
    origin = source.origin()
    low, high = matching.action_bounds(source, transitions["action"], None, origin, ask=True)
    facts = describe(transitions, low, high)
    warnings, unusable = list(facts.warnings), []
    known = [Weights("OPER-R", OperR(p_base)(transitions)[None])]
    data = fingerprint(transitions) if files else ""
    for file, name in zip(files, _names(files), strict=True):
        try:
            known += iterations(file, name, len(transitions), data)
        except InputError as error:
            unusable.append(str(error))
    page = Page(f"Dataset {origin.dataset}", output, "inspect")
    page.heading("What to look at" if warnings or unusable else "Nothing strange was found")
    page.warnings(warnings + unusable)
    page.heading("Data")
    page.table(_summary(source, transitions, facts, low, high))
    page.picture(_draw_data(transitions, facts, low, high))
    page.heading("Weights")
    page.paragraph(
        "Of the mean over seeds, brought to mean 1, as it is before stage 2 rescales it. Effective: sample size "
        "(sum w)^2 / sum w^2, as a share. Coverage: effective number of cells of observation space, as a share of what "
        "uniform weights visit (more than 100 % where weights favour what was rarely visited). Return: mean over "
        "transitions of their episode's return. Agreement: mean correlation between seeds."
    )
    page.table(_weights_table(known, transitions, facts))
    page.picture(_draw_weights(known, transitions, facts.plane), "-weights")
    print(page.write())
    print(f"\nwritten: {', '.join(map(str, page.files))}")
    if unusable:
        raise InputError(f"{len(unusable)} of {len(files)} weights files could not be shown; the page says why")


def open_source(name: str) -> Source:
    """The source that a word on the command line means.

    Raises:
        InputError: if it means none.
    """
    path = Path(name)
    if (path / "config.yaml").is_file():
        return make(Source, read_config(path)["data"]["init_args"]["source"])
    if path.suffix == ".npz":
        return Npz(name)
    if path.suffix in (".hdf5", ".h5") or name in known_names():
        return D4RL(name)
    if name in (Bandit.__name__, Reacher.__name__):
        return make(Source, {"class_path": name})
    if path.is_file():
        raise InputError(
            f"{name}: not a kind of file that is known here (.hdf5, .npz); the dataset comes first, then weights; "
            f"--source names a source of another kind"
        )
    if path.is_dir() or "/" in name:
        return Minari(name)
    raise InputError(f"{name}: no file, and no dataset of D4RL; {nearest(name, known_names())}; or give a --source")


def _names(files: Sequence[str]) -> list[str]:
    """What each word for weights is called in tables and pictures."""
    if len(files) == 1:
        return ["OPER-A"]
    stems = [Path(file).parent.name if Path(file).name == "weights.safetensors" else Path(file).stem for file in files]
    return [stem if stems.count(stem) == 1 else file for stem, file in zip(stems, files, strict=True)]


def iterations(file: str, name: str, rows: int, data: str) -> list[Weights]:
    """The iterations of the weights that a word on the command line means, all seeds together.

    They must be of so many ``rows``, and of the ``data`` with that fingerprint.

    Raises:
        InputError: if it means none, or those of other data.
    """
    paths = [str(Path(file) / "weights.safetensors")] if Path(file).is_dir() else WeightsFile(file).paths()
    parts = [weights_for(path, rows, data) for path in paths]
    common = min(map(len, parts))
    seeds = torch.cat([weights[:common] for weights in parts], 1)
    return [Weights(f"{name}, iteration {k}", mean_one(part, file)) for k, part in enumerate(seeds, 1)]


def _summary(source: Source, transitions: TensorDict, facts: Facts, low: Tensor, high: Tensor) -> Table:
    origin, returns, lengths = source.origin(), facts.returns, facts.lengths
    quarters = torch.quantile(returns, torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    reward, action = transitions["next", "reward"], transitions["action"]
    rows = [
        ["transitions", f"{len(transitions):,}"],
        ["episodes", f"{len(returns):,}"],
        ["environment", origin.environment or "unknown"],
        ["observation", str(tuple(transitions["observation"].shape[1:]))],
        ["action", str(tuple(transitions["action"].shape[1:]))],
        ["ended by termination", f"{int(facts.terminated.sum()):,}"],
        ["cut (truncated)", f"{int((~facts.terminated).sum()):,}"],
        ["length: least, median, most", f"{lengths.min():,}, {lengths.median():,}, {lengths.max():,}"],
        ["return: worst, mean, best", f"{returns.min():.2f}, {returns.mean():.2f}, {returns.max():.2f}"],
        ["return: quartiles", ", ".join(f"{value:.2f}" for value in quarters)],
        ["reward: least, mean, most", f"{reward.min():.3g}, {reward.mean():.3g}, {reward.max():.3g}"],
        ["actions: bounds", _ranges(low, high)],
        ["actions: least to most", _ranges(action.amin(0), action.amax(0))],
        ["actions: at their bounds", _first([f"{value:.1%}" for value in facts.saturation.flatten().tolist()])],
    ]
    if origin.reference is not None:
        worst, best = origin.reference
        scores = [100 * (value - worst) / (best - worst) for value in (returns.mean().item(), returns.max().item())]
        rows.append(["normalised score: mean, best", f"{scores[0]:.1f}, {scores[1]:.1f}"])
    return Table(["", "value"], rows)


def _ranges(low: Tensor, high: Tensor) -> str:
    """Of every action; once, if all are alike."""
    pairs = [f"{least:.3g} to {most:.3g}" for least, most in zip(low.flatten(), high.flatten(), strict=True)]
    return pairs[0] if len(set(pairs)) == 1 else _first(pairs)


def _first(words: list[str], count: int = SHOWN) -> str:
    return ", ".join(words[:count]) + (f" and {len(words) - count} more" if len(words) > count else "")


def _weights_table(known: list[Weights], transitions: TensorDict, facts: Facts) -> Table:
    returns = facts.returns[episode_of(transitions["next", "done"])]
    rows = [["uniform", "1", "0.00", "100%", "1.00", "1.00", "100%", "100%", f"{returns.mean():.2f}", ""]]
    for weights in known:
        numbers = statistics(weights.mean)
        agreement = ""
        if len(weights.seeds) > 1:
            correlation = torch.corrcoef(weights.seeds)
            others = ~torch.eye(len(correlation), dtype=torch.bool)
            agreement = f"{correlation[others].mean():.2f}"
        rows.append(
            [
                weights.name,
                str(len(weights.seeds)),
                f"{numbers['std']:.2f}",
                f"{numbers['ess']:.0%}",
                f"{numbers['min']:.2g}",
                f"{numbers['max']:.2f}",
                f"{numbers['at_floor']:.0%}",
                f"{coverage(facts.cell, weights.mean):.0%}",
                f"{(returns * weights.mean).mean():.2f}",
                agreement,
            ]
        )
    head = ["weights", "seeds", "std", "effective", "least", "most", "at the least", "coverage", "return", "agreement"]
    return Table(head, rows)


def _draw_data(transitions: TensorDict, facts: Facts, low: Tensor, high: Tensor) -> Any:
    figure, (returns, lengths, actions, deviations) = canvas(2, 2)
    returns.hist(facts.returns.numpy(), bins=40, color="C0")
    returns.set(title="Return of an episode", xlabel="undiscounted return", ylabel="episodes")
    lengths.scatter(facts.lengths.numpy(), facts.returns.numpy(), s=8, alpha=0.5, color="C0", linewidths=0)
    lengths.set(title="Length and return", xlabel="transitions", ylabel="return")
    some = slice(None, None, max(1, len(transitions) // 20_000))  # more points than that hide each other
    scaled = ((transitions["action"][some] - low) / (high - low) * 2 - 1).flatten(1)
    for column in range(min(scaled.shape[1], SHOWN)):
        actions.hist(scaled[:, column].numpy(), bins=60, histtype="step", density=True, label=str(column))
    actions.set(title="Actions, their bounds at ±1", xlabel="action", ylabel="density")
    actions.legend(title="dimension" if scaled.shape[1] <= SHOWN else f"the first {SHOWN}", fontsize="x-small", ncols=2)
    plane, by_row = facts.plane[some], facts.returns[episode_of(transitions["next", "done"])[some]]
    points = deviations.scatter(plane[:, 0], plane[:, 1], c=by_row, s=3, alpha=0.5, linewidths=0, cmap="viridis")
    figure.colorbar(points, ax=deviations, label="return of the episode")
    deviations.set(title="Observations", xlabel="first principal component", ylabel="second")
    return figure


def _draw_weights(known: list[Weights], transitions: TensorDict, plane: Tensor) -> Any:
    """Weight against return, along an episode, its distribution; where it is high; one seed against another."""
    last = known[-1]
    # Of many iterations the first and the last are enough to see.
    shown = known if len(known) < 4 else [known[0], known[1], last]
    mapped = [known[0]] if last is known[0] else [known[0], last]
    several = len(last.seeds) > 1
    count = 3 + len(mapped) + several
    columns = 2 if count == 4 else 3
    figure, panels = canvas(columns, -(-count // columns))
    against, along, spread, *others = panels
    ends = transitions["next", "done"]
    episode = episode_of(ends)
    length = torch.bincount(episode)
    first = torch.cumsum(length, 0) - length
    place = (torch.arange(len(ends)) - first[episode]) * POINTS // length[episode]
    for number, weights in enumerate(shown):
        colour = f"C{number}"
        returns, mean = episode_weights(transitions, weights.mean)
        step = max(1, len(returns) // 2000)
        against.scatter(
            returns[::step], mean[::step], s=8, alpha=0.5, color=colour, label=plain(weights.name), linewidths=0
        )
        # Each beside its own episode's mean: short episodes do not reach every point.
        beside = weights.mean / mean[episode]
        heavy = mean[episode] > 0
        total = torch.zeros(POINTS, dtype=torch.float64).index_add_(0, place[heavy], beside[heavy])
        visits = torch.bincount(place[heavy], minlength=POINTS)
        along.plot((torch.arange(POINTS) + 0.5) / POINTS, total / visits, color=colour)
        spread.hist(weights.mean.numpy(), bins=80, histtype="step", color=colour)
    against.set(title="Mean weight of an episode", xlabel="its return", ylabel="weight")
    against.legend(fontsize="small", markerscale=2)
    along.axhline(1, color="grey", linewidth=1, linestyle="--")
    along.set(title="Along an episode", xlabel="share of the episode", ylabel="weight, over its episode's mean")
    along.ticklabel_format(useOffset=False)
    spread.set(title="Distribution", xlabel="weight", ylabel="transitions", yscale="log")
    for panel, weights in zip(others, mapped, strict=False):
        cells = panel.hexbin(plane[:, 0], plane[:, 1], C=weights.mean, gridsize=40, mincnt=3, cmap="viridis")
        figure.colorbar(cells, ax=panel, label="mean weight")
        panel.set(title=f"Where {plain(weights.name)} is high", xlabel="first principal component", ylabel="second")
    if several:
        step = max(1, last.seeds.shape[1] // 5000)
        panel = others[len(mapped)]
        panel.scatter(last.seeds[0, ::step], last.seeds[1, ::step], s=4, alpha=0.4, color="C0", linewidths=0)
        panel.set(title=f"Two seeds: {plain(last.name)}", xlabel="weight, first seed", ylabel="second seed")
    for panel in others[len(mapped) + several :]:
        panel.axis("off")
    return figure
