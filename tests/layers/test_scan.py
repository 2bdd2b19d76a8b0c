"""Every class of `torch_geometric.nn` that passes messages has a record, or a reason why not."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import torch_geometric.nn
from torch_geometric.nn import MessagePassing

from hag_plugin.layers.pyg import NO_RECORD, RECORDS

OF_MESSAGES = ("message", "propagate", "message_and_aggregate")
# What `message` may take beside one row of the source for a HAG to serve it.
BESIDE = {"self", "edge_weight", "norm", "index", "ptr", "size_i", "dim_size"}


def scan() -> dict[str, Any]:
    """The classes, by name, wherever they stand."""
    found = {}
    for module in pkgutil.walk_packages(torch_geometric.nn.__path__, "torch_geometric.nn."):
        try:
            members = vars(importlib.import_module(module.name)).values()
        except ImportError:  # it needs a package that is not here
            continue
        for cls in filter(inspect.isclass, members):
            passes = issubclass(cls, MessagePassing) or any(n in vars(cls) for n in OF_MESSAGES)
            if passes and cls.__module__ == module.name and cls is not MessagePassing:
                found[cls.__name__] = cls
    return found


def test_every_class_is_known() -> None:
    """A new one fails here: give it a record, or say in NO_RECORD why it has none."""
    recorded, found = {record.layer for record in RECORDS}, {*scan()}
    assert len(found) > 50
    assert found - recorded - NO_RECORD.keys() == set()
    assert recorded <= found
    assert recorded & NO_RECORD.keys() == set()


# With messages of the source's row alone, as far as their arguments tell.
BY_ARGUMENTS = {
    "GravNetConv",  # edges of its own
    "MeshCNNConv",  # an order
    "PANConv",  # edges of its own
}


def test_no_eligible_class_lacks_a_record() -> None:
    recorded, eligible = {record.layer for record in RECORDS}, set()
    for name, cls in scan().items():
        if issubclass(cls, MessagePassing):
            taken = {*inspect.signature(cls.message).parameters} - BESIDE
            if len(taken) == 1 and taken.pop().endswith("_j"):
                eligible.add(name)
    assert eligible >= {"SAGEConv", "GCNConv", "LabelPropagation"}
    assert eligible - recorded <= BY_ARGUMENTS
