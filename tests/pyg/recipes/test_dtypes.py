"""Dtypes as stock's: every layer of the table, dtypes of model and features, autocast, weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

import hag_plugin as hp
from hag_plugin.pyg import accelerate, hag_layer

from ..conftest import Graph
from . import test_equal, test_table, test_weighted
from .test_table import variants

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float64, torch.float32, *HALVES)
SAME = [(dtype, dtype) for dtype in DTYPES]
MIXED = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
# By autocast, dtypes of the model and of the features.
PAIRS: dict[torch.dtype | None, list[tuple[torch.dtype, torch.dtype]]] = {
    None: [*SAME[2:], *MIXED],
    torch.bfloat16: [*SAME, *MIXED, (torch.bfloat16, torch.float16)],
    torch.float16: SAME[1:3],
}
ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.08}
CONFIGURATIONS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{name: (make, test_table.WIDTH) for name, make in test_table.CONFIGURATIONS.items()},
    **{name: (make, test_equal.WIDTH) for name, make in test_equal.CONFIGURATIONS.items()},
}
NOISE = 4  # stock sums half types in half types; ours may be wrong by a few times as much


@pytest.fixture(scope="module")
def small() -> Graph:
    """Directed, with duplicate edges, loops and isolated nodes."""
    generator = torch.Generator().manual_seed(1)
    edges = torch.randint(12, (2, 40), generator=generator)
    edges = torch.cat([edges, edges[:, :6], torch.tensor([0, 3, 3]).expand(2, -1)], dim=1)
    return Graph("small", edges, 14, 14)


def run(conv: nn.Module, arguments: Sequence[Any], how: Any, **named: Any) -> Any:
    """The output and all gradients; or the error."""
    given = [t for t in (*arguments, *named.values()) if isinstance(t, Tensor)]
    leaves = [t for t in (*given, *conv.parameters()) if t.requires_grad]
    for leaf in leaves:
        leaf.grad = None
    torch.default_generator.manual_seed(2)
    try:
        with how:
            y = conv(*arguments, **named)
        if y.requires_grad:
            weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
            (y.double() * weight).sum().backward()
    except Exception as error:
        return error
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_alike(ours: Any, stock: list[Tensor], exact: list[Tensor], rounding: float) -> None:
    """Dtypes are stock's, and values as near to the exact ones as its own."""
    assert isinstance(ours, list), ours
    assert [t.dtype for t in ours] == [t.dtype for t in stock]
    for one, other, true in zip(ours, stock, exact, strict=True):
        scale = float(true.abs().nan_to_num(0, 0, 0).max()) if true.numel() else 0.0
        error = (other.double() - true).abs()
        bound = float(error.nan_to_num(0, 0, 0).max()) * NOISE if error.numel() else 0.0
        wrong = (one.double() - true).abs() > bound + rounding * max(scale, 1e-2)
        assert not (wrong & other.isfinite()).any()


def rounding_of(*dtypes: torch.dtype | None) -> float:
    return max(ROUNDING[dtype] for dtype in dtypes if dtype is not None)


def exactly(stock: nn.Module, arguments: Sequence[Any], how: Any, **named: Any) -> Any:
    """Stock in float64, on the numbers that the others got."""

    def wide(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.detach().double().requires_grad_(value.requires_grad)

    return run(
        copy.deepcopy(stock).double(),
        [wide(a) for a in arguments],
        how,
        **{name: wide(value) for name, value in named.items()},
    )


def autocast(dtype: torch.dtype | None) -> Any:
    return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@pytest.mark.mostly_slow("gcn*", "sage*")
@pytest.mark.parametrize("cast", PAIRS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_layer(name: str, cast: torch.dtype | None, small: Graph) -> None:
    """A HAG, and edges in a first, second and third call; with gradients and without."""
    make, width = CONFIGURATIONS[name]
    for model, features in PAIRS[cast]:
        fresh = make().to(model)
        rounding = rounding_of(model, features, cast)
        for training in (True, False):
            x = torch.randn(small.num_src, width).to(features).requires_grad_(training)
            torch.default_generator.manual_seed(1)
            plain, handed = variants(fresh, x, small)
            stock = copy.deepcopy(fresh)
            ours = accelerate(copy.deepcopy(fresh))
            with torch.set_grad_enabled(training):
                if "cached" in name:
                    with torch.no_grad():
                        run(stock, plain, autocast(cast)), run(ours, plain, autocast(cast))
                expected = run(stock, plain, autocast(cast))
                if isinstance(expected, Exception):
                    continue
                exact = [t.double() for t in expected]
                if rounding > 1e-4 and name != "sg-cached":  # which has no gradients any more
                    exact = exactly(fresh, plain, autocast(None))
                for arguments in (handed, plain, plain) if training else (plain, plain, plain):
                    found = run(ours, arguments, autocast(cast))
                    assert_alike(found, expected, exact, rounding)


@pytest.mark.mostly_slow("gcn2-*", "simple-*")
@pytest.mark.parametrize("kind", ["factors", "any", "learned"])
@pytest.mark.parametrize("cast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", test_weighted.LAYERS)
def test_weights_of_each_dtype(
    name: str, cast: torch.dtype | None, kind: str, small: Graph
) -> None:
    """Weights of each dtype, constant and learned."""
    for model, features in SAME:
        stock = test_weighted.LAYERS[name]().to(model)
        for dtype in DTYPES:
            weight = test_weighted.weights(kind, small).to(dtype)
            weight.requires_grad_(kind == "learned")
            x = torch.randn(small.num_src, test_weighted.WIDTH).to(features).requires_grad_()
            first = [x, x] if name == "gcn2" else [x]
            plain = [*first, small.edge_index]
            ours = accelerate(copy.deepcopy(stock))
            expected = run(stock, plain, autocast(cast), edge_weight=weight)
            if isinstance(expected, Exception):
                continue
            exact = exactly(stock, plain, autocast(None), edge_weight=weight)
            for _ in range(2 if kind == "learned" else 3):
                found = run(ours, plain, autocast(cast), edge_weight=weight)
                assert_alike(found, expected, exact, rounding_of(model, features, dtype, cast))


@pytest.mark.parametrize("cast", HALVES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_declared_layer_that_normalises(
    dtype: torch.dtype, cast: torch.dtype, small: Graph
) -> None:
    """A subclass of GCNConv on a HAG, which knows its features only in `forward`."""
    stock = GCNConv(6, 3).to(dtype)
    ours = hag_layer(type("Declared", (GCNConv,), {}))(6, 3).to(dtype)
    ours.load_state_dict(stock.state_dict())
    hag = hp.build_hag(small.edge_index, num_nodes=small.num_src)
    x = torch.randn(small.num_src, 6).to(dtype)
    with autocast(cast):
        expected = stock(x, small.edge_index)
        for _ in range(2):
            y = ours(x, hag)
            assert y.dtype == expected.dtype
            torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    assert "_hag_like_weights" not in vars(ours)
