"""The steps of layers, for what they hold: collectives as `transfer` makes them, sums, products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hag_plugin.parallel.layouts import Layout, chunk_sizes, held
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.strategies.activations import Held, Step, hold

TRANSFORM = "transform-first"


def gather_rows(rows: np.ndarray, width: int) -> Step:
    """Shards to the whole: parts of unequal size are padded, and copied."""
    padded = _padded(rows, width)
    return Step(int(rows.sum()) * width, forward=padded, backward=padded)


def scatter_rows(rows: np.ndarray, width: int) -> Step:
    """Partial sums of the whole to shards."""
    padded = _padded(rows, width)
    return Step(int(rows.max()) * width, forward=padded, backward=padded)


def _padded(rows: np.ndarray, width: int) -> int:
    even = rows.min() == rows.max()
    return 0 if even else (len(rows) + 1) * int(rows.max()) * width


def scatter_columns(rows: int, width: int, columns: int) -> Step:
    """Partial sums `[rows, width]` to a block of their features; blocks are put one by one."""
    block = rows * int(chunk_sizes(width, columns).max())
    return Step(block, forward=columns * block, backward=columns * block)


def exchange(rows: int, sent: int, received: int, width: int, waits: bool) -> Step:
    """Own rows, and behind them those that come from others.

    Args:
        rows: of this device.
        sent: rows.
        received: rows.
        width: of a row.
        waits: whether a gradient of the own rows waits already: others are added to it in place.
    """
    back = sent - rows if waits else max(sent, rows)
    return Step((rows + received) * width, forward=received * width, backward=back * width)


def rows_to_columns(rows: np.ndarray, width: int) -> Step:
    """An all-to-all; rows are put block by block."""
    most, block = int(rows.max()) * width, int(chunk_sizes(width, len(rows)).max())
    return Step(int(rows.sum()) * block, forward=most, backward=most)


def columns_to_rows(rows: np.ndarray, width: int) -> Step:
    """The way back."""
    most = int(rows.max()) * width
    return Step(most, forward=most, backward=most)


def turn(before: Layout, after: Layout, rows: np.ndarray, width: int) -> int:
    """Buffers of a change of layout, beside the tensor before and after it, one way."""
    kinds = {before.kind, after.kind}
    if "replicated" in kinds and "rows" in kinds:
        return _padded(rows, width)
    if before.kind == "replicated":
        return 0
    return held(after, rows, width)


def neighbours(op: Op, rows: int, width: int) -> Step:
    """A sum over neighbours keeps nothing; an extremum finds its sources again."""
    if set(op.reduce) <= {"sum", "mean"}:
        return Step(rows * width)
    return Step(rows * width, "both", backward=2 * rows * width)


def product(rows: int, width: int) -> Step:
    """With weights, to `[rows, width]`."""
    return Step(rows * width, "input", weights=True)


def bias(op: Op, size: int) -> list[Step]:
    """If there is one."""
    return [Step(size, weights=True)] if op.bias else []


def with_root(op: Op, found: Held, source: int) -> Held:
    """What a layer holds if a node's own row is transformed too: its gradient waits."""
    if not op.root:
        return found
    waits = source if op.input_grad else 0
    return Held(found.kept, True, found.output, found.forward, found.backward + waits)


def convolution(
    op: Op, order: str, rows: int, widths: tuple[int, int], fetch: list[Step],
    sources: tuple[int, int], twice: bool = False,
) -> Held:  # fmt: skip
    """A sum over neighbours with a transform before or after it.

    Args:
        op: the layer.
        order: of the two.
        rows: of the output, on this device.
        widths: F and G.
        fetch: steps that bring the rows that edges read.
        sources: how many rows the input has, and how many edges read.
        twice: whether it sums twice, and adds both.
    """
    F, G = widths
    total = neighbours(op, rows, F)
    if twice:
        total = replace(total, forward=total.forward + total.made)
    if op.relational:
        steps = [*fetch, relations(op, order, op.relations, rows, sources[1], F, G)]
    elif order == TRANSFORM:
        steps = [product(sources[0], G), *fetch, neighbours(op, rows, G)]
    else:
        steps = [*fetch, total]
        if order:
            steps.append(product(rows, G))
    return finished(op, sources[0] * F, steps, rows * G)


def finished(op: Op, source: int, steps: list[Step], out: int) -> Held:
    """What a layer holds: these steps, then a node's own row and the bias are added."""
    own = [Step(out, forward=out, weights=True)] if op.root else []
    found = hold(source, [*steps, *own, *bias(op, out)], op.input_grad)
    return with_root(op, found, source)


def relations(op: Op, order: str, count: int, rows: int, sources: int, F: int, G: int) -> Step:
    """The sum of what relations give: all of them are held before it is taken."""
    parts = 2 * count * rows * G if count > 1 else 0
    made = count * F * G if op.bases else 0  # weights, of bases
    if order == TRANSFORM:
        gradients = (sources * G) + sources * F * op.input_grad + made
        return Step(rows * G, "input", made, parts, gradients, weights=True)
    # Gradients of sources add up while sums of relations that are done with are let go.
    waits = sources * F - rows * F if op.input_grad and count > 1 else 0
    kept, gradients = count * rows * F + made, max(rows * F, waits) + made
    return Step(rows * G, "", kept, parts, gradients, weights=True)


def messages(op: Op, rows: int, sources: int, edges: int, fetch: list[Step]) -> Held:
    """A layer that makes a message for every edge from both its ends, as PyG's PNAConv does."""
    m = op.message_width
    scaled = op.node_products[0][0] // op.edge_products[0][1]  # messages' widths, own row and all
    spread = len({*op.reduce} & {"std", "var"})
    # Both ends of an edge, joined, are kept for the product; the message for extrema and squares.
    kept = 2 * edges * m + rows * m * (scaled + 2 * spread)
    if not {*op.reduce} <= {"sum", "mean"}:
        kept += edges * m
    inner = [
        Step(sources * m, weights=True),
        Step(rows * m * scaled, extra=kept, forward=4 * edges * m, backward=4 * edges * m),
        Step(rows * op.width, "input", weights=True),
        Step(rows * op.width, "input", weights=True),
    ]
    return hold(rows * op.input_width, [*fetch, *inner], op.input_grad)


def others_rows(count: int, sent: int, width: int) -> Step:
    """Rows of others alone, while work on the own ones goes on; gradients go the way back.

    Args:
        count: that come.
        sent: that go, or are filled up to.
        width: of a row.
    """
    return Step(count * width, forward=sent * width, backward=sent * width)


def attention(op: Op, rows: int, edges: int, heads: int, fetch: Step | None = None) -> Held:
    """Transform, scores, softmax over the edges of each target, weighted sum: what is held of edges
    is dropout's mask alone. The result is kept, as kernels on a GPU do, and where it is joined of
    own rows and others; else those on a CPU do not.

    Args:
        op: the layer.
        rows: that are transformed; of the output.
        edges: into the rows.
        heads: of this device.
        fetch: what brings the rows of others, their scores behind them; None where there are none.
    """
    f, H, E = op.wide // op.heads * heads, heads, edges * heads
    source, out = rows * op.input_width, rows * (f if op.concatenated else op.width)
    h, scores, mask = rows * f, rows * heads, E * (op.needs == "mask")
    others, there, back = (fetch.made, fetch.forward, fetch.backward) if fetch else (0, 0, 0)
    # Scores of both ends; the result, and of each head a maximum and a sum.
    kept = h + others + 2 * scores + mask + h + 2 * scores
    forward = max(
        h + 2 * scores + 3 * mask,
        2 * h + 4 * scores + mask + others + max(there, others) if fetch else 0,  # under way, split
        3 * h + 10 * scores + mask + others if fetch else 0,  # the results of both parts
    )
    backward = max(
        kept + h + (others if fetch else h + scores) + scores,
        kept + 2 * h + 2 * scores + back if fetch else 0,  # gradients of others are on their way
        3 * h + 4 * scores + back + others if fetch else 0,
        h + 2 * rows * (f + H) + source,
    )
    waits = out + source * op.input_grad
    forward, backward = forward - out - kept, backward - kept - waits
    return Held(kept, True, False, max(forward, 0), max(backward, 0))


def heads(op: Op, rows: np.ndarray, edges: int, count: int, fetched: bool, summed: bool) -> Held:
    """Some heads of an attention layer, over all rows.

    Args:
        op: the layer.
        rows: of each part.
        edges: of the whole graph.
        count: heads of this device.
        fetched: whether the input is gathered from all parts.
        summed: whether the output, a sum over heads, is scattered to them.
    """
    N, most = int(rows.sum()), int(rows.max())
    found = attention(op, N, edges, count)
    elsewhere = (N - most) * op.width * summed
    inputs = N * op.input_width * fetched
    waits = (inputs - most * op.input_width * fetched) * op.input_grad
    return Held(
        found.kept + inputs, not fetched, False, found.forward + elsewhere,
        found.backward + elsewhere + waits,
    )  # fmt: skip
