"""Attention over a HAG's graph: `attend`, and the torch operators that it runs.

For each target i and head h, y_ih = sum over its edges e: j->i of (mask_eh p_eh value_jh), where
p_eh is made of scores s_eh: of nodes' terms (GAT), of vectors (GATv2), of dot products
(Transformer), or as they are given. The scores are computed again in the backward pass, of what is
kept of each node and head, and no array of edges times features is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hag_plugin.hag.hag import HAG
from hag_plugin.kernels import _cpu
from hag_plugin.observers import observers, tell
from hag_plugin.ops import gpu, gpu_attention
from hag_plugin.ops.attention_pieces import NORMALISATIONS, SCORES, Form, Pieces, Tensors
from hag_plugin.ops.heads import by_source, by_target, checked_order, counting, place, spread_out
from hag_plugin.ops.registration import (
    DTYPES,
    LOOPED,
    Gradients,
    Graph,
    Inputs,
    Operator,
    accumulator,
    call,
    check_features,
    check_memories,
    check_self_loops,
    found,
    in_large_pages,
    is_ordinary,
    is_transformed,
    register,
    widened,
)

NAME = "attend"
Score = Literal["given", "sum", "vector", "dot"]
Normalise = Literal["softmax", "tanh", "none"]

TENSORS = Tensors._fields
_NUM_TENSORS = len(TENSORS)
_NUM_DERIVED = _NUM_TENSORS - 1  # all but the order have gradients
_EDGE_QUERY = TENSORS.index("edge_query")
OF_EDGES = ("bias", "edges", "mask")  # the tensors with a row for each edge


def attend(
    hag: HAG,
    value: Tensor,
    *,
    key: Tensor | None = None,
    query: Tensor | None = None,
    score: Score = "given",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    edges: Tensor | None = None,
    edge_query: Tensor | None = None,
    projection: Tensor | None = None,
    mask: Tensor | None = None,
    order: Tensor | None = None,
    slope: float = 1.0,
    normalise: Normalise = "softmax",
) -> Tensor:
    """`y_ih = sum over e: j->i of (mask_eh * p_eh * value_jh)`.

    `p` is the softmax of the scores over the edges of each target, as
    `torch_geometric.utils.softmax` has it; their tanh; or the scores themselves. The scores are

    - "given": `bias_eh`
    - "sum": `key_jh + query_ih`, either of which may be left out
    - "vector": `<weight_h, leaky_relu(key_jh + query_ih + edge_eh)>`, GATv2 (arXiv 2105.14491)
    - "dot": `<key_jh, query_ih> + <edge_query_ih, edges_e>`

    each plus `bias_eh`. A leaky ReLU follows, but after "vector", whose own is inside.

    Half types are computed in float32. What is given of edges is in the order that `order` tells.

    Args:
        hag: the graph, E edges from N_src to N_dst nodes.
        value: `[N_src, H, C]`.
        key: "sum": `[N_src, H]`; "vector" and "dot": `[N_src, H, K]`. It may be `value` itself.
        query: the same with N_dst rows.
        score: how scores are made.
        weight: "vector": `[H, K]`.
        bias: `[E, H]`, added to the scores.
        edges: "vector": `[E, H * K]`, or with a `projection` `[E, D]`; "dot": `[E, D]`.
        edge_query: "dot": `[N_dst, H, D]`.
        projection: "vector": `[D, H * K]`; the edge term is `edges @ projection`.
        mask: `[E, H]`, of a dropout.
        order: int64 `[E]`: row `order[k]` of `bias`, `edges` and `mask` is of the HAG's edge k.
            None: they are in the HAG's order.
        slope: of the leaky ReLU; 1: there is none.
        normalise: what is made of the scores.

    Returns:
        `[N_dst, H, C]`; with `edge_query` `[N_dst, H, C + D]`, whose last D numbers are the sum of
        `mask_eh * p_eh * edges_e`.

    Raises:
        TypeError: a tensor has another dtype than `value`, or is none.
        ValueError: a shape does not fit, or an argument is missing or of no use.

    Example:
        >>> import torch
        >>> import hag_plugin as hp
        >>> hag = hp.build_hag(torch.tensor([[0, 1, 2], [0, 0, 1]]), num_nodes=3)
        >>> value = torch.tensor([[[1.0]], [[3.0]], [[5.0]]])
        >>> attend(hag, value, key=torch.zeros(3, 1), score="sum").flatten().tolist()
        [2.0, 5.0, 0.0]
    """
    tensors = (value, key, query, weight, bias, edges, edge_query, projection, mask, order)
    form, wide = checked(hag, dict(zip(TENSORS, tensors, strict=True)), score, slope, normalise)
    if score == "given" and normalise == "none" and slope == 1.0:
        weight = wide.bias
        if wide.bias is not None and wide.mask is not None:
            check_memories(("bias", "mask"), (wide.bias, wide.mask))
            weight = wide.bias * wide.mask
        y = call("head_sum", hag, (wide.value, weight, order), hag.num_dst, form.loops, False)
    else:
        y, _ = call(NAME, hag, wide, *form.others)
        is_traced = torch._C._get_tracing_state() is not None  # with gradients, or without
        is_kept = is_traced or (y.requires_grad and gpu.is_home(y))
        if is_kept and y.dtype == value.dtype:
            y = y.clone()  # the operator keeps its own; whoever gets this one may write to it
    return y.to(value.dtype)  # type: ignore[no-any-return]


def head_dot(hag: HAG, a: Tensor, b: Tensor, order: Tensor | None = None) -> Tensor:
    """`<a_jh, b_ih>` of each edge j->i and head h, `[E, H]`.

    Args:
        hag: the graph.
        a: `[N_src, H, K]`.
        b: `[N_dst, H, K]`, of the same dtype.
        order: int64 `[E]`: the result of the HAG's edge k stands in row `order[k]`, which must be a
            permutation. None: in row k.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape does not fit.

    Example:
        >>> import torch
        >>> import hag_plugin as hp
        >>> hag = hp.build_hag(torch.tensor([[0, 1], [1, 1]]), num_nodes=2)
        >>> a = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
        >>> head_dot(hag, a, a).flatten().tolist()
        [11.0, 25.0]
    """
    check_features(a, hag)
    if a.dim() != 3:
        raise ValueError(f"a has shape {list(a.shape)}; expected [N_src, H, K]")
    _check_shape("a", a, (hag.num_src, *a.shape[1:]), (a.dtype,))
    _check_shape("b", b, (hag.num_dst, *a.shape[1:]), (a.dtype,))
    _check_order(order, hag.num_edges)
    wide = accumulator(a.dtype)
    tensors = widened(a, "a", wide), widened(b, "b", wide), order
    y = call("head_dot", hag, tensors, check_self_loops(False, hag))
    return y.to(a.dtype)  # type: ignore[no-any-return]


# What a call may pass --------------------------------------------------------------------------


def checked(
    hag: HAG, given: dict[str, Any], score: Score, slope: float, normalise: Normalise
) -> tuple[Form, Tensors]:
    """What `attend` is given, by name, in the dtype that sums accumulate in.

    Raises:
        TypeError: as `attend`.
        ValueError: as `attend`.
    """
    form = Form(hag.num_dst, score, float(slope), normalise, check_self_loops(False, hag))
    given = dict.fromkeys(TENSORS) | given
    _check(hag, form, given)
    order, dtype = given.pop("order"), accumulator(given["value"].dtype)
    wide = {name: t if t is None else widened(t, name, dtype) for name, t in given.items()}
    return form, Tensors(**wide, order=order)


def _check(hag: HAG, form: Form, given: dict[str, Any]) -> None:
    value = given["value"]
    if form.score not in SCORES:
        raise ValueError(f"score is {form.score!r}; expected one of {SCORES}")
    if form.normalise not in NORMALISATIONS:
        raise ValueError(f"normalise is {form.normalise!r}; expected one of {NORMALISATIONS}")
    check_features(value, hag)
    if value.dim() != 3:
        raise ValueError(f"value has shape {list(value.shape)}; expected [N_src, H, C]")
    # Traced with `dynamic=True` it is a symbol, of which that can't be asked.
    if not torch.compiler.is_compiling() and not math.isfinite(form.slope):
        raise ValueError(f"slope is {form.slope}; expected a finite number")
    shapes = _shapes(hag, form, given)
    dtypes = value.dtype, accumulator(value.dtype)
    for name in TENSORS[:_NUM_DERIVED]:
        if given[name] is not None and name not in shapes:
            raise ValueError(f"{name} is of no use with the score {form.score!r}; expected None")
        if given[name] is None and shapes.get(name, ())[:1] == ("must",):
            raise ValueError(f"{name} is None; the score {form.score!r} needs it")
        if given[name] is not None:
            shape = tuple(n for n in shapes[name] if n != "must")
            _check_shape(name, given[name], shape, dtypes)
            if given[name].device != value.device:
                raise ValueError(f"{name} is on {given[name].device}; expected {value.device}")
    _check_order(given["order"], hag.num_edges)


def _shapes(hag: HAG, form: Form, given: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What each tensor must look like; after "must" that of one that must be there."""
    num_src, num_dst, num_edges = hag.num_src, hag.num_dst, hag.num_edges
    heads, width = given["value"].shape[1:]
    on_edges = num_edges, heads
    shapes: dict[str, tuple[Any, ...]] = {
        "value": (num_src, heads, width), "bias": on_edges, "mask": on_edges,
    }  # fmt: skip
    if form.score == "given":
        shapes["bias"] = ("must", *on_edges)
    elif form.score == "sum":
        shapes |= {"key": (num_src, heads), "query": (num_dst, heads)}
        if all(given[name] is None for name in ("key", "query", "bias")):
            shapes["key"] = ("must", *shapes["key"])
    else:
        key, edges = given["key"], given["edges"]
        key_width = key.shape[-1] if isinstance(key, Tensor) else 0
        edge_width = edges.shape[-1] if isinstance(edges, Tensor) else 0
        shapes["key"] = "must", num_src, heads, key_width
        shapes["query"] = "must", num_dst, heads, key_width
        shapes["edges"] = num_edges, edge_width
        if form.score == "vector":
            shapes["weight"] = "must", heads, key_width
            if given["projection"] is None:
                shapes["edges"] = num_edges, heads * key_width
            else:
                shapes["edges"] = "must", num_edges, edge_width
                shapes["projection"] = edge_width, heads * key_width
        elif given["edge_query"] is not None or edges is not None:
            shapes["edges"] = "must", num_edges, edge_width
            shapes["edge_query"] = "must", num_dst, heads, edge_width
    return shapes


def _check_shape(
    name: str, tensor: Any, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; expected a torch.Tensor")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected {dtypes[0]}, as the others")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {list(shape)}")


def _check_order(order: Any, num_edges: int) -> None:
    if order is not None:
        _check_shape("order", order, (num_edges,), (torch.int64,))


# Run time --------------------------------------------------------------------------------------


def _counting(given: Tensors, hag: HAG) -> Tensors:
    """What is given of each edge, of as many as there may be, in the order of those there are."""
    of_edges = ((name, getattr(given, name)) for name in OF_EDGES)
    found = {name: counting(t, given.order, hag) for name, t in of_edges if t is not None}
    return given._replace(order=None, **found)


class _Call:
    """What the kernels are told of a call, whose tensors it makes contiguous."""

    def __init__(self, graph: Graph, given: Tensors, form: Form) -> None:
        value = given.value
        assert value is not None
        self.is_on_gpu = gpu.is_home(value)
        self.form = form
        self.hag = hag = found(graph, value.shape[0], form.num_dst, form.loops, False)
        self.rows = None  # that count, of edges
        if form.loops == LOOPED:
            self.rows = given.order
            given = _counting(given, hag)
        self.order = checked_order(given.order, hag)
        self.tensors = [None if t is None else t.contiguous() for t in given[:_NUM_DERIVED]]
        _, self.heads, self.width = value.shape
        vectors = form.score in ("vector", "dot")
        self.key_width = 0 if given.key is None or not vectors else given.key.shape[-1]
        self.edge_width = 0 if given.edges is None else given.edges.shape[-1]
        self.sizes = (hag.num_dst, hag.num_src, hag.num_edges, self.heads, self.width,
                      self.key_width, self.edge_width)  # fmt: skip
        self.others = (SCORES.index(form.score), NORMALISATIONS.index(form.normalise),
                       form.slope, DTYPES[value.dtype], torch.get_num_threads())  # fmt: skip

    @property
    def given(self) -> Tensors:
        """The tensors."""
        return Tensors(*self.tensors)._replace(order=self.order)

    @property
    def addresses(self) -> list[tuple[int, int]]:
        """Where the tensors are."""
        return [place(t) for t in self.tensors]


def run_attend(graph: Graph, *inputs: Any) -> tuple[Tensor, Tensor]:
    given, form = Tensors(*inputs[:_NUM_TENSORS]), Form(*inputs[_NUM_TENSORS:])
    one = _Call(graph, given, form)
    y, kept = _shape_of_attend(graph, *inputs)
    if one.is_on_gpu:
        rows = gpu_attention.rows_of(one.hag, False)
        gpu_attention.attend(rows, one.hag, one.given, form, y, kept)
    else:
        in_large_pages(y)
        side = by_target(one.hag, one.order)
        _cpu.attend(side, one.sizes, one.addresses, place(y), place(kept), *one.others)
    if observers:
        tell(NAME, form.normalise, one.hag)
    return y, kept


def _run_attend_backward(graph: Graph, *inputs: Any) -> Tensor:
    tensors, needs = inputs[3 : 3 + _NUM_TENSORS], inputs[3 + _NUM_TENSORS]
    flat = _shape_of_attend_backward(graph, *inputs)
    write_gradients(graph, inputs, _parts(flat, tensors, needs))
    return flat


def write_gradients(graph: Graph, inputs: Inputs, parts: dict[str, Tensor]) -> None:
    """Writes the gradients that are needed, of the inputs of `attend_backward`.

    Where `y` is given, it and what is kept may be of more edges than the graph's: the gradients are
    then those of that result.
    """
    grad, y, kept, *tensors = inputs[: 3 + _NUM_TENSORS]
    one = _Call(graph, Tensors(*tensors), Form(*inputs[4 + _NUM_TENSORS :]))
    grad, kept = grad.contiguous(), kept.contiguous()
    is_empty = one.heads == 0 or (one.form.score == "vector" and one.key_width == 0)
    for part in parts.values():
        if not one.is_on_gpu:
            in_large_pages(part)
        if is_empty:
            part.zero_()  # the kernels have nothing to write by edges
    own = parts
    if one.form.loops == LOOPED:
        of_edges = {name: getattr(one.given, name) for name in OF_EDGES if name in parts}
        own = parts | {name: torch.zeros_like(t) for name, t in of_edges.items()}
    if one.is_on_gpu:
        out = Tensors(**own)
        gpu_attention.attend_backward(one.hag, one.given, one.form, grad, y.contiguous(), kept, out)
    else:
        _native_backward(one, grad, y, kept, own)
    for name, part in parts.items():
        if own[name] is not part:
            spread_out(own[name], one.rows, part)
    if observers:
        tell("attend_backward", one.form.normalise, one.hag)


def _native_backward(
    one: _Call, grad: Tensor, y: Tensor | None, kept: Tensor, parts: dict[str, Tensor]
) -> None:
    by_value, by_edges = grad, None
    inner = None if y is None else (grad * y).sum(-1)
    if one.given.edge_query is not None:
        by_value = grad[..., : one.width].contiguous()
        by_edges = grad[..., one.width :].contiguous()
    out = [place(parts.get(name)) for name in TENSORS[:_NUM_DERIVED]]
    _cpu.attend_backward(
        by_target(one.hag, one.order), by_source(one.hag, one.order), one.sizes, one.addresses,
        place(kept), place(by_value), place(by_edges), place(inner), out, *one.others,
    )  # fmt: skip


def _parts(flat: Tensor, tensors: Sequence[Any], needs: int) -> dict[str, Tensor]:
    """The gradients that are needed, by name, which lie side by side."""
    found, at = {}, 0
    for i in _needed(needs):
        size = tensors[i].numel()
        found[TENSORS[i]] = flat.narrow(0, at, size).view(tensors[i].shape)
        at += size
    return found


# Derivatives -----------------------------------------------------------------------------------


def _needed(needs: int) -> list[int]:
    """Which of the tensors have gradients, of a number with a bit for each."""
    return [i for i in range(_NUM_DERIVED) if needs >> i & 1]


def _keep_attend(ctx: Any, needs: Sequence[bool], inputs: Inputs, output: Any) -> Gradients:
    ctx.form = Form(*inputs[_NUM_TENSORS:])
    given = Tensors(*inputs[:_NUM_TENSORS])
    ctx.is_one = given.key is given.value  # memory that they share would not do: paths may differ
    y, kept = output
    ctx.mark_non_differentiable(kept)
    return (*inputs[:_NUM_TENSORS], y if gpu.is_home(y) else None, kept)


def _attend_backward(
    ctx: Any, graph: Graph, needs: Sequence[bool], saved: Sequence[Any], grad: Tensor, _: Any
) -> Gradients:
    *tensors, y, kept = saved
    given, form = Tensors(*tensors), ctx.form
    if torch.is_grad_enabled() or is_transformed():  # what comes out may be derived in its turn
        gradients = Pieces(graph, form, given, kept[:, 0]).gradients(grad)
        return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))
    bits = sum(1 << i for i in range(_NUM_DERIVED) if needs[i])
    if isinstance(graph, HAG) and is_ordinary(grad, y, kept, *tensors):
        # Apart, so that each goes as soon as it was used.
        parts = {TENSORS[i]: tensors[i].new_empty(tensors[i].shape) for i in _needed(bits)}
        is_one = ctx.is_one and {"value", "key"} <= parts.keys() and not gpu.is_home(grad)
        if is_one:
            parts["key"] = parts["value"]  # of both
        write_gradients(graph, (grad, y, kept, *given, bits, *form.others), parts)
        if is_one:
            del parts["key"]
        return Tensors(**parts)
    flat = call("attend_backward", graph, (grad, y, kept, *given), bits, *form.others)
    return Tensors(**_parts(flat, tensors, bits))


def _attend_tangent(
    graph: Graph, inputs: Inputs, output: Any, tangents: Sequence[Tensor | None]
) -> Tensor:
    tensors, form = Tensors(*inputs[:_NUM_TENSORS]), Form(*inputs[_NUM_TENSORS:])
    return Pieces(graph, form, tensors, output[1][:, 0]).tangent(Tensors(*tangents))


def _folded_attend(graph: Graph, size: int, batched: Sequence[bool], inputs: Inputs) -> Any:
    tensors, others = inputs[:_NUM_TENSORS], inputs[_NUM_TENSORS:]

    def one(i: int) -> Any:
        own = (t[i] if b else t for t, b in zip(tensors, batched, strict=True))
        return call(NAME, graph, tuple(own), *others)

    pairs = map(one, range(size))
    return tuple(torch.stack(each) for each in zip(*pairs, strict=True))


def _no_derivative(*_: Any) -> Any:
    raise NotImplementedError(
        "attend_backward has no derivative of its own; attend does without it where one is needed"
    )


# Shapes, for tracing ---------------------------------------------------------------------------


def _shape_of_attend(graph: Graph, *inputs: Any) -> tuple[Tensor, Tensor]:
    value, edge_query, num_dst = inputs[0], inputs[_EDGE_QUERY], inputs[_NUM_TENSORS]
    _, heads, width = value.shape
    width = width if edge_query is None else width + edge_query.shape[-1]
    return value.new_empty((num_dst, heads, width)), value.new_empty((num_dst, 2, heads))


def _shape_of_attend_backward(graph: Graph, grad: Tensor, *inputs: Any) -> Tensor:
    tensors, needs = inputs[2 : 2 + _NUM_TENSORS], inputs[2 + _NUM_TENSORS]
    return grad.new_empty((sum(tensors[i].numel() for i in _needed(needs)),))


_DECLARED = ", ".join(f"Tensor{'' if name == 'value' else '?'} {name}" for name in TENSORS)
_GRAPH = f"{_DECLARED}, Tensor row_ptr, Tensor col"
_FORM = "SymInt num_dst, str score, float slope, str normalise, str self_loops"
_OPERATORS = {
    NAME: Operator(
        f"({_GRAPH}, {_FORM}) -> (Tensor, Tensor)",
        *(run_attend, _shape_of_attend, _keep_attend),
        *(_attend_backward, _attend_tangent, _folded_attend),
    ),
    "attend_backward": Operator(
        f"(Tensor grad, Tensor? y, Tensor kept, {_GRAPH}, int needs, {_FORM}) -> Tensor",
        *(_run_attend_backward, _shape_of_attend_backward, lambda *_: ()),
        *(_no_derivative, _no_derivative),
    ),
}
for _name, _operator in _OPERATORS.items():
    register(_name, _operator)
