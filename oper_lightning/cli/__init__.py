"""The command `oper`."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from oper_lightning import __version__, renamed
from oper_lightning.cli import folders, signals
from oper_lightning.errors import InputError, Stopped, TrainingError, first_line, nearest, note, one_line

VERBS = ("fit", "validate", "test", "predict", "run", "inspect", "report", "convert", "collect", "video")
HELP = f"""oper {__version__}: prioritised offline reinforcement learning

usage: oper <verb> ...

  fit        train an algorithm on recorded data, or compute OPER-A's weights
  validate   score a checkpoint in the environment
  test       score a checkpoint in the environment, on other episode seeds
  predict    write actions, or values and advantages, for every transition of a dataset
  run        run several commands from one yaml; goes on where it was stopped
  inspect    look at a dataset and at weights for it, before training
  report     turn finished runs into tables and pictures
  convert    turn a dataset into another format, or published .npy weights into a weights file
  collect    write what a policy does in an environment as a dataset
  video      film what a policy does

`oper <verb> --help` says more. An example, in two stages:

  oper fit --config configs/oper_a.yaml --data.source.path=hopper.hdf5 --output runs/weights
  oper fit --config configs/td3_bc.yaml --data.source.path=hopper.hdf5 \\
      --data.priority=WeightsFile --data.priority.path=runs/weights/weights.safetensors
"""


def main(args: list[str] | None = None) -> int:
    """Runs one command and returns its exit code. Every error is one line on stderr.

    Args:
        args: the command's words; by default those of the process, which is taken to end with the command.
    """
    return signals.run(lambda: _guarded(sys.argv[1:] if args is None else args), last=args is None)


def _guarded(args: list[str]) -> int:
    """One guard around everything: no error reaches the terminal as a traceback, unless OPER_TRACEBACK asks for it."""
    # The matrices are small: on a busy machine more threads are slower, on an idle one little faster.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A rank that is killed leaves semaphores, which Python takes away, but not without a warning.
    quiet = "ignore:resource_tracker:UserWarning"
    if quiet not in (filters := os.environ.get("PYTHONWARNINGS", "")):
        os.environ["PYTHONWARNINGS"] = f"{filters},{quiet}".strip(",")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a person's own classes are found in the current folder
    try:
        with _notes(), _threads():
            return _dispatch(args)
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if signals.told():  # what a signal interrupted may have made another error of it
            raise Stopped from None
        signals.after_the_cause()
        print(f"oper: error: {one_line(_explained(error))}", file=sys.stderr)
        if os.environ.get("OPER_TRACEBACK"):
            traceback.print_exception(error)
        return 1
    except SystemExit as end:  # of a parser that has shown what was asked for, or of another library
        if isinstance(end.code, str):
            print(f"oper: error: {end.code}", file=sys.stderr)
            return 1
        return end.code or 0
    finally:
        folders.release()


def _explained(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, InputError | TrainingError):
        return str(error)
    where = "" if os.environ.get("OPER_TRACEBACK") else " (OPER_TRACEBACK=1 shows where)"
    if isinstance(error, MemoryError):
        return f"not enough memory: {first_line(error)}{where}"
    return f"{type(error).__name__}: {first_line(error)}{where}"


@contextmanager
def _threads() -> Iterator[None]:
    """If the command succeeds, tells what failed in other threads; if it fails, the main thread has told it already."""
    failed: list[str] = []
    hook = threading.excepthook
    if not os.environ.get("OPER_TRACEBACK"):
        threading.excepthook = lambda what: failed.append(f"{what.exc_type.__name__}: {what.exc_value}")
    try:
        yield
        for line in failed:
            note(f"in a thread: {line} (OPER_TRACEBACK=1 shows where)")
    finally:
        threading.excepthook = hook


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    from oper_lightning.cli import early

    early.readable(args)
    verb, rest = args[0], [_today(word) for word in args[1:]]
    if verb not in VERBS:
        raise InputError(f"no verb {verb!r}; {nearest(verb, VERBS)}")
    if verb == "run":
        from oper_lightning.cli.chain import run

        return run(rest)
    if (text := _help(verb, rest)) is not None:
        print(text)
        return 0
    early.check(verb, rest)
    with _uncollected():
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from oper_lightning.cli.verbs import OperCLI, call
        from oper_lightning.trust import load_all

        load_all()
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
    elif verb == "collect":
        from oper_lightning.cli.collect import collect

        call(collect, rest)
    elif verb == "video":
        from oper_lightning.cli.video import video

        call(video, rest)
    else:
        try:
            OperCLI([verb, *rest])
        except MisconfigurationException as error:  # Lightning's objections to the trainer's arguments
            raise InputError(first_line(error)) from None
    return 0


def _help(verb: str, words: list[str]) -> str | None:
    """The help that was asked for, if any was; made without importing Lightning."""
    from oper_lightning.cli.help import class_help, verb_help
    from oper_lightning.cli.words import value_of

    flags = ("model", "model.task", "data", "data.source", "data.priority", "data.bonus", "source")
    if {"-h", "--help"} & {*words}:
        named = {flag: value_of(words, f"--{flag}") for flag in flags}
        of_classes = [class_help(flag, name) for flag, name in named.items() if name and _is_class(name)]
        return "\n\n".join([verb_help(verb), *of_classes])
    for flag in flags:
        if (name := value_of(words, f"--{flag}.help")) and _is_class(name):
            return class_help(flag, name)
    return None


def _is_class(name: str) -> bool:
    """Whether a value is a name without dots: that of a class of this package, rightly or with a slip. jsonargparse
    explains a person's own classes.
    """
    return name.isidentifier() and name != "null"


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
    log.setLevel(logging.ERROR if folders.rank() else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps Python from looking for garbage meanwhile, and afterwards among what is there by then.

    Imports make a million objects that stay, and next to no garbage; to go through them again and again takes a quarter
    of the time to the first update. Only where the process ends with the command: in another program that calls us,
    what is there may be anything.
    """
    if not (signals.last() and gc.isenabled()):
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _silence_others() -> None:
    """Keeps other packages' chatter off the terminal; they set their levels when imported."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("torch._dynamo", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*|torchrl\..*|tensordict\..*")
