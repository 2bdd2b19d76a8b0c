"""Parses the command line, runs a command and turns what goes wrong into words and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

import hag_plugin as hp
from hag_plugin import extras
from hag_plugin.cli import (
    build,
    calibrate,
    demo,
    explain_plan,
    partition,
    plan,
    plot,
    probe,
    report,
    simulate,
    stats,
)
from hag_plugin.cli.completion import add_completion
from hag_plugin.cli.options import EXIT_CODES
from hag_plugin.files import DatasetError
from hag_plugin.hag import constants
from hag_plugin.hag.candidates import ChooseError
from hag_plugin.starting import hand_over, interrupted

COMMANDS = (
    demo, stats, build, plot, report, plan, explain_plan, probe, simulate, partition, calibrate
)  # fmt: skip


def main(arguments: Sequence[str] | None = None, commands: Sequence[Any] = COMMANDS) -> int:
    """Runs a command; returns the exit code.

    Args:
        arguments: by default those of the process.
        commands: the files of commands to choose from.
    """
    parser = _parser(commands)
    try:
        args = parser.parse_args(arguments)
    except SystemExit as e:  # argparse has said what was wrong
        return int(e.code or 0)
    try:
        hand_over()
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return interrupted()
    except BrokenPipeError:  # the reader of stdout has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DatasetError, constants.CostsError, ChooseError, ImportError, OSError) as e:
        print(f"hag-plugin {args.command}: {_words(args.command, e)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as e:
        print(f"hag-plugin {args.command}: {_words(args.command, e)}", file=sys.stderr)
        return 1
    return 0


def _words(command: str, error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, ImportError) and "pip install" not in str(error):
        return extras.words(command, error) or str(error)
    return str(error) or type(error).__name__


def _parser(commands: Sequence[Any] = COMMANDS) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hag-plugin",
        description="Graph neural networks that sum shared neighbours once, with the same results.",
        epilog="`hag-plugin COMMAND --help` shows the options and examples of a command.\n\n"
        f"{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hag-plugin {hp.__version__}")
    add_completion(parser)
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands:
        command.add(added)
    return parser
