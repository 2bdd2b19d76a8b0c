"""The command line: `hag-plugin`, `python -m hag_plugin`."""

from hag_plugin.cli.main import main

__all__ = ["main"]
