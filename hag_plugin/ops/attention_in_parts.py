"""Attention over the edges of two graphs with the same targets, of which the second comes later.

Each part's softmax is over its own edges; of both together the result is c y + c' y', where c, c'
are the parts' shares of the sum of exponentials (online softmax, arXiv 1805.02867). The gradients
of a part are its kernel's, told the largest score, the sum and the result of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hag_plugin.hag.hag import HAG
from hag_plugin.ops.attention import TENSORS, Score, checked, run_attend, write_gradients
from hag_plugin.ops.attention_pieces import TINY, Form
from hag_plugin.ops.registration import check_memories

Rest = Callable[..., Tensor]


def attend_first(hag: HAG, value: Tensor, *, slope: float = 1.0, **given: Any) -> Rest:
    """Softmax attention over some edges now; over the others, and over all, when they are there.

    In the backward pass the gradients of the others come first, those of these edges later.

    Args:
        hag: these edges, to all N_dst targets.
        value: `[N_src, H, C]`, as of `attend`.
        slope: as of `attend`.
        given: `key`, `query`, `score`, `weight`, `bias`, `mask` and `order`, as of `attend`.

    Returns:
        What takes the same of the others, `(hag, value, **given)`, and gives `[N_dst, H, C]`; to be
        called once.

    Raises:
        TypeError: as `attend`; or edges have features.
        ValueError: as `attend`; or the parts have different targets.

    Example:
        >>> import hag_plugin as hp
        >>> one, other = (
        ...     hp.build_hag(torch.tensor([[0, 1], [0, 0]]), size=(2, 1)),
        ...     hp.build_hag(torch.tensor([[0], [0]]), size=(1, 1)),
        ... )
        >>> rest = attend_first(one, torch.tensor([[[1.0]], [[3.0]]]), bias=torch.zeros(2, 1))
        >>> rest(other, torch.tensor([[[8.0]]]), bias=torch.zeros(1, 1)).tolist()
        [[[4.0]]]
    """
    form, tensors = _checked(hag, value, slope, given)
    both = _Both()
    first: Tensor = _First.apply(both, hag, form, *tensors)  # type: ignore[no-untyped-call]

    def rest(other: HAG, value: Tensor, **given: Any) -> Tensor:
        how, tensors = _checked(other, value, slope, given)
        if how != form:
            raise ValueError(f"the parts are {form} and {how}; expected the same of both")
        y: Tensor = _Joined.apply(both, other, form, first, *tensors)  # type: ignore[no-untyped-call]
        return y.to(value.dtype)

    return rest


def _checked(hag: HAG, value: Tensor, slope: float, given: dict[str, Any]) -> Any:
    if any(name in given for name in ("edges", "edge_query", "projection")):
        raise TypeError("edges have features; expected scores that are made without")
    score: Score = given.pop("score", "given")
    form, wide = checked(hag, given | {"value": value}, score, slope, "softmax")
    check_memories(TENSORS, wide)
    return form, wide


@dataclass
class _Both:
    """What the parts of one attention tell each other.

    Attributes:
        kept: of the first part until it is joined: largest scores, inverse sums, `[N_dst, 2, H]`.
        back: the result of both and what is kept of it, from the backward pass of the joined part
            to that of the first.
    """

    kept: Tensor | None = None
    back: tuple[Tensor, Tensor] | None = None


class _First(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: _Both, hag: HAG, form: Form, *tensors: Any) -> Tensor:
        ctx.both, ctx.hag, ctx.form = both, hag, form
        ctx.save_for_backward(*tensors)
        y, both.kept = run_attend(hag, *tensors, *form.others)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (y, kept), ctx.both.back = ctx.both.back, None
        return None, None, None, *_gradients(ctx, 3, grad, y, kept, ctx.saved_tensors)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, both: _Both, hag: HAG, form: Form, first: Tensor, *tensors: Any
    ) -> Tensor:
        ctx.both, ctx.hag, ctx.form = both, hag, form
        y, kept = run_attend(hag, *tensors, *form.others)
        of_first, both.kept = both.kept, None
        assert of_first is not None  # it is joined once
        y, kept = _joined(first, of_first, y, kept)
        ctx.save_for_backward(*tensors, y, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        *tensors, y, kept = ctx.saved_tensors
        ctx.both.back = y, kept
        return None, None, None, grad, *_gradients(ctx, 4, grad, y, kept, tensors)


def _joined(one: Tensor, of_one: Tensor, y: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The result of both parts, in place of the second's, and what is kept of it."""
    # A sum of exponentials is 1 at least, but where there are no edges.
    empty = torch.stack([of_one[:, 1], kept[:, 1]]) > 1.0
    peaks = torch.stack([of_one[:, 0], kept[:, 0]]).masked_fill_(empty, -torch.inf)
    peak = peaks.amax(0)
    peak.masked_fill_(empty.all(0), 0.0)
    sums = (peaks - peak).exp_() / torch.stack([of_one[:, 1], kept[:, 1]])
    inverse = 1.0 / (sums.sum(0) + TINY)
    share = (sums[0] * inverse).unsqueeze(-1)  # of the first; the second has the rest
    return y.lerp_(one, share), torch.stack([peak, inverse], 1)


def _gradients(
    ctx: Any, at: int, grad: Tensor, y: Tensor, kept: Tensor, tensors: Any
) -> list[Tensor | None]:
    """Those of a part, by its tensors, which come from argument `at` on."""
    needs = ctx.needs_input_grad[at:]
    parts = {
        name: t.new_empty(t.shape)
        for name, t, needed in zip(TENSORS, tensors, needs, strict=True)
        if needed
    }
    bits = sum(1 << i for i, needed in enumerate(needs) if needed)
    write_gradients(ctx.hag, (grad, y, kept, *tensors, bits, *ctx.form.others), parts)
    return [parts.get(name) for name in TENSORS]
