"""PyG's LSTM aggregation over a prefix tree: in accelerated layers, or as a module of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.aggr import LSTMAggregation

from hag_plugin.arguments import check_kind, whole
from hag_plugin.hag.graph import MAX_NODES
from hag_plugin.pyg.aggregation.neighbourhoods import check_sizes
from hag_plugin.pyg.recipes import reorder
from hag_plugin.pyg.recipes.recipe import Call, Recipe
from hag_plugin.saved import set_module
from hag_plugin.sequence.cost import StepCounts, padded_counts
from hag_plugin.sequence.lstm import lstm_aggregate
from hag_plugin.sequence.prefix_tree import SequentialHAG, build_sequence

# What a recipe may run in place of a layer's forward. Others look into their graph for degrees or
# loops; these only reorder what the layer does where its graph is a HAG.
REORDERED = (None, reorder.sage, reorder.graph, reorder.gin)


@dataclass(frozen=True)
class Found:
    """The prefix tree of an edge index; None where it is faster for no width."""

    tree: SequentialHAG | None
    counts: StepCounts


# In accelerated layers --------------------------------------------------------------------------


def is_lstm(conv: Any) -> bool:
    """Whether a layer aggregates with PyG's own `LSTMAggregation`."""
    return type(conv._modules["aggr_module"]) is LSTMAggregation


def find_tree(edge_index: Tensor, size: tuple[int, int]) -> Found | None:
    """The prefix tree of an edge index, and what it takes; None where stock takes it for no list.

    Args:
        edge_index: `[2, E]`.
        size: the number of sources and of targets.
    """
    target = edge_index[1]
    if target.numel() == 0 or not bool((target[:-1] <= target[1:]).all()):
        return None  # stock says what is wrong
    tree = build_sequence(edge_index, size=size)
    counts = padded_counts(tree)
    return Found(tree if counts.steps < counts.stock_steps else None, counts)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run(recipe: Recipe, conv: Any, tree: SequentialHAG, size: Any, arguments: Call) -> Tensor:
    """What `conv.propagate(edge_index, size=size, **arguments)` returns.

    Raises:
        ValueError: the features or `size` are not those of the tree's nodes.
    """
    source = arguments[recipe.source]
    pair = source if isinstance(source, (tuple, list)) else (source, source)
    check_sizes(tree, size, (pair[0], pair[1]), conv.node_dim)
    z = pair[0] if recipe.message is None else recipe.message(conv, pair[0])
    return lstm_aggregate(z, tree, conv.aggr_module.lstm, padded=True)


# As a module of its own -------------------------------------------------------------------------


@set_module("hag_plugin.pyg")
class PrefixLSTMAggregation(LSTMAggregation):  # type: ignore[misc]
    """`LSTMAggregation` that runs one step for every distinct prefix, with the same results.

    Stands wherever PyG takes an aggregation, such as `SAGEConv(..., aggr=...)`, in layers whose
    message depends on the source node alone. Parameters and `state_dict` are stock's. PyG pads
    every list with zeros to the length of the longest and takes the state after them; so does this.

    Args:
        in_channels: size of a message.
        out_channels: size of the result.
        sequence: the tree of the `edge_index` that the layer will be called with, which must be
            sorted by target, as stock requires. May be set later; while it is None, stock runs.
        **kwargs: of `torch.nn.LSTM`.

    Example:
        >>> import torch
        >>> from torch_geometric.nn import SAGEConv
        >>> from hag_plugin.sequence import build_sequence
        >>> edge_index = torch.tensor([[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]])
        >>> tree = build_sequence(edge_index, num_nodes=3)
        >>> conv = SAGEConv(4, 2, aggr=PrefixLSTMAggregation(4, 4, sequence=tree))
        >>> conv(torch.ones(3, 4), edge_index).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sequence: SequentialHAG | None = None,
        **kwargs: Any,
    ) -> None:
        in_channels = whole("in_channels", in_channels, 1, MAX_NODES)
        out_channels = whole("out_channels", out_channels, 1, MAX_NODES)
        check_kind("sequence", sequence, SequentialHAG, type(None))
        super().__init__(in_channels, out_channels, **kwargs)
        self.sequence = sequence

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
        max_num_elements: int | None = None,
    ) -> Tensor:
        """As of `LSTMAggregation`.

        Raises:
            ValueError: `index` is not sorted or does not have the tree's number of edges a target.
        """
        tree = self.sequence
        if tree is None:
            stock: Tensor = super().forward(x, index, ptr, dim_size, dim, max_num_elements)
            return stock
        if max_num_elements is not None:
            raise ValueError(f"max_num_elements is {max_num_elements}; expected None with a tree")
        self.assert_index_present(index)
        self.assert_sorted_index(index)
        self.assert_two_dimensional_input(x, dim)
        assert index is not None
        if dim_size != tree.num_dst or not bool(
            (index.bincount(minlength=tree.num_dst) == tree.list_lengths).all()
        ):
            raise ValueError(
                f"index holds {index.numel()} edges of {dim_size} targets; expected those of the "
                f"tree, {tree.num_edges} edges of {tree.num_dst} targets, by target"
            )
        return lstm_aggregate(x, tree, self.lstm, padded=True, per_edge=True)
