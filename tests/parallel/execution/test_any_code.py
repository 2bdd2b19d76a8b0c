"""Whatever a model's own code does runs as it is written, or is refused with what would do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.parallel import UnknownLayerError
from hag_plugin.parallel.model.trace import trace

from ..equality import check, compare, sgd, train_together
from ..models import CLASSES, FEATURES
from ..run_ranks import run_processes, run_threads
from .test_failure import data as few
from .test_failure import network, plan_of
from .test_models import data

F_IN, OUT = FEATURES, 8
Code = Callable[[Any, Tensor, Tensor], Tensor]


class Own(nn.Module):
    """A module, and what the model does with it."""

    def __init__(self, module: nn.Module, code: Code) -> None:
        super().__init__()
        self.first, self.conv = nn.Linear(F_IN, F_IN), pyg.GCNConv(F_IN, F_IN)
        self.module, self.code = module, code
        x, edge_index = torch.rand(45, F_IN), data().edge_index
        width = code(module, x, edge_index).shape[-1]
        self.last = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.conv(self.first(x).relu(), edge_index).relu()
        return self.last(self.code(self.module, h, edge_index))


def linear() -> nn.Module:
    return nn.Linear(F_IN, OUT)


def called(m: Any, h: Tensor, e: Tensor) -> Tensor:
    return m(h)


class Straight(torch.autograd.Function):
    """Rounds, with the gradient of doing nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Pieces(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        one, other = h.chunk(2, dim=-1)
        return torch.cat([one.sort(dim=0).values, other.max(dim=-1, keepdim=True).values], -1)


class Values(nn.Module):
    """It asks for values of its features."""

    def forward(self, h: Tensor) -> Tensor:
        kept = h[h.sum(dim=-1) > 0]
        return h * float(len(kept)) + (kept.mean() if len(kept) else 0)


class InFunction(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = Straight.apply(h * 3)  # type: ignore[no-untyped-call]
        return out


CODE: dict[str, tuple[Callable[[], nn.Module], Code]] = {
    "number": (nn.Identity, lambda m, h, e: h / h.norm()),
    "numbers": (nn.Identity, lambda m, h, e: (h - h.mean()) / (h.std() + h.abs().max())),
    "number of a node": (nn.Identity, lambda m, h, e: h * h.sum(dim=1).unsqueeze(-1)),
    "PairNorm": (pyg.PairNorm, called),
    "DiffGroupNorm": (lambda: pyg.DiffGroupNorm(F_IN, 2), called),
    "weight_norm": (lambda: parametrizations.weight_norm(linear()), called),
    "spectral_norm": (lambda: parametrizations.spectral_norm(linear()), called),
    "orthogonal": (lambda: parametrizations.orthogonal(linear()), called),
    "weight_norm, old": (lambda: nn.utils.weight_norm(linear()), called),
    "spectral_norm, old": (lambda: nn.utils.spectral_norm(linear()), called),
    "Set2Set": (
        lambda: pyg.aggr.Set2Set(F_IN, 2),
        lambda m, h, e: m(h, torch.arange(45) // 2, dim_size=45),
    ),
    "LSTM": (lambda: nn.LSTM(F_IN, OUT), lambda m, h, e: m(h.unsqueeze(0))[0].squeeze(0)),
    "GRU, two layers": (lambda: nn.GRU(F_IN, OUT, 2), lambda m, h, e: m(h.unsqueeze(0))[0][0]),
    "GRUCell": (lambda: nn.GRUCell(F_IN, F_IN), lambda m, h, e: m(h, h.tanh())),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(F_IN, 2), lambda m, h, e: m(h, h, h)[0]),
    "Bilinear": (lambda: nn.Bilinear(F_IN, F_IN, OUT), lambda m, h, e: m(h, h.tanh())),
    "several results": (Pieces, called),
    "values": (Values, called),
    "function of its own": (InFunction, called),
    "weight in between": (linear, lambda m, h, e: F.linear(h, m.weight.tanh())),
    "weight, turned": (linear, lambda m, h, e: h @ m.weight.t()),
    "weight.T": (linear, lambda m, h, e: h @ m.weight.T + m.bias),
    "norm of a weight": (linear, lambda m, h, e: m(h) * m.weight.norm()),
    "weights joined": (linear, lambda m, h, e: h @ torch.cat([m.weight, 2 * m.weight]).t()),
    "weight, its shape": (linear, lambda m, h, e: m(h) / m.weight.shape[1] + m.bias.numel()),
    "einsum": (linear, lambda m, h, e: torch.einsum("nf,of->no", h, m.weight)),
    "layer and its weight": (
        lambda: pyg.GCNConv(F_IN, OUT), lambda m, h, e: m(h, e) + F.linear(h, m.lin.weight.exp()),
    ),
    "embedding": (
        lambda: nn.Embedding(45, OUT), lambda m, h, e: torch.cat([h, m(torch.arange(45))], -1),
    ),
    "checkpoint": (linear, lambda m, h, e: checkpoint(
        lambda t: m(t).relu(), h, use_reentrant=False)),
    "checkpoint of a layer": (lambda: pyg.SAGEConv(F_IN, OUT), lambda m, h, e: checkpoint(
        m, h, e, use_reentrant=False)),
    "checkpoint of a weight": (linear, lambda m, h, e: checkpoint(
        lambda t: F.linear(t, m.weight.sin()).tanh(), h, use_reentrant=False)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*nn.utils.*is deprecated:FutureWarning")
@pytest.mark.mostly_slow("number", "weight_norm", "LSTM", "values", "several*", "norm of a weight")
@pytest.mark.parametrize("name", CODE)
def test_it_runs_as_it_is_written(name: str) -> None:
    torch.manual_seed(0)
    make, code = CODE[name]
    check(Own(make(), code).double(), data(), 2, tolerance=1e-9)


class Noise(nn.Module):
    """It draws numbers, of its own and in a layer; weights of edges are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Linear(F_IN, OUT), pyg.GATv2Conv(OUT, OUT, dropout=0.3)
        self.weight = nn.Parameter(torch.rand(data().num_edges))
        self.sum, self.last = pyg.SGConv(OUT, OUT, 2), nn.Linear(OUT, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(x) * (1 + torch.rand(45, 1, dtype=x.dtype)) + torch.randn(OUT).double()
        h = self.conv(h[torch.randperm(45)], edge_index)
        weight = F.dropout(self.weight.sigmoid(), 0.2, training=self.training)
        return self.last(self.sum(h, edge_index, weight))


def noisy() -> nn.Module:
    torch.manual_seed(0)
    return Noise().double()


def train_noisy(rank: int, plan: hp.parallel.Plan) -> Any:
    torch.manual_seed(3)
    return train_together(noisy(), data(), plan, sgd)


def test_what_is_drawn_is_the_same_on_all_ranks() -> None:
    """And in one process. Others are drawn in each step."""
    found = []
    for size in (1, 2):
        plan = hp.parallel.plan(noisy(), data(), "cpu2", world_size=size, hag="off")
        found.append(run_processes(size, train_noisy, plan))
    compare(found[1], found[0][0], None, 1e-9)
    losses = found[0][0][0]
    assert len({float(loss) for loss in losses}) == len(losses)


@pytest.mark.parametrize("name", ["weight_norm", "norm of a weight", "layer and its weight"])
def test_a_weight_that_is_used_is_not_split(name: str) -> None:
    torch.manual_seed(0)
    make, code = CODE[name]
    found = trace(Own(make(), code).double(), data(), hag=False)
    wanted = next(op.name for op in found.ops if op.name == "module" or op.kind == "opaque")
    for strategy in ("column-split weights", "columns, row-split weights"):
        try:
            plan = hp.parallel.plan(found, topology="cpu2", require={wanted: strategy})
        except hp.parallel.InfeasibleError:
            continue
        raise AssertionError(f"{plan.layer(wanted)} splits a weight that is needed whole")


class Inside(nn.Module):
    """A model whose root asks for values."""

    def __init__(self, code: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.code = nn.Linear(F_IN, CLASSES), code

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.code(self.first(x))


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "rows by value": (lambda h: h[h.sum(dim=-1) > 0], "wants values .* module of its own"),
    "a number": (lambda h: h * h.sum().item(), "wants values .* module of its own"),
    "a condition": (lambda h: h if h.sum() > 0 else -h, "wants values .* module of its own"),
    "a function": (lambda h: Straight.apply(h * 2), "runs inside Straight, a torch.autograd"),  # type: ignore[no-untyped-call]
    "checkpoint": (
        lambda h: checkpoint(lambda t: t.relu(), h, use_reentrant=True),
        "CheckpointFunction.*expected use_reentrant=False",
    ),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name: str) -> None:
    code, words = REFUSED[name]
    with pytest.raises(UnknownLayerError, match=words):
        trace(Inside(code).double(), data(), hag=False)


def test_compiled_models_are_refused_by_name() -> None:
    model = network()
    with pytest.raises(TypeError, match=r"the model is compiled; expected .* its _orig_mod"):
        trace(torch.compile(model), few(), hag=False)
    inner = Inside(nn.Identity())
    inner.first = torch.compile(inner.first)  # type: ignore[assignment]
    with pytest.raises(TypeError, match="module 'first' is compiled"):
        trace(inner, data(), hag=False)
    model.compile()
    trace(model, few(), hag=False)  # it is as it was; what is called is compiled


def test_parts_and_copies_of_a_parallel_model() -> None:
    """What works only inside, or not at all, says what to do."""
    model, plan = network(), plan_of(network(), few(), 2)

    def run(rank: int) -> str:
        found = hp.parallel.parallelize(model, few(), plan)
        name, layer = next((n, m) for n, m in found.named_modules() if isinstance(m, pyg.GCNConv))
        assert name
        with pytest.raises(RuntimeError, match=r"inside of it: call model\(\).*call=lambda"):
            layer(few().x, few().edge_index)
        with pytest.raises(TypeError, match=r"call model\(\), or model\(share\)"):
            found(few().x, few().edge_index)
        for spoil in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"not copied or pickled: copy its state_dict\(\)"):
                spoil(found)
        found()
        return "refused"

    assert run_threads(2, run) == ["refused"] * 2
