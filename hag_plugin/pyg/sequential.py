"""PyG's LSTM aggregation over a prefix tree."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch_geometric.nn.aggr import LSTMAggregation

from hag_plugin.sequence import SequentialHAG, lstm_aggregate


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
