from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Arrays, columns, transitions, write_hdf5
from test_sampler import chi_square_tail

from oper_lightning import D4RL, InputError, Npz, OfflineDataModule, OperR
from oper_lightning.data.datamodule import Batch
from oper_lightning.data.sources.source import Origin
from oper_lightning.data.transitions import squeezed
from oper_lightning.priorities.priority import Priority

DATA = columns([20] * 5)


class Given(Priority):
    """A priority of known weights."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.given = weights

    def __call__(self, transitions: object) -> torch.Tensor:
        return self.given / self.given.mean()


def ready(**options: object) -> OfflineDataModule:
    data = OfflineDataModule(Arrays(DATA), **{"batch_size": 10, **options})  # type: ignore[arg-type]
    data.setup()
    return data


def rows_of(part: torch.Tensor) -> torch.Tensor:
    """Row numbers of drawn observations."""
    observations = torch.from_numpy(DATA["observations"])
    return torch.cdist(part.flatten(0, -2).double(), observations.double()).argmin(1)


@pytest.mark.parametrize("location", ["device", "memmap"])
def test_a_source_says_its_length_once(location: str) -> None:
    """It may have to read its files for that."""
    asked = []

    class Slow(Arrays):
        def __len__(self) -> int:
            asked.append(self)
            return super().__len__()

    data = OfflineDataModule(Slow(DATA), batch_size=10, location=location)  # type: ignore[arg-type]
    data.setup()
    assert (len(asked), len(data.transitions)) == (1, 100)


def test_storage_holds_raw_transitions_in_torchrls_layout() -> None:
    data = ready(reward_scale=2.0, reward_shift=1.0)
    stored = data.storage[:]
    np.testing.assert_array_equal(stored["next", "reward"].squeeze(-1), DATA["rewards"])
    assert stored["next", "reward"].shape == stored["next", "done"].shape == (100, 1)
    sample = data.replay_buffer(32).sample()
    assert sample["next", "reward"].shape == (32, 1)
    block = data.draw(3).evaluation
    assert block.batch_size == torch.Size([3, 10])
    rows = rows_of(block["observation"])
    expected = torch.from_numpy(DATA["rewards"])[rows] * 2 + 1
    torch.testing.assert_close(block["next", "reward"].flatten(), expected)


def test_returns_can_be_brought_onto_one_range() -> None:
    data = ready(reward_scale="return_range", reward_shift=-1.0)
    ends = np.nonzero(DATA["terminals"] | DATA["timeouts"])[0] + 1
    returns = [part.sum() for part in np.split(DATA["rewards"].astype(float), ends)[:-1]]
    expected = DATA["rewards"] * (1000 / (max(returns) - min(returns))) - 1
    torch.testing.assert_close(data.table["next", "reward"], torch.from_numpy(expected).float())
    flat = {**DATA, "rewards": np.zeros_like(DATA["rewards"])}
    with pytest.raises(InputError, match=r"all episodes return 0: no data.reward_scale=return_range"):
        OfflineDataModule(Arrays(flat), batch_size=10, reward_scale="return_range").setup()


def test_priorities_see_raw_rewards() -> None:
    plain, scaled = ready(priority=OperR()), ready(priority=OperR(), reward_scale=-3.0, reward_shift=-1.0)
    assert plain.weights is not None
    assert scaled.weights is not None
    assert plain.weights.equal(scaled.weights)


def test_uniform_roles_are_one_object_and_uniform() -> None:
    block = ready().draw(4)
    assert block.evaluation is block.improvement is block.constraint
    assert (block.evaluation["weight"] == 1).all()


WEIGHTS = torch.linspace(0, 2, 100).double()


def frequencies(data: OfflineDataModule, role: str, draws: int = 400) -> torch.Tensor:
    parts = [rows_of(getattr(data.draw(50), role)["observation"]) for _ in range(draws // 50)]
    return torch.bincount(torch.cat(parts), minlength=100).double()


def test_decoupled_resampling_draws_each_role_as_asked() -> None:
    options = {"priority": Given(WEIGHTS), "prioritise": ["improvement", "constraint"]}
    block = ready(**options).draw(2)
    assert block.improvement is block.constraint is not block.evaluation
    uniform = frequencies(ready(**options), "evaluation")
    assert chi_square_tail(uniform, torch.full_like(uniform, uniform.mean().item())) > 1e-3
    drawn = frequencies(ready(**options), "improvement")
    assert drawn[0] == 0
    assert chi_square_tail(drawn[1:], drawn.sum() * WEIGHTS[1:] / WEIGHTS.sum()) > 1e-3
    # A check that the check can fail: the prioritised draws are not uniform.
    assert chi_square_tail(drawn, torch.full_like(drawn, drawn.mean().item())) < 1e-6


def test_coupled_resampling_is_one_prioritised_draw() -> None:
    block = ready(priority=Given(WEIGHTS)).draw(2)
    assert block.evaluation is block.improvement is block.constraint
    assert 0 not in rows_of(block.evaluation["observation"])


def test_reweighting_is_one_uniform_draw_with_weights_where_asked() -> None:
    data = ready(priority=Given(WEIGHTS), mode="reweight", prioritise=["improvement"])
    plain = ready()
    block, vanilla = data.draw(3), plain.draw(3)
    assert block.evaluation is block.constraint is not block.improvement
    assert block.evaluation["observation"].equal(vanilla.evaluation["observation"])
    assert block.improvement["observation"].equal(vanilla.evaluation["observation"])
    assert (block.evaluation["weight"] == 1).all()
    rows = rows_of(block.improvement["observation"]).reshape(3, 10)
    torch.testing.assert_close(block.improvement["weight"], (WEIGHTS / WEIGHTS.mean()).float()[rows])


def test_a_buffer_for_other_loops_draws_or_weighs_alike() -> None:
    resampled = ready(priority=Given(WEIGHTS)).replay_buffer(2000).sample()
    assert 0 not in rows_of(resampled["observation"])
    weighed = ready(priority=Given(WEIGHTS), mode="reweight").replay_buffer(64).sample()
    rows = rows_of(weighed["observation"])
    torch.testing.assert_close(weighed["weight"], (WEIGHTS / WEIGHTS.mean()).float()[rows])


@pytest.mark.parametrize("priority", [None, Given(WEIGHTS)])
def test_ranks_share_one_draw(priority: Priority | None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ready(priority=priority, batch_size=20).draw(3).evaluation["observation"]
    parts = []
    for rank in range(2):
        monkeypatch.setattr("oper_lightning.nn.ranks.world_size", lambda: 2)
        monkeypatch.setattr("oper_lightning.nn.ranks.rank", lambda rank=rank: rank)
        parts.append(ready(priority=priority, batch_size=10).draw(3).evaluation["observation"])
    assert torch.cat(parts, 1).equal(whole)


def test_draws_depend_on_seed_and_update_only() -> None:
    first = ready(priority=OperR())
    blocks = [first.draw(2) for _ in range(3)]
    second = ready(priority=OperR())
    second.load_state_dict({"seed": first.seed, "drawn": 4})
    assert second.draw(2).evaluation["observation"].equal(blocks[2].evaluation["observation"])
    third = ready(priority=OperR())
    third.seed = 12345
    assert not third.draw(2).evaluation["observation"].equal(blocks[0].evaluation["observation"])
    assert not blocks[0].evaluation["observation"].equal(blocks[1].evaluation["observation"])


def test_seeds_that_train_together_get_rows_of_their_own() -> None:
    data = ready()
    data.set_weights_of_seeds(torch.ones(3, 100))
    block = data.draw(2).evaluation
    assert block.batch_size == torch.Size([2, 3, 10])
    assert not block["observation"][:, 0].equal(block["observation"][:, 1])
    weights = torch.zeros(3, 100)
    weights[torch.arange(3), torch.tensor([5, 6, 7])] = 1
    data.set_weights_of_seeds(weights)
    assert rows_of(data.draw(2).evaluation["observation"]).reshape(2, 3, 10)[1, :, 0].tolist() == [5, 6, 7]


def test_equal_weights_are_the_uniform_draw() -> None:
    for options in ({}, {"mode": "reweight"}, {"prioritise": ["improvement"]}):
        block = ready(priority=Given(torch.full((100,), 3.0)), **options).draw(2)
        assert block.improvement["observation"].equal(ready().draw(2).improvement["observation"])
        assert block.improvement is block.evaluation
        assert (block.improvement["weight"] == 1).all()


def test_memory_mapped_data_is_the_same_data(tmp_path: Path) -> None:
    mapped, plain = ready(location="memmap", memmap_folder=str(tmp_path / "map")), ready()
    assert mapped.spec.fingerprint == plain.spec.fingerprint
    assert mapped.draw(2).evaluation["observation"].equal(plain.draw(2).evaluation["observation"])
    assert any((tmp_path / "map").rglob("*.memmap"))


def test_mapped_data_replace_nothing_but_mapped_data(tmp_path: Path) -> None:
    for _ in range(2):
        ready(location="memmap", memmap_folder=str(tmp_path))
    (tmp_path / "transitions" / "next" / "meta.json").unlink()  # as of a process that was killed while it removed them
    ready(location="memmap", memmap_folder=str(tmp_path))
    recorded = tmp_path / "transitions" / "recorded.npz"
    recorded.write_bytes(b"mine")
    with pytest.raises(InputError, match="holds other files than mapped transitions"):
        ready(location="memmap", memmap_folder=str(tmp_path))
    assert recorded.read_bytes() == b"mine"


def test_in_order_gives_every_row_once_in_whole_episodes() -> None:
    data = ready()
    for size in (1, 30, 1000):
        parts = list(data.in_order(size))
        assert torch.cat(parts)["observation"].equal(torch.from_numpy(DATA["observations"]))
        assert all(len(part) % 20 == 0 for part in parts)
    assert len(list(data.predict_dataloader())) == len(data.predict_dataloader()) == 1


def test_statistics_and_bounds_of_the_spec() -> None:
    spec = ready().spec
    np.testing.assert_allclose(spec.observation_mean, DATA["observations"].mean(0), atol=1e-6)
    np.testing.assert_allclose(spec.observation_std, DATA["observations"].std(0), rtol=1e-5)
    assert spec.action_low.tolist() == [-1, -1]
    assert spec.rows == 100


def test_actions_outside_the_known_space() -> None:
    low, high = np.full(2, -0.5), np.full(2, 0.5)
    origin = Origin(dataset="arrays", action_low=low, action_high=high)
    outside = int((np.abs(DATA["actions"]) > 0.5).any(1).sum())
    with pytest.raises(InputError, match=rf"{outside} of 100 actions lie outside .* data.clip_actions"):
        OfflineDataModule(Arrays(DATA, origin), batch_size=10).setup()
    data = OfflineDataModule(Arrays(columns([20] * 20), origin), clip_actions=True)
    data.setup()
    assert data.storage[:]["action"].abs().max() == 0.5


def test_unknown_bounds_come_from_the_data_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    wide = {**DATA, "actions": DATA["actions"] * 3}
    data = OfflineDataModule(Arrays(wide), batch_size=10)
    data.setup()
    np.testing.assert_array_equal(data.spec.action_high, wide["actions"].max(0))
    assert re.search(
        r"Arrays: action bounds: not known; taken from the data: -2.\d+ to 2.\d+; .*action_low", caplog.text
    )
    caplog.clear()
    valve = {**DATA, "actions": np.abs(DATA["actions"]) * 0.8}
    data = OfflineDataModule(Arrays(valve), batch_size=10)
    data.setup()
    assert re.search(r"action bounds: not known; -1 to 1 is taken, as all actions lie within \(0.\d+ to 0", caplog.text)


@pytest.mark.parametrize("kind", [D4RL, Npz])
def test_bounds_that_a_person_names(kind: type[D4RL | Npz], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrays = {
        **DATA,
        "actions": (110 + 70 * DATA["actions"]).astype(np.float32),
    }  # a pump, used at 40 to 180 of 0 to 250
    file = str(write_hdf5(tmp_path / "a.hdf5", arrays)) if kind is D4RL else str(tmp_path / "a.npz")
    if kind is Npz:
        np.savez(file, **arrays)

    def loaded(low: Any, high: Any) -> OfflineDataModule:
        data = OfflineDataModule(kind(file, action_low=low, action_high=high), batch_size=10)
        data.setup()
        return data

    spec = loaded(0, 250).spec
    assert (spec.action_low.tolist(), spec.action_high.tolist()) == ([0, 0], [250, 250])
    spec = loaded([0, 10], 250).spec
    assert (spec.action_low.tolist(), spec.action_high.tolist()) == ([0, 10], [250, 250])
    assert "bounds" not in caplog.text
    for low, high, message in (
        (0, None, "give both action_low and action_high, or neither"),
        (250, 0, "action_low 250 must be below action_high 0"),
        (0, float("inf"), "both finite"),
        ([0, 0], [1, 1, 1], "have different lengths"),
        ([0, 0, 0], 250, r"action bounds of shape \[3\] for actions of shape \[2\]; give one number"),
        (0, 100, r"\d+ of 100 actions lie outside the action space \[0, 100\].*clip_actions"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            loaded(low, high)
        assert file in str(caught.value)


def test_loading_real_data_is_quick_on_memory(shared: Path) -> None:
    data = OfflineDataModule(D4RL(str(shared / "hopper-replay.hdf5")))
    tracemalloc.start()
    data.setup()
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(value.numel() * value.element_size() for value in data.storage[:].values(True, True))
    # Arrays of numpy count here; the storage itself (its size once) is torch's and comes on top.
    assert python < 2 * size


def test_a_loop_of_ones_own_needs_nothing_else(small_file: Path) -> None:
    """A plain PyTorch loop, in a process that never imports Gymnasium, jsonargparse or our algorithms."""
    code = f"""
import sys, torch
from oper_lightning import D4RL, OfflineDataModule, OperR
torch.manual_seed(0)
data = OfflineDataModule(D4RL({str(small_file)!r}), priority=OperR())
data.setup()
policy = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
optimiser = torch.optim.Adam(policy.parameters(), 1e-2)
losses = []
for step, batch in zip(range(100), data.replay_buffer(64)):
    loss = (policy(batch["observation"]) - batch["action"]).square().mean()
    optimiser.zero_grad(); loss.backward(); optimiser.step()
    losses.append(loss.item())
assert sum(losses[-10:]) < 0.9 * sum(losses[:10]), losses
unwanted = [name for name in sys.modules if name.startswith(("gymnasium", "jsonargparse", "oper_lightning.algorithms"))]
assert not unwanted, unwanted
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_batch_maps_each_part_once() -> None:
    part, other = transitions(DATA), squeezed(torch.cat(list(Arrays(DATA).episodes())))
    batch = Batch(part, other, other)
    calls = []
    mapped = batch.map(lambda each: calls.append(each) or each.clone())
    assert len(calls) == 2
    assert mapped.improvement is mapped.constraint is not mapped.evaluation


def test_a_file_through_the_whole_module(tmp_path: Path) -> None:
    file = write_hdf5(tmp_path / "a.hdf5", DATA)
    data = OfflineDataModule(D4RL(str(file)), batch_size=10)
    data.setup()
    assert data.spec.fingerprint == ready().spec.fingerprint
    assert (data.spec.dataset, data.spec.environment) == ("a", None)
