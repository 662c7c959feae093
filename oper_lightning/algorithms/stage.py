"""What everything that trains shares: the loop over a block's updates, normalisation, counting, checkpoints."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule
from tensordict import TensorDict
from torch import Tensor

from oper_lightning import renamed
from oper_lightning.algorithms import made_for
from oper_lightning.errors import InputError
from oper_lightning.nn import ranks
from oper_lightning.nn.optim import flushed_denormals, settle
from oper_lightning.priorities.priority import statistics
from oper_lightning.spec import ROLES, Batch, DataSpec, Kind, Role
from oper_lightning.training import guards, judging, loops, options, stored
from oper_lightning.training.execution import Compile, executor

PLAIN = (str, int, float, list, tuple, dict, type(None))  # what a checkpoint holds of the arguments
SMALLEST_STD = 1e-3  # added to the observations' standard deviation, as in TD3+BC and OPER


class Stage(LightningModule, ABC):
    """Something that trains on transitions. A subclass says what to build, what to ask of the data and how to update.

    Policies are below :class:`oper_lightning.algorithms.base.OfflineAlgorithm`; directly below this class is what
    others need first, such as weights or a model of the environment.

    Inside an update observations are normalised (if the algorithm asks for it), continuous actions lie in [-1, 1] and
    discrete ones count from 0. Outside, observations are raw and actions have the environment's units and numbers.

    Args:
        normalise_observations: whether networks see observations with mean 0 and standard deviation 1.
        compile: how updates run: none (as written), default (compiled by TorchInductor, which takes up to a minute
            first and pays in longer runs) or cudagraphs (recorded once and replayed; NVIDIA GPUs, one rank). Results
            agree up to rounding.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_centre: Tensor
    action_scale: Tensor
    reads: tuple[Role, ...] = ROLES
    """the roles that its loss terms have"""
    kinds: tuple[Kind, ...] = ("continuous",)
    """the kinds of actions that it is for"""
    images = False
    """whether it takes images"""
    takes_blocks = True
    """whether ``training_step`` gets the transitions of several updates at once; the datamodule asks"""

    def __init__(self, normalise_observations: bool, compile: Compile = "none") -> None:
        super().__init__()
        self.automatic_optimization = False
        # Only the subclass's arguments: with them it can be made again from a checkpoint.
        variants = [cls for cls in type(self).__mro__ if issubclass(cls, Stage) and "__init__" in vars(cls)][:-1]
        own = {name for cls in variants for name in inspect.signature(cls).parameters}
        self.save_hyperparameters(ignore=["compile", *({"normalise_observations"} - own)])
        # Objects, such as a task, would have to be pickled. They are in the run's config.yaml.
        for name, value in list(self.hparams.items()):
            self.hparams[name] = stored.without_numpy(value)
            if not isinstance(self.hparams[name], PLAIN):
                del self.hparams[name]
        self.normalises = normalise_observations
        self.spec: DataSpec | None = None
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))
        self.how: Compile = compile
        self._goes_on_from: dict[str, Any] | None = None  # a checkpoint, until its optimisers were looked at
        self.branch: Hashable = None
        """what :meth:`prepare` returned for the update at hand"""
        self.main_loss: str | None = None
        """name of the first number that :meth:`update` returned last"""
        self.learnt = 0
        """updates behind the networks, once a run has ended or a checkpoint was loaded"""
        self._lengths: list[int] = []  # of the parts of that run
        self._validated = -1  # updates done when the networks were last validated
        self._metrics: dict[str, Tensor] = {}  # what callbacks went by when the checkpoint was written

    # What an algorithm defines -----------------------------------------------------------------------------------

    @abstractmethod
    def build(self, spec: DataSpec) -> None:
        """Makes the networks."""

    def columns(self, transitions: TensorDict) -> TensorDict:
        """Columns that batches hold beside the transitions, or in place of entries of the transitions; TensorDict
        ``[N]``.

        Args:
            transitions: all transitions, with scaled rewards; see :mod:`oper_lightning.data.transitions`.
        """
        return TensorDict({}, batch_size=transitions.batch_size)

    def prepare(self, number: int) -> Hashable:
        """Sets what depends on the number of the update, such as learning rates; ``number`` counts from 0 over the run.

        Returns the branch that :meth:`update` takes, which finds it in ``self.branch``. There should be no more
        different values than branches: each one is compiled by itself.
        """
        return None

    def lengths(self) -> list[int]:
        """Gradient updates of each part of a run. A run that goes on must keep them; empty if a run has no parts."""
        return []

    @abstractmethod
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient update; returns its losses and other numbers of interest as 0-d tensors."""

    @classmethod
    def check_data(cls, kind: Kind, pixels: bool, dataset: object) -> None:
        """Refuses actions of a kind that the algorithm is not for, and images if it takes none.

        Raises:
            InputError: names the algorithms that would do.
        """
        if kind in cls.kinds and pixels and not cls.images:
            fit = ", ".join(made_for(kind, images=True))
            raise InputError(f"{dataset}: images, which {cls.__name__} does not take; take one of {fit}")
        if kind not in cls.kinds:
            hint = " (whole numbers, one to a row; amounts must be saved as floats)"
            if kind == "continuous":
                hint = " (discrete ones must be saved as whole numbers of an integer type, one to a row)"
            fit = ", ".join(made_for(kind))
            raise InputError(f"{dataset}: {kind} actions{hint}, which {cls.__name__} is not for; take one of {fit}")

    # Tools for them ----------------------------------------------------------------------------------------------

    def minimise(self, loss: Tensor, *optimisers: torch.optim.Optimizer) -> None:
        """One step of each optimiser down the gradient of a 0-d loss, averaged over the ranks.

        Only the parameters of these optimisers get gradients, even if the loss depends on other networks.
        """
        parameters = [parameter for optimiser in optimisers for parameter in optimiser.param_groups[0]["params"]]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        ranks.average_gradients(parameters)
        for optimiser in optimisers:
            optimiser.step()

    def parts(self) -> list[int]:
        """The same as :meth:`lengths`; where nothing is trained, of the run that the networks are of."""
        return self._lengths if self._lengths and not self._fits() else self.lengths()

    def run_length(self) -> int:
        """Gradient updates of the whole run.

        Raises:
            InputError: if trainer.max_steps was not given.
        """
        if self.trainer.max_steps < 1:
            raise InputError(f"{type(self).__name__} needs the length of the run: give trainer.max_steps")
        return self.trainer.max_steps

    def observe(self, observation: Tensor) -> Tensor:
        """Raw observations as the networks see them, on this module's device; images stay bytes."""
        if self.spec is not None and self.spec.pixels:
            return observation.to(self.device)
        observation = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
        return (observation - self.observation_mean) / self.observation_std if self.normalises else observation

    # Building and checkpoints ------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Builds the networks from the data's shapes, once; without a trainer the checkpoint will tell them."""
        if self.spec is None and self._trainer is not None:
            self._build(self.trainer.datamodule.spec)  # type: ignore[attr-defined]

    def _fits(self) -> bool:
        """Whether the trainer trains, rather than judges or predicts."""
        return self.trainer.state.fn == "fit"

    def _build(self, spec: DataSpec) -> None:
        self.check_data(spec.kind, spec.pixels, spec.dataset)
        self._take(spec)
        try:
            self.build(spec)
        except InputError as error:  # the networks know shapes, but not whose they are
            raise InputError(f"{spec.dataset}: {error}") from None

    def _take(self, spec: DataSpec) -> None:
        """Normalises as ``spec`` says."""
        self.spec = spec
        self.register_buffer("observation_mean", spec.observation_mean.clone())
        self.register_buffer("observation_std", spec.observation_std + SMALLEST_STD)
        low, high = spec.action_low, spec.action_high
        self.register_buffer("action_centre", low.clone() if spec.discrete else (low + high) / 2)
        self.register_buffer("action_scale", torch.ones_like(low) if spec.discrete else (high - low) / 2)
        self._scales_actions = bool((self.action_centre != 0).any() or (self.action_scale != 1).any())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to use the policy without data or configuration.

        Raises:
            TrainingError: if a network is no longer finite.
        """
        assert self.spec is not None
        guards.finite_parameters(self, self.global_step)
        loops.record(self.trainer, checkpoint["loops"]["fit_loop"], self._validated == self.global_step)
        checkpoint["spec"] = self.spec.to_dict()
        checkpoint["class_path"] = class_path(type(self))
        checkpoint["seed"] = self.seed
        checkpoint["metrics"] = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        checkpoint["lengths"] = self.parts()
        for key, value in checkpoint.items():  # settings that numpy gave; they could not be read again
            checkpoint[key] = stored.without_numpy(value)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the networks as the checkpoint describes, or checks that those at hand fit it.

        Raises:
            InputError: if the checkpoint holds another algorithm, was made for data of other shapes, or is to go on
                with other data.
        """
        name = stored.origin(checkpoint)
        stored.sections(checkpoint, name)
        made_by = renamed.class_path(checkpoint["class_path"])
        if made_by != class_path(type(self)):
            raise InputError(f"{name} holds {made_by}, not {class_path(type(self))}")
        spec = DataSpec.from_dict(checkpoint["spec"])
        if self.spec is None:
            self._build(spec)
        elif different := spec.difference(self.spec):
            raise InputError(f"{name} was made for other data ({spec.dataset}): {different}")
        elif self._fits() and spec.fingerprint != self.spec.fingerprint:
            raise InputError(
                f"{name} belongs to a run on other data ({spec.dataset}): rows, order or values differ from "
                f"{self.spec.dataset}; only the same data can go on"
            )
        else:  # networks are used as they were trained; what is scored, and where, the data at hand say
            self._take(self.spec.as_learnt(spec))
        stored.networks(self, checkpoint)
        self.seed = checkpoint["seed"]
        self.learnt, self._lengths = checkpoint["global_step"], checkpoint["lengths"]
        if self._trainer is None:
            return
        if not self._fits():
            for section in ("loops", "callbacks", type(self.trainer.datamodule).__qualname__):  # type: ignore[attr-defined]
                checkpoint.pop(section, None)  # these sections are for training
            return
        stored.to_go_on(self, checkpoint)
        if checkpoint["lengths"] != self.lengths():
            was, now = (", ".join(f"{part:,}" for part in parts) for parts in (checkpoint["lengths"], self.lengths()))
            raise InputError(
                f"{name}: its run has parts of {was} updates, this command has parts of {now}: a run that goes on must "
                f"keep trainer.max_steps and the arguments that divide it"
            )
        self._goes_on_from = checkpoint
        self._metrics = {name: torch.tensor(value) for name, value in checkpoint.get("metrics", {}).items()}

    # Training ----------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Refuses options and callbacks of Lightning that cannot work, before data are read; adds no callbacks."""
        if self._fits():
            options.possible(self.trainer)
        return []

    def on_fit_start(self) -> None:
        """Refuses what cannot work with these data."""
        guards.possible(self)
        if self._goes_on_from is not None:
            stored.optimisers(self, self._goes_on_from)
            self._goes_on_from = None
        options.scored(self.trainer)
        options.in_blocks(self.trainer)
        self._execute = executor(self.update, self.how, self.device)
        self._hears = guards.Hears(self)
        loops.finish_epochs(self.trainer)

    def on_fit_end(self) -> None:
        """Keeps how far the run came, for those who judge it; lets go of graphs and compiled code."""
        self.learnt, self._lengths = self.global_step, self.lengths()
        options.in_updates(self.trainer)
        del self._execute, self._hears

    def on_train_start(self) -> None:
        """Logs what the priority is like; lets a given learning rate win over the one in a checkpoint's optimisers."""
        self.trainer.callback_metrics.update(self._metrics)
        self._metrics = {}
        for optimiser in self.trainer.optimizers:
            settle(optimiser, compiled=self.how != "none", recorded=self.how == "cudagraphs")
        weights = getattr(self.trainer.datamodule, "weights", None)  # type: ignore[attr-defined]
        if weights is not None and self.global_step == 0:
            self.log_to_loggers({f"weights/{name}": value for name, value in statistics(weights).items()})

    def training_step(self, block: Batch, batch_idx: int) -> None:
        """The updates of one block."""
        first = self.global_step
        torch.manual_seed(ranks.stream_seed(self.seed, "update", first))
        results: dict[str, list[tuple[int, Tensor]]] = {}
        batches = block.map(self._normalise).unbind()
        with flushed_denormals():
            for number, batch in enumerate(batches, first):
                self.branch = self.prepare(number)
                self._hears(batch)
                for name, value in self._execute(batch, self.branch).items():
                    results.setdefault(name, []).append((number, value.detach()))
        guards.finite_losses(results)
        # Lightning counts the steps of optimisers that it wraps. Ours are not wrapped; K updates are counted here.
        loop = self.trainer.fit_loop.epoch_loop
        steps = loop.manual_optimization.optim_step_progress.total
        steps.ready += len(batches)
        steps.completed += len(batches)
        loop._batches_that_stepped = self.global_step - 1  # the x axis of Lightning's own callbacks
        self.main_loss = f"train/{next(iter(results))}"
        names = [f"train/{name}" for name in results]
        means = torch.stack([torch.stack([value.float() for _, value in rows]).mean() for rows in results.values()])
        means = ranks.sum_over_ranks(means) / ranks.world_size()
        self.trainer.callback_metrics.update(zip(names, means.unbind(), strict=True))
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step // every > first // every or self.global_step == self.trainer.max_steps):
            self.log_to_loggers(dict(zip(names, means.tolist(), strict=True)))

    def _normalise(self, part: TensorDict) -> TensorDict:
        """Observations and actions, the next ones included, as the networks see them."""
        if not (self.normalises or self._scales_actions):
            return part
        part = part.clone(recurse=False)
        part["next"] = part["next"].clone(recurse=False)
        for moment in (part, part["next"]):
            if self.normalises:  # images are left alone by observe
                moment["observation"] = self.observe(moment["observation"])
            if self._scales_actions and "action" in moment:
                shifted = moment["action"] - self.action_centre
                moment["action"] = shifted / self.action_scale if shifted.is_floating_point() else shifted
        return part

    def on_train_epoch_end(self) -> None:
        """Makes sure that no network was poisoned by the epoch's last gradients, with or without a checkpoint."""
        guards.finite_parameters(self, self.global_step)

    # Held-out rows -----------------------------------------------------------------------------------------------

    def validation_step(self, judged: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs as holdout/… the losses on held-out rows, without learning from them.

        Args:
            judged: this rank's held-out rows; see :class:`oper_lightning.data.holdout.HeldOut`.
            batch_idx: not used.
            dataloader_idx: not used.
        """
        if callable(judged):
            self.no_policy()
        self.log_judgement("holdout", judging.losses(self, judged.batches()))

    def test_step(self, episodes: Any, batch_idx: int) -> None:
        """Says that there is no policy to be tested."""
        self.no_policy()

    def predict_step(self, batch: TensorDict, batch_idx: int) -> Any:
        """Says that there is no policy whose actions could be predicted."""
        self.no_policy()

    def no_policy(self) -> NoReturn:
        """Says that this is no policy.

        Raises:
            InputError: always.
        """
        raise InputError(f"{type(self).__name__} fits no policy that could be played: --data.rollouts=null")

    def log_judgement(self, stage: str, numbers: dict[str, float]) -> None:
        """Logs numbers of a validation or test, by gradient updates, and for callbacks."""
        numbers = {f"{stage}/{name}": value for name, value in numbers.items()}
        # While training Lightning would log them by the number of blocks; elsewhere it also returns what it logs.
        self.log_dict(numbers, logger=not self._fits(), batch_size=1, add_dataloader_idx=False)
        if self._fits() and not self.trainer.sanity_checking:
            self._validated = self.global_step
            self.log_to_loggers(numbers)

    def log_to_loggers(self, numbers: dict[str, float]) -> None:
        """Writes numbers to the loggers at the current gradient update."""
        for logger in self.loggers:
            logger.log_metrics(numbers, step=self.global_step)


def class_path(cls: type) -> str:
    """The dotted name of a class: module and class."""
    return f"{cls.__module__}.{cls.__qualname__}"
