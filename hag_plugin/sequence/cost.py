"""Whether an LSTM over a prefix tree is faster than a host's own, told from counts alone."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hag_plugin.limits import limits
from hag_plugin.modes import has_hooks
from hag_plugin.sequence.prefix_tree import SequentialHAG

DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Costs:
    """What an LSTM takes on a CPU, in microseconds.

    Measured on two cores in float32, on the real graphs and widths 4, 16, 64 and 128. Of what
    was measured, stock has the fast end and ours the slow one.

    Attributes:
        step: of ours: a constant, for each hidden unit, for each weight from state to state.
        level: of ours, for each position in the lists: a score of small operations.
        stock_step: of a host's fused kernel, as `step`; its weights are also those of the input.
        bucket: of a host that runs lists of one length at a time, for each length.
    """

    step: tuple[float, float, float]
    level: float
    stock_step: tuple[float, float, float]
    bucket: float


TRAINING = Costs((0.1, 0.03, 7e-5), 250.0, (0.05, 0.015, 12e-5), 700.0)
INFERENCE = Costs((0.05, 0.009, 4e-5), 90.0, (0.04, 0.004, 4.5e-5), 350.0)


@dataclass(frozen=True)
class StepCounts:
    """Steps of an LSTM over the prefix tree of a graph, and in the host's own way.

    Attributes:
        steps: rows that the tree's levels compute, padding included.
        levels: length of the longest list.
        stock_steps: rows that the host computes, padding included.
        buckets: lengths that the host runs one after another; 0 where it runs all lists at once.
    """

    steps: int
    levels: int
    stock_steps: int
    buckets: int

    def pays(self, lstm: nn.LSTM) -> bool:
        """Whether the tree is expected to be faster for this LSTM, with gradients on or off as now.

        Example:
            >>> StepCounts(10_000, 30, 200_000, 0).pays(nn.LSTM(16, 16))
            True
            >>> StepCounts(190_000, 30, 200_000, 0).pays(nn.LSTM(16, 16))
            False
        """
        costs = TRAINING if torch.is_grad_enabled() else INFERENCE
        width, inputs = lstm.hidden_size, lstm.input_size
        step = _dot(costs.step, (1, width, width * width))
        stock_step = _dot(costs.stock_step, (1, width, width * (inputs + width)))
        ours = self.steps * step + self.levels * costs.level
        stock = self.stock_steps * stock_step + self.buckets * costs.bucket
        return limits.tree_gain * ours <= stock

    def __str__(self) -> str:
        return f"{self.steps:,} steps of the prefix tree, {self.stock_steps:,} of stock"


def _dot(weights: tuple[float, ...], values: tuple[float, ...]) -> float:
    return sum(w * v for w, v in zip(weights, values, strict=True))


def padded_counts(tree: SequentialHAG) -> StepCounts:
    """The counts where every list goes on with zeros to the length of the longest, as in PyG.

    Lists that are equal go on together, so each distinct list is padded once.

    Example:
        >>> from hag_plugin.sequence import build_sequence
        >>> edges = torch.tensor([[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 1, 1, 2, 2]])
        >>> padded_counts(build_sequence(edges, num_nodes=3))  # (0 1 2), (0 1), (0 1)
        StepCounts(steps=4, levels=3, stock_steps=9, buckets=0)
    """
    ends = torch.unique(tree.end)
    lengths = torch.searchsorted(tree.level_ptr.to(ends.device), ends, right=True) - 1
    padding = int((tree.longest - lengths).sum())
    return StepCounts(tree.num_prefixes + padding, tree.longest, tree.num_dst * tree.longest, 0)


def bucketed_counts(tree: SequentialHAG) -> StepCounts:
    """The counts where lists of one length run together, without padding, as in DGL."""
    lengths = torch.unique(tree.list_lengths)
    return StepCounts(
        tree.num_prefixes, tree.longest, tree.num_edges, buckets=int((lengths > 0).sum())
    )


# Which LSTMs share states as they are set up now ------------------------------------------------


def why_not_shared(lstm: nn.LSTM) -> str | None:
    """Why the states of an LSTM cannot be computed once for equal beginnings. None: they can."""
    if type(lstm) is not nn.LSTM:
        return f"its LSTM is a {type(lstm).__name__}"
    if has_hooks(lstm):
        return "hooks on its LSTM see the stock computation"
    if lstm.bidirectional:
        return "bidirectional=True: backward states depend on a list's end"
    if lstm.proj_size > 0:
        return f"proj_size={lstm.proj_size}"
    if lstm.dropout > 0 and lstm.training and lstm.num_layers > 1:
        return f"dropout={lstm.dropout} in training is drawn anew for every list"
    return None


def are_taken(lstm: nn.LSTM, x: Tensor) -> bool:
    """Whether an LSTM and what it is given are on the CPU, in single or double precision."""
    weight = lstm.weight_ih_l0
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.layout == torch.strided
        and x.dim() == 2
        and x.dtype in DTYPES
        and x.dtype == weight.dtype
        and x.device.type == "cpu" == weight.device.type
        and not torch.is_autocast_enabled("cpu")
    )


# What was decided last, for `explain` -----------------------------------------------------------

_COUNTS: weakref.WeakKeyDictionary[nn.LSTM, StepCounts] = weakref.WeakKeyDictionary()


def note_counts(lstm: nn.LSTM, counts: StepCounts) -> None:
    """Keeps the counts of the graph that an LSTM met last."""
    _COUNTS[lstm] = counts


def describe(lstm: nn.LSTM) -> tuple[bool, str]:
    """Whether an LSTM runs over prefix trees, and in words why; for `explain`."""
    reason = why_not_shared(lstm)
    if reason is not None:
        return False, reason
    counts = _COUNTS.get(lstm)
    if counts is None:
        return True, "over the prefix tree of a graph that comes back, where it is faster"
    if counts.pays(lstm):
        return True, str(counts)
    return False, f"stock is as fast: {counts}"
