"""Data sets in the format of BRAC (Wu et al. 2019, arXiv 1911.11361), in which BREMEN's were published too."""

from __future__ import annotations

import numpy as np

from oper_lightning.data.sources.flat import FlatEpisodes, FlatFile
from oper_lightning.data.sources.source import Bound, Origin, action_box
from oper_lightning.data.sources.tf_bundle import Bundle
from oper_lightning.errors import InputError
from oper_lightning.files import place

KEY = "data/_{}/.ATTRIBUTES/VARIABLE_VALUE"
COLUMNS = {
    "observations": "s1",
    "actions": "a1",
    "rewards": "reward",
    "next_observations": "s2",
    "discount": "discount",
}


class BRAC(FlatFile):
    """A data set of BRAC: a checkpoint of TensorFlow, data.index and data.data-00000-of-00001; TensorFlow isn't needed.

    A discount of 0 is a termination. Ends by time are not recorded: an episode is cut where the next observation is not
    the one of the following row.

    Args:
        path: the checkpoint, such as data/HalfCheetah/gaussian1/data, with or without .index.
        environment: Gymnasium id of the environment that policies are judged in, such as bremen/HalfCheetah-v0.
        max_episode_steps: number of steps after which episodes were cut, if rows do not show it.
        action_low: lowest action that may be taken: one number, or a list with one for each column; by default what the
            environment says, else what the data show.
        action_high: highest action that may be taken, in the same form.
    """

    def __init__(
        self,
        path: str,
        environment: str | None = None,
        max_episode_steps: int | None = None,
        action_low: Bound | None = None,
        action_high: Bound | None = None,
    ) -> None:
        self.path = path
        self.environment = environment
        self.max_episode_steps = max_episode_steps
        self.box = action_box(action_low, action_high, path)

    def origin(self) -> Origin:
        # The file is called data, the folders around it say which.
        name = "/".join(place(self.path).absolute().parent.parts[-2:])
        return Origin(name, self.environment, action_low=self.box[0], action_high=self.box[1])

    def _read(self) -> tuple[dict[str, np.ndarray], FlatEpisodes]:
        """D4RL's columns, and where their episodes are."""
        bundle = Bundle(self.path)
        if KEY.format("s1") not in bundle.names:
            raise InputError(f"{self.path}: no data set of BRAC: no tensor {KEY.format('s1')!r}")
        bundle.possible(KEY.format(name) for name in COLUMNS.values())
        size, index = (self._number(bundle, name) for name in ("current_size", "current_idx"))
        columns = {}
        for name, theirs in COLUMNS.items():
            column = bundle.read(KEY.format(theirs))
            if not column.ndim or not 0 <= size <= len(column) or not 0 <= index <= len(column):
                raise InputError(
                    f"{self.path}: _{theirs} of shape {list(column.shape)}, but {size:,} rows are said to be filled, "
                    f"the next one being {index:,}"
                )
            # A full buffer goes on at its beginning, where its oldest rows are.
            columns[name] = np.roll(column, -index, 0) if 0 < size == len(column) and index % size else column[:size]
        discount = columns.pop("discount")
        if not (finite := np.isfinite(discount)).all():
            raise InputError(f"{self.path}: _discount is not finite at row {int(np.argmin(finite)):,}")
        columns["terminals"] = discount == 0
        return columns, FlatEpisodes(columns, self.path, self.max_episode_steps)

    def _number(self, bundle: Bundle, name: str) -> int:
        number = bundle.read(KEY.format(name))
        if number.size != 1 or number.dtype.kind != "i":
            raise InputError(f"{self.path}: _{name} is of shape {list(number.shape)}; one whole number is needed")
        return int(number.reshape(()))
