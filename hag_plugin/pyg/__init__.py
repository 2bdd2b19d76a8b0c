"""PyTorch Geometric: accelerated layers and the dataset transform."""

from hag_plugin.explanation import Explanation
from hag_plugin.pyg.aggregation import constant
from hag_plugin.pyg.data import mixed
from hag_plugin.pyg.data.batching import HagBatch  # noqa: F401  (saved, as others below)
from hag_plugin.pyg.data.exchange import graph_of_parts, to_dgl  # noqa: F401
from hag_plugin.pyg.data.graph import (  # noqa: F401
    HagData,
    HagEdgeStorage,
    HagHeteroData,
    hag_data_class,
    new_batch,
)
from hag_plugin.pyg.data.messages import edges_in_order, tensor_of  # noqa: F401
from hag_plugin.pyg.data.storage import unpack, unpack_set  # noqa: F401
from hag_plugin.pyg.data.transforms import ToHAG
from hag_plugin.pyg.model.accelerate import accelerate, forget, restore
from hag_plugin.pyg.model.decorator import hag_layer
from hag_plugin.pyg.model.explain import explain
from hag_plugin.pyg.model.inference import inference
from hag_plugin.pyg.model.layers import Layer, Layers, layers  # noqa: F401
from hag_plugin.pyg.model.session import Session  # noqa: F401
from hag_plugin.pyg.model.swap import _new_layer  # noqa: F401
from hag_plugin.pyg.recipes.lstm import PrefixLSTMAggregation
from hag_plugin.pyg.recipes.relations import relation_hags

mixed.install()

__all__ = [
    "Explanation",
    "HagData",
    "PrefixLSTMAggregation",
    "ToHAG",
    "accelerate",
    "constant",
    "explain",
    "forget",
    "hag_layer",
    "inference",
    "layers",
    "relation_hags",
    "restore",
    "to_dgl",
]
