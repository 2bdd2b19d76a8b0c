"""PyTorch Geometric: accelerated layers and the dataset transform."""

from hag_plugin.explanation import Explanation
from hag_plugin.pyg import mixed
from hag_plugin.pyg.accelerate import accelerate, forget, restore
from hag_plugin.pyg.data import HagData
from hag_plugin.pyg.explain import explain
from hag_plugin.pyg.layer import hag_layer
from hag_plugin.pyg.layers import layers
from hag_plugin.pyg.relations import relation_hags
from hag_plugin.pyg.sequential import PrefixLSTMAggregation
from hag_plugin.pyg.transforms import ToHAG

mixed.install()

__all__ = [
    "Explanation",
    "HagData",
    "PrefixLSTMAggregation",
    "ToHAG",
    "accelerate",
    "explain",
    "forget",
    "hag_layer",
    "layers",
    "relation_hags",
    "restore",
]
