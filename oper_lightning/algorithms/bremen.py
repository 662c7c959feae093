"""BREMEN: a policy that improves by trust-region steps on imagined rollouts (Matsushima et al. 2020, arXiv 2006.03647).

The published code draws actions with one standard deviation and measures ratio and KL with another, which the clone's
loss has driven to its floor; ``likelihood_std`` head does so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from oper_lightning.algorithms.base import OfflineAlgorithm
from oper_lightning.data.transitions import discounted_sum, times_and_returns
from oper_lightning.errors import InputError, note
from oper_lightning.nn import ranks
from oper_lightning.nn.baselines import LinearBaseline, NetworkBaseline
from oper_lightning.nn.dynamics import Dynamics
from oper_lightning.nn.imagination import imagine
from oper_lightning.nn.networks import DeterministicPolicy, GaussianPolicy, Normalising
from oper_lightning.nn.trpo import trust_region_step
from oper_lightning.spec import Batch, DataSpec, Task
from oper_lightning.training import earlier, stored


class BREMEN(OfflineAlgorithm):
    """BREMEN: trust-region steps from a clone of the behaviour, on rollouts that a dynamics ensemble imagines.

    One update imagines ``data.batch_size`` rollouts from recorded observations, ``horizon`` steps each, and takes one
    step on them.

    Args:
        dynamics: checkpoint of a DynamicsEnsemble.
        clone: checkpoint of the BC run that the policy begins with, observation statistics included; by default it
            begins with random weights.
        start: checkpoint of an earlier BREMEN run to go on from in place of the clone: its policy, statistics and
            baseline (without clones: ME-TRPO).
        task: rewards and terminations of imagined steps; by default the learnt reward, and no terminations.
        horizon: steps of an imagined rollout. Paper: 250; hopper and walker2d 1000.
        member: which member of the ensemble takes an imagined step: own (another for each rollout) or shared
            (published: one for all, drawn at each step).
        std: standard deviation of actions around the policy's, in units of [-1, 1].
        sampling_std: fixed draws actions with std; head with std times the policy's own standard deviation.
        likelihood_std: standard deviation in ratios and KL divergences: fixed (std) or head (published: the policy's
            own, whatever actions were drawn with; begin with a clone whose policy is sampled).
        target_kl: mean KL divergence that a step aims at; none exceeds it by half. Paper: 0.05; cheetahs 0.1.
        alpha: price of the KL divergence from the clone, per step.
        discount: factor of future rewards, per step.
        gae_lambda: decay of generalised advantage estimation. Paper: 0.95; ant 0.97.
        bootstrap_truncated: whether the value of what would follow counts where a rollout was cut; the published code
            counts a cut as terminal.
        damping: what is added to the diagonal of the Fisher matrix.
        fisher_share: share of the imagined steps that the Fisher matrix is estimated from: every n-th of each rollout.
        baseline: linear (least squares) or network (a perceptron of hidden_sizes).
        pretrain_baseline: whether the baseline begins with the discounted returns of the recorded episodes.
        hidden_sizes: widths of the policy's hidden layers; the clone's.
    """

    reads = ("improvement",)

    def __init__(
        self,
        dynamics: str = "",
        clone: str | None = None,
        start: str | None = None,
        task: Task | None = None,
        horizon: int = 250,
        member: Literal["own", "shared"] = "own",
        std: float = 0.1,
        sampling_std: Literal["fixed", "head"] = "fixed",
        likelihood_std: Literal["fixed", "head"] = "fixed",
        target_kl: float = 0.05,
        alpha: float = 0.0,
        discount: float = 0.99,
        gae_lambda: float = 0.95,
        bootstrap_truncated: bool = True,
        damping: float = 0.1,
        fisher_share: float = 1.0,
        baseline: Literal["linear", "network"] = "linear",
        pretrain_baseline: bool = False,
        hidden_sizes: Sequence[int] = (200, 200),
        **options: Any,
    ) -> None:
        super().__init__(True, **options)
        if self.how != "none":
            raise InputError("model.compile: BREMEN looks at numbers within an update: use none")
        if not (horizon > 0 and std > 0 and target_kl > 0 and 0 < fisher_share <= 1):
            raise InputError("model.horizon, std, target_kl and fisher_share must be above 0, fisher_share at most 1")
        if sampling_std == "head" and likelihood_std == "fixed":
            raise InputError(
                "model.sampling_std=head: only with likelihood_std=head does the policy have one of its own"
            )
        if alpha and clone is None:
            raise InputError("model.alpha is the price of diverging from a clone: name one (model.clone)")
        self.dynamics, self.clone, self.start, self.task = dynamics, clone, start, task
        self.horizon, self.member, self.std = horizon, member, std
        self.sampling_std, self.likelihood_std = sampling_std, likelihood_std
        self.target_kl, self.alpha, self.damping, self.fisher_share = target_kl, alpha, damping, fisher_share
        self.discount, self.gae_lambda, self.bootstrap_truncated = discount, gae_lambda, bootstrap_truncated
        self.baseline_type, self.pretrain_baseline, self.hidden_sizes = baseline, pretrain_baseline, hidden_sizes
        self.model: Dynamics | None = None
        self.imagined: Tensor | None = None
        """reward per step of the last update's imagined rollouts, this rank's, 0-d"""

    def build(self, spec: DataSpec) -> None:
        network = DeterministicPolicy if self.likelihood_std == "fixed" else GaussianPolicy
        observations, sizes = spec.observation_size, self.hidden_sizes
        self.policy = network(observations, spec.action_size, sizes)
        linear = self.baseline_type == "linear"
        self.baseline = LinearBaseline(observations) if linear else NetworkBaseline(observations, sizes)
        if self.alpha:
            self.behaviour = Normalising(network(observations, spec.action_size, sizes), observations)
            self.behaviour.requires_grad_(False)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.baseline.optimisers()

    def columns(self, transitions: TensorDict) -> TensorDict:
        return TensorDict({"start": transitions["observation"]}, batch_size=transitions.batch_size)

    # The policy and the imagined world ---------------------------------------------------------------------------

    def normal(self, network: nn.Module, seen: Tensor) -> Normal:
        """The distribution of actions in ratios and KL divergences, ``[..., A]``, for normalised observations."""
        found = network(seen)
        return found if isinstance(found, Normal) else Normal(found, self.std, validate_args=False)

    def sample(self, observation: Tensor) -> Tensor:
        """Actions ``[B, A]`` around the policy's, some beyond [-1, 1], for raw observations ``[B, O]``."""
        normal = self.normal(self.policy, self.observe(observation))
        noise = self.std * ranks.randn_like(normal.mean.float())
        return normal.mean + (noise * normal.stddev if self.sampling_std == "head" else noise)

    def world(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Next observations, rewards, terminations, and where the model is lost, as the ensemble and the task say."""
        assert self.model is not None
        action = action.clamp(-1, 1)
        following, reward, lost = self.model.step(observation, action, self.member == "shared")
        if self.task is None:
            assert reward is not None
            return following, reward, torch.zeros_like(lost), lost
        known = observation, self.to_environment(action), following
        return following, self.task.reward(*known), self.task.terminated(*known), lost

    def divergence(self, observation: Tensor) -> Tensor:
        """KL divergence ``[...]`` of the policy from the clone at raw observations ``[..., O]``."""
        normal = self.normal(self.policy, self.observe(observation))
        return kl_divergence(normal, self.normal(self.behaviour, observation)).sum(-1)

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        return self.to_environment(self.normal(self.policy, self.observe(observation)).mean)

    def explore(self, observation: Tensor) -> Tensor:
        return self.to_environment(self.sample(observation).clamp(-1, 1))

    # The update --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def advantages(self, path: TensorDict) -> tuple[Tensor, Tensor]:
        """Generalised advantage estimates, and what values are fitted to; float64 ``[H, B]`` each."""
        reward = path["reward"].double()
        if self.alpha:
            reward = reward - self.alpha * self.divergence(path["observation"])
        # No value is beyond what such rewards come to. Baselines that learn from themselves may stray without bound.
        low, high = ranks.extremes(reward)
        steps = 1 / max(1 - self.discount, 1e-9)
        bounds = torch.minimum(low, low * steps), torch.maximum(high, high * steps)
        value = self.baseline(self.observe(path["observation"]), path["time"]).clamp(*bounds)
        following = self.baseline(self.observe(path["next_observation"]), path["time"] + 1).clamp(*bounds)
        following = following.masked_fill(path["terminated"] if self.bootstrap_truncated else path["done"], 0)
        error = reward + self.discount * following - value
        advantage = discounted_sum(error.T, self.discount * self.gae_lambda * (~path["done"].T).double()).T
        return advantage, advantage + value

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data = batch.improvement
        path = imagine(data["start"], self.horizon, self.sample, self.world)
        weight = data["weight"].double().expand(path.shape)
        advantage, target = self.advantages(path)
        numbers = {"baseline_error": (weight * advantage.square()).mean()}  # of the baseline as it was
        advantage = advantage - ranks.batch_mean(weight * advantage)
        advantage = advantage / (ranks.batch_mean(weight * advantage.square()).sqrt() + 1e-8)
        seen, size = self.observe(path["observation"]), (self.target_kl, self.damping, self.fisher_share)
        outcome = trust_region_step(self.policy, self.normal, seen, path["action"], advantage, weight, *size)
        self.baseline.fit(seen, path["time"], target, weight)
        cut = path["done"][:-1] & ~path["terminated"][:-1]
        numbers |= {"terminated": path["terminated"].float().mean(), "lost": cut.float().sum() / path.numel()}
        self.imagined = path["reward"].mean()
        return {"imagined_reward": self.imagined, **outcome._asdict(), **numbers}

    def log_judgement(self, stage: str, numbers: dict[str, float]) -> None:
        """Beside the return in the environment, what as many steps earn in the model: ``promised``."""
        if self.imagined is not None and "length" in numbers:
            numbers = {**numbers, "promised": float(ranks.mean_over_ranks(self.imagined)) * numbers["length"]}
        super().log_judgement(stage, numbers)

    # The runs before ---------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.judged is not None:
            raise InputError(
                "data.holdout: BREMEN fits nothing to rows, so that held-out ones say nothing: leave it out"
            )
        if self.model is not None:  # it came with the checkpoint that this run goes on from
            return
        assert self.spec is not None
        if self.task is not None:
            self.task.check(self.spec.observation_size, self.spec.dataset)
        if self.start is None and self.clone is None:
            note("no clone (model.clone): the policy begins with random weights")
        self.model = earlier.read_dynamics(self.dynamics, self.spec).to(self.device)
        if self.task is None and not self.model.reward:
            raise InputError(f"{self.dynamics}: it has learnt no reward: name a task (model.task)")
        heads = "deterministic" if self.likelihood_std == "fixed" else "sampled"
        remedy = f"a clone needs model.policy={heads} and model.hidden_sizes={[*self.hidden_sizes]}"
        if self.clone is not None and self.alpha:
            clone, behaviour = stored.read_checkpoint(self.clone), self.behaviour
            earlier.take_policy(clone, behaviour.network, behaviour.mean, behaviour.std, self.spec, remedy)
        if first := self.start or self.clone:
            checkpoint = stored.read_checkpoint(first)
            earlier.take_policy(checkpoint, self.policy, self.observation_mean, self.observation_std, self.spec, remedy)
            if self.start:
                earlier.fill(self.baseline, checkpoint, "baseline.", "model.start needs a BREMEN of the same baseline")
        if self.pretrain_baseline:
            rows = data.rows(slice(None)).to(self.device)
            observation, reward, following = rows["observation"], rows["next", "reward"], rows["next", "observation"]
            if self.task is not None:
                reward = self.task.reward(observation, rows["action"], following)
            time, returns = times_and_returns(reward, data.transitions["next", "done"].to(self.device), self.discount)
            self.baseline.fit(self.observe(observation), time, returns, torch.ones_like(returns))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        assert self.model is not None
        checkpoint["dynamics"] = self.model.sizes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.model is None and "dynamics" in checkpoint:
            self.model = earlier.dynamics(checkpoint["dynamics"], checkpoint, "model.").to(self.device)
        super().on_load_checkpoint(checkpoint)
