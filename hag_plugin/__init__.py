"""HAG: graph neural networks that sum shared neighbours once, with the same results."""

import importlib as _importlib
import importlib.util as _importlib_util
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING

from hag_plugin import starting as _starting  # noqa: F401  (first: what follows takes seconds)

# isort: split
import torch as _torch  # noqa: F401  (first: its OpenMP runtime is the process's only one)

if _importlib_util.find_spec("hag_plugin.kernels") is None:
    raise ImportError(
        "this is hag_plugin's source folder, without its compiled kernels: start Python outside of "
        "it, or install it in place with pip install -e ."
    )

from hag_plugin import sequence
from hag_plugin.adapters import accelerate, explain, forget, hag_layer, restore
from hag_plugin.explanation import Calls, Explanation, Row  # noqa: F401  (saved models name these)
from hag_plugin.hag.build import build_hag
from hag_plugin.hag.candidates import Choice
from hag_plugin.hag.hag import (  # noqa: F401  (files name these)
    HAG,
    batch,
    rebuild_batch,
    rebuild_graphs,
    rebuild_hag,
)
from hag_plugin.hag.stats import Stats
from hag_plugin.occasions import ForwardEnd  # noqa: F401  (saved models name it)
from hag_plugin.ops import degrees as _degrees  # noqa: F401  (its operator: in exported files)
from hag_plugin.ops.aggregate import aggregate
from hag_plugin.pages import report
from hag_plugin.recall import Recall  # noqa: F401  (saved models name it)
from hag_plugin.scripting import _refuse_script  # noqa: F401  (saved models name it)
from hag_plugin.version import __version__ as __version__

if _TYPE_CHECKING:
    from hag_plugin import dgl, parallel, pyg, testing

__all__ = [
    "HAG",
    "Choice",
    "Stats",
    "accelerate",
    "aggregate",
    "batch",
    "build_hag",
    "dgl",
    "explain",
    "forget",
    "hag_layer",
    "parallel",
    "pyg",
    "report",
    "restore",
    "sequence",
    "testing",
]


def __getattr__(name: str) -> _ModuleType:
    # Heavy, imports DGL or PyG, or is for tests: only when asked for.
    if name in ("dgl", "parallel", "pyg", "testing"):
        return _importlib.import_module(f"hag_plugin.{name}")
    raise AttributeError(f"module 'hag_plugin' has no attribute {name!r}")
