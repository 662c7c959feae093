"""OPER-A, stage 1: priorities from fitted advantages. Yue et al. 2023, arXiv 2306.05412.

A value function is fitted to the (reweighted) data; transitions are then weighted by their advantage under it, and the
next iteration fits the value of the reweighted behaviour: W <- W * (A - min A), brought back to mean 1 each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from oper_lightning.algorithms.stage import Stage
from oper_lightning.data.transitions import discounted_sum, n_step, return_to_go
from oper_lightning.errors import InputError
from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.networks import EnsembleMLP
from oper_lightning.nn.optim import Schedule, adam, frozen_copy, polyak, reset_adam, schedule, set_learning_rate
from oper_lightning.priorities.advantages import next_weights, stretch_std
from oper_lightning.priorities.file import FORMAT, save_tensors
from oper_lightning.priorities.priority import statistics
from oper_lightning.spec import Batch, DataSpec, Kind


class OperA(Stage):
    """OPER-A's stage 1: computes weights from the advantages of transitions, in several iterations.

    Leaves weights.safetensors in the run's folder, written anew after every iteration.

    Args:
        iterations: number of iterations, each of which ends with new weights; trainer.max_steps is shared out equally
            among them. Paper: 5.
        first_updates: gradient updates of the first iteration, if its length differs from the others'.
        seeds: number of value functions that are trained side by side, each with weights of its own. Paper: 3.
        critic: which values are fitted: doublev (twin values, the published choice), v (one value) or vq (twin Q, and a
            value that is fitted to them).
        target: what values are fitted to: nstep (bootstrapped) or mc (return-to-go).
        advantage: how advantages are measured: nstep, mc (return-to-go minus value) or gae.
        n_step: number of rewards that are summed before bootstrapping. Paper: 1; kitchen and pen 5.
        bootstrap_truncated: whether n-step targets (n > 1) bootstrap where an episode was cut; the published code
            counts a cut as terminal.
        gae_lambda: decay of generalised advantage estimation (gae).
        discount: factor of future rewards, per step.
        tau: share of the online networks that moves into the targets with every update.
        learning_rate: learning rate of the Adam optimiser at the start of each iteration.
        schedule: how the learning rate falls over each iteration: cosine, linear or none.
        scale_std: stretch weights to this standard deviation within stage 1, so that the next iteration sees them
            stretched; null (published) leaves them as they are.
        scale_floor: floor of the weights that scale_std stretches.
        hidden_sizes: widths of the hidden layers.
        normalise_observations: whether the networks see observations with mean 0 and standard deviation 1.
    """

    kinds = ("continuous", "discrete")
    reads = ("evaluation",)

    def __init__(
        self,
        iterations: int = 5,
        first_updates: int | None = None,
        seeds: int = 3,
        critic: Literal["doublev", "v", "vq"] = "doublev",
        target: Literal["nstep", "mc"] = "nstep",
        advantage: Literal["nstep", "mc", "gae"] = "nstep",
        n_step: int = 1,
        bootstrap_truncated: bool = True,
        gae_lambda: float = 0.95,
        discount: float = 0.99,
        tau: float = 0.005,
        learning_rate: float = 3e-4,
        schedule: Schedule = "cosine",
        scale_std: float | None = None,
        scale_floor: float = 0.1,
        hidden_sizes: Sequence[int] = (256, 256),
        normalise_observations: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(normalise_observations, **options)
        for name, value in (("iterations", iterations), ("seeds", seeds)):
            if value < 1:
                raise InputError(f"OperA: {name} {value} must be at least 1")
        self.iterations = iterations
        self.first_updates = first_updates
        self.seeds = seeds
        self.critic = critic
        self.target = target
        self.advantage = advantage
        self.n_step = n_step
        self.bootstrap_truncated = bootstrap_truncated
        self.gae_lambda = gae_lambda
        self.discount = discount
        self.tau = tau
        self.learning_rate = learning_rate
        self.schedule: Schedule = schedule
        self.scale_std = scale_std
        self.scale_floor = scale_floor
        self.hidden_sizes = hidden_sizes
        # What each finished iteration left, float32 [S, N].
        self.weights: list[Tensor] = []
        self.advantages: list[Tensor] = []
        self.values: list[Tensor] = []

    # Networks and losses -----------------------------------------------------------------------------------------

    def build(self, spec: DataSpec) -> None:
        self.actions = spec.actions if spec.discrete else None
        observations, actions = spec.observation_size, self.actions or spec.action_size
        heads = 2 if self.critic == "doublev" else 1
        self.value = EnsembleMLP((self.seeds, heads), [observations, *self.hidden_sizes])
        self.target_value = frozen_copy(self.value)
        if self.critic == "vq":
            self.q = EnsembleMLP((self.seeds, 2), [observations + actions, *self.hidden_sizes])
            self.target_q = frozen_copy(self.q)

    @classmethod
    def check_data(cls, kind: Kind, pixels: bool, dataset: object) -> None:
        if pixels:
            raise InputError(
                f"{dataset}: images, which OPER-A's stage 1 does not take; OperR, TopFraction and ReturnWeighting do"
            )
        super().check_data(kind, pixels, dataset)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.optimisers = [adam(self.value.parameters(), self.learning_rate)]
        if self.critic == "vq":
            self.optimisers.append(adam(self.q.parameters(), self.learning_rate))
        return self.optimisers  # type: ignore[return-value]

    def columns(self, transitions: TensorDict) -> TensorDict:
        table = n_step(transitions, self.n_step, self.discount, self.bootstrap_truncated or self.n_step == 1)
        if "mc" in (self.target, self.advantage):
            ends = transitions["next", "done"]
            rewards = transitions["next", "reward"]
            table["return_to_go"] = return_to_go(rewards, ends, self.discount).float()
        if self.advantage == "gae":
            one = transitions["next"].select("observation", "reward", "done")
            table["one_step"] = one.set("discount", n_step(transitions, 1, self.discount)["discount"])
        return table

    def fitted_to(self, batch: TensorDict) -> Tensor:
        """Targets ``[S, B]`` of the values; with vq, of the twin Q."""
        target: Tensor = batch["next", "reward"]
        if self.target == "mc":
            target = batch["return_to_go"]
        else:
            with torch.no_grad():
                target = target + batch["discount"] * self.target_value(batch["next", "observation"]).amin(1)
        return target

    def value_loss(self, batch: TensorDict) -> Tensor:
        """Squared errors of the value heads, summed, ``[S, B]``."""
        if self.critic == "vq":
            with torch.no_grad():
                target = self.target_q(self.pair(batch)).amin(1)
        else:
            target = self.fitted_to(batch)
        values = self.value(batch["observation"])
        return squared_error(values, target.unsqueeze(1).expand_as(values)).sum(1)

    def q_loss(self, batch: TensorDict) -> Tensor:
        """Squared errors of the twin Q, summed, ``[S, B]``."""
        values = self.q(self.pair(batch))
        return squared_error(values, self.fitted_to(batch).unsqueeze(1).expand_as(values)).sum(1)

    def pair(self, batch: TensorDict) -> Tensor:
        """Observations and actions side by side; discrete actions as one-hot columns."""
        action = batch["action"]
        if self.actions is not None:
            action = functional.one_hot(action, self.actions).to(batch["observation"].dtype)
        return torch.cat([batch["observation"], action], -1)

    def prepare(self, number: int) -> None:
        """Each iteration begins with the full learning rate."""
        _, done, length = self.position(number)
        for optimiser in self.optimisers:
            set_learning_rate(optimiser, self.learning_rate * schedule(self.schedule, done / length))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data = batch.evaluation
        results = {}
        if self.critic == "vq":
            q_loss = self.q_loss(data).mean(-1)
            self.minimise(q_loss.sum(), self.optimisers[1])
            results["q_loss"] = q_loss.mean()
        value_loss = self.value_loss(data).mean(-1)
        self.minimise(value_loss.sum(), self.optimisers[0])
        results["value_loss"] = value_loss.mean()
        polyak(self.target_value, self.value, self.tau)
        if self.critic == "vq":
            polyak(self.target_q, self.q, self.tau)
        return results

    # Iterations --------------------------------------------------------------------------------------------------

    def position(self, number: int) -> tuple[int, int, int]:
        """Number of the iteration that an update belongs to, updates done in it before, and its length."""
        first, other = self.parts()
        if number < first:
            return 0, number, first
        iteration, done = divmod(number - first, other)
        return iteration + 1, done, other

    def lengths(self) -> list[int]:
        """Updates of the first and of every other iteration."""
        steps = self.run_length()
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return [steps, steps]
        if self.first_updates is None:
            return [steps // self.iterations] * 2
        if self.iterations == 1:
            return [self.first_updates] * 2
        return [self.first_updates, (steps - self.first_updates) // (self.iterations - 1)]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.priority is not None or data.mode != "resample" or "evaluation" not in data.roles:
            raise InputError(
                "OperA makes the priority itself: leave data.priority, data.mode and data.prioritise alone"
            )
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        steps, epoch = self.trainer.max_steps, data.updates_per_epoch
        first, other = self.lengths()
        if min(first, other) < 1 or first + (self.iterations - 1) * other != steps or first % epoch or other % epoch:
            raise InputError(
                f"trainer.max_steps {steps:,} cannot be shared out among {self.iterations} iterations of whole epochs "
                f"of {epoch:,} updates (data.updates_per_epoch)"
            )

    def on_train_start(self) -> None:
        super().on_train_start()
        self._hand_over()

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        iteration, done, _ = self.position(self.global_step)
        if done == 0 and iteration > len(self.weights):
            self._finish_iteration()
            self._hand_over()

    def _hand_over(self) -> None:
        """Gives the newest weights to the datamodule, which draws by them from now on."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        ones = torch.ones(self.seeds, data.spec.rows)
        data.set_weights_of_seeds(self.weights[-1] if self.weights else ones)

    def _finish_iteration(self) -> None:
        value, advantage = self.evaluate()
        weights = next_weights(self.weights[-1] if self.weights else torch.ones_like(advantage), advantage)
        if self.scale_std is not None:
            weights = stretch_std(weights, self.scale_std, self.scale_floor)
        self.weights.append(weights.float())
        self.advantages.append(advantage)
        self.values.append(value)
        for optimiser in self.optimisers:
            reset_adam(optimiser)
        self._save()
        seeds = [statistics(row) for row in weights]
        means = {f"weights/{key}": sum(row[key] for row in seeds) / len(seeds) for key in seeds[0]}
        self.log_to_loggers({**means, "weights/iteration": float(len(self.weights))})

    @torch.no_grad()
    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Values and advantages of all transitions in row order, ``[S, N]`` each, on the CPU."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        parts = [self.predict_step(rows, 0) for rows in data.in_order()]
        value, advantage = (torch.cat([part[key] for part in parts]).T.cpu() for key in ("value", "advantage"))
        return value, advantage

    def predict_step(self, batch: TensorDict, batch_idx: int) -> dict[str, Tensor]:
        """Values and advantages ``[M, S]`` of M raw transitions that make whole episodes."""
        batch = batch.to(self.device)
        value = self.online_value(batch["observation"])
        if self.advantage == "mc":
            advantage = batch["return_to_go"] - value
        elif self.advantage == "nstep":
            following = self.online_value(batch["next", "observation"])
            advantage = batch["next", "reward"] + batch["discount"] * following - value
        else:
            one = batch["one_step"]
            error = one["reward"] + one["discount"] * self.online_value(one["observation"]) - value
            advantage = discounted_sum(error, self.discount * self.gae_lambda * (~one["done"]).double()).float()
        return {"value": value.T, "advantage": advantage.T}

    def online_value(self, observation: Tensor) -> Tensor:
        """Lower of the online heads for raw observations ``[M, O]``; ``[S, M]``."""
        values: Tensor = self.value(self.observe(observation))
        return values.amin(1)

    # Files -------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self.spec is not None
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in dict(self.hparams).items()}
        save_tensors(
            Path(self.trainer.default_root_dir) / "weights.safetensors",
            {
                "weights": torch.stack(self.weights),
                "advantage": torch.stack(self.advantages),
                "value": torch.stack(self.values),
            },
            {
                "format": FORMAT,
                "fingerprint": self.spec.fingerprint,
                "rows": self.spec.rows,
                "dataset": self.spec.dataset,
                "hyper_parameters": {**plain, "seed": self.seed, "updates": self.global_step},
                "requested_std": self.scale_std,
                "statistics": [[statistics(row) for row in weights] for weights in self.weights],
            },
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["iterations"] = [self.weights, self.advantages, self.values]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        parts = checkpoint.get("iterations")
        shape = (self.seeds, checkpoint["spec"]["rows"])
        if not (
            isinstance(parts, list)
            and len(parts) == 3
            and all(isinstance(part, list) and len(part) == len(parts[0]) for part in parts)
            and all(isinstance(row, Tensor) and row.shape == shape for part in parts for row in part)
        ):
            raise InputError(f"the checkpoint's iterations are not weights, advantages, values of {shape} each")
        self.weights, self.advantages, self.values = parts
