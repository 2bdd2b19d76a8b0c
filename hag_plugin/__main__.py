"""`python -m hag_plugin`: the command line."""

import sys

from hag_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())
