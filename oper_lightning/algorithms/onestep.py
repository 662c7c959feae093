"""OnestepRL: Brandfonbrener et al. 2021, "Offline RL Without Off-Policy Evaluation", arXiv 2106.08909.

Three phases in one run: clone the behaviour, learn its values, improve on it once. Prioritised as in OPER, arXiv
2306.05412: behaviour and critic learn on the evaluation batch, the policy on those of improvement and constraint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, cast

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.data.transitions import n_step, next_action
from oper_lightning.errors import InputError
from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.networks import EnsembleMLP, GaussianPolicy, sample
from oper_lightning.nn.optim import adam, frozen_copy, polyak, reset_adam
from oper_lightning.spec import Batch, DataSpec

LARGEST_WEIGHT = 100.0
LARGEST_ACTION = 1 - 1e-4  # exp_weight and il_reg clip recorded actions to it before they take their likelihood

Phase = Literal["behaviour", "critic", "policy"]


class OnestepRL(OfflineAlgorithm):
    """OnestepRL: clones the behaviour, learns its values, and improves on it once.

    Args:
        operator: how the policy improves on the behaviour: exp_weight (advantage-weighted cloning), reverse_kl (values
            less the divergence from the behaviour), il_reg (values and the likelihood of the data), greedy (values
            alone), easy_bcq (no training: the best of some actions of the behaviour).
        critic: what the critic evaluates: sarsa (the recorded next action; where an episode was cut there is none, and
            an action of the behaviour policy is taken), qpi (actions of the current policy, clipped to their bounds),
            or either with twin critics: double_sarsa, double_qpi.
        baseline: what exp_weight's advantage is measured against: value_sample (mean value of actions of the behaviour)
            or td (a value function that is fitted together with the critic).
        steps: how often critic and policy are trained in turn. Paper: 1.
        phases: relative lengths of the phases of behaviour, critic and policy. Paper: 500,000, 2,000,000 and 100,000
            updates.
        temperature: inverse temperature of exp_weight.
        alpha: weight of the divergence in reverse_kl, and of the likelihood in il_reg.
        samples: number of actions that value_sample, reverse_kl and easy_bcq draw.
        discount: factor of future rewards, per step.
        tau: share of the online critic that moves into its target each time.
        target_freq: the target moves after so many updates of the critic.
        hidden_sizes: widths of all networks' hidden layers.
        learning_rate: learning rate of the Adam optimisers.
        normalise_observations: whether the networks see observations with mean 0 and standard deviation 1.
    """

    def __init__(
        self,
        operator: Literal["exp_weight", "reverse_kl", "il_reg", "greedy", "easy_bcq"] = "exp_weight",
        critic: Literal["sarsa", "qpi", "double_sarsa", "double_qpi"] = "sarsa",
        baseline: Literal["value_sample", "td"] = "value_sample",
        steps: int = 1,
        phases: Sequence[float] = (5, 20, 1),
        temperature: float = 1.0,
        alpha: float = 1.0,
        samples: int = 10,
        discount: float = 0.99,
        tau: float = 0.005,
        target_freq: int = 2,
        hidden_sizes: Sequence[int] = (1024, 1024),
        learning_rate: float = 1e-4,
        normalise_observations: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        if min(steps, samples, target_freq) < 1:
            raise InputError(f"OnestepRL: steps {steps}, samples {samples}, target_freq {target_freq}: at least 1 each")
        if len(phases) != 3 or min(phases) <= 0:
            raise InputError(
                f"OnestepRL: phases {list(phases)}: three shares are needed, of behaviour, critic and policy"
            )
        self.operator = operator
        if operator == "easy_bcq":  # behaviour and critic are all that is trained
            self.reads = ("evaluation",)
        self.evaluates_policy = critic.endswith("qpi")
        self.twins = 2 if critic.startswith("double") else 1
        self.baseline = baseline
        self.steps = steps
        self.phases = phases
        self.temperature = temperature
        self.alpha = alpha
        self.samples = samples
        self.discount = discount
        self.tau = tau
        self.target_freq = target_freq
        self.hidden_sizes = hidden_sizes
        self.learning_rate = learning_rate

    def build(self, spec: DataSpec) -> None:
        observations, actions = spec.observation_size, spec.action_size
        self.policy = GaussianPolicy(observations, actions, self.hidden_sizes)
        self.behaviour = frozen_copy(self.policy)
        self.critics = EnsembleMLP((self.twins,), [observations + actions, *self.hidden_sizes])
        self.target_critics = frozen_copy(self.critics)
        if self.baseline == "td":
            self.value = EnsembleMLP((1,), [observations, *self.hidden_sizes])
            self.target_value = frozen_copy(self.value)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.policy_optimiser = adam(self.policy.parameters(), self.learning_rate)
        self.critic_optimiser = adam(self.critics.parameters(), self.learning_rate)
        optimisers: list[torch.optim.Optimizer] = [self.policy_optimiser, self.critic_optimiser]
        if self.baseline == "td":
            self.value_optimiser = adam(self.value.parameters(), self.learning_rate)
            optimisers.append(self.value_optimiser)
        return optimisers

    def columns(self, transitions: TensorDict) -> TensorDict:
        table = n_step(transitions, 1, self.discount)
        if not self.evaluates_policy:
            table["next", "action"] = next_action(transitions)
            table["cut"] = transitions["next", "truncated"]
        return table

    # Phases ------------------------------------------------------------------------------------------------------

    def lengths(self) -> list[int]:
        """Updates of each phase: behaviour, then critic and policy in turn."""
        behaviour, critic, policy = self.phases
        shares = [behaviour, *[critic, 0 if self.operator == "easy_bcq" else policy] * self.steps]
        ends = [round(self.run_length() * done / sum(shares)) for done in accumulate(shares)]
        return [end - start for start, end in zip([0, *ends], ends)]  # noqa: B905

    def position(self, number: int) -> tuple[int, int]:
        """Number of the phase that an update belongs to, and updates done in it before."""
        for phase, length in enumerate(self.parts()):
            if number < length:
                return phase, number
            number -= length
        raise ValueError(f"{number} updates beyond the run")

    def prepare(self, number: int) -> tuple[Phase, bool]:
        """The phase, and whether targets move. A critic's or policy's phase begins with what the one before left."""
        phase, done = self.position(number)
        kind: Phase = "behaviour" if phase == 0 else "critic" if phase % 2 else "policy"
        if done == 0 and phase == 1:
            self.behaviour.load_state_dict(self.policy.state_dict())
        if done == 0 and kind == "policy":
            reset_adam(self.policy_optimiser)
        return kind, kind == "critic" and (done + 1) % self.target_freq == 0

    # Losses ------------------------------------------------------------------------------------------------------

    def cloning_loss(self, batch: TensorDict, largest: float = math.inf) -> Tensor:
        """Negative log likelihood of the recorded actions, brought within ``largest``, ``[B]``."""
        action = batch["action"].clamp(-largest, largest)
        likelihood: Tensor = self.policy(batch["observation"]).log_prob(action).sum(-1)
        return -likelihood

    def critic_loss(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Squared errors of evaluating the behaviour (section 4.2) or the policy, summed over critics, ``[B]``; and the
        critics' values of the recorded actions ``[twins, B]``."""
        following = batch["next", "observation"]
        with torch.no_grad():
            if self.evaluates_policy:
                # Clipped, as they would be before the environment sees them: outside the box nobody has acted.
                action = sample(self.policy(following), 1).squeeze(1).clamp(-1, 1)
            else:
                stand_in = sample(self.behaviour(following), 1).squeeze(1)
                action = torch.where(batch["cut"].unsqueeze(-1), stand_in, batch["next", "action"])
            value = self.target_critics(torch.cat([following, action], -1)).amin(0)
            target = batch["next", "reward"] + batch["discount"] * value
        values = self.critics(torch.cat([batch["observation"], batch["action"]], -1))
        return squared_error(values, target.expand_as(values)).sum(0), values

    def value_loss(self, batch: TensorDict) -> Tensor:
        """Squared TD(0) error of the baseline's value, ``[B]``."""
        with torch.no_grad():
            following = self.target_value.first(batch["next", "observation"])
            target = batch["next", "reward"] + batch["discount"] * following
        return squared_error(self.value.first(batch["observation"]), target)

    def values_of(self, observation: Tensor, actions: Tensor) -> Tensor:
        """Lower of the critics' values ``[B, n]`` of n actions ``[B, n, A]`` for each observation ``[B, O]``."""
        return self.critics.several(observation, actions).amin(0)

    def exponential_loss(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Minus the log likelihood of recorded actions, weighted by their exponential advantage, ``[B]``; and that
        advantage ``[B]``."""
        observation, action = batch["observation"], batch["action"]
        with torch.no_grad():
            value = self.values_of(observation, action.unsqueeze(1)).squeeze(1)
            if self.baseline == "td":
                baseline = self.value.first(observation)
            else:
                baseline = self.values_of(observation, sample(self.behaviour(observation), self.samples)).mean(1)
            advantage = value - baseline
            weight = (self.temperature * advantage).exp().clamp(max=LARGEST_WEIGHT)
        likelihood = self.policy(observation).log_prob(action.clamp(-LARGEST_ACTION, LARGEST_ACTION)).sum(-1)
        return -weight * likelihood, advantage

    def divergence(self, batch: TensorDict) -> Tensor:
        """Sampled divergence KL(policy, behaviour), ``[B]``."""
        policy, behaviour = self.policy(batch["observation"]), self.behaviour(batch["observation"])
        action = sample(policy, self.samples).movedim(1, 0)
        difference: Tensor = (policy.log_prob(action) - behaviour.log_prob(action)).sum(-1)
        return difference.mean(0)

    def policy_loss(self, improvement: TensorDict, constraint: TensorDict) -> dict[str, Tensor]:
        """The operator's loss, 0-d, and what it rests on: the mean advantage's size or the mean value."""
        if self.operator == "exp_weight":
            loss, advantage = self.exponential_loss(improvement)
            loss = (improvement["weight"] * loss).mean()
            return {"policy_loss": loss, "absolute_advantage": advantage.abs().mean()}
        observation = improvement["observation"]
        value = self.values_of(observation, sample(self.policy(observation), 1)).squeeze(1)
        loss = -(improvement["weight"] * value).mean()
        if self.operator == "reverse_kl":
            loss = loss + self.alpha * (constraint["weight"] * self.divergence(constraint)).mean()
        if self.operator == "il_reg":
            loss = loss + self.alpha * (constraint["weight"] * self.cloning_loss(constraint, LARGEST_ACTION)).mean()
        return {"policy_loss": loss, "value": value.mean()}

    # Update ------------------------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> dict[str, Tensor]:
        phase, targets_move = cast(tuple[Phase, bool], self.branch)
        improvement = self.one_policy_batch(batch) if self.operator == "exp_weight" else batch.improvement
        data = batch.evaluation
        if phase == "behaviour":
            loss = (data["weight"] * self.cloning_loss(data)).mean()
            self.minimise(loss, self.policy_optimiser)
            return {"behaviour_loss": loss}
        if phase == "policy":
            results = self.policy_loss(improvement, batch.constraint)
            self.minimise(results["policy_loss"], self.policy_optimiser)
            return results
        errors, values = self.critic_loss(data)
        results = {"critic_loss": (data["weight"] * errors).mean(), "value": values.mean()}
        self.minimise(results["critic_loss"], self.critic_optimiser)
        if targets_move:
            polyak(self.target_critics, self.critics, self.tau)
        if self.baseline == "td":
            results["value_loss"] = (data["weight"] * self.value_loss(data)).mean()
            self.minimise(results["value_loss"], self.value_optimiser)
            if targets_move:
                polyak(self.target_value, self.value, self.tau)
        return results

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        normal = self.policy(self.observe(observation))
        if self.operator != "easy_bcq":
            return self.to_environment(normal.mean)
        # The same noise each time, so that acting is deterministic.
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.samples, normal.mean.shape[-1], generator=generator).to(self.device)
        mean, std = normal.mean.unsqueeze(-2), normal.stddev.unsqueeze(-2)
        actions = (mean + std * noise).clamp(-1, 1)
        seen = self.observe(observation)
        value = self.values_of(seen.reshape(-1, seen.shape[-1]), actions.reshape(-1, *actions.shape[-2:]))
        best = value.argmax(1).view(*seen.shape[:-1], 1, 1).expand(*actions.shape[:-2], 1, actions.shape[-1])
        return self.to_environment(actions.gather(-2, best).squeeze(-2))
