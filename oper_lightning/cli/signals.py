"""How the command ends on SIGTERM and Ctrl-C, at any moment, on any rank.

The handler raises :class:`Stopped` in the main thread, so that files are closed and callbacks are called. The main
thread may be waiting in C code for another rank or a device. So a second thread learns of the signal too, and ends the
process if the orderly end takes longer than ``grace`` seconds. Only the first rank writes files and messages; further
ranks end at once. If one rank ends, all end.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from oper_lightning.cli import folders
from oper_lightning.errors import Stopped

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
LINK = "OPER_LINK"  # set by `oper run`, which says itself that it was stopped


@dataclass
class _State:
    """What is known of this process's end."""

    told: int = 0
    """exit code of the signal that came; 0 before one came"""
    code: int = 0
    """exit code of the command"""
    raising: bool = False
    """whether the handler raises; while nothing would catch the exception, the process ends instead"""
    held: int = 0
    """number of running sections that must be finished first"""
    grace: float = 5.0
    """seconds for an orderly end"""
    hint: Callable[[], str] = str
    """how to go on, for the last line"""
    said: threading.Lock = field(default_factory=threading.Lock)
    """held by the thread that writes the last line"""
    launcher: Any = None
    """Lightning's, which starts the further ranks"""
    ranks: list[Any] = field(default_factory=list)
    """their processes"""
    over: threading.Event = field(default_factory=threading.Event)
    """set when the command has ended"""
    last: bool = False
    """whether the process ends with the command"""
    ending: bool = False
    """whether the further ranks are being ended"""
    before: dict[int, Any] = field(default_factory=dict)
    """the handlers that were in place before ours"""


_now = _State()


def run(command: Callable[[], int], last: bool) -> int:
    """Calls a command with the handlers in place; returns its exit code.

    Args:
        command: what to call; :class:`Stopped` is raised in it.
        last: whether the process ends with it; then the handlers stay.
    """
    global _now
    _now = now = _State(last=last)
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return command()
    now.before = {number: signal.getsignal(number) for number in CODES}
    take_over()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(now, reader), daemon=True).start()
    if folders.rank():
        threading.Thread(target=_follow_the_first, args=(now, os.getppid()), daemon=True).start()
    hook, sys.unraisablehook = sys.unraisablehook, _quiet(sys.unraisablehook)
    if last:
        atexit.register(_leave_at_last, now)  # registered first, called last
    try:
        try:
            now.raising = True
            now.code = command()
        finally:
            now.raising = False
    except Stopped:
        now.code = now.told
        if _may_speak() and now.said.acquire(blocking=False):
            print(stopped(), file=sys.stderr, flush=True)
    finally:
        now.over.set()
        _end_ranks(now, wait=5.0 if now.code == 0 else 0.0)
        if not last:
            sys.unraisablehook = hook
            for number, handler in now.before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            os.close(writer)
    return now.code


def take_over() -> None:
    """Puts our handlers in place; Lightning puts its own there when a run starts."""
    for number, handler in _now.before.items():
        if handler is not signal.SIG_IGN:  # as for what a shell starts in the background
            signal.signal(number, _handle)


def told() -> int:
    """The exit code that a signal asked for; 0 if none came."""
    return _now.told


def last() -> bool:
    """Whether the process ends with the command."""
    return _now.last


def stopped() -> str:
    """The last line of a process that was told to stop."""
    return f"oper: stopped{_now.hint()}"


def on_stop(hint: Callable[[], str], grace: float = 5.0) -> None:
    """Sets what the last line adds, and how long an orderly end may take, in seconds."""
    _now.hint, _now.grace = hint, grace


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A section that is finished before a signal takes effect, unless it takes longer than the grace."""
    _now.held += 1
    try:
        yield
    finally:
        _now.held -= 1
    if _now.told and not _now.held:
        raise Stopped


def leave(code: int, line: str = "") -> NoReturn:
    """Ends this process and the further ranks at once; any thread may call it."""
    now = _now
    _end_ranks(now, wait=0.0)
    with contextlib.suppress(Exception):
        folders.release()
    if line and now.said.acquire(blocking=False):
        show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
        with contextlib.suppress(OSError):
            os.write(2, f"{show_cursor}{line}\n".encode())
    os._exit(code)


def _handle(number: int, frame: FrameType | None) -> None:
    """The handler, called in the main thread between two steps of Python."""
    if _now.told:
        return  # on its way already
    _now.told = CODES[signal.Signals(number)]
    if folders.rank() or not _now.raising or _importing(frame):
        leave(_now.told, stopped() if _may_speak() else "")
    if not _now.held:
        raise Stopped


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: extension modules turn an exception into anything, or drop it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _may_speak() -> bool:
    """Whether this process is the one that says that all were stopped."""
    return not folders.rank() and LINK not in os.environ


def _watch(now: _State, reader: int) -> None:
    """Ends the process if the main thread does not."""
    numbers = {int(number): code for number, code in CODES.items() if now.before[number] is not signal.SIG_IGN}
    while byte := os.read(reader, 1):
        if (code := numbers.get(byte[0])) is None:
            continue
        if not folders.rank():
            # The end of the interpreter may hang as well, so wait the whole time; a caller that goes on need not wait.
            (time.sleep if now.last else now.over.wait)(now.grace)
        if now.last or not now.over.is_set():
            leave(now.told or code, stopped() if _may_speak() else "")
    os.close(reader)


def _quiet(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A hook for exceptions in destructors that does not report ours; :func:`_watch` ends the process then."""
    return lambda what: None if what.exc_type is Stopped else hook(what)


def _leave_at_last(now: _State) -> None:
    """Ends the process before the interpreter takes itself apart, where signals would find no handler."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(now.code)


def _in_a_fork() -> None:
    """A forked process, such as a loader's worker, ends as it would elsewhere, and its signals are not ours."""
    if _now.before:
        signal.set_wakeup_fd(-1)
        for number, handler in _now.before.items():
            signal.signal(number, handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_fork)


# Ranks ---------------------------------------------------------------------------------------------------------------


def attach(trainer: Any) -> None:
    """Keeps our handlers in place while a trainer runs, and ends this process with the ranks that it starts."""
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    connector = trainer._signal_connector
    register = connector.register_signal_handlers

    def registered() -> None:
        # Lightning's handler of SIGTERM waits for the end of a batch, and with several ranks for a broadcast.
        register()
        take_over()

    connector.register_signal_handlers = registered
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        _now.launcher = trainer.strategy.launcher
        threading.Thread(target=_follow, args=(_now,), daemon=True).start()


def _follow(now: _State) -> None:
    """Waits until all ranks have started, and then for the end of each."""
    while len(now.launcher.procs) < now.launcher.num_processes - 1:
        if now.over.wait(0.05):
            return
    now.ranks += now.launcher.procs
    # Lightning's own observer looks every five seconds and kills this process without a word.
    now.launcher.procs.clear()
    for number, process in enumerate(now.ranks, 1):
        threading.Thread(target=_outlive, args=(now, process, number), daemon=True).start()


def _outlive(now: _State, process: Any, number: int) -> None:
    """Ends this process after a rank has failed or was killed."""
    code = process.wait()
    if code == 0 or now.ending:
        return
    signalled = code - 128 if code > 128 else -code
    if signalled in list(CODES):  # a signal to any rank is one to all
        os.kill(os.getpid(), signalled)
    elif code < 0:
        leave(1, f"oper: error: rank {number} was killed by {signal.Signals(-code).name}{now.hint()}")
    else:
        leave(1)  # it has said why itself


def _follow_the_first(now: _State, parent: int) -> None:
    """Ends a further rank when the process that started it is gone; while it lives, it ends this one itself."""
    while os.getppid() == parent:
        if now.over.wait(0.2):
            return
    leave(1, f"oper: error: the process that started rank 1 is gone{now.hint()}" if folders.rank() == 1 else "")


def after_the_cause() -> None:
    """Waits before an error is told: the first rank tells an error of all ranks, and a dead rank comes first."""
    if folders.rank() or _now.launcher is not None or "WORLD_SIZE" in os.environ:
        time.sleep(4 if folders.rank() else 2)


def _end_ranks(now: _State, wait: float) -> None:
    """Ends the further ranks, after ``wait`` seconds in which they can end by themselves."""
    now.ending = True
    processes = [*now.ranks, *(now.launcher.procs if now.launcher else ())]
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(0.02)
    for process in processes:
        with contextlib.suppress(OSError):
            process.kill()
