"""The command line: `hag-plugin`, `python -m hag_plugin`; `main` runs it.

Results go to stdout, progress and messages to stderr; `options.EXIT_CODES` says what the exit codes
mean. A command is a file with `add(commands)`, which declares it, and `run(args)`; `main.COMMANDS`
lists them. What commands share is in `options` (any command), `search` (HAGs), `models` (plans) and
`output` (what is printed). Nothing imports this room; what a command needs alone, and takes long to
import, it imports when it runs.

The library is argparse: Python brings it, shtab completes shells from it, and Click or Typer would
add a dependency to every installation for declarations that are no shorter.
"""

from hag_plugin.cli.main import main

__all__ = ["main"]
