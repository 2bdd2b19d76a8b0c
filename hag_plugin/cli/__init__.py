"""The command line: `hag-plugin`, `python -m hag_plugin`; `main` runs it.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done; 1 a check or a run
failed; 2 the input was wrong; 130 interrupted. A command is a file with `add(commands)`, which
declares it, and `run(args)`; `main.COMMANDS` lists them. What commands share is in `options` (any
command), `search` (HAGs), `models` (plans) and `output` (what is printed). Nothing imports this
room; what a command needs alone, and takes long to import, it imports when it runs.
"""

from hag_plugin.cli.main import main

__all__ = ["main"]
