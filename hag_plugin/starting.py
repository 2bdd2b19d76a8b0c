"""Ctrl-C while processes start: the command line, which takes torch seconds, and its children."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code


def end_quietly_on_interrupt() -> None:
    """Until `hand_over`, Ctrl-C ends the process without a traceback, if it is the command's."""
    if (
        _is_command()
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _end)


def hand_over() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, as usual."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    started = sys.orig_argv
    as_module = any(
        pair == ("-m", "hag_plugin") for pair in zip(started, started[1:], strict=False)
    )
    return as_module or any(os.path.basename(word) == "hag-plugin" for word in started[:2])


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")  # nothing is open yet that would have to be closed
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
