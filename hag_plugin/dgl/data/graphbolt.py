"""A stand-in for `dgl.graphbolt`, without which DGL 2.0 and newer cannot be imported."""

from __future__ import annotations

import sys
from types import ModuleType

NAME = "dgl.graphbolt"


def graphbolt_stand_in() -> None:
    """Lets `import dgl` succeed where DGL's GraphBolt library does not fit the torch installed.

    DGL 2.0 and newer load, on import, a compiled library made for a few versions of torch, and
    fail where there is none for the one at hand. Call this before DGL is imported: an empty module
    then stands where `dgl.graphbolt` would, and everything but GraphBolt's own loaders works. It
    is never done unasked. DGL 1.1.3 does not need it.

    Raises:
        RuntimeError: DGL was imported already.
    """
    if NAME in sys.modules and not getattr(sys.modules[NAME], "__file__", None):
        return  # a stand-in is there
    if "dgl" in sys.modules:
        raise RuntimeError(
            "DGL was imported already; call hag_plugin.dgl.graphbolt_stand_in() before the first "
            "import of dgl"
        )
    stand_in = ModuleType(NAME, "An empty stand-in: see hag_plugin.dgl.graphbolt_stand_in.")
    stand_in.__path__ = []
    sys.modules[NAME] = stand_in
