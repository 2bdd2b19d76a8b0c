"""HAG: graph neural networks that sum shared neighbours once, with the same results."""

import torch as _torch  # noqa: F401  (first: its OpenMP runtime is the process's only one)

from hag_plugin.aggregate import aggregate
from hag_plugin.build import build_hag
from hag_plugin.hag import HAG, Stats, batch

__version__ = "0.1.0"
__all__ = ["HAG", "Stats", "aggregate", "batch", "build_hag"]
