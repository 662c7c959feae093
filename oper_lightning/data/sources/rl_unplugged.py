"""RL Unplugged's Atari data: logged replay of DQN agents with sticky actions, 46 games, five runs each.

Gulcehre et al. 2020, arXiv 2006.13888, from Agarwal et al. 2020, arXiv 1907.04543.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from tensordict import TensorDict

from oper_lightning.data.sources.download import download
from oper_lightning.data.sources.families import FRAMES, ROW, ROWS, SIZE, STACK
from oper_lightning.data.sources.pictures import SIDE
from oper_lightning.data.sources.shards import DONE, convert, is_done, read_about
from oper_lightning.data.sources.source import GIVEN, Origin, Source, given_reference
from oper_lightning.data.transitions import transitions_from
from oper_lightning.errors import InputError, nearest, note
from oper_lightning.files import place

ADDRESS = "https://storage.googleapis.com/rl_unplugged"
FOLDERS = {"episodes": ("atari_episodes_ordered", 50), "transitions": ("atari", 100)}
"""where each family lies, and in how many shards a run"""
SHORT = ("Carnival", "Gravitar", "StarGunner")  # one shard of episodes less
STICKY = 0.25  # chance with which the action before was played instead
PART = 1024  # rows that are handed out together, unless an episode is longer
# No memory is to be set aside for pages that might be written: files larger than it would be refused. Python before
# 3.13 does not name the flag.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

# Games by the size of their minimal action set.
_GAMES = {
    3: "Freeway",
    4: "Atlantis Breakout",
    6: "Carnival DemonAttack NameThisGame Pong Pooyan Qbert SpaceInvaders UpNDown",
    7: "Assault",
    8: "Gopher Phoenix",
    9: "Asterix BeamRider CrazyClimber Enduro MsPacman VideoPinball",
    10: "Amidar TimePilot WizardOfWor",
    14: "KungFuMaster",
    18: "Alien BankHeist BattleZone Boxing Centipede ChopperCommand DoubleDunk FishingDerby Frostbite Gravitar Hero "
    "IceHockey Jamesbond Kangaroo Krull Riverraid RoadRunner Robotank Seaquest StarGunner YarsRevenge Zaxxon",
}
ACTIONS = {game: count for count, games in _GAMES.items() for game in games.split()}


class RLUnplugged(Source):
    """Shards of RL Unplugged's Atari data, from files or downloaded by game, run and number.

    Each shard is converted once, into $RLU_DATASET_DIR/converted (default ~/.rl_unplugged/datasets), and then read from
    there. Observations are stacks of four frames of 84 × 84 pixels.

    Args:
        path: a shard that was downloaded before; both families are recognised.
        game: name of the game, such as Pong; its shards are downloaded to $RLU_DATASET_DIR unless path is given.
        run: number of the run, 1 to 5; not with a path.
        shard: number of the shard, from 0, or a list of several; not with a path.
        family: episodes are whole and in order (50 shards a run); transitions are single and in no order (100 shards).
            Not with a path: the file itself tells.
        reward: clipped to [-1, 1], as Atari agents are trained; or unclipped, which only episodes have.
        keep_broken: of a shard that is damaged or cut off, use the transitions before the damage.
        reference: the two returns that score 0 and 100.
    """

    def __init__(
        self,
        path: str | None = None,
        game: str | None = None,
        run: int = 1,
        shard: int | list[int] = 0,
        family: Literal["episodes", "transitions"] = "episodes",
        reward: Literal["clipped", "unclipped"] = "clipped",
        keep_broken: bool = False,
        reference: tuple[float, float] | None = None,
    ) -> None:
        if path is None and game is None:
            raise InputError("RLUnplugged: give the path of a shard, or a game")
        if path is not None and (run, shard, family) != (1, 0, "episodes"):
            raise InputError(f"RLUnplugged: {path} is one shard, of one family; leave out run, shard and family")
        self.path = path
        self.game = game or _game_of(place(path or ""))
        self.run = run
        self.shards = [shard] if isinstance(shard, int) else list(shard)
        self.family = family
        self.reward = reward
        self.keep_broken = keep_broken
        self.reference = given_reference(reference, path or f"RLUnplugged {game}")
        if game is not None and game not in ACTIONS:
            raise InputError(f"RLUnplugged: game {game!r} is none of RL Unplugged's; {nearest(game, ACTIONS)}")
        if not 1 <= run <= 5:
            raise InputError(f"RLUnplugged: run {run}; there are runs 1 to 5")
        count = FOLDERS[family][1] - (family == "episodes" and game in SHORT)
        if wrong := [number for number in self.shards if not 0 <= number < count]:
            raise InputError(f"RLUnplugged: shard {wrong[0]}; runs have shards 0 to {count - 1}")
        if not self.shards or len(set(self.shards)) < len(self.shards):
            raise InputError(f"RLUnplugged: shard {self.shards}; name each once")
        self.count = count

    def prepare(self) -> None:
        for number in self.shards:
            file, folder = self._file(number), self._folder(number)
            if self.path is None and not is_done(file, folder, self.keep_broken):
                download(self._name(number), f"{ADDRESS}/{self._relative(number)}", file)
            convert(file, folder, self._name(number), self.keep_broken)

    def origin(self) -> Origin:
        actions = ACTIONS.get(self.game or "")
        name = place(self.path).name if self.path is not None else f"run_{self.run}"
        return Origin(
            dataset=f"rl_unplugged/{self.game}/{name}" if self.game else name,
            environment=f"oper/{self.game}-v0" if self.game else None,
            environment_options={"sticky": STICKY} if self.game else {},
            action_low=None if actions is None else np.array(0),
            action_high=None if actions is None else np.array(actions - 1),
            bounded_by="game",
            reference=self.reference,
            reference_from=GIVEN,
        )

    def __str__(self) -> str:
        return self.path or f"{self.game} run {self.run} shard {', '.join(map(str, self.shards))}"

    def __len__(self) -> int:
        return sum(map(len, self._converted))

    def episodes(self) -> Iterator[TensorDict]:
        for shard in self._converted:
            yield from shard.episodes(self.reward)
        vars(self).pop("_converted", None)  # unmaps them; the storage has the rows now

    @cached_property
    def _converted(self) -> list[Converted]:
        return [Converted(self._folder(number), self._name(number)) for number in self.shards]

    def _name(self, number: int) -> str:
        return self.path or f"{self.game} run {self.run} shard {number}"

    def _relative(self, number: int) -> str:
        return f"{FOLDERS[self.family][0]}/{self.game}/run_{self.run}-{number:05d}-of-{self.count:05d}"

    def _file(self, number: int) -> Path:
        return place(self.path) if self.path is not None else _datasets() / self._relative(number)

    def _folder(self, number: int) -> Path:
        file = self._file(number).resolve()
        digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:12]
        return _datasets() / "converted" / f"{file.parent.name[:40]}-{file.name[:80]}-{digest}"


def _datasets() -> Path:
    return Path(os.environ.get("RLU_DATASET_DIR", "~/.rl_unplugged/datasets")).expanduser()


def _game_of(file: Path) -> str | None:
    """The game that a file belongs to by the name of its folder, as published."""
    name = file.absolute().parent.name
    return name if name in ACTIONS else None


class Converted:
    """A converted shard, mapped into memory.

    Args:
        folder: where it lies.
        origin: what messages call it.

    Raises:
        InputError: if it was not converted, or its files are not whole.
    """

    def __init__(self, folder: Path, origin: str) -> None:
        if not (folder / DONE).is_file():
            raise InputError(f"{origin}: not converted yet; call prepare() first")
        about, self.origin = read_about(folder / DONE), origin
        sizes = {FRAMES: about["frames"] * SIZE, ROWS: about["rows"] * ROW.itemsize}
        for name, size in sizes.items():
            if not size or not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise InputError(f"{folder / name}: not the {size:,} bytes that were converted; remove {folder}")
        rows = np.fromfile(folder / ROWS, ROW)
        self.columns = {name: rows[name].copy() for name in ROW.names or ()}
        # Private and writable, as torch wants it; nobody writes.
        with open(folder / FRAMES, "rb") as file:
            flags, protection = mmap.MAP_PRIVATE | NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            memory = mmap.mmap(file.fileno(), 0, flags=flags, prot=protection)
        self.frames = np.frombuffer(memory, np.uint8).reshape(-1, SIDE, SIDE)
        highest = {
            "first": about["frames"] - STACK,
            "following": about["frames"] - STACK,
            "action": 17,
            "terminated": 1,
        }
        for name, most in highest.items():
            if self.columns[name].min() < 0 or self.columns[name].max() > most:
                raise InputError(f"{folder / ROWS}: {name} is not what was converted; remove {folder}")
        self.whole = not np.isnan(self.columns["unclipped"]).any()
        """whether episodes were recorded whole; of single transitions only clipped rewards were"""

    def __len__(self) -> int:
        return len(self.columns["action"])

    def episodes(self, reward: Literal["clipped", "unclipped"]) -> Iterator[TensorDict]:
        """All transitions; runs of them that follow from each other are episodes."""
        columns = self.columns
        if reward == "unclipped" and not self.whole:
            raise InputError(f"{self.origin}: its rewards were recorded clipped; set the source's reward to clipped")
        if not self.whole and not columns["terminated"].any():
            note(f"{self.origin}: no transition is terminal: values will be bootstrapped after every one")
        follows = columns["first"][1:] == columns["following"][:-1]
        ends = np.append(~follows, True) | (columns["terminated"] == 1)
        start = low = 0
        for high in (np.nonzero(ends)[0] + 1).tolist():
            if high - start > PART and low > start:
                yield self._part(slice(start, low), ends, reward)
                start = low
            low = high
        yield self._part(slice(start, low), ends, reward)

    def _part(self, part: slice, ends: np.ndarray, reward: str) -> TensorDict:
        columns = {name: column[part] for name, column in self.columns.items()}
        return transitions_from(
            self._stacks(columns["first"]),
            columns["action"],
            columns[reward],
            self._stacks(columns["following"]),
            columns["terminated"],
            ends[part],
            # What single transitions add up to is no return.
            episode_return=None if self.whole else columns["episode_return"],
        )

    def _stacks(self, first: np.ndarray) -> np.ndarray:
        """Stacks ``[M, 4, 84, 84]`` by their first frames: a view, where these are evenly spaced."""
        steps = np.unique(np.diff(first))
        if len(steps) > 1:
            return self.frames[first[:, None] + np.arange(STACK)]
        step = int(steps[0]) if len(steps) else 1
        return np.lib.stride_tricks.as_strided(
            self.frames[first[0] :], (len(first), STACK, SIDE, SIDE), (step * SIZE, SIZE, SIDE, 1)
        )
