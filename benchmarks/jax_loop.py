"""TD3+BC in JAX, for `benchmarks/gpu.py`: the networks, batches and numbers of `loops.plain_td3_bc`, 50 updates in one
compiled scan.

    python benchmarks/jax_loop.py gpu --precision=highest --seconds=2

Prints one line of JSON. It runs in a process of its own, because JAX and PyTorch bring CUDA libraries of their own.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU is PyTorch's too

try:
    import jax
    from jax import lax, nn, random, tree
    from jax import numpy as jnp
except ImportError:
    print(json.dumps({"error": "jax is not installed"}))
    raise SystemExit(0) from None

OBSERVATIONS, ACTIONS, HIDDEN, BATCH, BLOCK = 17, 6, 256, 256, 50
RATE, SLOW, SLOWER, EPSILON = 3e-4, 0.9, 0.999, 1e-8  # Adam's


def perceptron(key: Any, inputs: int, outputs: int) -> list[Any]:
    """Weights and biases, drawn as PyTorch draws them."""
    layers = []
    for number, (wide, narrow) in enumerate([(inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, outputs)]):
        weight, bias = random.split(random.fold_in(key, number))
        bound = wide**-0.5
        shapes = ((weight, (wide, narrow)), (bias, (narrow,)))
        layers.append([random.uniform(part, shape, minval=-bound, maxval=bound) for part, shape in shapes])
    return layers


def forward(layers: list[Any], value: Any) -> Any:
    for weight, bias in layers[:-1]:
        value = nn.relu(value @ weight + bias)
    weight, bias = layers[-1]
    return value @ weight + bias


def valued(critics: list[Any], observation: Any, action: Any) -> Any:
    """Values ``[2, B]`` of both critics, which lie stacked."""
    pair = jnp.concatenate([observation, action], 1)
    return jax.vmap(forward, (0, None))(critics, pair)[..., 0]


def adam(parameters: Any) -> dict[str, Any]:
    return {
        "count": jnp.zeros(()),
        "mean": tree.map(jnp.zeros_like, parameters),
        "square": tree.map(jnp.zeros_like, parameters),
    }


def stepped(parameters: Any, moments: dict[str, Any], gradients: Any) -> tuple[Any, dict[str, Any]]:
    """One step of Adam."""
    count = moments["count"] + 1
    mean = tree.map(lambda old, new: SLOW * old + (1 - SLOW) * new, moments["mean"], gradients)
    square = tree.map(lambda old, new: SLOWER * old + (1 - SLOWER) * new**2, moments["square"], gradients)
    first, second = 1 - SLOW**count, 1 - SLOWER**count

    def moved(parameter: Any, m: Any, v: Any) -> Any:
        return parameter - RATE * (m / first) / (jnp.sqrt(v / second) + EPSILON)

    return tree.map(moved, parameters, mean, square), {"count": count, "mean": mean, "square": square}


def beginning(key: Any) -> dict[str, Any]:
    one, two, three = random.split(key, 3)
    actor = perceptron(one, OBSERVATIONS, ACTIONS)
    critics = tree.map(
        lambda *both: jnp.stack(both), *(perceptron(part, OBSERVATIONS + ACTIONS, 1) for part in (two, three))
    )
    targets = {"target_actor": tree.map(jnp.copy, actor), "target_critics": tree.map(jnp.copy, critics)}
    moments = {"actor_moments": adam(actor), "critic_moments": adam(critics)}
    return {"actor": actor, "critics": critics, **targets, **moments}


def critics_step(state: dict[str, Any], batch: list[Any], key: Any) -> dict[str, Any]:
    observation, action, following, reward, discount = batch
    noise = jnp.clip(0.2 * random.normal(key, action.shape), -0.5, 0.5)
    ahead = jnp.clip(jnp.tanh(forward(state["target_actor"], following)) + noise, -1, 1)
    target = reward + discount * valued(state["target_critics"], following, ahead).min(0)

    def loss(critics: Any) -> Any:
        return ((valued(critics, observation, action) - target) ** 2).mean(1).sum()

    critics, moments = stepped(state["critics"], state["critic_moments"], jax.grad(loss)(state["critics"]))
    return {**state, "critics": critics, "critic_moments": moments}


def actor_step(state: dict[str, Any], batch: list[Any]) -> dict[str, Any]:
    observation, action, *_ = batch
    first = tree.map(lambda both: both[0], state["critics"])

    def loss(actor: Any) -> Any:
        chosen = jnp.tanh(forward(actor, observation))
        value = forward(first, jnp.concatenate([observation, chosen], 1))
        scale = 2.5 / lax.stop_gradient(jnp.abs(value).mean())
        return -scale * value.mean() + ((chosen - action) ** 2).mean()

    actor, moments = stepped(state["actor"], state["actor_moments"], jax.grad(loss)(state["actor"]))
    state = {**state, "actor": actor, "actor_moments": moments}
    for name in ("actor", "critics"):
        state[f"target_{name}"] = tree.map(
            lambda slow, fast: 0.995 * slow + 0.005 * fast, state[f"target_{name}"], state[name]
        )
    return state


@functools.partial(jax.jit, donate_argnums=0)
def block(state: dict[str, Any], columns: list[Any], key: Any) -> dict[str, Any]:
    """50 updates; two at a time, as the actor learns in every second one."""
    draw, *_ = keys = random.split(key, BLOCK + 1)
    index = random.randint(draw, (BLOCK, BATCH), 0, len(columns[0]))
    batches = [column[index] for column in columns]

    def pair(state: dict[str, Any], given: Any) -> tuple[dict[str, Any], None]:
        batches, keys = given
        (one, two) = ([column[half] for column in batches] for half in (0, 1))
        state = critics_step(critics_step(state, one, keys[0]), two, keys[1])
        return actor_step(state, two), None

    halves = tree.map(lambda part: part.reshape(BLOCK // 2, 2, *part.shape[1:]), (batches, keys[1:]))
    return lax.scan(pair, state, halves)[0]


def noise(rows: int) -> list[Any]:
    """Columns like those of `speed.Synthetic`: observation, action, next observation, reward, discount."""
    keys = random.split(random.key(0), 4)
    observation, following = (random.normal(key, (rows, OBSERVATIONS)) for key in keys[:2])
    action = random.uniform(keys[2], (rows, ACTIONS), minval=-1)
    return [observation, action, following, random.uniform(keys[3], (rows,)), jnp.full((rows,), 0.99)]


def measure(rows: int, seconds: float) -> dict[str, Any]:
    columns, state = noise(rows), beginning(random.key(1))
    begun = time.perf_counter()
    state = jax.block_until_ready(block(state, columns, random.key(2)))
    first = time.perf_counter() - begun
    spent: list[float] = []
    while sum(spent) < seconds or len(spent) < 3:
        begun = time.perf_counter()
        state = jax.block_until_ready(block(state, columns, random.key(3 + len(spent))))
        spent.append(time.perf_counter() - begun)
    if not all(bool(jnp.isfinite(part).all()) for part in tree.leaves(state)):
        return {"error": "what JAX learnt is not finite"}
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "per_second": BLOCK / statistics.median(spent),
        "range": [BLOCK / max(spent), BLOCK / min(spent)],
        "blocks": len(spent),
        "first": first,
        "memory": memory.get("peak_bytes_in_use", 0) / 1e6 or None,
        "jax": jax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=["cpu", "gpu"])
    parser.add_argument("--precision", choices=["highest", "tensorfloat32"], default="highest")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", arguments.precision)
    if arguments.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu":
        print(json.dumps({"error": "the jax that is installed sees no GPU"}))
        return
    print(json.dumps(measure(arguments.rows, arguments.seconds)))


if __name__ == "__main__":
    main()
