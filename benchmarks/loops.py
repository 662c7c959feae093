"""Loops written by hand, which `benchmarks/speed.py` lets take turns with `fit`.

The plain ones are what a file of one algorithm looks like: a module for each network, one buffer of tensors, one batch
per step, PyTorch's Adam as it comes, targets parameter by parameter.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn import functional

from oper_lightning import OfflineDataModule

OBSERVATIONS, ACTIONS, HIDDEN, BATCH = 17, 6, 256, 256
BLOCK = 50


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


class Columns:
    """The same data as plain tensors."""

    def __init__(self, data: OfflineDataModule) -> None:
        table = data.transitions
        mean, std = data.spec.observation_mean, data.spec.observation_std + 1e-3
        self.observation = (table["observation"] - mean) / std
        self.next_observation = (table["next", "observation"] - mean) / std
        self.action = table["action"].clone()
        self.reward = table["next", "reward"].clone()
        self.discount = 0.99 * (~table["next", "terminated"]).float()

    def gather(self, index: Tensor) -> tuple[Tensor, ...]:
        columns = (self.observation, self.action, self.next_observation, self.reward, self.discount)
        return tuple(column[index] for column in columns)


def minimise(loss: Tensor, parameters: list[Tensor], optimiser: torch.optim.Optimizer) -> None:
    """One step along the gradients of these parameters only."""
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimiser.step()


def follow(slow: nn.Module, fast: nn.Module) -> None:
    """Moves a target by 0.005, parameter by parameter."""
    for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
        old.data.copy_(0.995 * old.data + 0.005 * new.data)


def plain_td3_bc(columns: Columns, updates: int) -> float:
    """What one writes down first: two critics, default Adam, polyak by parameter, one batch per step."""
    device = columns.reward.device
    actor = perceptron(OBSERVATIONS, ACTIONS).to(device)
    critics = [perceptron(OBSERVATIONS + ACTIONS, 1).to(device) for _ in range(2)]
    target_actor, target_critics = copy.deepcopy(actor), copy.deepcopy(critics)
    actor_optimiser = torch.optim.Adam(actor.parameters(), lr=3e-4)
    critic_optimiser = torch.optim.Adam([p for critic in critics for p in critic.parameters()], lr=3e-4)
    rows = len(columns.reward)

    def update(step: int) -> None:
        observation, action, following, reward, discount = columns.gather(torch.randint(rows, (BATCH,), device=device))
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
            pair = torch.cat([following, (torch.tanh(target_actor(following)) + noise).clamp(-1, 1)], 1)
            lower = torch.min(target_critics[0](pair), target_critics[1](pair)).squeeze(1)
            target = reward + discount * lower
        pair = torch.cat([observation, action], 1)
        loss = sum(functional.mse_loss(critic(pair).squeeze(1), target) for critic in critics)
        critic_optimiser.zero_grad()
        loss.backward()
        critic_optimiser.step()
        if step % 2:
            chosen = torch.tanh(actor(observation))
            value = critics[0](torch.cat([observation, chosen], 1))
            loss = -2.5 / value.abs().mean().detach() * value.mean() + functional.mse_loss(chosen, action)
            actor_optimiser.zero_grad()
            loss.backward()
            actor_optimiser.step()
            for slow, fast in [(target_actor, actor), *zip(target_critics, critics, strict=True)]:
                follow(slow, fast)

    return timed(update, updates)


def plain_iql(columns: Columns, updates: int) -> float:
    """IQL: value, two critics, a policy of mean and free standard deviations, whose learning rate falls."""
    actor, value = perceptron(OBSERVATIONS, ACTIONS), perceptron(OBSERVATIONS, 1)
    log_std = nn.Parameter(torch.zeros(ACTIONS))
    critics = nn.ModuleList(perceptron(OBSERVATIONS + ACTIONS, 1) for _ in range(2))
    targets = copy.deepcopy(critics)
    actor_optimiser = torch.optim.Adam([*actor.parameters(), log_std], lr=3e-4)
    value_optimiser = torch.optim.Adam(value.parameters(), lr=3e-4)
    critic_optimiser = torch.optim.Adam(critics.parameters(), lr=3e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(actor_optimiser, 2 * updates)
    rows = len(columns.reward)

    def update(step: int) -> None:
        observation, action, following, reward, discount = columns.gather(torch.randint(rows, (BATCH,)))
        pair = torch.cat([observation, action], 1)
        with torch.no_grad():
            ahead = value(following).squeeze(1)
            lower = torch.min(targets[0](pair), targets[1](pair)).squeeze(1)
        advantage = lower - value(observation).squeeze(1)
        loss = ((0.7 - (advantage < 0).float()).abs() * advantage**2).mean()
        value_optimiser.zero_grad()
        loss.backward()
        value_optimiser.step()
        target = reward + discount * ahead
        loss = sum(functional.mse_loss(critic(pair).squeeze(1), target) for critic in critics) / 2
        critic_optimiser.zero_grad()
        loss.backward()
        critic_optimiser.step()
        follow(targets, critics)
        weight = torch.exp(3 * advantage.detach()).clamp(max=100)
        normal = Normal(torch.tanh(actor(observation)), log_std.clamp(-5, 2).exp())
        loss = -(weight * normal.log_prob(action).sum(1)).mean()
        actor_optimiser.zero_grad()
        loss.backward()
        actor_optimiser.step()
        schedule.step()

    return timed(update, updates)


def plain_cql(columns: Columns, updates: int, sampled: int = 10) -> float:
    """CQL: a soft actor-critic with the penalty on three times ten sampled actions, and a tuned temperature."""
    actor = perceptron(OBSERVATIONS, 2 * ACTIONS)
    critics = [perceptron(OBSERVATIONS + ACTIONS, 1) for _ in range(2)]
    targets = copy.deepcopy(critics)
    log_temperature = nn.Parameter(torch.zeros(()))
    actor_optimiser = torch.optim.Adam(actor.parameters(), lr=3e-4)
    critic_optimisers = [torch.optim.Adam(critic.parameters(), lr=3e-4) for critic in critics]
    temperature_optimiser = torch.optim.Adam([log_temperature], lr=3e-4)
    rows = len(columns.reward)

    def sample(observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(observation).chunk(2, -1)
        squashed = TransformedDistribution(Normal(mean, log_std.clamp(-20, 2).exp()), TanhTransform(cache_size=1))
        action = squashed.rsample()
        return action, squashed.log_prob(action).sum(-1)

    def valued(critic: nn.Module, observation: Tensor, action: Tensor) -> Tensor:
        return critic(torch.cat([observation, action], -1)).squeeze(-1)

    def update(step: int) -> None:
        observation, action, following, reward, discount = columns.gather(torch.randint(rows, (BATCH,)))
        chosen, density = sample(observation)
        temperature_loss = -(log_temperature * (density - ACTIONS).detach()).mean()
        temperature = log_temperature.exp().detach()
        best = torch.min(valued(critics[0], observation, chosen), valued(critics[1], observation, chosen))
        actor_loss = (temperature * density - best).mean()
        with torch.no_grad():
            ahead, _ = sample(following)
            lower = torch.min(valued(targets[0], following, ahead), valued(targets[1], following, ahead))
            target = reward + discount * lower
            several = observation.unsqueeze(1).expand(-1, sampled, -1)
            box = torch.empty(BATCH, sampled, ACTIONS).uniform_(-1, 1)
            now, now_density = sample(several)
            later, later_density = sample(following.unsqueeze(1).expand(-1, sampled, -1))
        losses = []
        for critic in critics:
            recorded = valued(critic, observation, action)
            candidates = [
                valued(critic, several, box) + ACTIONS * torch.log(torch.tensor(2.0)),
                valued(critic, several, later) - later_density,
                valued(critic, several, now) - now_density,
            ]
            penalty = (torch.logsumexp(torch.cat(candidates, 1), 1) - recorded).mean()
            losses.append(functional.mse_loss(recorded, target) + 5 * penalty)
        temperature_optimiser.zero_grad()
        temperature_loss.backward()
        temperature_optimiser.step()
        actor_optimiser.zero_grad()
        actor_loss.backward()
        actor_optimiser.step()
        for optimiser, loss in zip(critic_optimisers, losses, strict=True):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        for slow, fast in zip(targets, critics, strict=True):
            follow(slow, fast)

    return timed(update, updates)


def tuned_td3_bc(columns: Columns, updates: int) -> float:
    """All that we know to make it fast: blocks, fused Adam, one polyak, only the gradients that are used."""
    actor = perceptron(OBSERVATIONS, ACTIONS)
    critics = nn.ModuleList(perceptron(OBSERVATIONS + ACTIONS, 1) for _ in range(2))
    target_actor, target_critics = copy.deepcopy(actor), copy.deepcopy(critics)
    actor_parameters, critic_parameters = list(actor.parameters()), list(critics.parameters())
    slow = [*target_actor.parameters(), *target_critics.parameters()]
    fast = [*actor_parameters, *critic_parameters]
    actor_optimiser = torch.optim.Adam(actor_parameters, lr=3e-4, fused=True)
    critic_optimiser = torch.optim.Adam(critic_parameters, lr=3e-4, fused=True)
    rows = len(columns.reward)
    batches: list[tuple[Tensor, ...]] = []

    def update(step: int) -> None:
        if not batches:
            block = columns.gather(torch.randint(rows, (BLOCK, BATCH)))
            batches.extend(zip(*(column.unbind() for column in block), strict=True))
        observation, action, following, reward, discount = batches.pop()
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp_(-0.5, 0.5)
            pair = torch.cat([following, (torch.tanh(target_actor(following)) + noise).clamp_(-1, 1)], 1)
            lower = torch.min(target_critics[0](pair), target_critics[1](pair)).squeeze(1)
            target = reward + discount * lower
        pair = torch.cat([observation, action], 1)
        first, second = (critic(pair).squeeze(1) for critic in critics)
        loss = functional.mse_loss(first, target) + functional.mse_loss(second, target)
        minimise(loss, critic_parameters, critic_optimiser)
        if step % 2:
            chosen = torch.tanh(actor(observation))
            value = critics[0](torch.cat([observation, chosen], 1))
            loss = -2.5 / value.abs().mean().detach() * value.mean() + functional.mse_loss(chosen, action)
            minimise(loss, actor_parameters, actor_optimiser)
            with torch.no_grad():
                torch._foreach_lerp_(slow, fast, 0.005)

    return timed(update, updates, flush=True)


def torchrl_td3_bc(columns: Columns, updates: int, tuned: bool = False) -> float:
    """torchrl's loss module and target updater, with our batches; ``tuned``: blocks, fused Adam, denormals flushed."""
    from tensordict.nn import TensorDictModule
    from torchrl.data import Bounded
    from torchrl.modules import ValueOperator
    from torchrl.objectives import SoftUpdate, TD3BCLoss

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = perceptron(OBSERVATIONS + ACTIONS, 1)

        def forward(self, observation: Tensor, action: Tensor) -> Tensor:
            return self.body(torch.cat([observation, action], -1))

    body = nn.Sequential(*perceptron(OBSERVATIONS, ACTIONS), nn.Tanh())
    actor = TensorDictModule(body, in_keys=["observation"], out_keys=["action"])
    critic = ValueOperator(Critic(), in_keys=["observation", "action"])
    loss_module = TD3BCLoss(
        actor, critic, action_spec=Bounded(-1, 1, (ACTIONS,)), num_qvalue_nets=2, alpha=2.5, loss_function="l2"
    )
    loss_module.make_value_estimator(gamma=0.99)
    soft = SoftUpdate(loss_module, tau=0.005)
    networks = (loss_module.actor_network_params, loss_module.qvalue_network_params)
    actor_optimiser, critic_optimiser = (
        torch.optim.Adam(list(network.flatten_keys().values()), lr=3e-4, fused=tuned or None) for network in networks
    )
    rows, batches = len(columns.reward), []

    def update(step: int) -> None:
        if not batches:
            block = columns.gather(torch.randint(rows, (BLOCK if tuned else 1, BATCH)))
            batches.extend(zip(*(column.unbind() for column in block), strict=True))
        observation, action, following, reward, discount = batches.pop()
        over = (discount == 0).unsqueeze(1)
        batch = TensorDict(
            {
                "observation": observation,
                "action": action,
                "next": {"observation": following, "reward": reward.unsqueeze(1), "terminated": over, "done": over},
            },
            batch_size=[BATCH],
        )
        loss, _ = loss_module.qvalue_loss(batch)
        critic_optimiser.zero_grad()
        loss.backward()
        critic_optimiser.step()
        if step % 2:
            loss, _ = loss_module.actor_loss(batch)
            actor_optimiser.zero_grad()
            loss.backward()
            actor_optimiser.step()
            soft.step()

    return timed(update, updates, flush=tuned)


def tuned_bc(columns: Columns, updates: int) -> float:
    """Behaviour cloning by hand."""
    actor = perceptron(OBSERVATIONS, ACTIONS)
    parameters = list(actor.parameters())
    optimiser = torch.optim.Adam(parameters, lr=3e-4, fused=True)
    batches: list[tuple[Tensor, ...]] = []

    def update(step: int) -> None:
        if not batches:
            index = torch.randint(len(columns.reward), (BLOCK, BATCH))
            batches.extend(zip(columns.observation[index].unbind(), columns.action[index].unbind(), strict=True))
        observation, action = batches.pop()
        minimise(functional.mse_loss(torch.tanh(actor(observation)), action), parameters, optimiser)

    return timed(update, updates, flush=True)


def timed(update: Callable[[int], None], updates: int, flush: bool = False) -> float:
    """Processor seconds of ``updates`` calls, after a tenth to warm up; ``flush`` counts denormal numbers as zero."""
    torch.set_flush_denormal(flush)
    for step in range(updates // 10):
        update(step)
    start = now()
    for step in range(updates):
        update(step)
    seconds = now() - start
    torch.set_flush_denormal(False)
    return seconds


def now() -> float:
    """Seconds: by the clock once the GPU has caught up, if this process uses one; else of the processor."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
