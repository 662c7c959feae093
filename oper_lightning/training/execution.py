"""How an update runs: as it is written, compiled by TorchInductor, or replayed from CUDA graphs."""

from __future__ import annotations

import ctypes
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Literal

import torch
from torch import Tensor

from oper_lightning.errors import InputError, first_line, note
from oper_lightning.nn import ranks
from oper_lightning.spec import Batch

Compile = Literal["none", "default", "cudagraphs"]
Results = dict[str, Tensor]
Update = Callable[[Batch], Results]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
EAGER = 3  # updates of each branch before its graph is recorded: optimisers and libraries allocate in the first ones


def executor(update: Update, how: Compile, device: torch.device) -> Callable[[Batch, Hashable], Results]:
    """A function of a batch and of the branch that ``update`` takes, which does what ``update`` does.

    Raises:
        InputError: if that way is not possible here.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if how == "cudagraphs":
        if device.type != "cuda":
            raise InputError(f"model.compile=cudagraphs needs an NVIDIA GPU, and this is a {device.type}: use none")
        if ranks.world_size() > 1:
            raise InputError("model.compile=cudagraphs works on one rank only: use none, or one device")
        return Graphs(update)
    if how == "default":
        note("compiling the update; the first one takes a while")
        _try_compiler(device)
        # One variant for each branch and state of the optimisers; beyond its limit PyTorch stops compiling in silence.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        # So that gradients, optimisers and targets are compiled together with the losses, as one graph for each branch.
        # Older releases of PyTorch compile what lies between them.
        if hasattr(torch._dynamo.config, "trace_autograd_ops"):
            torch._dynamo.config.trace_autograd_ops = True
        # Random numbers are then eager PyTorch's.
        compiled = torch.compile(lambda batch: _detached(update(batch)), options={"fallback_random": True})
        return lambda batch, branch: compiled(batch)
    return lambda batch, branch: update(batch)


def keep_freed_memory() -> None:
    """Tells the C library to keep freed blocks of up to 32 MB, if it is glibc.

    It would give them back to the system, which clears each page anew when the next update takes it: an eighth of an
    update of CQL, whose intermediate results have 16 MB. The process holds on to what its largest update took;
    larger blocks, such as of data that were read, go back as before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    for option, value in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 256 << 20)):
        mallopt(option, value)


def _try_compiler(device: torch.device) -> None:
    try:
        torch.compile(lambda value: value.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # TorchInductor and the compilers under it raise many kinds
        reason = first_line(getattr(error, "inner_exception", error))
        raise InputError(f"model.compile=default does not work here ({reason}): use none") from None


class Graphs:
    """Replays an update from CUDA graphs, one for each branch that it takes: one launch instead of a few hundred.

    A graph reads and writes fixed places in memory, so that batches are copied into buffers. Learning rates have to be
    tensors, and what the host decides has to be in the branch.
    """

    def __init__(self, update: Update) -> None:
        self.update = update
        self.seen: Counter[Hashable] = Counter()
        self.buffers: dict[Hashable, Batch] = {}
        self.recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, Results]] = {}
        # One stream for all: autograd remembers on which one a parameter was first used.
        self.stream = torch.cuda.Stream()

    def __call__(self, batch: Batch, branch: Hashable) -> Results:
        """One update; the results are the caller's to keep."""
        if branch not in self.buffers:
            self.buffers[branch] = batch.map(lambda part: part.clone())
        else:
            torch._foreach_copy_(_tensors(self.buffers[branch]), _tensors(batch))
        self.seen[branch] += 1
        if self.seen[branch] <= EAGER:
            return self._beside(self.buffers[branch])
        if branch not in self.recorded:
            self.recorded[branch] = self._record(self.buffers[branch])
        graph, results = self.recorded[branch]
        graph.replay()
        return {name: value.clone() for name, value in results.items()}

    def _beside(self, batch: Batch) -> Results:
        """Runs the update as it is written, on the stream that it will be recorded on."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable=True")  # it will be captured
            results = _detached(self.update(batch))
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def _record(self, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Results]:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                results = _detached(self.update(batch))
        except RuntimeError as error:
            raise InputError(f"model.compile=cudagraphs: cannot record ({first_line(error)}): use none") from None
        return graph, results


def _detached(results: Results) -> Results:
    return {name: value.detach() for name, value in results.items()}


def _tensors(batch: Batch) -> list[Tensor]:
    """All tensors of a batch, each once, in an order that depends on its structure only."""
    parts = {id(part): part for part in batch}.values()
    return [tensor for part in parts for tensor in part.values(include_nested=True, leaves_only=True)]
