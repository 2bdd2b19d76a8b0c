"""Every operation that has axes, split along each of them: values and gradients of one process."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hag_plugin as hp
from hag_plugin.parallel.machine.topology import preset
from hag_plugin.parallel.model.network import followed
from hag_plugin.parallel.search.network import NetworkPlan, NetworkSpace
from hag_plugin.parallel.strategies.axes import RULES, Split, possible, rule_of

from ..run_ranks import run_threads

SIZE = 3
LABELS = torch.tensor([0, 3, -100, 1, 2])
PLANE_LABELS = torch.arange(20).view(5, 4) % 4
MASK = torch.tensor([[True, False, True, True], [True, True, False, True]] * 2)

Case = tuple[tuple[int, ...], Callable[[Any, Tensor], Any]]
CASES: dict[str, Case] = {
    "conv1d": ((5, 3, 11), lambda m, h: m.conv1(h)),
    "conv2d of groups": ((5, 4, 9, 7), lambda m, h: m.grouped(h)),
    "conv2d with dilation": ((5, 4, 9, 8), lambda m, h: m.dilated(h)),
    "conv3d": ((3, 2, 4, 5, 6), lambda m, h: m.conv3(h)),
    "max_pool2d": ((4, 3, 9, 8), lambda m, h: F.max_pool2d(h, 3, 2, 1, dilation=1)),
    "max_pool2d with dilation": ((4, 3, 9, 8), lambda m, h: F.max_pool2d(h, 2, 1, 0, dilation=2)),
    "max_pool2d with a ceiling": ((4, 3, 8, 8), lambda m, h: F.max_pool2d(h, 3, 2, ceil_mode=True)),
    "avg_pool2d": ((4, 3, 9, 8), lambda m, h: F.avg_pool2d(h, 3, 1, 1)),
    "avg_pool2d of what is there": (
        (4, 3, 9, 8), lambda m, h: F.avg_pool2d(h, 3, 1, 1, count_include_pad=False)
    ),
    "avg_pool1d": ((4, 3, 9), lambda m, h: F.avg_pool1d(h, 2)),
    "adaptive_avg_pool2d": ((4, 3, 9, 8), lambda m, h: F.adaptive_avg_pool2d(h, (4, 3))),
    "upsample_nearest2d": ((4, 3, 4, 4), lambda m, h: F.interpolate(h, scale_factor=2.0)),
    "batch_norm of rows": ((6, 4), lambda m, h: F.batch_norm(h, None, None, m.a, m.b, True)),
    "batch_norm of steps": ((5, 4, 3), lambda m, h: F.batch_norm(h, None, None, training=True)),
    "layer_norm": ((5, 3, 4), lambda m, h: F.layer_norm(h, (3, 4))),
    "rms_norm": ((5, 3, 4), lambda m, h: F.rms_norm(h, (4,), m.a)),
    "group_norm": ((5, 4, 3), lambda m, h: F.group_norm(h, 2, m.a, m.b)),
    "instance_norm": ((5, 4, 3), lambda m, h: F.instance_norm(h, weight=m.a, bias=m.b)),
    "softmax": ((5, 4, 3), lambda m, h: h.softmax(1)),
    "log_softmax": ((5, 4), lambda m, h: F.log_softmax(h, -1)),
    "linear": ((5, 3, 4), lambda m, h: F.linear(h, m.w, m.a)),
    "linear without bias": ((5, 4), lambda m, h: F.linear(h, m.w)),
    "matmul, broadcast": ((5, 3, 4), lambda m, h: h @ m.w),
    "mm": ((5, 4), lambda m, h: torch.mm(h, m.w)),
    "bmm": ((5, 3, 4), lambda m, h: torch.bmm(h, h.transpose(1, 2))),
    "embedding": ((4, 4), lambda m, h: F.embedding(LABELS.clamp(min=0), m.w) @ h),
    "gru": ((5, 3, 4), lambda m, h: m.gru(h)[0]),
    "lstm, both ways": ((5, 3, 4), lambda m, h: m.both(h)[0]),
    "lstm from a state": ((3, 5, 4), lambda m, h: m.lstm(h, (h[:1], h[1:2]))[1]),
    "attention, masked": (
        (3, 2, 4, 4), lambda m, h: F.scaled_dot_product_attention(h, h, h, MASK)
    ),
    "attention, causal": (
        (3, 2, 4, 4), lambda m, h: F.scaled_dot_product_attention(h, h, h, is_causal=True)
    ),
    "pointwise": ((5, 4), lambda m, h: torch.where(h > 0, h.exp() * m.a, (h - m.b).tanh()) ** 2),
    "masked_fill": ((4, 4), lambda m, h: h.masked_fill(MASK, -1.0).clamp(min=-0.5).neg()),
    "in place": ((5, 4), lambda m, h: F.elu((h * 2).add_(m.a).mul_(h), inplace=True)),
    "view that joins": ((4, 3, 5), lambda m, h: h.view(12, 5).sin()),
    "view that parts": ((12, 5), lambda m, h: h.view(4, 3, 5).cos()),
    "flatten": ((4, 3, 5), lambda m, h: h.flatten(1) * h.flatten()[:15]),
    "view of other groups": ((4, 6, 5), lambda m, h: h.reshape(8, 3, 5).cos()),
    "unflatten, unsqueeze": ((4, 6), lambda m, h: h.unflatten(1, (3, 2)).unsqueeze(1).squeeze(1)),
    "permute": ((4, 3, 5), lambda m, h: h.permute(2, 0, 1) * 2),
    "transpose": ((4, 3), lambda m, h: h.t() @ h.transpose(-2, -1).t()),
    "select": ((4, 3, 5), lambda m, h: h[:, -1] + h.select(1, 0)),
    "slice": ((4, 7), lambda m, h: h[1:, 1:6:2] * h[:-1, -3:]),
    "expand": ((4, 1, 5), lambda m, h: h.expand(4, 3, 5).sin()),
    "cat": ((4, 3, 5), lambda m, h: torch.cat([h, h[:, :1] * 2, h.sin()], 1)),
    "stack": ((4, 5), lambda m, h: torch.stack([h, h.sin()], 1)),
    "chunk": ((4, 6), lambda m, h: torch.mul(*h.chunk(2, 1))),
    "split": ((4, 6), lambda m, h: torch.cat([p.sin() for p in h.split([1, 2, 3], 1)], 1)),
    "split evenly": ((4, 6), lambda m, h: torch.mul(*h.split(3, 1))),
    "unbind": ((4, 2, 5), lambda m, h: torch.mul(*h.unbind(1))),
    "pad": ((4, 3, 5), lambda m, h: F.pad(h, (1, 2), value=2.0)),
    "sum": ((4, 3, 5), lambda m, h: h.sum((0, 2)) * h.sum()),
    "mean": ((4, 3, 5), lambda m, h: h.mean(1, keepdim=True) * h.mean()),
    "cross_entropy": (
        (5, 4), lambda m, h: F.cross_entropy(h, LABELS, m.a.detach().abs(), label_smoothing=0.2)
    ),
    "cross_entropy, summed": ((5, 4), lambda m, h: F.cross_entropy(h, LABELS, reduction="sum")),
    "cross_entropy of each": ((5, 4), lambda m, h: F.cross_entropy(h, LABELS, reduction="none")),
    "cross_entropy of planes": ((5, 4, 4), lambda m, h: F.cross_entropy(h, PLANE_LABELS)),
    "cross_entropy, all shares": ((5, 4), lambda m, h: F.cross_entropy(h, h.detach().softmax(1))),
    "nll_loss": ((5, 4), lambda m, h: F.nll_loss(h, LABELS.clamp(min=0), ignore_index=1)),
    "mse_loss": ((5, 4), lambda m, h: F.mse_loss(h, h.sin()) * F.l1_loss(h, h * 2)),
    "huber_loss": ((5, 4), lambda m, h: F.huber_loss(h, h.sin(), delta=0.1, reduction="sum")),
    "what has no axes": ((5, 4), lambda m, h: h.cumsum(0).sort(1).values),
}  # fmt: skip


PARTS: dict[str, Callable[[], Any]] = {
    "a": lambda: nn.Parameter(torch.randn(4)),
    "b": lambda: nn.Parameter(torch.randn(4)),
    "w": lambda: nn.Parameter(torch.randn(4, 4)),
    "conv1": lambda: nn.Conv1d(3, 4, 3, 2, 1),
    "conv3": lambda: nn.Conv3d(2, 3, (1, 2, 3), padding=1),
    "grouped": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "dilated": lambda: nn.Conv2d(4, 3, (3, 2), (1, 2), (2, 1), dilation=(2, 1), bias=False),
    "gru": lambda: nn.GRU(4, 5),
    "lstm": lambda: nn.LSTM(4, 4),
    "both": lambda: nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True),
}


class Model(nn.Module):
    """A case, on its input times a parameter."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        shape, self.case = case
        self.scale = nn.Parameter(torch.randn(shape))
        for name, make in PARTS.items():
            if name in self.case.__code__.co_names:
                setattr(self, name, make())

    def forward(self, x: Tensor) -> Any:
        return self.case(self, x * self.scale)


def plans_of(model: nn.Module, x: Tensor) -> list[NetworkPlan]:
    """One for each axis: all operations that have it are split, into parts in any order."""
    found, draw = followed(model, (x,)), random.Random(0)
    machine, plans = preset("a100x8").resized(SIZE), []
    for axis in dict.fromkeys(a.name for op in found.operations for a in rule_of(op).axes):
        splits = {}
        for op in found.operations:
            size = {a.name: a.size for a in rule_of(op).axes}.get(axis, 1)
            parts = max(possible(size, SIZE), default=0)
            if parts:
                splits[op.name] = Split(((axis, parts),), tuple(draw.sample(range(SIZE), parts)))
        space = NetworkSpace(found, machine, splits)
        plans.append(space.planned([0] * len(space.choices), {}))
    return plans


def results(model: nn.Module, x: Tensor) -> Any:
    """Outputs, and gradients of parameters."""
    outs = model(x)
    outs = [outs] if isinstance(outs, Tensor) else [*outs]
    sum((out * torch.arange(1, out.numel() + 1).view(out.shape)).sum() for out in outs).backward()
    used = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    gradients = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in used.items()}
    return [out.detach().clone() for out in outs], {n: g.clone() for n, g in gradients.items()}


@pytest.mark.parametrize("name", CASES)
def test_each_axis_of_an_operation_is_split(name: str) -> None:
    torch.manual_seed(0)
    model, x = Model(CASES[name]).double(), torch.randn(CASES[name][0], dtype=torch.float64)
    plans = plans_of(model, x)

    def case(rank: int) -> list[Any]:
        return [results(hp.parallel.parallelize(model, x, plan), x) for plan in plans]

    found = run_threads(SIZE, case)
    expected = results(model, x)
    for each in found:
        for plan, result in zip(plans, each, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9, msg=str(plan))


def test_all_operations_with_axes_are_tried() -> None:
    tried = {
        op.kind
        for case in CASES.values()
        for op in followed(Model(case), (torch.randn(case[0]),)).operations
    }
    same = {  # as others of a rule that is theirs
        "_log_softmax", "_softmax", "_to_copy", "_unsafe_view", "alias", "constant_pad_nd",
        "detach", "adaptive_avg_pool1d", "adaptive_avg_pool3d", "avg_pool3d", "max_pool1d",
        "max_pool3d", "narrow", "rnn_relu", "rnn_tanh", "smooth_l1_loss", "to", "type_as",
        "nll_loss", "upsample_bilinear2d", "dropout",
    }  # fmt: skip
    pointwise = {kind for kind, make in RULES.items() if make is RULES["relu"]}
    assert RULES.keys() - pointwise - tried - same == set()
