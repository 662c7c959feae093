"""An ensemble of models of the environment, the first stage of BREMEN (Matsushima et al. 2020, arXiv 2006.03647)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from oper_lightning.algorithms.stage import Stage
from oper_lightning.errors import InputError
from oper_lightning.nn import ranks
from oper_lightning.nn.dynamics import Dynamics
from oper_lightning.nn.losses import squared_error
from oper_lightning.nn.optim import adam, frozen_copy
from oper_lightning.spec import Batch, DataSpec
from oper_lightning.training import earlier
from oper_lightning.training.model_errors import Errors, sums_by_episode

PART = 20_000  # held-out rows that are looked at together


class DynamicsEnsemble(Stage):
    """Networks that predict what an environment does; each learns from batches of its own.

    After every epoch (``data.updates_per_epoch``) each member is judged on held-out episodes (``data.holdout``), by the
    geometric mean of their errors: an arithmetic one is decided by episodes of random actions, whose errors stay a
    dozen times larger than those of the newest policy, and ends training while the newest are still learnt. The weights
    of its best epoch are kept, and are what imagines and is handed on. A member that was no better for ``patience``
    epochs has stopped; when all have, the run ends.

    Args:
        members: number of networks.
        hidden_sizes: widths of their hidden layers.
        kind: deterministic (squared error of normalised changes) or gaussian (likelihood).
        reward: whether the reward is learnt too; not needed where a task gives it by formula.
        weight_decay: factor of half the squared weights of the hidden layers, divided by the number of transitions
            trained on.
        learning_rate: learning rate of the Adam optimiser.
        patience: epochs without a smaller error after which a member stops.
        margin: how far imagined observations may leave the range of the data, in widths of it.
        start: checkpoint of an earlier ensemble, whose weights training begins with; none by default.
    """

    reads = ("evaluation",)
    best_error: Tensor
    waited: Tensor

    def __init__(
        self,
        members: int = 5,
        hidden_sizes: Sequence[int] = (1024, 1024),
        kind: Literal["deterministic", "gaussian"] = "deterministic",
        reward: bool = True,
        weight_decay: float = 1.0,
        learning_rate: float = 1e-3,
        patience: int = 20,
        margin: float = 0.5,
        start: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(False, **options)
        for name, value in (("members", members), ("patience", patience)):
            if value < 1:
                raise InputError(f"DynamicsEnsemble: {name} {value} must be at least 1")
        self.members = members
        self.hidden_sizes = hidden_sizes
        self.kind = kind
        self.reward = reward
        self.weight_decay = weight_decay
        self.learning_rate = learning_rate
        self.patience = patience
        self.margin = margin
        self.start = start
        self.stopped: str | None = None
        """why the run ended early"""
        self.judged: Errors | None = None
        """what a validation found, outside of training"""

    # Networks and losses -----------------------------------------------------------------------------------------

    def build(self, spec: DataSpec) -> None:
        sizes = spec.observation_size, spec.action_size, self.hidden_sizes
        self.model = Dynamics(self.members, *sizes, self.reward, self.kind == "gaussian", self.margin)
        self.best = frozen_copy(self.model)
        """of each member the weights of its best epoch"""
        self.register_buffer("best_error", torch.full((self.members,), torch.finfo(torch.float32).max))
        self.register_buffer("waited", torch.zeros(self.members, dtype=torch.int64))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self.optimiser = adam(self.model.parameters(), self.learning_rate)
        return [self.optimiser]

    def loss(self, batch: TensorDict) -> Tensor:
        """Of each member and row the squared error of normalised changes, averaged over columns; ``[M, B]``.

        In Gaussian ensembles twice the negative log likelihood without its constant, averaged likewise.
        """
        error, log_variance = self.squared_errors(batch)
        if log_variance is not None:
            error = error * (-log_variance).exp() + log_variance
        return error.mean(-1)

    def squared_errors(self, batch: TensorDict) -> tuple[Tensor, Tensor | None]:
        """Squared errors of the members' means, and log variances, ``[M, B, T]``, of rows ``[B]`` or ``[M, B]``."""
        observation = batch["observation"]
        mean, log_variance = self.model.heads(self.model.inputs(observation, batch["action"]))
        targets = self.model.targets(observation, batch["next", "observation"], batch["next", "reward"])
        return squared_error(mean, targets.expand_as(mean)), log_variance

    def penalty(self) -> Tensor:
        """Half the squared weights of the hidden layers; the bounds of variances are drawn together, 0-d."""
        hidden = list(self.model.networks.weights)[:-1]
        total = torch.stack([weight.square().sum() / 2 for weight in hidden]).sum() * self.weight_decay / self.rows
        if self.model.gaussian:
            total = total + 0.01 * (self.model.most.sum() - self.model.least.sum())
        return total

    def update(self, batch: Batch) -> dict[str, Tensor]:
        data = batch.evaluation
        loss = (data["weight"] * self.loss(data)).mean(-1)
        self.minimise(loss.sum() + self.penalty(), self.optimiser)
        return {"model_loss": loss.mean()}

    # The run -----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        new = self._goes_on_from is None
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.judged is None:
            raise InputError(
                "DynamicsEnsemble keeps the weights that err least on held-out episodes: give their share, such as "
                "--data.holdout=0.1, or a file"
            )
        trained = data.training_rows()
        self.rows = len(trained)
        if not new:
            return
        if self.start is not None:
            self._begin_with(self.start)
        rows = self._normalise(data.rows(trained)).to(self.device)
        self.model.measure(rows)
        self.best.measure(rows)

    def _begin_with(self, path: str) -> None:
        """Takes the best weights of an earlier ensemble."""
        checkpoint = earlier.read_ensemble(path, "model.start")
        remedy = "model.start needs an ensemble of the same members, hidden_sizes, kind, reward and data"
        earlier.fill(self.model, checkpoint, "best.", remedy)
        self.best.load_state_dict(self.model.state_dict())

    def on_train_start(self) -> None:
        super().on_train_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        weights = torch.ones(data.spec.rows) if data.weights is None else data.weights
        if weights.dim() == 1:  # each member gets batches of its own
            data.set_weights_of_seeds(weights.expand(self.members, -1))
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        if bool((self.waited >= self.patience).all()):
            self.stopped = f"no member has erred less on held-out episodes for {self.patience} epochs"
            self.trainer.should_stop = True

    def validation_step(self, judged: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Judges held-out rows: while training each member's error, elsewhere all that tells a good model from a bad
        one.
        """
        if callable(judged):
            self.no_policy()
        if not self._fits():
            # All ranks judge all rows, as steps must follow each other.
            parts = [self._normalise(part).to(self.device) for part in judged.parts(PART, of_all_ranks=True)]
            self.judged = Errors.of(self.best, torch.cat(parts), judged.ends().to(self.device))
            return self.log_judgement("holdout", self.judged.numbers())
        numbers, episodes = judged.episodes().to(self.device), int(judged.ends().sum())
        sums = torch.zeros(self.members + 1, episodes, dtype=torch.float64, device=self.device)
        for part, number in zip(judged.parts(PART), numbers.split(PART), strict=True):
            with torch.no_grad():
                error = self.squared_errors(self._normalise(part).to(self.device))[0].mean(-1)
            sums += sums_by_episode(error, number, episodes)
        sums = ranks.sum_over_ranks(sums)
        errors, rows = sums[:-1], sums[-1]
        geometric = (errors / rows).log().mean(1).exp().float()
        self._keep(geometric)
        of_rows, best = errors.sum(1) / rows.sum(), self.best_error
        self.log_judgement(
            "holdout",
            {
                "error": float(of_rows.mean()),
                "geometric_error": float(geometric.mean()),
                "best_error": float(best.mean()),
                "best_error_max": float(best.max()),
            },
        )

    @torch.no_grad()
    def _keep(self, error: Tensor) -> None:
        """Copies the members that are better than ever, unless they have stopped."""
        better = (error < self.best_error) & (self.waited < self.patience)
        for kept, now in zip(self.best.parameters(), self.model.parameters(), strict=True):
            kept[better] = now[better]
        self.best_error[better] = error[better]
        self.waited.copy_(torch.where(better, 0, self.waited + 1))
        self._stop_if_done()

    @torch.no_grad()
    def predict_step(self, batch: TensorDict, batch_idx: int) -> dict[str, Tensor]:
        """What each member expects: ``next_observation`` ``[N, M, O]`` and ``reward`` ``[N, M]``."""
        batch = self._normalise(batch)
        step = self.best.every(batch["observation"], batch["action"])
        expected = {"next_observation": step.observation.movedim(0, 1)}
        return expected if step.reward is None else {**expected, "reward": step.reward.T}
