from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import (
    RATE,
    ROWS,
    assert_acts_alike_on_images_one_by_one,
    assert_n_steps,
    assert_same,
    discrete_batch,
    discrete_batches,
    discrete_spec,
    moved_by_role,
    ready,
    train,
)
from test_shared import ALGORITHMS, POLICIES, algorithm, data, fit

from oper_lightning import InputError
from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.algorithms.discrete_cql import DiscreteCQL
from oper_lightning.algorithms.qrdqn import QRDQN

EXPLORERS = [
    name for name, cls in POLICIES.items() if "discrete" in cls.kinds and cls.explore is not OfflineAlgorithm.explore
]


def built(pixels: bool = False, **options: Any) -> QRDQN:
    model = QRDQN(**{"hidden_sizes": (16,), "learning_rate": RATE[pixels], "quantiles": 4, **options})
    ready(model, "target_critic", given=discrete_spec(pixels))
    return model


@pytest.mark.parametrize("pixels", [False, True])
def test_a_loop_written_by_hand_learns_the_same(pixels: bool) -> None:
    """The target network is renewed at updates 0, 2 and 4, each time after the targets of that update were made."""
    model = built(pixels, target_update=2)
    online, old = copy.deepcopy(model.critic), copy.deepcopy(model.target_critic)
    optimiser = torch.optim.Adam(online.parameters(), lr=RATE[pixels])
    batches = discrete_batches(pixels, apart=False)
    results = train(model, batches)
    for number, (rows, _, _) in enumerate(batches):
        with torch.no_grad():
            following = rows["next", "observation"]
            best = [max(range(3), key=lambda a: quantiles[a].sum()) for quantiles in online(following)]
            left = old(following)
            goals = [rows["next", "reward"][r] + rows["discount"][r] * left[r, best[r]] for r in range(ROWS)]
        if number in (0, 2, 4):
            old.load_state_dict(online.state_dict())
        quantiles, loss = online(rows["observation"]), torch.zeros(())
        for row in range(ROWS):
            for index in range(4):
                error = goals[row] - quantiles[row, rows["action"][row], index]
                huber = torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5)
                share = torch.where(error > 0, (index + 0.5) / 4, 1 - (index + 0.5) / 4)
                loss = loss + rows["weight"][row] * (share * huber).mean() / ROWS
        assert results[number]["critic_loss"].item() == pytest.approx(loss.item(), rel=1e-4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert_same(model.critic, online)
    assert_same(model.target_critic, old)


def test_it_is_discrete_cql_without_the_penalty() -> None:
    model = built(target_update=2)
    other = DiscreteCQL(cql_weight=0, quantiles=4, target_update=2, hidden_sizes=(16,), learning_rate=RATE[False])
    ready(other, "target_critic", given=discrete_spec())
    batches = discrete_batches(False, apart=False)
    train(model, batches)
    train(other, batches)
    for name, value in other.state_dict().items():
        assert value.equal(model.state_dict()[name]), name


def test_it_reads_evaluation_alone() -> None:
    parts = [discrete_batch(seed) for seed in (1, 2, 3)]
    moved = moved_by_role(built(), parts, [discrete_batch(seed) for seed in (4, 5, 6)])
    assert moved == [{"critic_loss", "value"}, set(), set()]


def test_it_acts_by_the_mean_of_the_quantiles() -> None:
    model, rows = built(), discrete_batch()
    for observation, action in zip(rows["observation"], model.act(rows["observation"]), strict=True):
        means = [sum(quantiles) / 4 for quantiles in model.critic(observation).tolist()]
        assert means[action] == max(means)
    assert_acts_alike_on_images_one_by_one(built(pixels=True))


def test_targets_of_several_steps_and_how_often_they_are_renewed() -> None:
    assert_n_steps(built(n_step=2, discount=0.5))
    assert [number for number in range(10) if built(target_update=4).prepare(number)] == [0, 4, 8]
    for options in ({"target_update": 0}, {"quantiles": 0}):
        with pytest.raises(InputError, match="0 must be at least 1"):
            QRDQN(**options)


def test_epsilon_falls_linearly_and_stays() -> None:
    model = built(epsilon=0.2, epsilon_decay=4)
    seen = []
    for number in range(7):
        seen.append(model.epsilon.item())
        model.prepare(number)
    assert seen == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert built(epsilon=0.2, epsilon_decay=0).epsilon.item() == pytest.approx(0.2)
    for cls in (QRDQN, DiscreteCQL, ALGORITHMS["DiscreteBCQ"]):
        with pytest.raises(InputError, match=r"epsilon 1.5 is not in \[0, 1\]"):
            cls(epsilon=1.5)
    with pytest.raises(InputError, match="epsilon_decay -1 must not be negative"):
        QRDQN(epsilon_decay=-1)


def test_exploring_replaces_as_many_actions_as_epsilon_says() -> None:
    """A random action is the best one by chance, too, once in three."""
    model, observation = built(epsilon=0.3, epsilon_decay=0), torch.randn(30_000, 3)
    best = model.act(observation)
    for offset in (0, -2):
        model.action_centre.fill_(offset)
        chosen = model.explore(observation) - offset
        assert chosen.dtype is torch.int64
        assert (chosen != best).double().mean().item() == pytest.approx(0.3 * 2 / 3, abs=0.01)
        others = (chosen - best)[chosen != best] % 3
        assert (others == 1).double().mean().item() == pytest.approx(0.5, abs=0.02)
    model.epsilon.fill_(0)
    assert (model.explore(observation) + 2).equal(best)


def test_a_checkpoint_explores_as_its_run_did(tmp_path: Path) -> None:
    model = algorithm("QRDQN", epsilon=0.1, epsilon_decay=100)
    fit(model, data("discrete"), tmp_path)
    alone = QRDQN.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert alone.epsilon.item() == pytest.approx(1 - 0.9 * 39 / 100)


@pytest.mark.parametrize("name", EXPLORERS)
@pytest.mark.parametrize("kind", ["discrete", "images"])
def test_every_explorer_is_random_and_a_function_of_the_generator(name: str, kind: Any, tmp_path: Path) -> None:
    module, model = data(kind), algorithm(name)
    fit(model, module, tmp_path, 20)
    observation = module.rows(slice(None))["observation"]
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            drawn.append(model.explore(observation))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
    assert drawn[0].shape == (200,)
    assert set(drawn[0].tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("name", ["CRR", "DiscreteIQL"])
def test_policies_are_sampled(name: str) -> None:
    model = algorithm(name)
    ready(model, given=discrete_spec())
    observation = torch.randn(1, 3)
    logits = model.network(observation)[1] if name == "CRR" else model.policy(observation)
    chosen = model.explore(observation.expand(30_000, 3))
    shares = torch.bincount(chosen, minlength=3) / 30_000
    torch.testing.assert_close(shares, logits.detach().softmax(-1)[0], rtol=0, atol=0.01)
