"""The LightningDataModule of runs that interact: recorded transitions, and those that the policy gathers on the way."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from oper_lightning.data import log, matching
from oper_lightning.data.datamodule import OfflineDataModule
from oper_lightning.data.gathered import Gathered, Visible
from oper_lightning.data.loaders import shared_out
from oper_lightning.data.mixture import Mixture
from oper_lightning.data.pace import Pace
from oper_lightning.data.sources.online_log import OnlineLog
from oper_lightning.data.sources.source import Source
from oper_lightning.data.table import Table
from oper_lightning.data.unrecorded import unrecorded
from oper_lightning.data.writers.dataset import dataset_id, holds, store, write_dataset
from oper_lightning.envs.players import Players, own
from oper_lightning.envs.rollouts import World
from oper_lightning.errors import InputError, note
from oper_lightning.errors import log as written
from oper_lightning.nn import ranks
from oper_lightning.spec import Batch

EPISODES = 10  # the last ones, over which returns and lengths in training are averaged


class OnlineDataModule(OfflineDataModule):
    """Transitions that the policy in training gathers in an environment, beside recorded ones or alone.

    Before each block of updates the policy takes the steps that pay for them. All that is gathered is kept, drawn from,
    and written into the folder replay of the run, which :class:`oper_lightning.data.sources.online_log.OnlineLog`
    reads. A run that goes on from a checkpoint is, bit for bit, the run that was never interrupted, if the environment
    repeats its episodes; one that does not is noted, and the run goes on with new episodes.

    Args:
        environment: Gymnasium id of the environment to gather in; by default the dataset's.
        source: recorded transitions; none by default.
        parallel: number of copies of the environment that step side by side, over all ranks together.
        updates_per_step: gradient updates for each step of an environment, also called update-to-data ratio.
        warmup: steps of environments before the first update.
        warmup_policy: who acts in them: random takes actions that are uniform between the bounds, policy the policy.
        offline_share: the part of every batch that is recorded; null draws recorded and gathered rows alike.
        visible: when a row may be drawn: at once (step), or when its episode has ended (episode), which returns-to-go
            need.
        patience: seconds that a step or a reset of the environments may take.
        dataset: id of a Minari dataset, such as mine/explored-v0, which holds what was gathered once the run has come
            to its end; none by default.
        options: see :class:`oper_lightning.data.datamodule.OfflineDataModule`.
    """

    def __init__(
        self,
        environment: str | None = None,
        source: Source | None = None,
        parallel: int = 1,
        updates_per_step: float = 1.0,
        warmup: int = 1000,
        warmup_policy: Literal["random", "policy"] = "random",
        offline_share: float | None = None,
        visible: Visible = "step",
        patience: float = 600.0,
        dataset: str | None = None,
        **options: Any,
    ) -> None:
        if source is None and environment is None:
            raise InputError("data.environment must be given where there is no data.source")
        super().__init__(source if source is not None else unrecorded(str(environment), patience), **options)
        self._recorded = source is not None
        self.offline_share = offline_share
        self.environment = environment
        self.parallel = parallel
        self.updates_per_step = updates_per_step
        self.warmup = warmup
        self.warmup_policy = warmup_policy
        self.visible: Visible = visible
        self.patience = patience
        self.dataset = dataset
        self.players: Players | None = None
        self.gathered: Gathered
        self.last: deque[tuple[float, int]]
        """return and length of the episodes that ended last"""
        self._logged: tuple[int, float] | None = None  # updates drawn and time, when numbers were last logged
        self._written = 0  # steps of each copy that are on disk
        for name, least in (("parallel", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise InputError(f"data.{name} is {getattr(self, name)}; at least {least} is needed")
        for name in ("updates_per_step", "patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"data.{name} is {getattr(self, name)}; a number above 0 is needed")
        if offline_share is not None and not 0 <= offline_share <= 1:
            raise InputError(f"data.offline_share is {offline_share}; a share from 0 to 1 is needed")
        for name, none in {"offline_share": None, "priority": None, "upsample": None, "holdout": 0}.items():
            if source is None and getattr(self, name) != none:
                raise InputError(
                    f"data.{name} is for recorded transitions, and there is no data.source: leave it out, or name one"
                )
        if dataset is not None:
            dataset_id(store() / dataset)
        if environment is not None and self.rollouts is not None and self.rollouts.environment is None:
            self.rollouts = dataclasses.replace(self.rollouts, environment=environment)

    # Lengths -----------------------------------------------------------------------------------------------------

    @property
    def pace(self) -> Pace:
        """How many steps pay for how many updates."""
        return Pace(self.updates_per_step, self.parallel, self.warmup)

    def _epoch(self) -> tuple[int, int]:
        """Blocks per epoch and updates per block, each paid for by a whole number of steps of every copy."""
        assert self.trainer is not None
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return int(self.trainer.fast_dev_run), max(round(self.updates_per_step * self.parallel), 1)  # type: ignore[attr-defined]
        if self.trainer.max_steps < 1:
            raise InputError("an online run needs its length, for the room of what it gathers: give trainer.max_steps")
        block = self.updates_per_block or self.pace.block(min(self.updates_per_epoch, self.trainer.max_steps))
        self.pace.check(block)
        return shared_out(self.updates_per_epoch, self.trainer.max_steps, block)

    def steps_at(self, updates: int) -> int:
        """Environment steps, of all copies together, that have been taken when so many updates are done."""
        return self.pace.taken(updates, self._epoch()[1])

    def _room(self) -> int:
        if self.trainer is None or self.trainer.state.fn != "fit":
            return int(not self._recorded)  # judging needs no rows, and a table has at least one
        blocks, updates = self._epoch()
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return self.steps_at(blocks * updates)
        # A run that goes on may have begun with shorter blocks.
        return self.pace.most(self.trainer.max_steps)

    # Loading -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Loads what is recorded, and under ``fit`` makes the copies of the environment.

        Raises:
            InputError: if something about data, environments or lengths does not fit.
        """
        if self.trainer is None:
            raise InputError("an OnlineDataModule gathers by the policy in training: hand it to a trainer")
        if stage == "predict" and not self._recorded:
            raise InputError(
                "an online run without data.source has no transitions to predict for; name some: "
                "--data.source=OnlineLog --data.source.path=<folder of the run>"
            )
        if stage != "fit":
            return super().setup(stage)
        if self.players is not None:
            return None
        module: Any = self.trainer.lightning_module
        if self.dataset is not None and (store() / self.dataset).exists() and not self._published(self.dataset):
            raise InputError(f"data.dataset {self.dataset} exists already ({store() / self.dataset}); name another")
        if not self._recorded and getattr(module, "normalises", False):
            raise InputError(
                "model.normalise_observations goes by recorded transitions, and there is no data.source: "
                "set it to false"
            )
        world = self._world()
        try:
            super().setup(stage)
            table = self._at_hand("transitions")
            actions = table.all["action"]
            matching.check_shapes(self.source, table.observation_shape, actions, world)
        except BaseException:
            world.close()
            raise
        self.gathered = Gathered(table, self.parallel, module.columns, self.visible)
        self.last, self._logged = deque(maxlen=EPISODES), None
        self._mixture = self._mixed(table)
        self.players = Players(world, self.seed, self.parallel, self.patience, self._device())
        return None

    def _world(self) -> World:
        """This rank's copies of the environment."""
        name = self.environment or self.source.origin().environment
        if name is None:
            raise InputError(f"{self.source}: no environment known; name the one to gather in as data.environment")
        return World(name, self._options(), self.source.origin().observation_keys, max(len(own(self.parallel)), 1))

    def _options(self) -> dict[str, Any]:
        """What the environment is made with."""
        return self.source.origin().environment_options if self.environment is None else {}

    def _mixed(self, loaded: Table) -> Mixture:
        later = self.gathered.rows if hasattr(self, "gathered") else None
        weights, share, held = self._weights, self.offline_share, self.held_out
        return Mixture(len(loaded), weights, loaded.device, later, share, self._good(loaded), self.upsample, held)

    # Interaction -------------------------------------------------------------------------------------------------

    def draw(self, updates: int) -> Batch:
        """Lets the policy take the steps that pay for the next updates, then draws their transitions, ``[K, B]``."""
        assert self.players is not None
        if self.gathered.steps == 0:
            if log.is_there(self._folder()) and not self.trainer.fast_dev_run:  # type: ignore[union-attr]
                raise InputError(f"{self._folder()}: what another run gathered; name another folder, or remove it")
            self.players.begin()
            self._gather(self.pace.first(self._epoch()[1]))
        self._gather(round(self.pace.steps(updates)))
        block = super().draw(updates)
        every = self.trainer.log_every_n_steps  # type: ignore[union-attr]
        if every and (self.drawn // every > (self.drawn - updates) // every or self.drawn == self.trainer.max_steps):  # type: ignore[union-attr]
            self._log()
        return block

    def progress(self) -> dict[str, float]:
        """Steps and finished episodes so far, and mean return and length of the last ones."""
        found = {"steps": self.gathered.steps * self.parallel, "episodes": sum(self.gathered.episode)}
        means = (sum(column) / len(self.last) for column in zip(*self.last, strict=True))
        return {**found, **dict(zip(("return", "length"), means, strict=False))}

    def _log(self) -> None:
        """Hands the progress to the loggers, at the update for which the steps have been taken."""
        now, numbers = time.monotonic(), self.progress()
        if self._logged is not None:
            numbers["updates_per_second"] = (self.drawn - self._logged[0]) / (now - self._logged[1])
        self._logged = self.drawn, now
        for logger in self.trainer.loggers:  # type: ignore[union-attr]
            logger.log_metrics({f"online/{name}": value for name, value in numbers.items()}, step=self.drawn)

    @torch.no_grad()
    def _gather(self, steps: int) -> None:
        """Takes some steps with every copy, and keeps what came of it."""
        players, trainer = self.players, self.trainer
        assert players is not None
        assert trainer is not None
        model: Any = trainer.lightning_module
        torch.manual_seed(ranks.stream_seed(self.seed, "explore", players.steps))
        rows: list[dict[str, np.ndarray]] = []
        for step in range(steps):
            random = self.warmup_policy == "random" and players.steps * self.parallel < self.warmup
            with ranks.alike():
                action = self._random() if random else model.explore(torch.from_numpy(players.observation.copy()))
            rows.append(players.step(action))
            if step == steps - 1 or len(rows) * 2 * players.observation.nbytes > log.PART:
                self._keep({key: torch.from_numpy(np.stack([row[key] for row in rows], 1)) for key in log.COLUMNS})
                rows = []

    def _random(self) -> torch.Tensor:
        """Actions of all copies, uniform between the bounds."""
        low, high = self._spec.action_low, self._spec.action_high
        if self._spec.discrete:
            return torch.randint(int(low), int(high) + 1, (self.parallel,))
        return low + (high - low) * torch.rand(self.parallel, *low.shape)

    def _keep(self, columns: dict[str, torch.Tensor]) -> None:
        first = self.gathered.steps
        self.last.extend(self.gathered.put(columns))
        if self.bonus is not None:
            parts = [self.gathered.part(copy, first, self.gathered.steps) for copy in range(self.parallel)]
            self.bonus.seen(torch.stack(parts, 1).reshape(-1))

    # Checkpoints -------------------------------------------------------------------------------------------------

    def _folder(self) -> Path:
        return Path(self.trainer.default_root_dir) / log.FOLDER  # type: ignore[union-attr]

    def state_dict(self) -> dict[str, Any]:
        """Beside what decides the draws, the number of steps; what was gathered is written to the log first."""
        state = super().state_dict()
        if self.players is None:
            return state
        self._write()
        return {**state, "steps": self.gathered.steps, "copies": self.parallel}

    def _write(self) -> None:
        """Puts on disk what has been gathered since the last time."""
        now = self.gathered.steps
        if ranks.rank() == 0 and not self.trainer.fast_dev_run:  # type: ignore[union-attr]
            for first in range(self._written, now, self.gathered.together):
                columns = self.gathered.log(first, min(first + self.gathered.together, now))
                log.write(self._folder(), first, columns, self._about())
        self._written = now

    def _about(self) -> dict[str, Any]:
        """What the log says about where it comes from."""
        assert self.players is not None
        world = self.players.world
        return {
            "environment": world.environment,
            "environment_options": self._options(),
            "action_low": self._spec.action_low.tolist(),
            "action_high": self._spec.action_high.tolist(),
            "observation_keys": list(self._spec.observation_keys),
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Brings what was gathered, and the environments in the middle of their episodes, back to where they were."""
        if self.players is None or not state_dict.get("steps"):
            return super().load_state_dict(state_dict)
        self._same_steps(state_dict)
        folder, steps, path = self._folder(), state_dict["steps"], self.trainer.ckpt_path  # type: ignore[union-attr]
        if path and ranks.rank() == 0:
            log.bring(Path(path).parent / log.FOLDER, folder)
        self.trainer.strategy.barrier()  # type: ignore[union-attr]
        for columns in log.up_to(folder, steps, self.gathered.log(0, 0)):
            self._keep(columns)
        self.trainer.strategy.barrier()  # type: ignore[union-attr]
        if ranks.rank() == 0:
            log.forget(folder, steps)
        self._written = steps
        self.seed = self.players.seed = state_dict["seed"]
        copies, gathered = range(self.parallel), self.gathered
        actions = [gathered.running(copy) for copy in copies]
        if not self.players.repeat(steps, gathered.episode, actions, gathered.last()):
            note(
                f"environment {self.players.world.environment} does not repeat itself: the episodes that were running "
                f"end here, new ones begin; the run goes on, but is not the one that was interrupted"
            )
            gathered.cut([copy for copy in copies if len(actions[copy])])
            self._rewrite()
            self.players.repeat(steps, gathered.episode, [action[:0] for action in actions], gathered.last())
        return super().load_state_dict(state_dict)

    def _same_steps(self, state: dict[str, Any]) -> None:
        """Makes sure that the run goes on with as many steps for its updates as it began with.

        Raises:
            InputError: if it does not.
        """
        steps, copies, drawn = state["steps"], state["copies"], state["drawn"]
        if copies != self.parallel:
            raise InputError(
                f"data.parallel is {self.parallel}, but the run has gathered with {copies} copies of the environment: "
                f"a run that goes on must keep it"
            )
        if drawn < 0 or not 0 <= steps - round(self.pace.steps(drawn)) <= self.pace.most_first:
            raise InputError(
                f"the run has taken {steps * copies:,} steps for {drawn:,} updates, which do not fit data.warmup "
                f"{self.warmup:,} and data.updates_per_step {self.updates_per_step:g}: they must stay"
            )
        if steps > self.gathered.room:
            limit = self.trainer.max_steps  # type: ignore[union-attr]
            raise InputError(f"trainer.max_steps is {limit:,}, but the run has {drawn:,} updates behind it already")

    def _rewrite(self) -> None:
        """Writes the last file of the log anew, in which episodes have been cut."""
        if ranks.rank() == 0:
            first, last, _ = log.files(self._folder())[-1]
            log.write(self._folder(), first, self.gathered.log(first, last), self._about())

    def on_exception(self, exception: BaseException) -> None:
        """Keeps what was gathered."""
        if self.players is not None:
            self._write()

    def teardown(self, stage: str) -> None:
        """Closes the environments; at the end of a run, puts on disk what was gathered."""
        super().teardown(stage)
        if self.players is not None and stage == "fit":
            self.players.close()
            self._write()
            self.players = None
            if self.dataset is not None and ranks.rank() == 0 and not self.trainer.fast_dev_run:  # type: ignore[union-attr]
                self._publish(self.dataset)

    def _published(self, name: str) -> bool:
        """Whether the dataset is this run's, which came to its end and was killed thereafter."""
        if not log.is_there(self._folder()):
            return False
        whole = OnlineLog(str(self._folder()))
        return len(whole) == self.steps_at(self.trainer.max_steps) and holds(store() / name, whole)  # type: ignore[union-attr]

    def _publish(self, name: str) -> None:
        """Writes what was gathered as a Minari dataset."""
        if (store() / name).exists():  # it was published already
            return None
        if self.drawn < self.trainer.max_steps:  # type: ignore[union-attr]
            return note(f"data.dataset {name}: written when the run has reached trainer.max_steps, which it has not")
        made = write_dataset(OnlineLog(str(self._folder()), None, self.environment), "minari", store() / name)
        written.info(f"data.dataset {name}: {made.episodes[0]:,} episodes, {made.rows[0]:,} transitions")
        return None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: no environments."""
        return {**super().__getstate__(), "players": None}
