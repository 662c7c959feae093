"""The command `oper`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from oper_lightning import __version__, renamed
from oper_lightning.cli import folders
from oper_lightning.errors import InputError, Stopped, TrainingError, first_line, nearest, note

VERBS = ("fit", "validate", "test", "predict", "run", "inspect", "report", "convert")
HELP = f"""oper {__version__}: prioritised offline reinforcement learning

usage: oper <verb> ...

  fit        train an algorithm on recorded data, or compute OPER-A's weights
  validate   score a checkpoint in the environment
  test       score a checkpoint on other episode seeds
  predict    write actions, or values and advantages, for every transition of a dataset
  run        run a chain of the above from one yaml; goes on where it was stopped
  inspect    look at a dataset and at weights for it, before training
  report     turn finished runs into tables and pictures
  convert    turn published .npy weights into a weights file

`oper <verb> --help` says more. An example, in two stages:

  oper fit --config configs/oper_a.yaml --data.source.path=hopper.hdf5 --output runs/weights
  oper fit --config configs/td3_bc.yaml --data.source.path=hopper.hdf5 \\
      --data.priority=WeightsFile --data.priority.path=runs/weights/weights.safetensors
"""


def main(args: list[str] | None = None) -> int:
    """Runs one command; returns its exit code. Errors that a person can mend are one line on stderr."""
    args = sys.argv[1:] if args is None else args
    # The matrices are small: on a busy machine more threads are slower, on an idle one little faster.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # algorithms and sources of one's own are found where one stands
    try:
        with _notes():
            return _dispatch(args)
    except (InputError, TrainingError) as error:
        print(f"oper: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (KeyboardInterrupt, Stopped) as stop:
        print(f"oper: stopped{stop if isinstance(stop, Stopped) else ''}", file=sys.stderr)
        return getattr(stop, "code", 130)
    finally:
        folders.release()


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    verb, rest = args[0], [_today(word) for word in args[1:]]
    if verb == "run":
        from oper_lightning.cli.chain import run

        return run(rest)
    if verb not in VERBS:
        raise InputError(f"no verb {verb!r}; {nearest(verb, VERBS)}")
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from oper_lightning.cli.verbs import OperCLI, call

    _silence_others()
    if verb == "inspect":
        from oper_lightning.report.inspect import inspect

        call(inspect, rest)
    elif verb == "report":
        from oper_lightning.report.report import report

        call(report, rest)
    elif verb == "convert":
        from oper_lightning.cli.convert import convert

        call(convert, rest)
    else:
        try:
            OperCLI([verb, *rest])
        except MisconfigurationException as error:  # Lightning's objections to the trainer's arguments
            raise InputError(first_line(error)) from None
    return 0


def _today(word: str) -> str:
    """A word of the command line by today's names."""
    now = renamed.word(word)
    if now != word:
        note(f"{word} is {now} today")
    return now


@contextmanager
def _notes() -> Iterator[None]:
    """Our notes on the terminal, from the first process only."""
    log = logging.getLogger("oper_lightning")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("oper: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if os.environ.get("LOCAL_RANK", "0") == "0" else logging.ERROR)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _silence_others() -> None:
    """Keeps other packages' chatter off the terminal; they set their levels when imported."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("torch._dynamo", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*|torchrl\..*|tensordict\..*")
