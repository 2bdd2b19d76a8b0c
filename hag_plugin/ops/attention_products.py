"""Attention whose values, keys and queries are products of features with matrices, as one function
of the features and the matrices.

Each of these products is as large as the result, and so is each gradient by one. Here a gradient is
written where its product stood, all of them go to the features in one sum, and what was read for
the last time is let go: a training step holds less than half of what it holds product by product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from hag_plugin.hag.hag import HAG
from hag_plugin.ops import gpu
from hag_plugin.ops.attention import NAME, run_attend, write_gradients
from hag_plugin.ops.attention_pieces import Form, Tensors
from hag_plugin.ops.registration import call, check_self_loops, in_large_pages, is_ordinary

_PRODUCTS = ("value", "key", "query", "root")


class Product(NamedTuple):
    """What rows of features are multiplied with: `x @ weight.T + bias`.

    Attributes:
        weight: `[M, D]`.
        bias: `[M]`, or none.
    """

    weight: Tensor
    bias: Tensor | None = None


class Attention(NamedTuple):
    """Attention over products.

    Attributes:
        heads: H.
        score: "sum", "vector" or "dot", as of `ops.attention.attend`, whose softmax it is.
        value: of the sources' features, `M = H * C`.
        key: likewise, `M = H * K`, with the score "sum" `M = H`. None: the values.
        query: the same of the targets' features.
        root: of the targets' features, which is added to the result; `M = H * C`. None: nothing is.
        weight: "vector": `[H, K]`.
        shift: `[H * C]`, added to the result.
        mask: `[E, H]`, of a dropout; a constant.
        order: of the mask's rows.
        slope: of the leaky ReLU.
    """

    heads: int
    score: str
    value: Product
    key: Product | None
    query: Product
    root: Product | None = None
    weight: Tensor | None = None
    shift: Tensor | None = None
    mask: Tensor | None = None
    order: Tensor | None = None
    slope: float = 1.0

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of its tensors, in the order in which they are derived."""
        products = (getattr(self, name) for name in _PRODUCTS)
        pairs = ((None, None) if p is None else p for p in products)
        return (
            *(t for pair in pairs for t in pair),
            self.weight,
            self.shift,
            self.mask,
            self.order,
        )

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Attention:
        """The same of other tensors."""
        pairs = [tuple(tensors[k : k + 2]) for k in range(0, 2 * len(_PRODUCTS), 2)]
        products: list[Any] = [None if pair[0] is None else Product(*pair) for pair in pairs]  # type: ignore[arg-type]
        rest: dict[str, Any] = dict(
            zip(("weight", "shift", "mask", "order"), tensors[8:], strict=True)
        )
        return self._replace(**dict(zip(_PRODUCTS, products, strict=True)), **rest)


def may_join(hag: HAG, source: Tensor, target: Tensor, attention: Attention) -> bool:
    """Whether `attend_products` takes these: ordinary float32 or float64 rows in main memory, as
    many as the graph has nodes, and a mask that is a constant."""
    tensors = [t for t in attention.tensors[:-1] if t is not None]
    if source.dtype not in (torch.float32, torch.float64) or gpu.is_home(source):
        return False
    if not (source.is_cpu and source.dim() == target.dim() == 2):
        return False
    if (len(source), len(target)) != (hag.num_src, hag.num_dst) or hag.is_looped:
        return False
    if attention.mask is not None and attention.mask.requires_grad:
        return False
    if any(t.dtype != source.dtype for t in (target, *tensors)):
        return False
    return is_ordinary(source, target, *tensors) and not torch.is_autocast_enabled("cpu")


def attend_products(hag: HAG, source: Tensor, target: Tensor, attention: Attention) -> Tensor:
    """`attend` over products of features, with what is added to it.

    Args:
        hag: the graph.
        source: features of the sources, `[N_src, D]`.
        target: of the targets, `[N_dst, D']`; it may be `source` itself.
        attention: what is computed. See `may_join`.

    Returns:
        `[N_dst, H * C]`.
    """
    run: Any = _Products.apply
    y: Tensor = run(hag, attention, source, target, *attention.tensors)
    return y


def composed(hag: HAG, source: Tensor, target: Tensor, attention: Attention) -> Tensor:
    """The same product by product, which has derivatives of any order."""
    form = _form(hag, attention)
    given = _given(source, target, attention, linear)
    y, _ = call(NAME, hag, tuple(given), *form.others)
    out: Tensor = y.flatten(1)
    for term in _added(target, attention):
        out = out + term
    return out


def _form(hag: HAG, attention: Attention) -> Form:
    loops = check_self_loops(False, hag)
    return Form(hag.num_dst, attention.score, attention.slope, "softmax", loops)


def _given(
    source: Tensor, target: Tensor, attention: Attention, multiply: Callable[..., Tensor]
) -> Tensors:
    """The products as `attend` takes them."""
    heads = attention.heads
    shape = (heads,) if attention.score == "sum" else (heads, -1)
    value = multiply(source, *attention.value).view(len(source), heads, -1)
    key = value
    if attention.key is not None:
        key = multiply(source, *attention.key).view(len(source), *shape)
    query = multiply(target, *attention.query).view(len(target), *shape)
    ends = {"value": value, "key": key, "query": query}
    weight, mask, order = attention.weight, attention.mask, attention.order
    return Tensors(**ends, weight=weight, mask=mask, order=order)


def _added(target: Tensor, attention: Attention) -> list[Tensor]:
    terms = [] if attention.root is None else [linear(target, *attention.root)]
    return terms if attention.shift is None else [*terms, attention.shift]


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hag: HAG, attention: Attention, source: Tensor, target: Tensor, *tensors: Any
    ) -> Tensor:
        form = _form(hag, attention)
        given = _given(source, target, attention, _linear)
        y, kept = run_attend(hag, *given, *form.others)
        # A view that is made here could not be written to by whoever gets it.
        out: Tensor = torch.ops.aten._unsafe_view(y, (form.num_dst, y.shape[1] * y.shape[2]))
        if attention.root is not None:
            out.addmm_(target, attention.root.weight.t())
            if attention.root.bias is not None:
                out += attention.root.bias
        if attention.shift is not None:
            out += attention.shift
        ctx.hag, ctx.form, ctx.attention = hag, form, attention.with_tensors([None] * len(tensors))
        ctx.is_one = source is target
        ctx.save_for_backward(source, target, *tensors, *given[:3], kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = list(ctx.saved_tensors)  # once: a checkpoint gives each only once
        if torch.is_grad_enabled() or not is_ordinary(grad, *saved):
            found = _derivable(ctx, saved, grad)
        else:
            found = _Backward(ctx, saved, grad).run()
        needs = ctx.needs_input_grad
        return tuple(
            g if need else None for g, need in zip((None, None, *found), needs, strict=True)
        )


def _derivable(ctx: Any, saved: Sequence[Any], grad: Tensor) -> list[Tensor | None]:
    """The gradients, which may be derived again."""
    inputs = saved[:-4]
    own = [t if t is None else t.view_as(t) for t in inputs]  # ends of what is derived here
    with torch.enable_grad():
        own = [t if t is None or t.requires_grad else t.detach() for t in own]
        attention = ctx.attention.with_tensors(own[2:])
        y = composed(ctx.hag, own[0], own[1], attention)  # type: ignore[arg-type]
    derived = [k for k, t in enumerate(own) if t is not None and t.requires_grad]
    wanted = [own[k] for k in derived]
    how = {"create_graph": torch.is_grad_enabled(), "allow_unused": True}
    grads = torch.autograd.grad(y, wanted, grad, **how)  # type: ignore[arg-type]
    found: list[Tensor | None] = [None] * len(inputs)
    for k, by in zip(derived, grads, strict=True):
        found[k] = by
    return found


class _Backward:
    """The gradients, in as little memory as they take."""

    def __init__(self, ctx: Any, saved: list[Any], grad: Tensor) -> None:
        self.ctx, self.saved, self.grad = ctx, saved, grad.contiguous()
        self.hag, self.form = ctx.hag, ctx.form
        # Nobody asks for these products again: gradients may stand in their place.
        self.is_last = not torch._C._autograd._get_current_graph_task_keep_graph()
        source, target, *tensors = saved[:-4]
        self.source, self.target = source, target
        self.is_one = ctx.is_one
        self.attention: Attention = ctx.attention.with_tensors(tensors)
        needs: Sequence[bool] = ctx.needs_input_grad
        self.needs_features, self.needs = needs[2:4], needs[4:]

    def run(self) -> list[Tensor | None]:
        """By the features and all tensors of the attention."""
        found: list[Tensor | None] = [None] * len(self.attention.tensors)
        parts = self._parts()
        if self.attention.weight is not None:
            found[8] = parts["weight"]
        if self.needs[9]:
            found[9] = self.grad.sum(0)
        sides: list[Tensor | None] = [None, None]
        for name in ("key", "query", "root", "value"):  # those of "sum" first: they are small
            at = _PRODUCTS.index(name)
            weight = self.attention.tensors[2 * at]
            if weight is None:
                continue
            by = self.grad if name == "root" else parts.pop(name).flatten(1)
            is_of_source = name in ("value", "key")
            x = self.source if is_of_source else self.target
            if self.needs[2 * at]:
                found[2 * at] = by.t() @ x
            if self.needs[2 * at + 1]:
                found[2 * at + 1] = by.sum(0)
            side = 0 if is_of_source or self.is_one else 1
            if self.needs_features[side]:
                sides[side] = _plus(sides[side], by, weight)
        return [*sides, *found]

    def _parts(self) -> dict[str, Tensor]:
        """By the products and the weight."""
        attention = self.attention
        value, key, query, kept = self.saved[-4:]
        is_shared = attention.key is None
        parts = {"value": value if self.is_last else torch.empty_like(value)}
        if is_shared:
            parts["key"] = parts["value"]  # of both
        else:
            written = self.is_last and attention.score != "sum"
            parts["key"] = key if written else torch.empty_like(key)
        parts["query"] = torch.empty_like(query)
        if attention.weight is not None:
            parts["weight"] = torch.empty_like(attention.weight)
        shape = self.form.num_dst, attention.heads, value.shape[-1]
        ends = {"value": value, "key": value if is_shared else key, "query": query}
        mask, order = attention.mask, attention.order
        given = Tensors(**ends, weight=attention.weight, mask=mask, order=order)
        inputs = (self.grad.view(shape), None, kept, *given, 0, *self.form.others)
        write_gradients(self.hag, inputs, parts)
        self.saved.clear()
        if self.is_last:
            self.ctx.maybe_clear_saved_tensors()
        return parts


# A new product of many rows costs more in page faults than in sums: it comes in large pages.


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`."""
    y = in_large_pages(x.new_empty((len(x), len(weight))))
    if bias is None:
        return torch.mm(x, weight.t(), out=y)
    return torch.addmm(bias, x, weight.t(), out=y)


def _plus(total: Tensor | None, by: Tensor, weight: Tensor) -> Tensor:
    """`total + by @ weight`, in its memory."""
    if total is not None:
        return total.addmm_(by, weight)
    return torch.mm(by, weight, out=in_large_pages(by.new_empty((len(by), weight.shape[1]))))
