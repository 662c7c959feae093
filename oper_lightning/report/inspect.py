"""`oper inspect`: what one wants to know of a dataset and its weights before training on them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.data import log, matching
from oper_lightning.data.frames import Frames, held, observation_shape
from oper_lightning.data.mapped import mapped
from oper_lightning.data.rl import TensorStorage
from oper_lightning.data.sources.bandit import Bandit
from oper_lightning.data.sources.brac import BRAC
from oper_lightning.data.sources.d3rlpy import D3rlpy, dumped_by_d3rlpy
from oper_lightning.data.sources.d4rl import D4RL, known_names
from oper_lightning.data.sources.minari import Minari
from oper_lightning.data.sources.npz import Npz
from oper_lightning.data.sources.online_log import OnlineLog
from oper_lightning.data.sources.reacher import Reacher
from oper_lightning.data.sources.source import Origin, Source
from oper_lightning.data.sources.tf_bundle import is_bundle
from oper_lightning.data.sources.tianshou import Tianshou, is_replay_buffer
from oper_lightning.data.storage import transitions_in
from oper_lightning.data.transitions import fingerprint
from oper_lightning.envs.scores import normalised
from oper_lightning.errors import InputError, nearest
from oper_lightning.priorities.priority import Priority
from oper_lightning.priorities.returns import ByReturn, OperR, doubts
from oper_lightning.report.describe import Facts, describe
from oper_lightning.report.draw_data import SHOWN, draw_data, draw_weights
from oper_lightning.report.images import ROWS, sheet
from oper_lightning.report.page import Page, Table
from oper_lightning.report.recording import Verdict, judge
from oper_lightning.report.runs import read_config
from oper_lightning.report.weighing import Weights, extremes, shifts, weights_from, weights_table
from oper_lightning.report.weights import episode_weights, make


def inspect(
    files: Sequence[str] = (),
    source: Source | None = None,
    priority: Priority | None = None,
    output: str = "runs/inspect",
    p_base: float = 0.0,
) -> None:
    """Look at a dataset, and at weights for it, before training.

    It writes inspect.html, inspect.md and pictures.

    Args:
        files: first the dataset: a .hdf5 file (D4RL's layout or a replay buffer of Tianshou) or .npz file, the name of
            a D4RL dataset, the id or folder of a Minari dataset, or the folder of a run (what it gathered, or else what
            it read). Then weights of OPER-A, if you have any: files, folders of runs of stage 1, or templates in which
            {seed} stands for a number.
        source: the dataset, if its source needs arguments; then all files are weights.
        priority: a priority with its arguments, as fit takes it; it is shown as training will use it.
        output: folder to write to.
        p_base: p_base of OPER-R, which is shown for every dataset.
    """
    configuration = None
    if source is None:
        if not files:
            raise InputError("name a dataset: a file, a folder, a D4RL or Minari name, or --source")
        configuration = Path(files[0]) / "config.yaml"
        source, files = open_source(files[0]), files[1:]
    for file in files:
        if Path(file).suffix in (".npz", ".hdf5", ".h5"):
            raise InputError(f"{file}: a dataset where weights are expected; look at one dataset at a time")
    with ExitStack() as held_open:
        try:
            source.prepare()
            kept = held_open.enter_context(mapped(source))
        except InputError as error:
            if configuration is None or not configuration.is_file():
                raise
            raise InputError(f"{error} ({configuration} names it)") from None
        _look(source, kept, files, priority, output, p_base)


def _look(
    source: Source,
    kept: TensorStorage,
    files: Sequence[str],
    priority: Priority | None,
    output: str,
    p_base: float,
) -> None:
    """Writes the pages of a source, whose transitions are ``kept``; see :func:`inspect`."""
    origin = source.origin()
    transitions, (_, frames) = transitions_in(kept), held(kept)
    if frames is None and (shape := transitions["observation"].shape[1:]).numel() and len(shape) != 1:
        raise InputError(
            f"{origin.dataset}: observations of shape {tuple(shape)}, but vectors or images of bytes are needed; save "
            "images as uint8"
        )
    verdict = judge(transitions, origin, frames)
    low, high, known_bounds = matching.action_bounds(source, transitions["action"], None, origin, ask=True)
    facts = describe(transitions, low, high, frames)
    data = fingerprint(transitions, frames.digest if frames is not None else "") if files or priority else ""
    known, unusable = weights_from(files, priority, transitions, data)
    if not isinstance(priority, OperR):
        known.insert(0, Weights("OPER-R", OperR(p_base)(transitions)[None], True))
    by_episode = {weights.name: episode_weights(transitions, weights.mean).weights for weights in known if weights.used}
    warnings = [*verdict.warnings, *facts.warnings]
    for shown in (priority, None if isinstance(priority, OperR) else OperR(p_base)):
        if isinstance(shown, ByReturn):
            warnings += doubts(shown, transitions, shown(transitions))
    page = Page(f"Dataset {origin.dataset}", output, "inspect")
    page.heading("What to look at" if warnings or unusable else "Nothing strange was found")
    page.warnings(warnings + unusable)
    page.heading("Data")
    guess = "" if known_bounds else " (not known: read off the data)"
    actions = _actions(transitions["action"], facts, low, high, guess)
    page.table(_summary(origin, verdict, transitions, frames, facts, actions))
    how_actions = "how each dimension of the action is spread between its bounds"
    if facts.counts is not None:
        how_actions = "how often each action was taken"
    of_images = ""
    if frames is not None:
        of_images = f" Of an image they are averages over 8 x 8 squares, of no more than {ROWS:,} images."
    page.picture(
        draw_data(transitions, facts, low, high),
        f"Four panels: returns of {len(facts.returns):,} episodes from {facts.returns.min():.4g} to "
        f"{facts.returns.max():.4g}; return against length; {how_actions}; observations on their two leading principal "
        f"components, coloured by the return of their episode.",
        f"Observations are standardised before their principal components are taken.{of_images}",
    )
    if frames is not None:
        page.picture(
            sheet(frames, transitions, facts.returns, facts.lengths),
            "A sheet of frames: some episodes, from the worst return above to the best below, each from its first step "
            "to its last.",
            "The newest frame of an observation, in colour if it has three channels, else in grey; beside the number "
            "of an episode stands its return.",
            "-frames",
        )
    page.heading("Weights")
    page.paragraph(
        "As used: what training draws or weighs by. Iterations: what stage 1 left, the mean over seeds brought to mean "
        "1, before it is rescaled. Effective: sample size (sum w)^2 / sum w^2, as a share. Coverage: effective number "
        "of cells of observation space, as a share of what uniform weights visit (more than 100 % where weights favour "
        "what was rarely visited). Return: mean over transitions of their episode's return. Agreement: mean "
        "correlation between seeds."
    )
    page.table(weights_table(known, transitions, facts))
    page.picture(
        draw_weights(known, transitions, facts.plane),
        f"How {', '.join(by_episode)} weigh an episode against its return, how weights change along an episode, how "
        f"they are spread, and where among observations they are high.",
        "Points are episodes. Along an episode weights are divided by their episode's mean. Both maps have the same "
        "axes, but not the same colours.",
        "-weights",
    )
    used = next(weights for weights in reversed(known) if weights.used)
    page.heading(f"What {used.name.split(',')[0]} favours")
    page.paragraph(
        f"{used.name}. Episodes and rows are counted from 0. Moved: weighted mean less mean, in standard deviations."
    )
    page.table(extremes(facts.returns, facts.lengths, by_episode[used.name]))
    page.table(shifts(transitions, used.mean))
    print(page.write())
    print(f"\nwritten: {', '.join(map(str, page.files))}")
    if unusable:
        given = len(files) + (priority is not None)
        more = f"; {len(unusable) - 1} more, which the page names" if len(unusable) > 1 else ""
        raise InputError(f"{len(unusable)} of {given} weights could not be shown: {unusable[0]}{more}")


def open_source(name: str) -> Source:
    """The source that a word on the command line means.

    Raises:
        InputError: if it means none.
    """
    path = Path(name)
    if log.is_there(path):
        return OnlineLog(name)
    if (path / "config.yaml").is_file():
        if (source := read_config(path)["data"]["init_args"]["source"]) is None:
            raise InputError(f"{name}: an online run without recorded transitions, which has gathered nothing yet")
        return make("source", source, path / "config.yaml")
    if path.suffix == ".npz":
        return Npz(name)
    if path.is_file() and is_replay_buffer(path):
        return Tianshou(name)
    if is_bundle(name):
        return BRAC(name)
    if path.suffix in (".hdf5", ".h5") or name in known_names():
        return D3rlpy(name) if path.is_file() and dumped_by_d3rlpy(name) else D4RL(name)
    if name in (Bandit.__name__, Reacher.__name__):
        return make("source", name, "--source")
    if path.is_file():
        raise InputError(
            f"{name}: not a kind of file that is known here (.hdf5, .npz); the dataset comes first, then weights; "
            f"--source names a source of another kind"
        )
    if path.is_dir() or "/" in name:
        return Minari(name)
    raise InputError(f"{name}: no file, and no dataset of D4RL; {nearest(name, known_names())}; or give a --source")


def _summary(
    origin: Origin,
    verdict: Verdict,
    transitions: TensorDict,
    frames: Frames | None,
    facts: Facts,
    actions: list[list[str]],
) -> Table:
    returns, lengths = facts.returns, facts.lengths
    quarters = torch.quantile(returns, torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    reward = transitions["next", "reward"]
    rows = [
        ["transitions", f"{len(transitions):,}"],
        ["episodes", f"{len(returns):,}"],
        ["environment", origin.environment or "unknown"],
        ["judged against it", verdict.line],
        ["observation", str(observation_shape(transitions, frames))],
        ["ended by termination", f"{int(facts.terminated.sum()):,}"],
        ["cut (truncated)", f"{int((~facts.terminated).sum()):,}"],
        ["length: least, median, most", f"{lengths.min():,}, {lengths.median():,}, {lengths.max():,}"],
        ["return: worst, mean, best", f"{returns.min():.2f}, {returns.mean():.2f}, {returns.max():.2f}"],
        ["return: quartiles", ", ".join(f"{value:.2f}" for value in quarters)],
        ["reward: least, mean, most", f"{reward.min():.3g}, {reward.mean():.3g}, {reward.max():.3g}"],
        *actions,
    ]
    reference, reference_from = matching.reference_of(origin, origin.environment)
    if reference is not None:
        d4rl = origin.d4rl and verdict.fits
        name = "D4RL score" if d4rl else f"normalised score (references: {reference_from})"
        scores = [normalised(float(value), reference) for value in (returns.mean(), returns.max())]
        said = f"{scores[0]:.1f}, {scores[1]:.1f}"
        if verdict.fits is False:
            said = f"none: the references are {origin.environment}'s, the data are not"
        rows.append([f"{name}: mean, best", said])
    # What is said in words is no number.
    return Table(["", "value"], rows, 2)


def _actions(action: Tensor, facts: Facts, low: Tensor, high: Tensor, guess: str) -> list[list[str]]:
    """Rows about actions ``[N, A]`` or ``[N]``."""
    if facts.counts is not None:
        shares = (facts.counts.double() / len(action)).tolist()
        often = [f"{number}: {share:.1%}" for number, share in enumerate(shares, int(low))]
        return [
            ["actions", f"{len(shares):,} discrete ones, {int(low)} to {int(high)}{guess}"],
            ["actions: how often each", _first(often)],
        ]
    return [
        ["actions", f"continuous, {tuple(action.shape[1:])}"],
        ["actions: bounds", _ranges(low, high) + guess],
        ["actions: least to most", _ranges(action.amin(0), action.amax(0))],
        ["actions: at their bounds", _first([f"{value:.1%}" for value in facts.saturation.flatten().tolist()])],
    ]


def _ranges(low: Tensor, high: Tensor) -> str:
    """The range of each action's column; only one range if all are equal."""
    pairs = [f"{least:.3g} to {most:.3g}" for least, most in zip(low.flatten(), high.flatten(), strict=True)]
    return pairs[0] if len(set(pairs)) == 1 else _first(pairs)


def _first(words: list[str], count: int = SHOWN) -> str:
    return ", ".join(words[:count]) + (f" and {len(words) - count} more" if len(words) > count else "")
