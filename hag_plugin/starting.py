"""Ctrl-C while processes start: the command line, which takes torch seconds, and its children."""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code


def _watch() -> None:
    """Until `hand_over`, Ctrl-C ends the process without a traceback, if it is the command's."""
    if (
        _is_command()
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _end)
        atexit.register(_exit_as_interrupted)  # before anybody else's, so that it comes last


def hand_over() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, as usual."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted() -> int:
    """Says so; the exit code."""
    global _was_interrupted
    _was_interrupted = True
    print("interrupted", file=sys.stderr)
    return INTERRUPTED


_was_interrupted = False


def _is_command() -> bool:
    started = sys.orig_argv
    as_module = ("-m", "hag_plugin") in itertools.pairwise(started)
    return as_module or any(os.path.basename(word) == "hag-plugin" for word in started[:2])


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")  # nothing is open yet that would have to be closed
    os._exit(INTERRUPTED)


def _exit_as_interrupted() -> None:
    # Python would end itself by the signal instead, had that come inside an exec of text (which
    # makes the methods of a dataclass, say).
    if _was_interrupted:
        sys.stdout.flush()
        os._exit(INTERRUPTED)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Ctrl-C waits, in this thread, and never reaches processes that are started meanwhile.

    A terminal sends it to them, too, but it is ours to end them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # or it is started below, which ends the blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_watch()
