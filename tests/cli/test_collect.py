"""`oper collect`: what it writes is what was played, in every detail, however often it was killed."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation
from helpers import oper

from oper_lightning.cli import policies
from oper_lightning.data import log
from oper_lightning.data.sources.minari import Minari
from oper_lightning.data.sources.online_log import OnlineLog
from oper_lightning.data.storage import fill
from oper_lightning.data.table import Table
from oper_lightning.data.writers.growing import Growing
from oper_lightning.errors import InputError

Refused = Callable[..., str]

CONTROLLERS = """
import numpy as np


def right(observations):
    return np.ones(len(observations), dtype=np.int64)


def still(observations):
    return np.zeros((len(observations), 1), dtype=np.float32)


def alone(observations):
    return np.zeros(1, dtype=np.float32)


def third(observations):
    return np.full(len(observations), 2)


def torn(observations):
    return np.full((len(observations), 1), np.nan, dtype=np.float32)


def lost(observations):
    raise RuntimeError("which way?")


def balance(observations):
    return (observations[:, 2] + observations[:, 3] > 0).astype(np.int64)


class Counting:
    '''Pushes left for the first three steps of a round, then right, now and then by chance.'''

    def __init__(self):
        self.steps = 0

    def __call__(self, observations):
        self.steps += 1
        return np.where(np.random.random(len(observations)) < 0.3, 0, int(self.steps > 3))
"""


class Blocks(gymnasium.Env[Any, Any]):
    """Pictures that depend on the seed and on all actions so far; an episode ends when the actions add up to 12."""

    observation_space = gymnasium.spaces.Box(0, 255, (36, 36), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.sum, self.picture = 0, self.np_random.integers(0, 255, (36, 36), dtype=np.uint8)
        return self.picture, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.sum += int(action)
        self.picture = np.roll(self.picture, int(action) + 1, 0)
        return self.picture, float(action), self.sum >= 12, False, {}


gymnasium.register("Blocks-v0", lambda: FrameStackObservation(Blocks(), 4))


@pytest.fixture(autouse=True)
def _controllers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "steering.py").write_text(CONTROLLERS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    importlib.sys.modules.pop("steering", None)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short online run on CartPole, with a checkpoint at each of its four evaluations."""
    folder = tmp_path_factory.mktemp("run") / "agent"
    keep = [f"--trainer.callbacks.{name}" for name in ("save_top_k=-1", "save_on_train_epoch_end=false")]
    words = [
        "fit", "--model=QRDQN", "--model.hidden_sizes=[32]", "--model.epsilon_decay=40", "--data=OnlineDataModule",
        "--data.environment=CartPole-v1", "--data.warmup=50", "--data.batch_size=16", "--data.updates_per_epoch=20",
        "--data.rollouts.episodes=4", "--trainer.max_steps=80", f"--output={folder}",
        "--trainer.callbacks=ModelCheckpoint", *keep, "--trainer.callbacks.save_weights_only=true",
    ]  # fmt: skip
    assert oper(*words) == 0
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(folder: str) -> Iterator[dict[str, Any]]:
    """The episodes of a dataset as Minari's own loader reads them, with the seeds of their resets."""
    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.read(Path(folder, "data").absolute())
    for number, (episode, about) in enumerate(
        zip(
            storage.get_episodes(range(storage.total_episodes)),
            storage.get_episode_metadata(range(storage.total_episodes)),
            strict=True,
        )
    ):
        assert episode["id"] == number
        yield {**episode, "seed": about["seed"]}


def played_again(environment: Any, episode: dict[str, Any], cut: bool = False) -> None:
    """Takes the actions of an episode again, from its seed: everything must come out as it is written."""
    observation, _ = environment.reset(seed=episode["seed"])
    over = False
    for step, action in enumerate(episode["actions"]):
        assert not over
        np.testing.assert_array_equal(episode["observations"][step], np.asarray(observation, np.float32))
        observation, reward, terminated, truncated, _ = environment.step(action)
        assert reward == episode["rewards"][step]
        over = terminated or truncated
        last = step == len(episode["actions"]) - 1
        assert episode["terminations"][step] == terminated
        assert episode["truncations"][step] == (truncated or (last and cut))
    assert over != cut
    np.testing.assert_array_equal(episode["observations"][-1], np.asarray(observation, np.float32))


def test_a_dataset_holds_what_was_played(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert oper("collect", run, "--output=d/exploring-v0", "--steps=400", "--explore=true", "--parallel=3") == 0
    assert "d/exploring-v0: " in (said := capsys.readouterr().out)
    assert "400 transitions" in said
    environment = gymnasium.make("CartPole-v1")
    episodes = list(stored("d/exploring-v0"))
    assert sum(len(episode["rewards"]) for episode in episodes) == 400
    for number, episode in enumerate(episodes):
        played_again(environment, episode, cut=number == len(episodes) - 1)
    assert len({episode["seed"] for episode in episodes}) == len(episodes)
    source = Minari("d/exploring-v0")
    origin = source.origin()
    assert (origin.environment, int(origin.action_low), int(origin.action_high)) == ("CartPole-v1", 0, 1)  # type: ignore[arg-type]
    assert origin.reference is None
    assert len(source) == 400


def test_a_share_of_the_actions_is_random(run: Path) -> None:
    act = policies.policy(str(run / "best.ckpt")).behaviour.begin
    assert act is not None
    for share in (0.0, 0.3, 1.0):
        assert oper("collect", run, f"--output=d/{share}-v0", "--steps=1500", f"--epsilon={share}") == 0
        other = total = 0
        for episode in stored(f"d/{share}-v0"):
            best = np.asarray(act()(torch.from_numpy(episode["observations"][:-1])))
            other, total = other + int((best != episode["actions"]).sum()), total + len(best)
        # Half of the random actions are the best one all the same.
        assert abs(other / total - share / 2) <= 4 * np.sqrt(share / 2 * (1 - share / 2) / total)


def test_noise_has_its_size_and_stays_within_bounds() -> None:
    words = ["collect", "steering.still", "--environment=Pendulum-v1", "--episodes=20"]
    assert oper(*words, "--output=d/noisy-v0", "--noise=0.25") == 0
    torques = np.concatenate([episode["actions"] for episode in stored("d/noisy-v0")])
    assert torques.dtype == np.float32
    assert abs(torques.std() - 0.25 * 2) < 0.02  # bounds of -2 and 2
    assert abs(torques.mean()) < 0.03
    assert oper(*words, "--output=d/loud-v0", "--noise=3") == 0
    torques = np.concatenate([episode["actions"] for episode in stored("d/loud-v0")])
    assert np.abs(torques).max() == 2
    assert oper("collect", "random", "--environment=Pendulum-v1", "--episodes=20", "--output=d/random-v0") == 0
    torques = np.concatenate([episode["actions"] for episode in stored("d/random-v0")])
    assert np.allclose(np.quantile(torques, [0.1, 0.5, 0.9]), [-1.6, 0, 1.6], atol=0.1)
    for episode in stored("d/random-v0"):
        played_again(gymnasium.make("Pendulum-v1"), episode)


def test_controllers_of_ones_own() -> None:
    words = ["--environment=CartPole-v1", "--episodes=7", "--parallel=2"]
    assert oper("collect", "steering.right", *words, "--output=d/right-v0") == 0
    assert {tuple(episode["actions"]) for episode in stored("d/right-v0")} <= {(1,) * n for n in range(7, 13)}
    # The last episode had ended when it turned out that only its beginning is needed.
    assert oper("collect", "steering.right", "--environment=CartPole-v1", "--steps=20", "--output=d/cut-v0") == 0
    *whole, cut = stored("d/cut-v0")
    assert sum(len(episode["rewards"]) for episode in [*whole, cut]) == 20
    played_again(gymnasium.make("CartPole-v1"), cut, cut=True)
    assert oper("collect", "steering.Counting", *words, "--output=d/counting-v0") == 0
    actions = [episode["actions"] for episode in stored("d/counting-v0")]
    assert len(actions) == 7
    assert all((first[:3] == 0).all() for first in actions)  # what it remembers lasts a round
    assert any((first[3:] == 0).any() and (first[3:] == 1).any() for first in actions)


def test_episodes_of_other_lengths_are_none_the_less_there(run: Path) -> None:
    """The first episodes of a longer collection are those of a shorter one: none is left out for its length."""
    for steps in (150, 600):
        assert oper("collect", run, f"--output=d/{steps}-v0", f"--steps={steps}", "--epsilon=0.5") == 0
    short, long = list(stored("d/150-v0")), list(stored("d/600-v0"))
    for one, other in zip(short[:-1], long, strict=False):
        np.testing.assert_array_equal(one["observations"], other["observations"])
    cut = len(short[-1]["rewards"])
    np.testing.assert_array_equal(short[-1]["observations"], long[len(short) - 1]["observations"][: cut + 1])


def test_stacks_are_stored_as_single_frames() -> None:
    words = ["--environment=Blocks-v0", "--steps=200", "--parallel=3", "--output=d/blocks-v0"]
    assert oper("collect", "random", *words) == 0
    about = json.loads(Path("d/blocks-v0/data/metadata.json").read_text())
    assert about["frame_stack"] == 4
    source = Minari("d/blocks-v0")
    environment = gymnasium.make("Blocks-v0")
    for episode, seed in zip(source.episodes(), [one["seed"] for one in stored("d/blocks-v0")], strict=True):
        observation, _ = environment.reset(seed=seed)
        for row in episode:
            np.testing.assert_array_equal(row["observation"].numpy(), observation)
            observation, reward, *_ = environment.step(int(row["action"]))
            np.testing.assert_array_equal(row["next", "observation"].numpy(), observation)
            assert float(row["next", "reward"]) == reward


def test_references_are_mean_returns(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--references=13", "--expert=steering.balance"]
    for policy, more in ((run, ["--steps=50"]), ("random", ["--environment=CartPole-v1", "--steps=50"])):
        assert oper("collect", policy, f"--output=d/{Path(policy).name}-v0", *more, *words) == 0
    assert oper("collect", run, "--output=d/replay-v0", "--replay=true", *words) == 0
    references = {name: Minari(f"d/{name}-v0").origin().reference for name in ("agent", "random", "replay")}
    assert len({*references.values()}) == 1
    assert references["agent"] is not None
    # The expert's, by itself.
    assert (
        oper("collect", "random", "--environment=CartPole-v1", "--output=d/r-v0", "--episodes=13", "--seed=10000") == 0
    )
    environment, returns = gymnasium.make("CartPole-v1"), []
    for episode in stored("d/r-v0"):
        observation, _ = environment.reset(seed=episode["seed"])
        over, total = False, 0.0
        while not over:
            observation, reward, terminated, truncated, _ = environment.step(int(observation[2] + observation[3] > 0))
            over, total = terminated or truncated, total + float(reward)
        returns.append(total)
    assert references["agent"] == (
        np.mean([episode["rewards"].sum() for episode in stored("d/r-v0")]),
        np.mean(returns),
    )
    assert oper("collect", "random", "--environment=CartPole-v1", "--steps=9", "--output=d/no-v0", "--references=3",
                "--expert=steering.right") == 0  # fmt: skip
    assert Minari("d/no-v0").origin().reference is None


@pytest.fixture
def staged(run: Path) -> str:
    """The run, with made-up evaluations."""
    shutil.copytree(run, "agent")
    returns = {20: 30.0, 40: 180.0, 60: 150.0, 80: 500.0}
    for path in sorted(Path("agent/checkpoints").glob("*.ckpt")):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["metrics"]["eval/return"] = returns[checkpoint["global_step"]]
        torch.save(checkpoint, path)
        if checkpoint["global_step"] == 80:
            path.rename("agent/best.ckpt")
    return "agent"


def test_the_first_checkpoint_that_reached_a_share_plays(staged: str) -> None:
    # A random policy's return on CartPole is about 22.
    for share, update in ((0.0, 20), (0.2, 40), (0.3, 40), (0.34, 80), (1.0, 80)):
        assert oper("collect", staged, f"--reached={share}", f"--output=d/{share}-v0", "--steps=20") == 0
        about = json.loads(Path(f"d/{share}-v0/data/metadata.json").read_text())
        assert about["algorithm_name"] == f"QRDQN at update {update}"


def test_a_replay_ends_with_its_checkpoint(staged: str) -> None:
    assert oper("collect", staged, "--replay=true", "--output=d/all-v0") == 0
    assert oper("collect", staged, "--replay=true", "--reached=0.2", "--output=d/some-v0") == 0
    assert oper("collect", staged, "--replay=true", "--steps=60", "--output=d/few-v0") == 0
    # 50 random steps come first, those of the first block's updates among them; then one for each update.
    taken = log.files(Path("agent/replay"))
    assert table(Minari("d/all-v0")).recorded == table(OnlineLog(staged, taken[-1][1])).recorded
    assert table(Minari("d/some-v0")).recorded == table(OnlineLog(staged, taken[1][1])).recorded  # update 40
    assert table(Minari("d/few-v0")).recorded == table(OnlineLog(staged, 60)).recorded


def table(source: Any) -> Table:
    return Table(source, fill(source, torch.device("cpu")))


# Stopped and gone on ----------------------------------------------------------------------------------------------

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["oper_lightning.cli.verbs", "oper_lightning.cli.collect", "helpers"])


def collect_in_a_process(words: list[str]) -> None:
    with open("terminal.txt", "a") as terminal:
        os.dup2(terminal.fileno(), 1)
        os.dup2(terminal.fileno(), 2)
    os._exit(oper(*words))


def test_a_collection_that_is_killed_goes_on_as_if_nothing_had_happened(run: Path) -> None:
    words = ["collect", str(run), "--steps=1500", "--epsilon=0.3", "--parallel=4"]
    assert oper(*words, "--output=alone/d-v0") == 0
    chance, kills = random.Random(0), 0
    for attempt in range(20):
        process = FORKS.Process(target=collect_in_a_process, args=([*words, "--output=killed/d-v0"],))
        process.start()
        if attempt < 6:
            noted, deadline = Path("killed/.d-v0.collecting/collected.json"), time.monotonic() + 60
            before = noted.read_bytes() if noted.exists() else b""
            while process.is_alive() and time.monotonic() < deadline:
                if noted.exists() and noted.read_bytes() != before:
                    break  # it has gone on
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
            if process.is_alive():
                process.kill()
                kills += 1
        process.join()
        if process.exitcode == 0:
            break
    assert process.exitcode == 0, Path("terminal.txt").read_text()
    assert kills >= 3, Path("terminal.txt").read_text()
    assert tree(Path("killed/d-v0")) == tree(Path("alone/d-v0"))
    assert [path.name for path in Path("killed").iterdir()] == ["d-v0"]


def test_what_a_kill_left_half_written_is_written_again(run: Path) -> None:
    words = ["collect", "steering.right", "--environment=CartPole-v1", "--episodes=25", "--parallel=5"]
    assert oper(*words, "--output=alone/d-v0") == 0
    # As if it had been killed in its third round, with rubbish on the disk.
    work = Path("killed/.d-v0.collecting")
    assert oper(*words, "--output=killed/d-v0") == 0
    Path("killed/d-v0").rename(work)
    noted = json.loads((work / "collected.json").read_text())
    rows = [len(episode["rewards"]) for episode in stored("alone/d-v0")][:10]
    noted |= {"episodes": 10, "steps": sum(rows), "finished": False}
    noted |= {"returns": float(sum(rows)), "squares": float(sum(row**2 for row in rows))}
    (work / "collected.json").write_text(json.dumps(noted))
    (work / "data" / "metadata.json").write_text("{")
    (work / "data" / "11" / "part-0.arrow").write_bytes(b"half")
    (work / "data" / "57").mkdir()
    (work / "data" / "57" / "part-0.arrow").write_bytes(b"of another request")
    assert oper(*words, "--output=killed/d-v0") == 0
    assert tree(Path("killed/d-v0")) == tree(Path("alone/d-v0"))


def test_a_finished_dataset_is_left_alone(capsys: pytest.CaptureFixture[str], refused: Refused) -> None:
    words = ["collect", "random", "--environment=CartPole-v1", "--output=d/random-v0"]
    assert oper(*words, "--steps=30") == 0
    before, said = tree(Path("d")), capsys.readouterr().out
    assert oper(*words, "--steps=30") == 0
    assert (tree(Path("d")), capsys.readouterr().out) == (before, said)
    assert refused(*words, "--steps=31") == (
        "d/random-v0: was collected with steps 30 and not 31; delete it, or name another --output"
    )
    Path("other-v0").mkdir()
    assert refused(*words[:3], "--steps=3", "--output=other-v0").startswith("other-v0: exists already")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"asked": 3}', '{"asked": {}, "episodes": "many"}'])
def test_a_broken_note_is_an_error_in_one_line(text: str, refused: Refused) -> None:
    Path(".d-v0.collecting").mkdir()
    Path(".d-v0.collecting/collected.json").write_text(text)
    words = ["collect", "random", "--environment=CartPole-v1", "--steps=30", "--output=d-v0"]
    assert ".d-v0.collecting/collected.json" in refused(*words)


def test_a_damaged_note_does_no_harm() -> None:
    asked = {"policy": "random", "environment_options": {"limit": 3}, "steps": 30}
    folder = Path(".d-v0.collecting")
    folder.mkdir()
    text = json.dumps({"asked": asked, "episodes": 3, "steps": 30, "returns": 1.5, "squares": 2.0, "finished": False})
    generator = np.random.default_rng(0)
    taken = 0
    for _ in range(500):
        broken = bytearray(text.encode())
        for place in generator.integers(0, len(broken), generator.integers(1, 4)):
            broken[place] = generator.integers(0, 256)
        (folder / "collected.json").write_bytes(broken[: generator.integers(len(broken) // 2, len(broken) * 3)])
        try:
            now = Growing(Path("d-v0"), asked).now
        except InputError as error:
            assert "collected" in str(error) or "was begun with" in str(error), error  # noqa: PT017
        else:
            taken += 1
            assert 0 <= now.episodes <= now.steps
    assert 0 < taken < 250


def test_episodes_that_are_missing_are_an_error(refused: Refused) -> None:
    words = ["collect", "random", "--environment=CartPole-v1", "--episodes=4", "--output=d-v0"]
    assert oper(*words) == 0
    Path("d-v0").rename(".d-v0.collecting")
    note = Path(".d-v0.collecting/collected.json")
    note.write_text(
        note.read_text().replace("true", "false").replace('"episodes": 4,\n "steps"', '"episodes": 9,\n "steps"')
    )
    assert "5 of 9 episodes are missing" in refused(*words)


# Refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["random", "--steps=3"], "random: no environment known; name one with --environment"),
        (["random", "--environment=CartPole-v1"], "steps or episodes must be given: how much to collect"),
        (["random", "--environment=CartPole-v1", "--steps=0"], "steps is 0; at least 1 is needed"),
        (["random", "--environment=CartPole-v1", "--steps=3", "--epsilon=0.1"], "a random policy takes neither"),
        (["nobody", "--steps=3"], "nobody: no such checkpoint in"),
        (["steering.nobody", "--steps=3"], "steering.nobody: steering has no function or class 'nobody'"),
        (["nowhere.nobody", "--steps=3"], "nowhere.nobody: no folder or checkpoint, and nowhere cannot be imported"),
        (["steering.right", "--environment=CartPol-v1", "--steps=3"], "environment 'CartPol-v1' is not registered"),
        (["steering.right", "--environment=CartPole-v1", "--steps=3", "--epsilon=2"], "epsilon is 2; a share from"),
        (
            ["steering.right", "--environment=CartPole-v1", "--steps=3", "--noise=1"],
            "environment 'CartPole-v1': Gaussian noise is for continuous actions with bounds",
        ),
        (
            ["steering.alone", "--environment=Pendulum-v1", "--steps=3"],
            "steering.alone: actions of shape (1,) for 10 observations; environment 'Pendulum-v1' takes (10, 1)",
        ),
        (["steering.third", "--environment=CartPole-v1", "--steps=3"], "steering.third: actions [2, 2,"),
        (["steering.torn", "--environment=Pendulum-v1", "--steps=3"], "steering.torn: its actions are not finite"),
        (["steering.lost", "--environment=Pendulum-v1", "--steps=3"], "steering.lost failed: which way?"),
        (
            ["steering.right", "--environment=CartPole-v1", "--steps=3", "--reached=0.3"],
            "steering.right: the folder of",
        ),
        (
            ["steering.right", "--environment=CartPole-v1", "--steps=3", "--references=3"],
            "steering.right: name the run that scores 100 with --expert",
        ),
        (["random", "--environment=CartPole-v1", "--steps=3", "--expert=run"], "expert is for references"),
        (["random", "--environment=Blackjack-v1", "--steps=3"], "environment 'Blackjack-v1': Tuple observations"),
        (["random", "--environment=CartPole-v1", "--stepz=3"], "no argument 'stepz'; did you mean 'steps'?"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(words: list[str], line: str, refused: Refused) -> None:
    assert refused("collect", *words, "--output=d/x-v0").startswith(line)
    assert not list(Path("d").glob("*-v0"))


def test_a_name_without_a_version_is_refused(refused: Refused) -> None:
    words = ["collect", "random", "--environment=CartPole-v1", "--steps=3", "--output=d/x"]
    assert "named like name-v0" in refused(*words)


def test_another_environment_than_a_checkpoints(run: Path, refused: Refused) -> None:
    words = ["collect", run, "--steps=3", "--output=d/x-v0"]
    assert "made for observations of shape (4,)" in refused(*words, "--environment=Pendulum-v1")
    assert oper(*words, "--environment=CartPole-v0", "--environment_options={max_episode_steps: 2}") == 0
    assert [len(episode["rewards"]) for episode in stored("d/x-v0")] == [2, 1]
    origin = Minari("d/x-v0").origin()
    assert (origin.environment, origin.environment_options) == ("CartPole-v0", {"max_episode_steps": 2})


def test_a_checkpoint_cannot_have_a_module_imported(run: Path, refused: Refused) -> None:
    checkpoint = torch.load(run / "best.ckpt", weights_only=True)
    checkpoint["spec"]["environment"] = "steering:CartPole-v1"
    torch.save(checkpoint, "theirs.ckpt")
    words = ["collect", "theirs.ckpt", "--steps=3", "--output=d/x-v0"]
    assert "whose module would be imported; if you trust it, name it on the command line" in refused(*words)
    assert "steering" not in importlib.sys.modules  # type: ignore[attr-defined]
    assert oper(*words, "--environment=steering:CartPole-v1") == 0


def test_only_runs_that_kept_checkpoints_know_how_far_they_were(run: Path, refused: Refused) -> None:
    Path("agent").mkdir()
    (Path("agent") / "best.ckpt").write_bytes((run / "best.ckpt").read_bytes())
    words = ["collect", "agent", "--steps=3", "--reached=0.5", "--output=d/x-v0"]
    assert "agent: it kept no checkpoints but the last and the best" in refused(*words)
    assert "no online run has gathered anything there" in refused(*words[:2], "--replay=true", "--output=d/x-v0")


@pytest.mark.parametrize(("mix", "spread"), [("gaussian3", 0.3), ("eps3", None), ("pure", 0.0), ("random", None)])
def test_a_mix_is_blocks_of_steps(mix: str, spread: float | None) -> None:
    words = ["collect", "steering.still", "--environment=Pendulum-v1", "--steps=2001", "--parallel=2"]
    assert oper(*words, f"--mix={mix}", "--output=d/mixed-v0") == 0
    torques = np.concatenate([episode["actions"] for episode in stored("d/mixed-v0")])[:, 0] / 2
    assert len(torques) == 2001
    blocks = np.split(torques, [400, 1200])
    if mix == "random":
        assert (torques != 0).all()
        assert abs(torques.std() - 1 / np.sqrt(3)) < 0.03
        return
    assert (blocks[0] != 0).all() == (mix != "pure")
    assert (blocks[1] == 0).all()
    assert blocks[2].std() == pytest.approx(spread, abs=0.03) if spread is not None else True
    if mix == "eps3":
        assert abs((blocks[2] != 0).mean() - 0.3) < 0.07


def test_a_mix_that_was_stopped_goes_on_in_its_block() -> None:
    words = ["collect", "steering.still", "--environment=Pendulum-v1", "--steps=1500", "--parallel=2", "--mix=eps1"]
    assert oper(*words, "--output=alone/d-v0") == 0
    assert oper(*words, "--output=killed/d-v0") == 0
    work = Path("killed/.d-v0.collecting")
    Path("killed/d-v0").rename(work)
    noted, episodes = json.loads((work / "collected.json").read_text()), list(stored("alone/d-v0"))
    for rounds in range(1, len(episodes)):  # after each round: 200 + 100, 200 + 200, 200 steps
        steps = sum(len(episode["rewards"]) for episode in episodes[:rounds])
        if steps == 700:
            break
    totals = [episode["rewards"].sum() for episode in episodes[:rounds]]
    noted |= {"episodes": rounds, "steps": steps, "finished": False}
    noted |= {"returns": float(np.sum(totals)), "squares": float(np.sum(np.square(totals)))}
    (work / "collected.json").write_text(json.dumps(noted))
    assert oper(*words, "--output=killed/d-v0") == 0
    one, other = (list(stored(f"{name}/d-v0")) for name in ("alone", "killed"))
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first["seed"] == second["seed"]
        np.testing.assert_array_equal(first["actions"], second["actions"])


def test_a_mix_whose_last_block_cannot_be_is_refused_before_the_first(refused: Refused) -> None:
    words = ["collect", "steering.right", "--environment=CartPole-v1", "--steps=50", "--mix=gaussian1"]
    assert "Gaussian noise is for continuous actions" in refused(*words, "--output=d/x-v0")
    assert not Path("d").exists()


def test_only_a_collection_that_was_stopped_is_said_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["collect", "steering.still", "--environment=Pendulum-v1", "--steps=50", "--mix=eps1", "--output=d/x-v0"]
    assert oper(*words) == 0
    assert "going on" not in capsys.readouterr().err


def test_a_mix_says_itself_how_much_noise_there_is(refused: Refused) -> None:
    words = ["collect", "steering.still", "--environment=Pendulum-v1", "--mix=eps1", "--output=d/x-v0"]
    for more in (["--steps=9", "--noise=0.1"], ["--episodes=3"]):
        assert refused(*words, *more).startswith("mix says itself how much noise")
    assert "mix eps1 is for a policy" in refused("collect", "random", *words[2:], "--steps=9")


def test_a_replay_that_a_killed_chain_did_not_note_is_done_already(
    staged: str, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    words = ["collect", staged, "--replay=true", "--output=d/all-v0"]
    assert oper(*words) == 0
    before = tree(Path("d"))
    capsys.readouterr()
    assert oper(*words) == 0
    assert "d/all-v0: holds this already" in capsys.readouterr().out
    assert "exists already" in refused(*words, "--steps=60")
    Path("d/junk-v0").mkdir()
    assert "exists already" in refused(*words[:3], "--output=d/junk-v0")
    Path("d/junk-v0").rmdir()
    assert tree(Path("d")) == before


def test_the_whole_way_is_no_further_than_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    random, best = 0.3, 0.9
    assert random + (best - random) > best, "as floats round"
    path = Path("some.ckpt")
    monkeypatch.setattr(policies, "evaluated", lambda _: [(10, random, path), (20, best, path)])
    assert policies.first_to_reach(Path(), 1.0, random)[:2] == (path, best)
