"""BREMEN: what it takes from the runs before it, what it imagines, how far it steps, and that it learns."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from networks import spec
from tensordict import TensorDict
from test_shared import DATA, algorithm, before, data, fit, parameters, same
from torch import Tensor
from torchrl.objectives.value.functional import generalized_advantage_estimate

from oper_lightning import InputError
from oper_lightning.algorithms.bremen import BREMEN
from oper_lightning.envs.tasks import Ant
from oper_lightning.nn.baselines import LinearBaseline
from oper_lightning.nn.dynamics import Dynamics, Step
from oper_lightning.spec import Batch, Task
from oper_lightning.training import earlier

SIZES = {"horizon": 5, "hidden_sizes": (16, 16)}


class Shift(Dynamics):
    """A known world: actions move what is observed by a tenth; beyond 3 the model is lost."""

    def __init__(self, observations: int = 2) -> None:
        super().__init__(2, observations, observations, [4], True, False, 0.5)

    def step(self, observation: Tensor, action: Tensor, shared: bool = False) -> Step:
        following = observation + action / 10
        return Step(following, following.sum(-1), (following.abs() > 3).any(-1))


class Near(Task):
    """Being near the origin is good, and at a distance of 2 worth nothing; there an episode ends."""

    def reward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return 4 - next_observation.square().sum(-1)

    def terminated(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        return next_observation.norm(dim=-1) > 2


def ready(**options: Any) -> BREMEN:
    """In a known world of two dimensions."""
    torch.manual_seed(0)
    model = BREMEN(**{"dynamics": "", **SIZES, **options})
    model._build(spec(2, 2))
    model.model = Shift()
    model.configure_optimizers()
    return model


def batch(rows: int = 40, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, 2, generator=generator)
    part = TensorDict({"start": start, "weight": torch.ones(rows)}, batch_size=[rows])
    return Batch(part, part, part)


# What it takes from the runs before ----------------------------------------------------------------------------------


class Begun(Callback):
    """The state with which training begins."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.state = parameters(pl_module)


def stages(folder: Path, **options: Any) -> dict[str, str]:
    """Copies of a tiny ensemble and of a clone, the latter with options of its own."""
    dynamics, clone = before(data())
    shutil.copy(dynamics, folder / "dynamics.ckpt")
    if options:
        fit(algorithm("BC", **options), data(), folder / "clone", 20)
        clone = str(folder / "clone" / "last.ckpt")
    shutil.copy(clone, folder / "clone.ckpt")
    return {"dynamics": str(folder / "dynamics.ckpt"), "clone": str(folder / "clone.ckpt")}


@pytest.mark.parametrize("normalises", [True, False])
def test_the_clones_policy_and_statistics_are_taken_exactly(normalises: bool, tmp_path: Path) -> None:
    paths = stages(tmp_path, normalise_observations=normalises, learning_rate=3e-3)
    clone = torch.load(paths["clone"], weights_only=True)["state_dict"]
    clone["observation_mean"] += 1  # not what these data say
    whole = torch.load(paths["clone"], weights_only=True)
    torch.save({**whole, "state_dict": clone}, paths["clone"])
    begun, model = Begun(), algorithm("BREMEN", alpha=0.1, **paths)
    fit(model, data(), tmp_path / "run", 20, callbacks=[begun])
    names = [name for name in clone if name.startswith("policy.")]
    assert names
    for name in names:
        assert begun.state[name].equal(clone[name])
        assert begun.state[name.replace("policy.", "behaviour.network.")].equal(clone[name])
    mean = clone["observation_mean"] if normalises else torch.zeros(3)
    std = clone["observation_std"] if normalises else torch.ones(3)
    for name in ("observation_mean", "behaviour.mean"):
        assert begun.state[name].equal(mean)
        assert begun.state[name.replace("mean", "std")].equal(std)
    after = parameters(model)
    assert not after[names[0]].equal(clone[names[0]])
    assert after["observation_mean"].equal(mean)
    assert after[names[0].replace("policy.", "behaviour.network.")].equal(clone[names[0]])


def test_the_ensembles_best_weights_are_taken_exactly(tmp_path: Path) -> None:
    paths, begun = stages(tmp_path), Begun()
    checkpoint = torch.load(paths["dynamics"], weights_only=True)
    theirs = checkpoint["state_dict"]
    for name in theirs:
        if name.startswith("best."):  # the last weights are no worse after so short a run
            theirs[name] = theirs[name] + 0.01
    torch.save(checkpoint, paths["dynamics"])
    fit(algorithm("BREMEN", **paths), data(), tmp_path / "run", 20, callbacks=[begun])
    names = [name for name in theirs if name.startswith("best.")]
    assert len(names) > 10
    for name in names:
        assert begun.state[name.replace("best.", "model.")].equal(theirs[name])


def test_a_run_can_go_on_from_an_earlier_policy(tmp_path: Path) -> None:
    paths = stages(tmp_path)
    fit(algorithm("BREMEN", **paths), data(), tmp_path / "first", 20)
    first = torch.load(tmp_path / "first" / "last.ckpt", weights_only=True)["state_dict"]
    begun = Begun()
    model = algorithm("BREMEN", dynamics=paths["dynamics"], start=str(tmp_path / "first" / "last.ckpt"))
    fit(model, data(), tmp_path / "second", 20, callbacks=[begun])
    assert same(begun.state, first)
    assert not same(parameters(model), first)


def test_without_a_clone_statistics_are_those_of_the_data(tmp_path: Path) -> None:
    begun = Begun()
    fit(algorithm("BREMEN", dynamics=stages(tmp_path)["dynamics"]), data(), tmp_path / "run", 20, callbacks=[begun])
    observations = torch.from_numpy(DATA["continuous"]["observations"])
    torch.testing.assert_close(begun.state["observation_mean"], observations.mean(0))


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.5}, {"baseline": "network"}, {"likelihood_std": "head", "alpha": 0.1, "member": "shared"}],
    ids=["plain", "alpha", "network", "head"],
)
def test_a_run_goes_on_bit_for_bit_when_the_runs_before_are_gone(options: dict[str, Any], tmp_path: Path) -> None:
    paths = stages(tmp_path, policy="sampled" if "likelihood_std" in options else "deterministic")
    whole = algorithm("BREMEN", **paths, **options)
    fit(whole, data(), tmp_path / "whole", 40)
    fit(algorithm("BREMEN", **paths, **options), data(), tmp_path / "part", 20)
    for path in paths.values():
        Path(path).unlink()
    part = algorithm("BREMEN", **paths, **options)
    fit(part, data(), tmp_path / "part", 40, seed=99, ckpt_path=tmp_path / "part" / "last.ckpt")
    assert same(parameters(whole), parameters(part))
    loaded = BREMEN.load_from_checkpoint(tmp_path / "part" / "last.ckpt", weights_only=True)
    observation = torch.randn(5, 3)
    assert loaded.act(observation).equal(whole.act(observation))


def test_a_task_is_no_part_of_the_checkpoint(tmp_path: Path) -> None:
    fit(algorithm("BREMEN", task=Near(), **stages(tmp_path)), data(), tmp_path / "run", 20)
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert "task" not in checkpoint["hyper_parameters"]
    assert BREMEN.load_from_checkpoint(tmp_path / "run" / "last.ckpt", weights_only=True).task is None


# What it refuses -----------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, match: str, **options: Any) -> None:
    with pytest.raises(InputError, match=match) as error:
        fit(algorithm("BREMEN", **{**stages(tmp_path), **options}), data(), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_it_needs_a_dynamics_ensemble(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^model.dynamics must be given: the last.ckpt of a DynamicsEnsemble's run"):
        earlier.read_dynamics("", spec())
    clone = stages(tmp_path)["clone"]
    refused(tmp_path, r"clone.ckpt holds oper_lightning.algorithms.bc.BC; model.dynamics needs a Dyn", dynamics=clone)
    refused(tmp_path, "missing.ckpt: no such checkpoint", dynamics=str(tmp_path / "missing.ckpt"))


def changed(path: str, section: str, **entries: Any) -> str:
    """The path of a checkpoint, after some entries of a section were changed."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint[section] = {**checkpoint[section], **entries}
    torch.save(checkpoint, path)
    return path


def test_an_ensemble_of_another_world_is_refused(tmp_path: Path) -> None:
    for entries, match in (
        (
            {"observation_shape": [4], "observation_mean": torch.zeros(4), "observation_std": torch.ones(4)},
            r"\(4,\) against .*model.dynamics",
        ),
        ({"action_low": -2 * torch.ones(2)}, "within other bounds .*the same data.source.action_low"),
    ):
        path = changed(stages(tmp_path)["dynamics"], "spec", **entries)
        with pytest.raises(InputError, match=f"dynamics.ckpt was made for .*{match}"):
            fit(algorithm("BREMEN", dynamics=path), data(), tmp_path / "run")


def test_a_clone_of_another_world_or_none_is_refused(tmp_path: Path) -> None:
    runs = stages(tmp_path)
    with pytest.raises(InputError, match=r"holds .*DynamicsEnsemble, which has no policy: a clone needs"):
        fit(algorithm("BREMEN", **{**runs, "clone": runs["dynamics"]}), data(), tmp_path / "run")
    path = changed(runs["clone"], "spec", action_low=-2 * torch.ones(2))
    with pytest.raises(InputError, match=r"clone\.ckpt was made for actions within other bounds"):
        fit(algorithm("BREMEN", **{**runs, "clone": path}), data(), tmp_path / "run")


@pytest.mark.parametrize(
    "entries",
    [
        {"members": 3},
        {"hidden_sizes": [16]},
        {"hidden_sizes": "16"},
        {"reward": None},
        {"members": 10**15},
        {"kind": "gaussian"},
    ],
    ids=str,
)
def test_an_ensemble_that_contradicts_itself_is_refused(entries: dict[str, Any], tmp_path: Path) -> None:
    path = changed(stages(tmp_path)["dynamics"], "hyper_parameters", **entries)
    with pytest.raises(InputError, match=r"dynamics.ckpt") as error:
        fit(algorithm("BREMEN", dynamics=path), data(), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    name = "best.networks.weights.0"
    weight = torch.load(stages(tmp_path)["dynamics"], weights_only=True)["state_dict"][name]
    path = changed(str(tmp_path / "dynamics.ckpt"), "state_dict", **{name: torch.full_like(weight, math.inf)})
    with pytest.raises(InputError, match=r"dynamics.ckpt: best.networks.weights.0 is not finite"):
        fit(algorithm("BREMEN", dynamics=path), data(), tmp_path / "run")


def test_without_a_learnt_reward_a_task_is_needed(tmp_path: Path) -> None:
    fit(algorithm("DynamicsEnsemble", reward=False), data(), tmp_path / "dynamics", 20)
    dynamics = str(tmp_path / "dynamics" / "last.ckpt")
    refused(tmp_path, "it has learnt no reward: name a task", dynamics=dynamics)
    fit(algorithm("BREMEN", **{**stages(tmp_path), "dynamics": dynamics, "task": Near()}), data(), tmp_path / "run", 20)


def test_a_task_for_another_robot_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "the task Ant knows observations of 27 columns; those of", task=Ant())


def test_a_policy_without_a_clone_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dynamics = stages(tmp_path)["dynamics"]
    fit(algorithm("BREMEN", dynamics=dynamics), data(), tmp_path / "run", 20)
    assert "no clone (model.clone): the policy begins with random weights" in caplog.text


def test_a_clone_of_another_make_is_refused(tmp_path: Path) -> None:
    refused(
        tmp_path,
        r"clone.ckpt: policy.body.* a clone needs model.policy=deterministic and model.hidden_sizes=\[8\]",
        hidden_sizes=(8,),
    )
    refused(tmp_path, r"clone.ckpt: .* a clone needs model.policy=sampled and", likelihood_std="head")
    refused(tmp_path, r"clone.ckpt: baseline.* model.start needs a BREMEN", start=stages(tmp_path)["clone"])


def test_held_out_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.holdout: BREMEN fits nothing to rows"):
        fit(algorithm("BREMEN", **stages(tmp_path)), data(holdout=0.25), tmp_path / "run")


def test_arguments_that_contradict_each_other_are_refused() -> None:
    for options, match in (
        ({"compile": "default"}, "model.compile: BREMEN"),
        ({"horizon": 0}, "must be above 0"),
        ({"std": 0.0}, "must be above 0"),
        ({"fisher_share": 1.5}, "fisher_share at most 1"),
        ({"sampling_std": "head"}, "only with likelihood_std=head"),
        ({"alpha": 0.1}, "name one"),
    ):
        with pytest.raises(InputError, match=match):
            BREMEN(**options)


@pytest.mark.parametrize(
    "sizes",
    [None, 5, [], {}, {"members": 2}, {1: 2}, "members", {"members": -1}, {"members": 10**15}, {"hidden_sizes": None}],
    ids=str,
)
def test_a_checkpoint_whose_ensemble_is_odd_is_refused(sizes: Any, tmp_path: Path) -> None:
    fit(algorithm("BREMEN", **stages(tmp_path)), data(), tmp_path, 20)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    if isinstance(sizes, dict) and len(sizes) == 1 and 1 not in sizes and sizes != {"members": 2}:
        sizes = {**checkpoint["dynamics"], **sizes}
    torch.save({**checkpoint, "dynamics": sizes}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError) as error:
        BREMEN.load_from_checkpoint(tmp_path / "odd.ckpt", weights_only=True)
    assert "\n" not in str(error.value)


# What it imagines ----------------------------------------------------------------------------------------------------


def test_the_world_is_the_ensembles_and_the_tasks() -> None:
    model = ready(task=Near())
    model.action_centre.fill_(1.0)
    model.action_scale.fill_(4.0)
    seen = []

    class Spy(Near):
        def reward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
            seen.append(action)
            return super().reward(observation, action, next_observation)

    model.task = Spy()
    observation, action = (
        torch.tensor([[0.0, 0.0], [1.95, 0.0], [2.99, 0.0]]),
        torch.tensor([[0.5, -3.0], [1, 0], [1, 0]]),
    )
    following, reward, terminated, lost = model.world(observation, action)
    # Actions are cut at the bounds before anything sees them, and the task sees them in its own units.
    torch.testing.assert_close(following, torch.tensor([[0.05, -0.1], [2.05, 0.0], [3.09, 0.0]]))
    assert seen[0].tolist() == [[3, -3], [5, 1], [5, 1]]
    torch.testing.assert_close(reward, 4 - following.square().sum(-1))
    assert terminated.tolist() == [False, True, True]
    assert lost.tolist() == [False, False, True]
    model.task = None
    _, learnt, never, _ = model.world(observation, action)
    torch.testing.assert_close(learnt, following.sum(-1))
    assert not never.any()


@pytest.mark.parametrize("member", ["own", "shared"])
def test_members_are_dealt_as_asked(member: str) -> None:
    asked = []

    class Asked(Shift):
        def step(self, observation: Tensor, action: Tensor, shared: bool = False) -> Step:
            asked.append(shared)
            return super().step(observation, action, shared)

    model = ready(member=member)
    model.model = Asked()
    model.update(batch())
    assert asked == [member == "shared"] * 5


@pytest.mark.parametrize("kind", ["fixed", "mixed", "head"])
def test_actions_spread_as_asked(kind: str) -> None:
    heads = {} if kind == "fixed" else {"likelihood_std": "head", "sampling_std": "head" if kind == "head" else "fixed"}
    model = ready(std=0.3, **heads)
    observation = torch.randn(1, 2).expand(100_000, 2)
    drawn = model.sample(observation)
    normal = model.normal(model.policy, observation[:1])
    own = normal.stddev[0]
    expected = 0.3 * own if kind == "head" else torch.full((2,), 0.3)
    torch.testing.assert_close(drawn.mean(0), normal.mean[0], rtol=0, atol=5e-3)
    torch.testing.assert_close(drawn.std(0), expected, rtol=2e-2, atol=0)
    assert own.equal(torch.full((2,), 0.3)) == (kind == "fixed")  # what ratios and divergences go by


def test_exploring_is_acting_with_noise_within_the_bounds() -> None:
    model = ready(std=0.7)
    model.action_centre.fill_(1.0)
    model.action_scale.fill_(4.0)
    observation = torch.randn(1000, 2)
    with torch.no_grad():
        explored, acted = model.explore(observation), model.act(observation)
    assert explored.min() == -3
    assert explored.max() == 5
    inside = ((explored > -3) & (explored < 5)).all(-1)
    assert (explored - acted)[inside].std() > 1


def imagined(model: BREMEN, ends: bool = True) -> TensorDict:
    """Rollouts as :func:`oper_lightning.nn.imagination.imagine` makes them, with ends here and there."""
    generator = torch.Generator().manual_seed(3)
    shape = (12, 4)
    done = torch.rand(shape, generator=generator) < 0.3
    done[-1] = True
    return TensorDict(
        {
            "observation": torch.randn(*shape, 2, generator=generator),
            "next_observation": torch.randn(*shape, 2, generator=generator),
            "reward": torch.randn(shape, generator=generator),
            "done": done,
            "terminated": done & (torch.rand(shape, generator=generator) < 0.5),
            "time": torch.rand(shape, generator=generator) * 50,
        },
        batch_size=shape,
    )


@pytest.mark.parametrize("bootstraps", [True, False])
def test_advantages_are_those_of_a_loop_and_of_torchrl(bootstraps: bool) -> None:
    model = ready(discount=0.9, gae_lambda=0.8, bootstrap_truncated=bootstraps)
    path = imagined(model)
    model.baseline.coefficients.copy_(10 * torch.randn(8, dtype=torch.float64))
    low, high = 10 * path["reward"].min(), 10 * path["reward"].max()  # rewards for ten steps, as 1 / (1 - discount)
    value = model.baseline(path["observation"], path["time"]).clamp(low, high)
    following = model.baseline(path["next_observation"], path["time"] + 1).clamp(low, high)
    assert (value == low).any() | (value == high).any()
    ends = path["terminated"] if bootstraps else path["done"]
    expected = torch.zeros(12, 4, dtype=torch.float64)
    for rollout in range(4):
        for begin in range(12):
            factor = 1.0
            for step in range(begin, 12):
                after = 0.0 if ends[step, rollout] else following[step, rollout]
                error = path["reward"][step, rollout] + 0.9 * after - value[step, rollout]
                expected[begin, rollout] += factor * error
                factor *= 0.9 * 0.8
                if path["done"][step, rollout]:
                    break
    advantage, target = model.advantages(path)
    torch.testing.assert_close(advantage, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(target, expected + value, rtol=1e-5, atol=1e-6)
    columns = (value, following, path["reward"].double(), path["done"], ends)
    theirs, _ = generalized_advantage_estimate(0.9, 0.8, *[column.unsqueeze(-1) for column in columns], time_dim=0)
    torch.testing.assert_close(advantage, theirs.squeeze(-1), rtol=1e-5, atol=1e-6)


def test_alpha_is_the_price_of_leaving_the_clone() -> None:
    model = ready(alpha=0.5, clone="some", gae_lambda=0.0, std=0.2)
    model.behaviour.mean.fill_(0.3)
    model.behaviour.std.fill_(2.0)
    path = imagined(model)
    mine = torch.tanh(model.policy.body(model.observe(path["observation"])))
    theirs = torch.tanh(model.behaviour.network.body((path["observation"] - 0.3) / 2))
    penalty = 0.5 * (mine - theirs).square().sum(-1) / (2 * 0.2**2)
    assert penalty.mean() > 0.01
    advantage, _ = model.advantages(path)  # values are 0 and so is lambda: rewards themselves
    torch.testing.assert_close(advantage, (path["reward"] - penalty).double(), rtol=1e-5, atol=1e-6)


def test_the_price_goes_by_both_spreads_where_policies_have_their_own() -> None:
    model = ready(alpha=0.5, clone="some", gae_lambda=0.0, likelihood_std="head")
    with torch.no_grad():
        model.behaviour.network.body[-1].bias += 0.5
    path = imagined(model)
    mine = model.policy(path["observation"])
    theirs = model.behaviour.network(path["observation"])
    first, second = mine.stddev.double(), theirs.stddev.double()
    distance = (mine.mean - theirs.mean).double().square()
    kl = ((second / first).log() + (first.square() + distance) / (2 * second.square()) - 0.5).sum(-1)
    advantage, _ = model.advantages(path)
    torch.testing.assert_close(advantage, path["reward"].double() - 0.5 * kl, rtol=1e-4, atol=1e-5)


def test_a_rollout_that_leaves_the_data_ends_and_nothing_is_poisoned() -> None:
    class Wild(Shift):
        def step(self, observation: Tensor, action: Tensor, shared: bool = False) -> Step:
            following = observation * 30 + action
            value = following.sum(-1)
            odd = (following.abs() > 500).any(-1)
            return Step(torch.where(odd.unsqueeze(-1), math.nan, following), value / (~odd), (following > 40).any(-1))

    model = ready(horizon=10)
    model.model = Wild()
    for seed in range(3):
        found = model.update(batch(seed=seed))
        assert all(value.isfinite() for value in found.values())
        assert found["lost"] > 0.3
    assert all(value.isfinite().all() for value in parameters(model).values())


# How it learns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"likelihood_std": "head", "sampling_std": "head", "std": 1.0}], ids=["fixed", "head"]
)
def test_no_step_goes_too_far(options: dict[str, Any]) -> None:
    for target_kl in (0.3, 0.01):
        model = ready(task=Near(), target_kl=target_kl, **options)
        for seed in range(12):
            found = model.update(batch(seed=seed))
            assert 0 < found["kl"] <= 1.5 * target_kl
            assert found["improvement"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"baseline": "network"},
        {"likelihood_std": "head", "sampling_std": "head", "std": 1.0, "horizon": 40},
        {"fisher_share": 0.2},
    ],
    ids=["linear", "network", "head", "share"],
)
def test_it_learns_to_stay_where_it_is_good(options: dict[str, Any]) -> None:
    model = ready(**{"task": Near(), "horizon": 20, "std": 0.3, **options})
    rewards = [float(model.update(batch(seed=seed))["imagined_reward"]) for seed in range(40)]
    begun, ended = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    assert 4 - ended < 0.8 * (4 - begun)  # what being away costs
    place = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    towards = -(model.act(place) * place).sum(-1)
    assert (towards > 0).all()
    assert towards.mean() > 0.25


def test_rows_of_weight_are_what_is_learnt_from() -> None:
    """One half of the starts counts, the other does not."""
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    for counts in (0, 1):
        model = ready(task=Near(), horizon=20, std=0.3)
        for seed in range(20):
            rows = batch(seed=seed).improvement
            rows["start"] = rows["start"].abs() * torch.tensor([1.0, -1.0]).repeat_interleave(20).unsqueeze(1)
            rows["weight"] = 2.0 * (torch.arange(40) // 20 == counts)
            model.update(Batch(rows, rows, rows))
        towards = -(model.act(corners) * corners).sum(-1)
        assert towards[counts] > 0.5
        assert towards[counts] > towards[1 - counts] + 0.2


def test_the_baseline_can_begin_with_recorded_returns(tmp_path: Path) -> None:
    begun, model = Begun(), algorithm("BREMEN", pretrain_baseline=True, discount=0.9, **stages(tmp_path))
    fit(model, data(), tmp_path / "run", 20, callbacks=[begun])
    rows = DATA["continuous"]
    returns, time = torch.zeros(200, dtype=torch.float64), torch.zeros(200)
    ends = rows["terminals"] | rows["timeouts"]
    for row in reversed(range(200)):
        returns[row] = float(rows["rewards"][row]) + (0 if ends[row] else 0.9 * returns[row + 1])
    for row in range(1, 200):
        time[row] = 0 if ends[row - 1] else time[row - 1] + 1
    seen = torch.from_numpy(rows["observations"]) - begun.state["observation_mean"]
    by_hand = LinearBaseline(3)
    by_hand.fit(seen / begun.state["observation_std"], time, returns, torch.ones(200))
    torch.testing.assert_close(begun.state["baseline.coefficients"], by_hand.coefficients, rtol=1e-4, atol=1e-3)


def test_units_do_not_matter() -> None:
    """The same world in other units of observations and actions is the same to the policy."""
    plain, other = ready(task=Near()), ready()
    other.observation_mean.fill_(20.0)
    other.observation_std.mul_(8.0)
    other.action_centre.fill_(1.0)
    other.action_scale.fill_(4.0)

    class Moved(Shift):
        def step(self, observation: Tensor, action: Tensor, shared: bool = False) -> Step:
            found = super().step((observation - 20) / 8, action, shared)
            return Step(found.observation * 8 + 20, found.reward, found.left)

    class MovedNear(Near):
        def reward(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
            return super().reward(observation, action, (next_observation - 20) / 8)

        def terminated(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
            return super().terminated(observation, action, (next_observation - 20) / 8)

    other.model, other.task = Moved(), MovedNear()
    for seed in range(3):
        rows = batch(seed=seed).improvement
        moved = rows.clone().set("start", rows["start"] * 8 + 20)
        torch.manual_seed(seed)
        plain.update(Batch(rows, rows, rows))
        torch.manual_seed(seed)
        other.update(Batch(moved, moved, moved))
    observation = torch.randn(20, 2)
    torch.testing.assert_close(other.act(observation * 8 + 20), 1 + 4 * plain.act(observation), rtol=1e-3, atol=1e-2)
