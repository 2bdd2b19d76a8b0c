"""How the operations of a plain torch model may be split: their axes.

An axis is a dimension of an operation's work: samples, channels, rows of an image. For each axis
that is split, a part of the operation reads a box of each input and makes a box of each output
(`Dim` says how an interval of the axis becomes one of a dimension). The axes of a convolution are
the sample, parameter and attribute dimensions of FlexFlow (arXiv 1807.05358, section 4); the ranks
that the parts are given to are its operation dimension.

Where an axis is summed over (`summed`), each part makes a partial sum. What has no entry in `RULES`
has no axes: it runs whole, on one rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import fx

from hag_plugin.parallel.layouts import chunk_sizes
from hag_plugin.parallel.model.network import RECURRENT, Operation, Shape
from hag_plugin.parallel.ranks.boxes import Box, Boxes
from hag_plugin.saved import set_module


@dataclass(frozen=True)
class Axis:
    """A dimension of an operation's work.

    Attributes:
        name: of it.
        size: into how many it can be cut.
        summed: parts are added up.
    """

    name: str
    size: int
    summed: bool = False


@dataclass(frozen=True)
class Dim:
    """What a part reads, or makes, of one dimension: `[a * step + offset, (b - 1) * step + offset +
    extent)` of the interval `[a, b)` of an axis, as far as it lies in the tensor.

    Attributes:
        axis: which; None: the whole dimension.
        step: between neighbours.
        offset: of the first.
        extent: of one.
    """

    axis: int | None = None
    step: int = 1
    offset: int = 0
    extent: int = 1

    def interval(self, part: Sequence[tuple[int, int]], size: int) -> tuple[int, int]:
        """Of a dimension of this size, for an interval of each axis."""
        first, end = self.reach(part, size)
        first = min(max(first, 0), size)
        return first, max(min(end, size), first)

    def reach(self, part: Sequence[tuple[int, int]], size: int) -> tuple[int, int]:
        """The same, also outside of the tensor: its padding."""
        if self.axis is None:
            return 0, size
        a, b = part[self.axis]
        return a * self.step + self.offset, (b - 1) * self.step + self.offset + self.extent


Dims = tuple[Dim, ...]
ALL = Dim()


@dataclass(frozen=True)
class Rule:
    """How an operation may be split.

    Attributes:
        axes: that may be.
        reads: of each input, in the order of `Operation.inputs`.
        writes: of each output.
        again: inputs that are read once more, by place; what of them follows in `reads`.
    """

    axes: tuple[Axis, ...]
    reads: tuple[Dims, ...]
    writes: tuple[Dims, ...]
    again: tuple[int, ...] = ()


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Split:
    """How one operation is split, and which ranks have the parts.

    Attributes:
        parts: of each axis that is split, by its name: into how many.
        ranks: of the parts, the last axis running fastest; each once.
    """

    parts: tuple[tuple[str, int], ...]
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        words = " x ".join(f"{name} {parts}" for name, parts in self.parts) or "whole"
        return f"{words} on {' '.join(map(str, self.ranks))}"

    @classmethod
    def parse(cls, text: str) -> Split:
        """What `str` wrote.

        Raises:
            ValueError: it is not of that form.

        Example:
            >>> print(Split.parse("sample 2 x channel 2 on 0 1 2 3"))
            sample 2 x channel 2 on 0 1 2 3
        """
        try:
            words, ranks = text.split(" on ")
            named = [] if words == "whole" else [word.rsplit(" ", 1) for word in words.split(" x ")]
            return cls(
                tuple((name, int(parts)) for name, parts in named),
                tuple(int(rank) for rank in ranks.split()),
            )
        except ValueError:
            raise ValueError(
                f"split is {text!r}; expected the like of 'sample 2 x channel 2 on 0 1 2 3' or "
                "'whole on 0'"
            ) from None


def check(split: Split, operation: Operation, rule: Rule, world_size: int) -> None:
    """Raises ValueError unless an operation can be split so; says what it can be."""
    sizes = {axis.name: axis.size for axis in rule.axes}
    why = ""
    for name, parts in split.parts:
        if name not in sizes:
            why = f"it has no axis {name!r}"
        elif parts not in possible(sizes[name], world_size):
            why = f"{name} has {sizes[name]}"
    order = [axis.name for axis in rule.axes]
    named = [name for name, _ in split.parts if name in sizes]
    if not why and named != sorted(set(named), key=order.index):
        why = f"axes are given as {named}"
    count = math.prod(parts for _, parts in split.parts)
    if not why and (len(set(split.ranks)) != count or len(split.ranks) != count):
        why = f"{count} parts need as many ranks, each once"
    if not why and not set(split.ranks) <= set(range(world_size)):
        why = f"ranks are 0 to {world_size - 1}"
    if why:
        axes = ", ".join(
            f"{axis.name} (2 to {max(possible(axis.size, world_size))} parts)"
            for axis in rule.axes
            if possible(axis.size, world_size)
        )
        raise ValueError(
            f"operation {operation.name!r} ({operation.kind}) cannot be {split}: {why}; expected "
            f"{f'splits of {axes}, in this order' if axes else 'it whole'}, on "
            f"{world_size} ranks: {nearest(split, operation, rule, world_size)!s}, say"
        )


def nearest(split: Split, operation: Operation, rule: Rule, world_size: int) -> Split:
    """The split that can be and has most of what was wanted."""
    wanted = dict(split.parts)
    return max(
        splits(rule, world_size),
        key=lambda s: (sum(wanted.get(name) == parts for name, parts in s.parts), -len(s.ranks)),
    )


def possible(size: int, world_size: int) -> list[int]:
    """Numbers of parts, 2 and more, of an axis, none of which is empty."""
    return [p for p in range(2, min(size, world_size) + 1) if int(chunk_sizes(size, p).min())]


def splits(rule: Rule, world_size: int) -> list[Split]:
    """What the planner tries: divisors of the number of ranks as parts, on neighbouring ranks."""
    divisors = [d for d in range(1, world_size + 1) if world_size % d == 0]
    choices = [
        [1, *(d for d in divisors if d in possible(axis.size, world_size))] for axis in rule.axes
    ]
    found = []
    for parts in product(*choices):
        count = math.prod(parts)
        if count > world_size:
            continue
        named = tuple((a.name, p) for a, p in zip(rule.axes, parts, strict=True) if p > 1)
        for first in range(0, world_size - count + 1, count):
            found.append(Split(named, tuple(range(first, first + count))))
    return found


def intervals(rule: Rule, split: Split, world_size: int) -> list[list[tuple[int, int]] | None]:
    """Of each rank: of each axis, which interval its part is of."""
    wanted = dict(split.parts)
    cuts = []
    for axis in rule.axes:
        sizes = chunk_sizes(axis.size, wanted.get(axis.name, 1)).cumsum().tolist()
        cuts.append(list(zip([0, *sizes[:-1]], sizes, strict=True)))
    found: list[list[tuple[int, int]] | None] = [None] * world_size
    for rank, part in zip(split.ranks, product(*cuts), strict=True):
        found[rank] = [*part]
    return found


@dataclass(frozen=True)
class Parts:
    """An operation as it is split over the ranks.

    Attributes:
        part: of each rank, an interval of each axis; None where it has no part.
        reads: of each input, what each rank reads.
        writes: of each output, what each rank makes: where sums are partial, with a dimension of
            one for each partial sum before the others.
        partial: how many partial sums there are; 0 where they are none.
    """

    part: list[list[tuple[int, int]] | None]
    reads: list[Boxes]
    writes: list[Boxes]
    partial: int


def nodes_of(operation: Operation, rule: Rule) -> list[fx.Node]:
    """Of each of a rule's `reads`, the tensor."""
    return [*operation.inputs, *(operation.inputs[i] for i in rule.again)]


def parts_of(operation: Operation, rule: Rule, split: Split, world_size: int) -> Parts:
    """What each rank reads and makes."""
    part = intervals(rule, split, world_size)
    wanted = dict(split.parts)
    summed = [i for i, axis in enumerate(rule.axes) if axis.summed]
    counts = [wanted.get(rule.axes[i].name, 1) for i in summed]
    partial = math.prod(counts) if any(c > 1 for c in counts) else 0

    def number(of: list[tuple[int, int]]) -> int:
        """Which partial sum a part makes."""
        found = 0
        for i, count in zip(summed, counts, strict=True):
            size = int(chunk_sizes(rule.axes[i].size, count)[0])
            found = found * count + of[i][0] // size
        return found

    def boxes(dims: Dims, shape: Shape) -> Iterator[Box | None]:
        for of in part:
            yield (
                None
                if of is None
                else tuple(dim.interval(of, size) for dim, size in zip(dims, shape, strict=True))
            )

    shapes = [tuple(node.meta["val"].shape) for node in nodes_of(operation, rule)]
    reads = [tuple(boxes(d, s)) for d, s in zip(rule.reads, shapes, strict=True)]
    writes = [tuple(boxes(d, s)) for d, s in zip(rule.writes, operation.outputs, strict=True)]
    if partial:
        lead = [None if of is None else number(of) for of in part]
        writes = [
            tuple(
                None if box is None or k is None else ((k, k + 1), *box)
                for k, box in zip(lead, each, strict=True)
            )
            for each in writes
        ]
    return Parts(part, reads, writes, partial)


# Rules ----------------------------------------------------------------------------------------

Make = Callable[[Operation], Rule | None]
RULES: dict[str, Make] = {}


def rule_of(operation: Operation) -> Rule:
    """How an operation may be split."""
    make = RULES.get(operation.kind)
    if make is None and torch.Tag.pointwise in operation.function.tags:
        make = _pointwise
    found = None if make is None else make(operation)
    if found is None:
        return Rule((), tuple(map(_whole, operation.shapes)), tuple(map(_whole, operation.outputs)))
    return found


def _rule(*kinds: str) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        RULES.update(dict.fromkeys(kinds, make))
        return make

    return register


def _whole(shape: Shape) -> Dims:
    return (ALL,) * len(shape)


def _name(dim: int, shape: Shape) -> str:
    """Of the axis of a dimension of an output."""
    if dim == 0:
        return "sample"
    if len(shape) > 3 and dim >= len(shape) - 2:
        return ("height", "width")[dim - len(shape)]
    return "channel" if dim == (1 if len(shape) == 4 else len(shape) - 1) else f"dim {dim}"


def _lead(dim: int) -> str:
    """Of the axis of a dimension before the last ones."""
    return "sample" if dim == 0 else f"dim {dim}"


def _elementwise(operation: Operation, without: Sequence[int] = ()) -> Rule:
    """Each value of the output is made of those at its place, and of whole dimensions `without`."""
    out = operation.outputs[0]
    kept = [d for d in range(len(out)) if d not in {w % len(out) for w in without}]
    axes = tuple(Axis(_name(d, out), out[d]) for d in kept)
    place = {d: i for i, d in enumerate(kept)}

    def dims(shape: Shape) -> Dims:
        shift = len(out) - len(shape)
        return tuple(
            Dim(place[d + shift]) if size == out[d + shift] and d + shift in place else ALL
            for d, size in enumerate(shape)
        )

    return Rule(axes, tuple(map(dims, operation.shapes)), tuple(map(dims, operation.outputs)))


@_rule("dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy", "type_as", "relu",
       "relu6", "hardtanh", "gelu", "silu", "elu", "selu", "leaky_relu", "softplus", "mish",
       "hardswish", "hardsigmoid", "sigmoid", "tanh", "log_sigmoid", "add", "sub", "mul", "div",
       "neg", "pow", "exp", "log", "sqrt", "rsqrt", "abs", "clamp", "clamp_min", "where",
       "masked_fill", "maximum", "minimum", "square", "rsub")  # fmt: skip
def _pointwise(operation: Operation) -> Rule:
    return _elementwise(operation)


@_rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def _softmax(operation: Operation) -> Rule:
    return _elementwise(operation, [operation.argument(1, "dim", -1)])


@_rule("layer_norm", "rms_norm")
def _layer_norm(operation: Operation) -> Rule:
    rule = _elementwise(operation, range(-len(operation.argument(1, "normalized_shape", ())), 0))
    return Rule(rule.axes, (rule.reads[0], *map(_whole, operation.shapes[1:])), rule.writes)


@_rule("group_norm")
def _group_norm(operation: Operation) -> Rule:
    rule = _elementwise(operation, range(1, len(operation.outputs[0])))
    return Rule(rule.axes, (rule.reads[0], *map(_whole, operation.shapes[1:])), rule.writes)


@_rule("batch_norm")
def _batch_norm(operation: Operation) -> Rule:
    rule = _elementwise(operation)
    return Rule(rule.axes, (rule.reads[0], *((Dim(1),) for _ in operation.shapes[1:])), rule.writes)


@_rule("linear")
def _linear(operation: Operation) -> Rule:
    x, _, *bias = operation.shapes
    out = operation.outputs[0]
    last = len(out) - 1
    axes = [Axis(_lead(d) if d < last else "channel", out[d]) for d in range(len(out))]
    rows = tuple(Dim(d) for d in range(last))
    return Rule(
        (*axes, Axis("sum", x[-1], summed=True)),
        ((*rows, Dim(last + 1)), (Dim(last), Dim(last + 1)), *((Dim(last),) for _ in bias)),
        ((*rows, Dim(last)),),
    )


@_rule("matmul", "mm", "bmm")
def _matmul(operation: Operation) -> Rule | None:
    a, b = operation.shapes
    out = operation.outputs[0]
    if len(a) < 2 or len(b) < 2:
        return None
    m, n = len(out) - 2, len(out) - 1
    axes = [Axis(_lead(d) if d < m else ("row", "channel")[d - m], out[d])
            for d in range(len(out))]  # fmt: skip

    def batch(shape: Shape) -> Dims:
        shift = len(out) - len(shape)
        return tuple(
            Dim(d + shift) if shape[d] == out[d + shift] else ALL for d in range(len(shape) - 2)
        )

    return Rule(
        (*axes, Axis("sum", a[-1], summed=True)),
        ((*batch(a), Dim(m), Dim(n + 1)), (*batch(b), Dim(n + 1), Dim(n))),
        (tuple(Dim(d) for d in range(len(out))),),
    )


SPACE = {1: ("width",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def spread(value: Any, dims: int) -> list[int]:
    """An argument for each dimension of space."""
    found = [value] if isinstance(value, int) else list(value)
    return found * dims if len(found) == 1 else found


@_rule("conv1d", "conv2d", "conv3d")
def _convolution(operation: Operation) -> Rule | None:
    x, w, *bias = operation.shapes
    dims = len(w) - 2
    padding = operation.argument(4, "padding", 0)
    if len(x) != len(w) or isinstance(padding, str):
        return None
    stride, pad, dilation = (
        spread(v, dims)
        for v in (operation.argument(3, "stride", 1), padding, operation.argument(5, "dilation", 1))
    )
    groups = operation.argument(6, "groups", 1)
    out = operation.outputs[0]
    space = [Axis(n, s) for n, s in zip(SPACE[dims], out[2:], strict=True)]
    windows = []
    for i in range(dims):
        extent = (w[2 + i] - 1) * dilation[i] + 1
        windows.append(Dim(2 + i, stride[i], -pad[i], extent))
    if groups == 1:
        axes = [Axis("sample", x[0]), Axis("channel", out[1]), *space]
        axes.append(Axis("sum", x[1], summed=True))
        channel, inputs, inner = Dim(1), Dim(2 + dims), Dim(2 + dims)
    else:  # whole groups
        axes = [Axis("sample", x[0]), Axis("channel", groups), *space]
        each = out[1] // groups
        channel = Dim(1, each, 0, each)
        inputs, inner = Dim(1, w[1], 0, w[1]), ALL
    return Rule(
        tuple(axes),
        ((Dim(0), inputs, *windows), (channel, inner, *_whole(w[2:])), *((channel,) for _ in bias)),
        ((Dim(0), channel, *(Dim(2 + i) for i in range(dims))),),
    )


@dataclass(frozen=True)
class Window:
    """Of a pooling: kernel, stride, padding and dilation in each dimension of space."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]


def window_of(operation: Operation) -> Window:
    """What a pooling slides over its input."""
    dims = int(operation.kind[-2])
    kernel = spread(operation.argument(1, "kernel_size", 1), dims)
    stride = spread(operation.argument(2, "stride", []) or kernel, dims)
    padding = spread(operation.argument(3, "padding", 0), dims)
    most = operation.kind.startswith("max")
    dilation = spread(operation.argument(4, "dilation", 1) if most else 1, dims)
    return Window(kernel, stride, padding, dilation)


@_rule("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
def _pooling(operation: Operation) -> Rule | None:
    [x], out = operation.shapes, operation.outputs[0]
    dims, most = int(operation.kind[-2]), operation.kind.startswith("max")
    if len(x) != dims + 2:
        return None
    window = window_of(operation)
    ceil = operation.argument(5 if most else 4, "ceil_mode", False)
    counts_padding = most or operation.argument(5, "count_include_pad", True)
    free = not ceil and (counts_padding or not any(window.padding))
    axes = [Axis("sample", x[0]), Axis("channel", x[1])]
    reads, writes = [Dim(0), Dim(1)], [Dim(0), Dim(1)]
    for i in range(dims):
        extent = (window.kernel[i] - 1) * window.dilation[i] + 1
        axes += [Axis(SPACE[dims][i], out[2 + i])] if free else []
        reads.append(Dim(2 + i, window.stride[i], -window.padding[i], extent) if free else ALL)
        writes.append(Dim(2 + i) if free else ALL)
    return Rule(tuple(axes), (tuple(reads),), (tuple(writes),))


@_rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "instance_norm",
       "upsample_nearest2d", "upsample_bilinear2d")  # fmt: skip
def _by_plane(operation: Operation) -> Rule | None:
    x, *rest = operation.shapes
    out = operation.outputs[0]
    if len(x) < 3 or len(operation.outputs) > 1:
        return None
    axes = (Axis("sample", x[0]), Axis("channel", x[1]))
    own = tuple((Dim(1),) for _ in rest)
    return Rule(axes, ((Dim(0), Dim(1), *_whole(x[2:])), *own),
                ((Dim(0), Dim(1), *_whole(out[2:])),))  # fmt: skip


@_rule("embedding")
def _embedding(operation: Operation) -> Rule | None:
    if operation.argument(3, "scale_grad_by_freq", False) or operation.argument(4, "sparse", False):
        return None
    weight, index = operation.shapes
    axes = [Axis(_lead(d), size) for d, size in enumerate(index)]
    places = tuple(Dim(d) for d in range(len(index)))
    channel = Dim(len(index))
    return Rule(
        (*axes, Axis("channel", weight[1])), ((ALL, channel), places), ((*places, channel),)
    )


GATES = 4  # of an LSTM: each has so many rows of the weights, one after the other


@_rule(*RECURRENT)
def _recurrent(operation: Operation) -> Rule | None:
    if operation.function._overloadname != "input" or len(operation.shapes[0]) != 3:
        return None
    batch_first = operation.node.args[8]
    x, *rest = operation.shapes
    states = 2 if operation.kind == "lstm" else 1
    of_batch = (Dim(0), ALL, ALL) if batch_first else (ALL, Dim(0), ALL)
    state = (ALL, Dim(0), ALL)
    sample = Axis("sample", x[0 if batch_first else 1])
    weights, given = rest[states:], (of_batch, *(state,) * states)
    hidden = rest[0][-1]
    plain = operation.kind == "lstm" and not operation.node.args[7]  # in one direction
    if not plain or weights[1] != (GATES * hidden, hidden):
        return Rule((sample,), (*given, *map(_whole, weights)), given)
    rows = [tuple(Dim(1, 1, gate * hidden) if d == 0 else ALL for d in range(len(w)))
            for w in weights for gate in range(GATES)]  # fmt: skip
    again = [1 + states + i for i in range(len(weights)) for _ in range(GATES - 1)]
    made = tuple((*dims[:2], Dim(1)) for dims in given)
    first, others = rows[::GATES], [r for i, r in enumerate(rows) if i % GATES]
    return Rule((sample, Axis("channel", hidden)), (*given, *first, *others), made, tuple(again))


@_rule("scaled_dot_product_attention")
def _attention(operation: Operation) -> Rule | None:
    q, k, v, *mask = operation.shapes
    if operation.node.kwargs.get("enable_gqa") or len({s[:-2] for s in (q, k, v)}) > 1:
        return None
    out, causal = operation.outputs[0], operation.argument(5, "is_causal", False)
    batch = len(q) - 2
    names = ("sample", "head") if batch == 2 else tuple(_lead(d) for d in range(batch))
    axes = [Axis(name, size) for name, size in zip(names, q[:batch], strict=True)]
    lead = tuple(Dim(d) for d in range(batch))
    row = ALL
    if not causal:
        axes.append(Axis("row", q[-2]))
        row = Dim(batch)

    def masked(shape: Shape) -> Dims:
        full = (*lead, row, ALL)[len(q) - len(shape) :]
        return tuple(ALL if s == 1 else d for s, d in zip(shape, full, strict=True))

    return Rule(
        tuple(axes),
        ((*lead, row, ALL), (*lead, ALL, ALL), (*lead, ALL, ALL), *map(masked, mask)),
        ((*lead, row, ALL)[: len(out)],),
    )


# Changes of shape


@_rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
def _reshape(operation: Operation) -> Rule:
    """Groups of dimensions that become each other; of each the part that is common in front."""
    [x], out = operation.shapes, operation.outputs[0]
    axes: list[Axis] = []
    reads, writes = [ALL] * len(x), [ALL] * len(out)
    i = j = 0
    while i < len(x) and j < len(out):
        first, second = i, j
        a, b = x[i], out[j]
        while a != b:
            if a < b:
                i += 1
                a *= x[i]
            else:
                j += 1
                b *= out[j]
        common = math.gcd(x[first], out[second])
        if common > 1:
            axes.append(Axis(_name(second, out), common))
            for dims, shape, d in ((reads, x, first), (writes, out, second)):
                step = shape[d] // common
                dims[d] = Dim(len(axes) - 1, step, 0, step)
        i, j = i + 1, j + 1
    return Rule(tuple(axes), (tuple(reads),), (tuple(writes),))


@_rule("transpose", "permute", "t")
def _permute(operation: Operation) -> Rule:
    [x], out = operation.shapes, operation.outputs[0]
    order = list(range(len(x)))
    if operation.kind == "permute":
        order = [d % len(x) for d in operation.argument(1, "dims", ())]
    elif len(x) > 1:
        a = operation.argument(1, "dim0", 0) if operation.kind == "transpose" else 0
        b = operation.argument(2, "dim1", 1) if operation.kind == "transpose" else 1
        order[a % len(x)], order[b % len(x)] = order[b % len(x)], order[a % len(x)]
    reads = [ALL] * len(x)
    for i, d in enumerate(order):
        reads[d] = Dim(i)
    axes = tuple(Axis(_name(d, out), size) for d, size in enumerate(out))
    return Rule(axes, (tuple(reads),), (tuple(Dim(d) for d in range(len(out))),))


@_rule("select")
def _select(operation: Operation) -> Rule | None:
    [x], out = operation.shapes, operation.outputs[0]
    dim, index = operation.argument(1, "dim", 0) % len(x), operation.argument(2, "index", 0)
    axes = tuple(Axis(_name(d, out), size) for d, size in enumerate(out))
    reads = [Dim(d) for d in range(len(out))]
    if not axes:
        return None
    reads.insert(dim, Dim(0, 0, index % x[dim]))  # one row of it, whatever the part
    return Rule(axes, (tuple(reads),), (tuple(Dim(d) for d in range(len(out))),))


@_rule("slice", "narrow")
def _slice(operation: Operation) -> Rule:
    [x], out = operation.shapes, operation.outputs[0]
    dim, first = operation.argument(1, "dim", 0) % len(x), operation.argument(2, "start", None) or 0
    step = operation.argument(4, "step", 1) if operation.kind == "slice" else 1
    first = min(max(first + x[dim] if first < 0 else first, 0), x[dim])
    axes = tuple(Axis(_name(d, out), size) for d, size in enumerate(out))
    reads = [Dim(d, step if d == dim else 1, first if d == dim else 0) for d in range(len(out))]
    return Rule(axes, (tuple(reads),), (tuple(Dim(d) for d in range(len(out))),))


@_rule("expand")
def _expand(operation: Operation) -> Rule:
    return _elementwise(operation)


@_rule("pad", "constant_pad_nd")
def _padding(operation: Operation) -> Rule:
    ends = operation.argument(1, "pad", ())
    padded = [-1 - i // 2 for i, n in enumerate(ends) if n]
    return _elementwise(operation, padded)


@_rule("cat")
def _concatenation(operation: Operation) -> Rule | None:
    out = operation.outputs[0]
    dim = operation.argument(1, "dim", 0) % len(out)
    if any(len(s) != len(out) for s in operation.shapes):
        return None
    axes = tuple(Axis(_name(d, out), size) for d, size in enumerate(out))
    reads, at = [], 0
    for shape in operation.shapes:
        reads.append(tuple(Dim(d, 1, -at if d == dim else 0) for d in range(len(out))))
        at += shape[dim]
    return Rule(axes, tuple(reads), (tuple(Dim(d) for d in range(len(out))),))


@_rule("stack")
def _stack(operation: Operation) -> Rule:
    out = operation.outputs[0]
    dim = operation.argument(1, "dim", 0) % len(out)
    rest = [d for d in range(len(out)) if d != dim]
    axes = tuple(Axis(_name(d, out), out[d]) for d in rest)
    place = {d: Dim(i) for i, d in enumerate(rest)}
    reads = tuple(tuple(place[d] for d in rest) for _ in operation.shapes)
    return Rule(axes, reads, (tuple(place.get(d, ALL) for d in range(len(out))),))


@_rule("chunk", "split", "split_with_sizes", "unbind")
def _pieces(operation: Operation) -> Rule:
    [x] = operation.shapes
    place, name = (1, "dim") if operation.kind == "unbind" else (2, "dim")
    dim = operation.argument(place, name, 0) % len(x)
    rest = [d for d in range(len(x)) if d != dim]
    axes = tuple(Axis(_name(d, x), x[d]) for d in rest)
    whole = {d: Dim(i) for i, d in enumerate(rest)}
    reads = tuple(whole.get(d, ALL) for d in range(len(x)))
    writes = tuple(d for i, d in enumerate(reads) if operation.kind != "unbind" or i != dim)
    return Rule(axes, (reads,), tuple(writes for _ in operation.outputs))


# Reductions


@_rule("mean", "sum")
def _reduction(operation: Operation) -> Rule | None:
    [x], out = operation.shapes, operation.outputs[0]
    over = operation.argument(1, "dim", None)
    reduced = {d % len(x) for d in (spread(over, 1) if over not in (None, []) else range(len(x)))}
    axes = tuple(Axis(_name(d, x), size, summed=d in reduced) for d, size in enumerate(x))
    kept = len(out) == len(x)
    writes = tuple(
        ALL if d in reduced else Dim(d) for d in range(len(x)) if kept or d not in reduced
    )
    return Rule(axes, (tuple(Dim(d) for d in range(len(x))),), (writes,))


MEAN, SUM = 1, 2  # at::Reduction


def reduction_of(operation: Operation) -> int:
    """Of a loss: 0 none, 1 mean, 2 sum."""
    place = 3 if operation.kind in CLASSES else 2
    return int(operation.argument(place, "reduction", MEAN))


CLASSES = ("cross_entropy_loss", "nll_loss", "nll_loss_nd")


@_rule(*CLASSES)
def _classes(operation: Operation) -> Rule | None:
    x, target, *weight = operation.shapes
    if len(target) != len(x) - 1 or not target:  # probabilities, or one sample
        return None
    summed = reduction_of(operation) != 0
    axes = tuple(Axis(_name(d, target), size, summed) for d, size in enumerate(target))
    lead, *rest = (Dim(d) for d in range(len(target)))
    out = () if summed else (lead, *rest)
    reads = ((lead, ALL, *rest), (lead, *rest), *map(_whole, weight))
    return Rule(axes, (*reads, _whole(target)), (out,), again=(1,))


@_rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
def _differences(operation: Operation) -> Rule | None:
    x, y = operation.shapes
    if x != y:
        return None
    reduction = int(operation.argument(2, "reduction", MEAN))
    axes = tuple(Axis(_name(d, x), size, reduction != 0) for d, size in enumerate(x))
    dims = tuple(Dim(d) for d in range(len(x)))
    return Rule(axes, (dims, dims), (() if reduction else dims,))
