from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oper_lightning.nn.imagination import imagine

START = torch.tensor([[0.0], [5.0], [9.0]])


def one_up(observation: Tensor) -> Tensor:
    return torch.ones_like(observation)


def add(observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adds the action; earns the sum; terminates at 8, and is lost beyond 10."""
    following = observation + action
    value = following.squeeze(-1)
    return following, value, value == 8, value > 10


def test_rollouts_fill_the_grid_and_begin_again_at_their_own_start() -> None:
    path = imagine(START, 5, one_up, add)
    assert path.shape == (5, 3)
    assert path["observation"].squeeze(-1).T.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 5, 6], [9, 10, 9, 10, 9]]
    assert path["next_observation"].squeeze(-1).T.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 6, 7], [10, 10, 10, 10, 10]]
    assert path["reward"].T.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 6, 7], [10, 11, 10, 11, 10]]
    assert path["time"].T.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1], [0, 1, 0, 1, 0]]
    ended = [[False] * 4 + [True], [False, False, True, False, True], [False, True, False, True, True]]
    assert path["done"].T.tolist() == ended
    # Only the world's own ends terminate: a rollout that is cut would have gone on.
    assert path["terminated"].T.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("where", ["observation", "reward"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_prediction_that_is_no_number_is_cut(where: str, value: float) -> None:
    def world(observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        following, reward, _, _ = add(observation, action)
        odd = reward == 7
        if where == "observation":
            following = torch.where(odd.unsqueeze(-1), value, following)
        else:
            reward = torch.where(odd, value, reward)
        return following, reward, odd, torch.zeros_like(odd)

    path = imagine(START, 4, one_up, world)
    assert all(path[name].isfinite().all() for name in ("observation", "next_observation", "reward"))
    assert path["observation"].squeeze(-1)[:, 1].tolist() == [5, 6, 5, 6]
    assert path["reward"][:, 1].tolist() == [6, 0, 6, 0]
    assert path["done"][:, 1].tolist() == [False, True, False, True]
    assert not path["terminated"].any()
