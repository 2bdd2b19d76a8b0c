"""LSTMs, and the child sums of an N-ary Tree-LSTM, over a prefix tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hag_plugin.arguments import brief, check_dense, check_flag
from hag_plugin.observers import observers, tell
from hag_plugin.sequence.prefix_tree import (
    SequentialHAG,
)


def lstm_aggregate(
    x: Tensor,
    sequence: SequentialHAG,
    lstm: nn.LSTM,
    *,
    padded: bool = False,
    per_edge: bool = False,
) -> Tensor:
    """The last hidden state of `lstm` over the neighbours of each target, in the tree's order.

    The projection of the input is computed once a source, the rest of a step once a distinct
    prefix. Equal to the stock layers up to rounding, gradients included.

    Args:
        x: `[num_src, F]`, one row a source.
        sequence: the tree.
        lstm: of any number of layers, in one direction, without projections; its `batch_first`
            does not matter.
        padded: False: a list ends where it ends, and the state of an empty list is 0 (DGL's
            `SAGEConv("lstm")`). True: after its end every list goes on with rows of 0 to the length
            of the longest (PyG's `LSTMAggregation`).
        per_edge: `x` is `[E, F]`, one message an edge of the `edge_index` that the tree was built
            from. A message must depend on its source alone.

    Returns:
        `[num_dst, lstm.hidden_size]`.

    Raises:
        TypeError: `lstm` is no `nn.LSTM`.
        ValueError: `lstm` is of a kind whose states are not shared, or `x` does not fit.

    Example:
        >>> from hag_plugin.sequence import build_sequence
        >>> _ = torch.manual_seed(0)
        >>> tree = build_sequence(torch.tensor([[0, 1, 0, 1], [1, 1, 2, 2]]), num_nodes=3)
        >>> out = lstm_aggregate(torch.randn(3, 4), tree, nn.LSTM(4, 5))
        >>> out.shape, bool((out[1] == out[2]).all())
        (torch.Size([3, 5]), True)
    """
    _check_lstm(lstm)
    check_flag("padded", padded)
    check_flag("per_edge", per_edge)
    given, last = _rows(x, sequence, lstm.input_size, per_edge)
    weights = [_weights(lstm, layer) for layer in range(lstm.num_layers)]
    _check_dtype(x, weights[0][0])
    # The last row is for steps without a neighbour: of the input only the bias is left.
    gates = torch.cat([linear(given, weights[0][0]), x.new_zeros(1, 4 * lstm.hidden_size)])
    gates = gates if weights[0][2] is None else gates + weights[0][2]
    zeros = x.new_zeros(1, lstm.hidden_size)
    states = [(zeros, zeros)] * lstm.num_layers
    ended = []
    levels = list(_padded_levels(sequence, last) if padded else _levels(sequence, last))
    for (parent, _, ends), below in zip(levels, _gathered(gates, levels), strict=True):
        if parent is not None:
            for layer, (w_input, w_hidden, bias) in enumerate(weights):
                if layer:
                    below = linear(below, w_input, bias)
                h, c = (state.index_select(0, parent) for state in states[layer])
                states[layer] = _cell(torch.addmm(below, h, w_hidden.t()), c)
                below = states[layer][0]
        ended.append(states[-1][0].index_select(0, ends))
    _, order = torch.unique(sequence.end, return_inverse=True)
    y = torch.cat(ended).index_select(0, order)
    if observers:
        tell("lstm_aggregate", "lstm", sequence)
    return y


def child_sum(x: Tensor, sequence: SequentialHAG, weight: Tensor) -> Tensor:
    r"""`y_i = sum_l U_l x_{j_l}` over the neighbours `j_1, j_2, ...` of each target, in order.

    The aggregate of an N-ary Tree-LSTM: what its gates take from the children (Tai et al. 2015,
    arXiv 1503.00075, Equations 9 to 12). With the matrices of all gates one below another, one call
    serves them all.

    Args:
        x: `[num_src, F]`, one row a source.
        sequence: the tree.
        weight: `[L, G, F]`, `U_1` to `U_L`.

    Returns:
        `[num_dst, G]`; 0 where a target has no neighbour.

    Raises:
        ValueError: shapes do not fit, or a list is longer than L.

    Example:
        >>> from hag_plugin.sequence import build_sequence
        >>> tree = build_sequence(torch.tensor([[0, 1, 0, 1], [1, 1, 2, 2]]), num_nodes=3)
        >>> weight = torch.tensor([1.0, 10.0]).view(2, 1, 1)
        >>> child_sum(torch.tensor([[1.0], [2.0], [3.0]]), tree, weight).view(-1).tolist()
        [0.0, 21.0, 21.0]
    """
    _check_tree(sequence)
    check_dense("weight", weight)
    if weight.dim() != 3 or weight.shape[0] < sequence.longest:
        raise ValueError(
            f"weight has shape {list(weight.shape)}; expected [L, G, F] with L at least the length "
            f"of the longest list, {sequence.longest}"
        )
    given, last = _rows(x, sequence, weight.shape[2], False)
    _check_dtype(x, weight)
    total = x.new_zeros(1, weight.shape[1])
    ended = []
    levels = list(_levels(sequence, last))
    for level, (rows, (parent, _, ends)) in enumerate(
        zip(_gathered(given, levels), levels, strict=True)
    ):
        if parent is not None:
            term = linear(rows, weight[level - 1])
            total = total.index_select(0, parent) + term
        ended.append(total.index_select(0, ends))
    _, order = torch.unique(sequence.end, return_inverse=True)
    y = torch.cat(ended).index_select(0, order)
    if observers:
        tell("child_sum", "sum", sequence)
    return y


# Steps ------------------------------------------------------------------------------------------

Level = tuple[Tensor | None, Tensor, Tensor]


def _gathered(rows: Tensor, levels: list[Level]) -> Sequence[Tensor]:
    """The rows that each level reads.

    Gathered all at once: the gradient of a gather is as large as `rows`, for every level again.
    """
    steps = [step if parent is not None else step[:0] for parent, step, _ in levels]
    gathered = rows.index_select(0, torch.cat(steps))
    cut: Sequence[Tensor] = torch.split(gathered, [len(step) for step in steps])
    return cut


def _levels(sequence: SequentialHAG, step: Tensor) -> Iterator[Level]:
    """For each length from 0 on: the rows of the level above, what is read, the rows that end.

    The rows of a level are its prefixes.
    """
    end = torch.unique(sequence.end)
    first = sequence.level_ptr.tolist()
    cuts = torch.searchsorted(end.cpu(), sequence.level_ptr).tolist()
    for level in range(sequence.longest + 1):
        here = slice(first[level], first[level + 1])
        ends = end[cuts[level] : cuts[level + 1]] - first[level]
        yield (sequence.parent[here] if level else None), step[here], ends


def _padded_levels(sequence: SequentialHAG, step: Tensor) -> Iterator[Level]:
    """The same where lists that have ended go on: their rows follow the prefixes'."""
    nothing, pad = sequence.end[:0], int(step[0])
    rows = torch.arange(sequence.num_dst + 1, device=sequence.device)
    waiting, padded, prefixes = nothing, 0, 1
    for parent, steps, ends in _levels(sequence, step):
        if parent is not None:
            above, padded = prefixes, padded + len(waiting)
            prefixes = len(steps)
            old = rows[: padded - len(waiting)] + above
            parent = torch.cat([parent, old, waiting])
            steps = torch.cat([steps, steps.new_full((padded,), pad)])
        waiting = ends
        yield parent, steps, nothing
    yield None, nothing, torch.cat([rows[:padded] + prefixes, waiting])


def _cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """`(h, c)` after a step of an LSTM, from the sum of its gates' inputs `[n, 4 H]`."""
    # On strided rows this short, sigmoid and tanh take several times as long as a copy and they.
    i, f, g, o = (part.contiguous() for part in gates.chunk(4, -1))
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


# What a call may pass ---------------------------------------------------------------------------


def _rows(x: Tensor, sequence: SequentialHAG, width: int, per_edge: bool) -> tuple[Tensor, Tensor]:
    """The rows that steps read, and for each prefix which; the row after the last for none."""
    _check_tree(sequence)
    check_dense("x", x)
    count = sequence.num_edges if per_edge else sequence.num_src
    if tuple(x.shape) != (count, width) or x.device != sequence.device:
        raise ValueError(
            f"x has shape {list(x.shape)} on {x.device}; expected {[count, width]}, a row for each "
            f"{'edge' if per_edge else 'source'}, on {sequence.device}"
        )
    if not per_edge:
        return x, sequence.source
    rows = x.index_select(0, sequence.edge[1:])
    return rows, torch.arange(-1, len(rows), device=x.device) % (len(rows) + 1)


def _check_tree(sequence: SequentialHAG) -> None:
    if not isinstance(sequence, SequentialHAG):
        raise TypeError(f"sequence is {brief(sequence)}; expected a SequentialHAG, from "
                        "build_sequence")  # fmt: skip


def _check_dtype(x: Tensor, weight: Tensor) -> None:
    mixed = x.is_floating_point() and torch.is_autocast_enabled(x.device.type)
    if x.dtype != weight.dtype and not mixed:
        raise TypeError(f"x is {x.dtype}; expected {weight.dtype}, as the weights are")


def _check_lstm(lstm: nn.LSTM) -> None:
    if not isinstance(lstm, nn.LSTM):
        raise TypeError(f"lstm is a {type(lstm).__name__}; expected a torch.nn.LSTM")
    wrong = {
        "bidirectional=True (backward states depend on the list's end)": lstm.bidirectional,
        f"proj_size={lstm.proj_size}": lstm.proj_size > 0,
        f"dropout={lstm.dropout} in training (drawn anew for every list)": (
            lstm.dropout > 0 and lstm.training and lstm.num_layers > 1
        ),
    }
    for words, holds in wrong.items():
        if holds:
            raise ValueError(f"lstm has {words}; expected one whose states can be shared")


def _weights(lstm: nn.LSTM, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
    w_input, w_hidden = (getattr(lstm, f"weight_{kind}_l{layer}") for kind in ("ih", "hh"))
    if not lstm.bias:
        return w_input, w_hidden, None
    return (
        w_input,
        w_hidden,
        lstm.get_parameter(f"bias_ih_l{layer}") + lstm.get_parameter(f"bias_hh_l{layer}"),
    )
