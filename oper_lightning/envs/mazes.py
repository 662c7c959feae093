"""D4RL's two large mazes in D4RL's own coordinates, so that its recordings and what is gathered are of one task.

Fu et al. 2020, arXiv 2004.07219, "antmaze-large" and "maze2d-large": the map, the robots' constants, where episodes
begin, and what is paid. gymnasium-robotics' mazes lie elsewhere, are mirrored, and have a faster and stronger ant.
"""

from __future__ import annotations

import os
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import ant_v5
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

MAP = (
    "############",
    "#....#.....#",
    "#.##.#.#.#.#",
    "#......#...#",
    "#.####.###.#",
    "#..#.#.....#",
    "##.#.#.#.###",
    "#..#...#.G.#",
    "############",
)
NEAR = 0.5
"""distance from the goal that counts as there"""
CELL = 4.0
"""of the ant's maze; the point's cells have sides of 1"""
STEPS = {"AntMaze": 1000, "Maze2d": 800}


def register() -> None:
    """Registers ``oper/AntMazeLarge-v0`` and ``oper/Maze2dLarge-v0``."""
    for cls in (AntMaze, Maze2d):
        if (name := f"oper/{cls.__name__}Large-v0") not in gymnasium.registry:
            gymnasium.register(name, f"{__name__}:{cls.__name__}", max_episode_steps=STEPS[cls.__name__])


def cells(kind: str) -> Iterator[tuple[int, int]]:
    """Row and column of each cell of a kind: # is a wall, . is free, G is the goal."""
    return ((row, column) for row, line in enumerate(MAP) for column, cell in enumerate(line) if cell == kind)


class AntMaze(ant_v5.AntEnv):
    """An ant that is paid 1 for reaching a far corner of the maze, where its episode ends.

    An observation is D4RL's: position and joints ``[15]``, velocities ``[14]``. The goal is not seen; it lies up to 1.5
    beyond the middle of its cell along each axis, as D4RL draws it.
    """

    def __init__(self, **options: Any) -> None:
        tree = ElementTree.parse(Path(ant_v5.__file__).parent / "assets" / "ant.xml")
        _attributes(tree, ".//option", timestep="0.02")
        _attributes(tree, ".//default/geom", solref=".02 1", solimp=".8 .8 .01")
        for motor in tree.iterfind(".//actuator/motor"):
            motor.set("gear", "30")
        height = CELL / 4
        for row, column in cells("#"):
            x, y = _ant_xy(row, column)
            _wall(tree, f"{x} {y} {height}", f"{CELL / 2} {CELL / 2} {height}", contype="1")
        self.goal = np.zeros(2)
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(
                _written(tree, folder),
                terminate_when_unhealthy=False,
                exclude_current_positions_from_observation=False,
                include_cfrc_ext_in_observation=False,
                **options,
            )
        EzPickle.__init__(self, **options)

    def reset_model(self) -> np.ndarray:
        """Begins an episode, with a goal of its own."""
        ((row, column),) = cells("G")
        away = self.np_random.uniform(0, CELL / 4, 2) + self.np_random.uniform(0, CELL / 8, 2)
        self.goal = _ant_xy(row, column) + away
        observation: np.ndarray = super().reset_model()  # type: ignore[no-untyped-call]
        return observation

    def step(self, action: np.ndarray) -> tuple[NDArray[np.float64], Any, bool, bool, dict[str, Any]]:
        """Takes a step of a tenth of a second."""
        observation, *_ = super().step(action)  # type: ignore[no-untyped-call]
        there = bool(np.linalg.norm(observation[:2] - self.goal) <= NEAR)
        return observation, float(there), there, False, {"success": there}


class Maze2d(MujocoEnv, EzPickle):
    """A point that is pushed about the maze and paid 1 for every step near the goal; it never terminates.

    An observation is the position, whose integers are rows and columns of the map, and the velocity ``[4]``.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 100}  # noqa: RUF012 (Gymnasium's)

    def __init__(self, **options: Any) -> None:
        tree = ElementTree.ElementTree(ElementTree.fromstring(POINT))
        for row, column in cells("#"):
            _wall(tree, f"{row + 1} {column + 1} 0", "0.5 0.5 0.2")
        space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(_written(tree, folder), 1, space, **options)
        EzPickle.__init__(self, **options)
        ((row, column),) = cells("G")
        self.goal = np.array([row, column], dtype=np.float64)
        self.free = np.array([*cells("."), (row, column)], dtype=np.float64)

    def reset_model(self) -> np.ndarray:
        """Puts the point near a free cell's place, in slow motion."""
        place = self.free[self.np_random.integers(len(self.free))]
        position = place + self.np_random.uniform(-0.1, 0.1, 2)
        self._put(position, 0.1 * self.np_random.standard_normal(2))
        return self._seen()

    def step(self, action: np.ndarray) -> tuple[NDArray[np.float64], Any, bool, bool, dict[str, Any]]:
        """Pushes the point, whose speed along each axis is 5 at most before."""
        self._put(self.data.qpos, np.clip(self.data.qvel, -5.0, 5.0))
        self.do_simulation(np.clip(action, -1.0, 1.0), self.frame_skip)
        observation = self._seen()
        there = bool(np.linalg.norm(observation[:2] - self.goal) <= NEAR)
        return observation, float(there), False, False, {"success": there}

    def _put(self, position: np.ndarray, velocity: np.ndarray) -> None:
        self.set_state(position, velocity)  # type: ignore[no-untyped-call]

    def _seen(self) -> NDArray[np.float64]:
        return np.concatenate([self.data.qpos, self.data.qvel])


# The point's zero lies 0.2 beyond the middle of a cell along both axes.
POINT = """
<mujoco>
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
  </default>
  <worldbody>
    <light pos="5 6 20"/>
    <body name="point" pos="1.2 1.2 0">
      <geom type="sphere" size="0.1" rgba="0 0 1 1" contype="1"/>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
    <motor joint="y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
  </actuator>
</mujoco>
"""


def _ant_xy(row: int, column: int) -> np.ndarray:
    """The middle of a cell of the ant's maze; the cell where it begins, in the first free row and column, is (0, 0)."""
    return CELL * np.array([column - 1, row - 1], dtype=np.float64)


def _attributes(tree: ElementTree.ElementTree[Any], path: str, **values: str) -> None:
    found = tree.find(path)
    assert found is not None, path
    found.attrib.update(values)


def _wall(tree: ElementTree.ElementTree[Any], place: str, size: str, **values: str) -> None:
    world = tree.find(".//worldbody")
    assert world is not None
    geom = {"type": "box", "pos": place, "size": size, "conaffinity": "1", "rgba": ".7 .5 .3 1", **values}
    ElementTree.SubElement(world, "geom", geom)


def _written(tree: ElementTree.ElementTree[Any], folder: str) -> str:
    """Writes a model to a file, which MuJoCo needs."""
    path = os.path.join(folder, "maze.xml")
    tree.write(path)
    return path
