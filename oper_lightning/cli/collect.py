"""`oper collect`: a dataset of what a policy does in an environment."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from oper_lightning.cli import folders, policies, signals
from oper_lightning.cli.convert import dataset
from oper_lightning.cli.policies import RANDOM, Policy
from oper_lightning.data.log import is_there
from oper_lightning.data.progress import progress
from oper_lightning.data.sources.online_log import OnlineLog
from oper_lightning.data.writers import minari
from oper_lightning.data.writers.dataset import dataset_id, holds
from oper_lightning.data.writers.growing import Growing, Progress, working_folder
from oper_lightning.envs.collecting import (
    Behaviour,
    Played,
    frames_of_an_observation,
    mean_return,
    possible,
    rounds,
    space_of_observations,
)
from oper_lightning.envs.rollouts import World
from oper_lightning.errors import InputError, note, reading
from oper_lightning.files import place
from oper_lightning.training.stored import read_checkpoint

REFERENCE_SEED = 10_000  # of the episodes whose mean returns are references: the same for all datasets
MIXES: dict[str, list[tuple[float, float | None, float]]] = {
    "pure": [(1.0, 0.0, 0.0)],
    "eps1": [(0.2, None, 0.0), (0.4, 0.0, 0.0), (0.4, 0.1, 0.0)],
    "eps3": [(0.2, None, 0.0), (0.4, 0.0, 0.0), (0.4, 0.3, 0.0)],
    "gaussian1": [(0.2, None, 0.0), (0.4, 0.0, 0.0), (0.4, 0.0, 0.1)],
    "gaussian3": [(0.2, None, 0.0), (0.4, 0.0, 0.0), (0.4, 0.0, 0.3)],
    "random": [(1.0, None, 0.0)],
}  # blocks of steps: share of all, epsilon, or None for random actions only, and noise
Mix = Literal["pure", "eps1", "eps3", "gaussian1", "gaussian3", "random"]
FOR_REACHED = 20  # episodes of a random policy, from whose mean return the way to the best is measured


def collect(
    policy: str = RANDOM,
    *,
    output: str,
    steps: int | None = None,
    episodes: int | None = None,
    epsilon: float = 0.0,
    noise: float = 0.0,
    mix: Mix | None = None,
    explore: bool = False,
    reached: float | None = None,
    replay: bool = False,
    references: int | None = None,
    expert: str | None = None,
    environment: str | None = None,
    environment_options: dict[str, Any] | None = None,
    observation_keys: list[str] | None = None,
    parallel: int = 10,
    seed: int = 0,
) -> None:
    """Write what a policy does in an environment as a Minari dataset.

    The policy is a checkpoint's, uniformly random, or a controller of your own. Episodes are written one by one
    (Arrow): memory stays flat, and a collection that was stopped, however it was, goes on with the same command and
    becomes the dataset that it would have been. It lies at OUTPUT when it is whole. `oper convert` turns it into other
    formats, and takes a share of its episodes.

    Args:
        policy: who plays: the folder of a run (its best.ckpt), a checkpoint, the word random, or the dotted name of a
            controller, such as mine.controller: a function from observations [E, ...] to actions [E, ...], or a class
            that is made without arguments and called likewise. Its module is imported. By default random.
        output: folder of the dataset, whose name ends in a version, such as data/cartpole/medium-v0.
        steps: number of transitions; the last episode is cut there.
        episodes: number of episodes; with steps too, what is reached first ends the collection.
        epsilon: share of the actions that are exchanged for uniformly random ones.
        noise: standard deviation of Gaussian noise on continuous actions, where their bounds are -1 and 1.
        mix: blocks of steps, one after another, as BRAC's datasets have them (arXiv 1911.11361): pure is the policy
            alone; eps1 and eps3 are a fifth random actions, two fifths the policy, two fifths with epsilon 0.1 or 0.3;
            gaussian1 and gaussian3 the same with noise 0.1 or 0.3; random is random actions only. BRAC's policies
            sample their actions: give explore too.
        explore: whether a checkpoint plays as it did to gather what it learned from, rather than its best actions.
        reached: a share of the way, such as 0.333, from a random policy's return to the run's best; who plays is the
            first kept checkpoint of the run whose evaluation reached it.
        replay: whether to write what an online run gathered instead of playing; with reached, until that checkpoint.
        references: number of episodes over which a random policy and the expert are played to be the returns that score
            0 and 100; by default the dataset says nothing of scores.
        expert: the run, checkpoint or controller that scores 100; by default the best.ckpt of the policy's run.
        environment: Gymnasium id of the environment; by default the checkpoint's.
        environment_options: arguments of the environment, such as {max_episode_steps: 200}.
        observation_keys: for Dict observations, the entries to join into one vector; by default the checkpoint's.
        parallel: number of episodes that are played side by side; another number gives other episodes.
        seed: of episodes, policy and noise.
    """
    _possible(locals())
    target, run = place(output), place(policy)
    name = dataset_id(target)
    if (replay or reached is not None) and not run.is_dir():
        raise InputError(f"{policy}: the folder of a run is needed for {'replay' if replay else 'reached'}")
    if replay and not is_there(run):
        raise InputError(f"{policy}: no online run has gathered anything there, so there is nothing to replay")
    best = str(run / "best.ckpt")  # it brings the environment where another one plays, or none
    found = policies.policy(best if replay or reached is not None else policy, explore)
    judge = _judge(found, expert) if references is not None else None
    told = policies.environment_of(found, environment, environment_options or {})
    keys = tuple(observation_keys or (found.spec.observation_keys if found.spec is not None else ()))
    world = World(*told, keys, parallel)
    try:
        if reached is not None:
            random = mean_return(world, Behaviour(RANDOM, None), FOR_REACHED, REFERENCE_SEED)
            path, value, highest = policies.first_to_reach(run, reached, random)
            note(f"{policy}: taking {path}, return {value:.1f} (random {random:.1f}, best {highest:.1f})")
            found = policies.policy(str(path), explore)
        for one in (found, judge):
            if one is not None:
                one.fits(world)
        if replay:
            return _replay(run, found.path if reached is not None else None, steps, world, judge, references, target)
        asked = {
            "policy": found.known_by,
            "environment": told[0],
            "environment_options": told[1],
            "observation_keys": keys,
            "steps": steps,
            "episodes": episodes,
            "epsilon": epsilon,
            "noise": noise,
            "mix": mix,
            "parallel": parallel,
            "seed": seed,
            "references": references,
            "expert": judge.known_by if judge is not None else None,
        }
        blocks = list(_blocks(found.behaviour, mix, epsilon, noise, steps))
        for _, behaviour in blocks:
            possible(world, behaviour)  # before anything is played, as the noise may come last
        if not target.exists():
            folders.claim(working_folder(target), resume=True)
        data = Growing(target, asked)
        if not data.finished:
            stack = frames_of_an_observation(world)
            spec = None if keys else minari.env_spec(*told)
            algorithm = found.behaviour.name
            about = minari.metadata(name, algorithm, f"collected by oper-lightning: {algorithm}", stack, None)
            data.begin(space_of_observations(world, stack), world.action_space, spec, about)
            if data.now.episodes:
                note(f"{target}: going on after {data.now.episodes:,} episodes, {data.now.steps:,} transitions")
            for until, behaviour in blocks:
                _play(data, world, behaviour, stack, seed, until, episodes)
            scores = _references(world, judge, references)
            data.finish(dict(zip(("ref_min_score", "ref_max_score"), scores, strict=True)) if scores else {})
        print(_said(target, data.now))
        if keys:
            print(f"not kept: the environment {told[0]}: its observations have entries, here joined to one vector")
    finally:
        world.close()
    return None


def _possible(given: dict[str, Any]) -> None:
    """Refuses arguments that are out of range, or have no meaning together."""
    for name in ("steps", "episodes", "parallel", "references"):
        if given[name] is not None and given[name] < 1:
            raise InputError(f"{name} is {given[name]}; at least 1 is needed")
    if given["steps"] is None and given["episodes"] is None and not given["replay"]:
        raise InputError("steps or episodes must be given: how much to collect")
    if not 0 <= given["epsilon"] <= 1:
        raise InputError(f"epsilon is {given['epsilon']:g}; a share from 0 to 1 is needed")
    if not 0 <= given["noise"] < math.inf:
        raise InputError(f"noise is {given['noise']:g}; a standard deviation is needed, 0 or more")
    if given["reached"] is not None and not 0 <= given["reached"] <= 1:
        raise InputError(f"reached is {given['reached']:g}; a share from 0 to 1 is needed")
    if not 0 <= given["seed"] < 2**32:
        raise InputError(f"seed is {given['seed']}; from 0 to {2**32 - 1:,} is possible")
    if given["expert"] is not None and given["references"] is None:
        raise InputError("expert is for references: give the number of episodes that it plays")
    if given["mix"] is not None and (given["steps"] is None or given["epsilon"] or given["noise"] or given["episodes"]):
        raise InputError("mix says itself how much noise there is in which share of steps: give it with steps alone")
    if given["replay"]:
        for name in ("episodes", "epsilon", "noise", "mix", "explore"):
            if given[name]:
                raise InputError(f"{name} is for policies that play; with replay nobody plays")
    elif given["policy"] == RANDOM and given["mix"] not in (None, "random"):
        raise InputError(f"mix {given['mix']} is for a policy; name one, or take the mix random")
    elif given["policy"] == RANDOM and (given["noise"] or given["epsilon"]):
        raise InputError("a random policy takes neither epsilon nor noise")


def _judge(found: Policy, expert: str | None) -> Policy:
    """Whose mean return scores 100."""
    if expert is None and found.path is None:
        raise InputError(f"{found.behaviour.name}: name the run that scores 100 with --expert")
    if expert is None:
        assert found.path is not None
        best = found.path.with_name("best.ckpt")
        expert = str(best if best.is_file() else found.path)
    return policies.policy(expert)


def _references(world: World, judge: Policy | None, episodes: int | None) -> tuple[float, float] | None:
    """Mean returns of a random policy and of the expert; None, with a note, where they make no score."""
    if judge is None or episodes is None:
        return None
    one, other = (
        mean_return(world, behaviour, episodes, REFERENCE_SEED)
        for behaviour in (Behaviour(RANDOM, None), judge.behaviour)
    )
    print(f"references over {episodes:,} episodes each: random {one:.2f}, {judge.behaviour.name} {other:.2f}")
    if not one < other:
        note("the expert is no better than a random policy: they make no score, which is left out")
        return None
    return one, other


def _blocks(
    policy: Behaviour, mix: Mix | None, epsilon: float, noise: float, steps: int | None
) -> Iterator[tuple[int | None, Behaviour]]:
    """Who plays until which step: all steps, or the blocks of a mix, of whose lengths the last takes what is left."""
    if mix is None or steps is None:
        yield steps, policy._replace(epsilon=epsilon, noise=noise)
        return
    blocks, until = MIXES[mix], 0
    for number, (share, exchanged, spread) in enumerate(blocks, 1):
        until = steps if number == len(blocks) else until + int(share * steps)
        begin = None if exchanged is None else policy.begin
        yield until, policy._replace(begin=begin, epsilon=exchanged or 0.0, noise=spread)


def _play(
    data: Growing, world: World, behaviour: Behaviour, stack: int, seed: int, steps: int | None, episodes: int | None
) -> None:
    """Plays what is missing."""
    signals.on_stop(lambda: f" at episode {data.now.episodes:,}; the same command goes on")
    by_steps = steps is not None
    total, unit = (steps, "transitions") if by_steps else (episodes, "episodes")
    done = data.now.episodes, data.now.steps
    with progress(data.target.name, total, unit) as reached:
        for played in rounds(world, behaviour, seed, stack, episodes, steps, done):
            data.add(map(_buffer, played), [episode.rewards.sum() for episode in played])
            reached(data.now.steps if by_steps else data.now.episodes)


def _buffer(episode: Played) -> Any:
    """An episode as Minari takes it."""
    from minari.data_collector import EpisodeBuffer

    last = np.arange(len(episode.rewards)) == len(episode.rewards) - 1
    return EpisodeBuffer(
        seed=episode.seed,
        observations=episode.observed,
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=last & episode.terminated,
        truncations=last & (not episode.terminated),
    )


def _replay(
    run: Path,
    until: Path | None,
    steps: int | None,
    world: World,
    judge: Policy | None,
    episodes: int | None,
    target: Path,
) -> None:
    """Writes what an online run gathered, until a checkpoint or a number of steps."""
    if until is not None:
        with reading(until, "a checkpoint of an online run"):
            at = read_checkpoint(until)["OnlineDataModule"]
            by_then = int(at["steps"]) * int(at["copies"])
        steps = by_then if steps is None else min(steps, by_then)
    source = OnlineLog(str(run), steps, reference=_references(world, judge, episodes))
    if not os.path.lexists(target):
        dataset(source, "minari", target)
    elif holds(target, source):  # a chain that was killed before it noted the link as done comes by again
        print(f"{target}: holds this already")
    else:
        raise InputError(f"{target}: exists already; name another --output")


def _said(target: Path, now: Progress) -> str:
    mean = now.returns / now.episodes
    spread = math.sqrt(max(now.squares / now.episodes - mean**2, 0))
    return f"{target}: {now.episodes:,} episodes, {now.steps:,} transitions, return {mean:.2f} ± {spread:.2f}"
