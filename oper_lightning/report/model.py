"""What `oper validate` says and draws of a model of an environment's dynamics."""

from __future__ import annotations

from typing import Any

from oper_lightning.report.looks import COLOURS, canvas
from oper_lightning.training.model_errors import Errors

SHOWN = 100  # steps of a stretch


def in_a_line(errors: Errors) -> str:
    """The figures that matter most."""
    low, high = float(errors.members.min()), float(errors.members.max())
    line = (
        f"one-step error {float(errors.members.mean()):.3g} (members {low:.3g} to {high:.3g}), "
        f"of the members' mean {errors.error_of_mean:.3g}"
    )
    if errors.reward_r2 is not None:
        line += f"; reward R² {errors.reward_r2:.3f}"
    far, still = errors.open_loop[-1], errors.standing_still[-1]
    line += f"; {far:.2f} standard deviations off after {errors.horizons[-1]} steps (standing still {still:.2f})"
    if far >= still:
        line += ", worse than to say that nothing changes"
    return f"{line} ({errors.rows:,} held-out rows)"


def draw(errors: Errors) -> Any:
    """Three panels: errors of many steps in a row, errors by column, and one recorded stretch beside imagined ones."""
    figure, (ahead, columns, stretch) = canvas(3, 1, 4.6, 3.8)
    ahead.plot(errors.horizons, errors.open_loop, "o-", color=COLOURS[0], label="imagined")
    ahead.plot(errors.horizons, errors.standing_still, "s--", color=COLOURS[1], label="standing still")
    ahead.set_xscale("log")
    ahead.set_xticks(errors.horizons, [str(steps) for steps in errors.horizons])
    ahead.minorticks_off()
    ahead.set(title="Many steps under recorded actions", xlabel="steps", ylabel="error (std of observations)")
    ahead.set_ylim(bottom=0)
    ahead.legend(fontsize="small", frameon=False)
    columns.bar(range(len(errors.columns)), errors.columns.tolist(), color=COLOURS[0])
    columns.xaxis.get_major_locator().set_params(integer=True)
    columns.set(title="One step, by column", xlabel="column of the observation", ylabel="error (1: knows nothing)")
    if errors.episode is not None:
        recorded, imagined = (part[..., :SHOWN] for part in errors.episode)
        for number, member in enumerate(imagined):
            label = "imagined by each member" if number == 0 else None
            stretch.plot(member.tolist(), color=COLOURS[5], linewidth=0.9, alpha=0.8, label=label)
        stretch.plot(recorded.tolist(), color=COLOURS[6], linewidth=1.2, label="recorded")
        title = f"Column {errors.column}, the hardest, over {len(recorded)} steps"
        stretch.set(title=title, xlabel="steps", ylabel="value")
        stretch.legend(fontsize="small", frameon=False)
    return figure
