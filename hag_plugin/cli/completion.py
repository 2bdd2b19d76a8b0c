"""`hag-plugin --print-completion SHELL`: a script by which a shell completes the command line."""

from __future__ import annotations

import argparse
from typing import Any

from hag_plugin.extras import needed_by

SHELLS = ("bash", "zsh", "tcsh")


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Adds the option to the parser of all commands."""
    parser.add_argument(
        "--print-completion",
        action=_Print,
        choices=SHELLS,
        help="print a script for the shell, and end (needs shtab)",
    )


class _Print(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        shell = arguments[1]
        try:
            with needed_by("--print-completion"):
                import shtab
        except ModuleNotFoundError as e:
            parser.error(str(e))
        _say_what_is_a_file(parser, shtab.FILE, shtab.DIRECTORY)
        print(shtab.complete(parser, shell))
        parser.exit()


def _say_what_is_a_file(parser: argparse.ArgumentParser, file: Any, folder: Any) -> None:
    """As shtab wants it, by what stands for a value in the help; a bare word may be a file, too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _say_what_is_a_file(command, file, folder)
        elif action.choices is None and action.nargs != 0:
            shown = action.metavar if isinstance(action.metavar, str) else ""
            if "DIR" in shown:
                action.complete = folder  # type: ignore[attr-defined]
            elif "FILE" in shown or not action.option_strings:
                action.complete = file  # type: ignore[attr-defined]
