"""PyG's LSTM aggregation over a prefix tree: in accelerated layers, or as a module of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.aggr import LSTMAggregation

from hag_plugin.pyg.aggregation.neighbourhoods import check_sizes
from hag_plugin.pyg.recipes import reorder
from hag_plugin.pyg.recipes.recipe import Call, Recipe, edge_values, ruled_out_as_set_up
from hag_plugin.recall import decide, is_run_again
from hag_plugin.sequence.cost import (
    StepCounts,
    are_taken,
    describe,
    note_counts,
    padded_counts,
    why_not_shared,
)
from hag_plugin.sequence.lstm import lstm_aggregate
from hag_plugin.sequence.prefix_tree import SequentialHAG, build_sequence

# What a recipe may run in place of a layer's forward. Others look into their graph for degrees or
# loops; these only reorder what the layer does where its graph is a HAG.
REORDERED = (None, reorder.sage, reorder.graph, reorder.gin)
# What is kept of an edge index on which stock's code was found to be as fast, with the layer's
# aggregation and whether there were gradients.
LEFT = "left to stock"


@dataclass(frozen=True)
class Found:
    """The prefix tree of an edge index; None where it is faster for no width."""

    tree: SequentialHAG | None
    counts: StepCounts


# In accelerated layers --------------------------------------------------------------------------


def is_lstm(conv: Any) -> bool:
    """Whether a layer aggregates with PyG's own `LSTMAggregation`."""
    return type(conv._modules["aggr_module"]) is LSTMAggregation


def ruled_out(conv: Any, recipe: Recipe) -> str | None:
    """Why a layer with an LSTM, as it is set up now, must run its stock code. None: it need not."""
    reason = ruled_out_as_set_up(conv, recipe)
    if reason is not None:
        return reason
    if not is_lstm(conv):
        return f"aggr={conv.aggr!r} does not read its messages in an order"
    apart = recipe.offset is not None or recipe.reduce is not None
    looped = recipe.self_loops(conv) is not False or recipe.scale(conv) is not None
    whole = recipe.relations(conv) is None and recipe.forward in REORDERED
    if apart or looped or not whole:
        return "aggr='lstm': its messages are not the rows of the sources alone"
    if conv.flow != "source_to_target":
        return f"aggr='lstm' with flow={conv.flow!r}"
    if conv.aggr_module._forward_hooks or conv.aggr_module._forward_pre_hooks:
        return "hooks on its aggregation see the stock computation"
    return why_not_shared(conv.aggr_module.lstm)


def explained(conv: Any, recipe: Recipe) -> tuple[bool, str]:
    """Whether a layer with an LSTM runs over prefix trees, and why, for `explain`."""
    reason = ruled_out(conv, recipe)
    return describe(conv.aggr_module.lstm) if reason is None else (False, reason)


def is_left_to_stock(conv: Any, edge_index: Tensor) -> bool:
    """Whether it is known from an earlier call that stock's code is as fast on this edge index."""
    session = conv.__dict__.get("_hag_session")
    if session is None:
        return False
    things, about = (edge_index, conv._modules["aggr_module"]), (LEFT, torch.is_grad_enabled())
    return decide(about, lambda: session.verdicts.get(things, about) is not None)


def why_stock(conv: Any, recipe: Recipe, call: Call) -> str | None:
    """Why this call must run stock code. None: it need not."""
    reason = ruled_out(conv, recipe)
    if reason is not None:
        return reason
    features = call.get(recipe.features or recipe.source)
    pair = features if isinstance(features, tuple | list) else (features, features)
    if pair[0] is None or conv.node_dim not in (-2, 0):
        return "features are not rows of nodes"
    if not are_taken(conv.aggr_module.lstm, pair[0]):
        return "the features are no dense matrix of a floating dtype on the CPU, or autocast"
    return None


def find_tree(
    conv: Any, recipe: Recipe, name: str, call: dict[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    """The argument that stands for a plain edge index, if it came back and its tree is faster."""
    session = conv.__dict__.get("_hag_session")
    if session is None or edge_values(recipe.edge_arguments, call) is not None:
        return {}
    edge_index = call[name]
    found: Found | None = session.built_of(
        (edge_index,), ("sequence", *size), lambda: _build(edge_index, size)
    )
    if found is None:
        return {}
    lstm = conv.aggr_module.lstm
    note_counts(lstm, found.counts)
    if found.tree is not None and found.counts.pays(lstm):
        return {name: found.tree}
    if not is_run_again():
        things = (edge_index, conv._modules["aggr_module"])
        session.verdicts.put(things, (LEFT, torch.is_grad_enabled()), True)
    return {}


def _build(edge_index: Tensor, size: tuple[int, int]) -> Found | None:
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
    pair = source if isinstance(source, tuple | list) else (source, source)
    check_sizes(tree, size, (pair[0], pair[1]), conv.node_dim)
    z = pair[0] if recipe.message is None else recipe.message(conv, pair[0])
    return lstm_aggregate(z, tree, conv.aggr_module.lstm, padded=True)


# As a module of its own -------------------------------------------------------------------------


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
