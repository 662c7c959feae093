"""What earlier runs leave for one that builds on them: a model of the environment, a policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from oper_lightning.errors import InputError, reading
from oper_lightning.nn.dynamics import Dynamics
from oper_lightning.spec import DataSpec
from oper_lightning.training import stored

ENSEMBLE = "oper_lightning.algorithms.dynamics.DynamicsEnsemble"


def entries(checkpoint: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with a prefix, without it."""
    state: dict[str, Tensor] = checkpoint["state_dict"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def fitting(network: nn.Module, checkpoint: dict[str, Any], prefix: str, remedy: str) -> dict[str, Tensor]:
    """The values that a checkpoint has for a network under a prefix.

    Raises:
        InputError: if they have other names or shapes, which ``remedy`` mends, or are not finite.
    """
    theirs, mine = entries(checkpoint, prefix), network.state_dict()
    odd = [name for name in {**mine, **theirs} if name not in theirs or name not in mine]
    if odd := odd or [name for name in mine if theirs[name].shape != mine[name].shape]:
        raise InputError(f"{stored.origin(checkpoint)}: {prefix}{odd[0]} is not as it is here: {remedy}")
    for name, value in theirs.items():
        if not value.isfinite().all():
            raise InputError(f"{stored.origin(checkpoint)}: {prefix}{name} is not finite: take an earlier checkpoint")
    return theirs


def fill(network: nn.Module, checkpoint: dict[str, Any], prefix: str, remedy: str) -> None:
    """Gives a network the values that a checkpoint has for it, bit for bit; see :func:`fitting`."""
    network.load_state_dict(fitting(network, checkpoint, prefix, remedy))


def read_dynamics(path: str, spec: DataSpec) -> Dynamics:
    """The best weights that a run of DynamicsEnsemble left, frozen.

    Args:
        path: its checkpoint.
        spec: of the data of the run at hand.

    Raises:
        InputError: if it is another kind of checkpoint, or was made for observations or actions of another kind.
    """
    if not path:
        raise InputError("model.dynamics must be given: the last.ckpt of a DynamicsEnsemble's run")
    checkpoint = read_ensemble(path, "model.dynamics")
    theirs, given = DataSpec.from_dict(checkpoint["spec"]), checkpoint["hyper_parameters"]
    if different := theirs.difference(spec):
        raise InputError(f"{path} was made for other data ({theirs.dataset}): {different} (model.dynamics)")
    same_bounds(theirs, spec, path)
    with reading(path, "a DynamicsEnsemble"):
        sizes = {name: given[name] for name in ("members", "hidden_sizes", "reward", "margin")}
        sizes |= {"observations": spec.observation_size, "actions": spec.action_size}
        sizes["gaussian"] = given["kind"] == "gaussian"
    return dynamics(sizes, checkpoint, "best.")


def read_ensemble(path: str, argument: str) -> dict[str, Any]:
    """The checkpoint of a run of DynamicsEnsemble that has best weights.

    Args:
        path: the checkpoint.
        argument: what named it, for messages.

    Raises:
        InputError: if it is another kind of checkpoint, or no epoch of the run was judged, so that its best weights are
            those it began with.
    """
    checkpoint = stored.read_checkpoint(path)
    if checkpoint["class_path"] != ENSEMBLE:
        raise InputError(f"{path} holds {checkpoint['class_path']}; {argument} needs a DynamicsEnsemble")
    errors = checkpoint["state_dict"].get("best_error")
    if errors is None or bool((errors >= torch.finfo(torch.float32).max).any()):
        raise InputError(
            f"{path}: this ensemble was never judged on held-out episodes, so that it has no best weights: train it "
            f"for at least an epoch, with data.holdout and validation"
        )
    return checkpoint


def dynamics(sizes: Any, checkpoint: dict[str, Any], prefix: str) -> Dynamics:
    """An ensemble of given sizes, frozen, with the values that a checkpoint has under a prefix.

    Raises:
        InputError: if the sizes are none, or the values do not fit them.
    """
    name, remedy = stored.origin(checkpoint), "its sizes and its tensors do not belong together"
    try:
        with reading(name, "a dynamics ensemble"):
            with torch.device("meta"):  # takes no memory, whatever the sizes are
                fitting(Dynamics(**sizes), checkpoint, prefix, remedy)
            made = Dynamics(**sizes).requires_grad_(False)
    except InputError as error:  # networks know sizes, but not whose they are
        raise InputError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None
    fill(made, checkpoint, prefix, remedy)
    return made


def take_policy(
    checkpoint: dict[str, Any], policy: nn.Module, mean: Tensor, std: Tensor, spec: DataSpec, remedy: str
) -> None:
    """Copies a policy and the statistics that it normalises observations with, bit for bit.

    Args:
        checkpoint: of a run that left a policy under that name.
        policy: takes its weights.
        mean: takes the mean of the observations, ``[O]``.
        std: takes their standard deviation ``[O]``.
        spec: of the data of the run at hand.
        remedy: what to do if its weights do not fit.

    Raises:
        InputError: if something does not fit.
    """
    if not entries(checkpoint, "policy."):
        raise InputError(f"{stored.origin(checkpoint)} holds {checkpoint['class_path']}, which has no policy: {remedy}")
    fill(policy, checkpoint, "policy.", remedy)
    theirs, name = checkpoint["state_dict"], stored.origin(checkpoint)
    same_bounds(DataSpec.from_dict(checkpoint["spec"]), spec, name)
    for key, here in (("observation_mean", mean), ("observation_std", std)):
        value = theirs.get(key)
        if value is None or value.shape != here.shape or not value.isfinite().all():
            raise InputError(f"{name}: {key} is not one finite number for each of {len(here)} columns: {remedy}")
    with torch.no_grad():
        normalises = checkpoint["hyper_parameters"].get("normalise_observations", True)
        mean.copy_(theirs["observation_mean"] if normalises else torch.zeros_like(mean))
        std.copy_(theirs["observation_std"] if normalises else torch.ones_like(std))


def same_bounds(theirs: DataSpec, spec: DataSpec, name: str) -> None:
    """Refuses a run on actions within other bounds, as actions between -1 and 1 would be others there.

    Raises:
        InputError: if bounds differ.
    """
    if not (theirs.action_low.equal(spec.action_low) and theirs.action_high.equal(spec.action_high)):
        raise InputError(
            f"{name} was made for actions within other bounds ({theirs.dataset}): give both runs the same data, or the "
            f"same data.source.action_low and action_high"
        )
