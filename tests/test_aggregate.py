"""`aggregate`, its gradients and the CPU kernels, against `reference.py` and torch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hag_plugin as hp
from hag_plugin import reference
from hag_plugin.kernels import _cpu

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (1, 3, 16, 33, 64, 130)
REDUCES = ("sum", "mean", "max", "min")
MODES = (False, "add", "fill")
TIES = ("even", "first", "last")
EVERY_ISA = "kernels"  # tests with this in their name also run under each instruction set
CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


# What is compared with what --------------------------------------------------------------------


def random_graph(num_src: int, num_dst: int, num_edges: int, seed: int = 0) -> Tensor:
    """Some edges are duplicates, some self-loops; the last rows have no edge."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, max(num_src, 1), (num_edges,), generator=generator)
    target = torch.randint(0, max(num_dst - 2, 1), (num_edges,), generator=generator)
    edges = torch.stack([source, target])
    return torch.cat([edges, edges[:, : num_edges // 8]], dim=1)


def assert_equal(
    y: Tensor,
    x: Tensor,
    edge_index: Tensor,
    num_dst: int,
    reduce: str = "sum",
    *,
    exact_dtype: torch.dtype | None = None,
    **how: Any,
) -> None:
    """Equal as DESIGN.md, section 4, has it; `x` is what went in, rounded as it was."""
    dtype = exact_dtype or y.dtype
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in how.items()}
    expected = reference.aggregate(x.double(), edge_index, num_dst, reduce, **wide)
    if reduce in ("max", "min") and "source_scale" not in how and "target_scale" not in how:
        assert torch.equal(y, expected.to(dtype))
        return
    absolute = {k: v.abs() if isinstance(v, Tensor) else v for k, v in wide.items()}
    kind = "mean" if reduce == "mean" else "sum"
    size = reference.aggregate(x.double().abs(), edge_index, num_dst, kind, **absolute)
    ones = torch.ones(x.shape[-2], 1, dtype=torch.float64)
    terms = reference.aggregate(ones, edge_index, num_dst, self_loops=how.get("self_loops", False))
    if dtype == torch.float64:
        bound = 1e-12 * size
    else:
        bound = 1e-6 * terms.clamp(min=1).sqrt() * size
    if dtype in (torch.float16, torch.bfloat16):
        info = torch.finfo(dtype)
        bound = bound + 2 * info.eps * expected.abs() + 2 * info.smallest_normal * info.eps
    assert y.shape == expected.shape
    wrong = ~((y.double() - expected).abs() <= bound)
    assert not wrong.any(), (wrong.nonzero()[:5], y[wrong][:5], expected[wrong][:5])


def native(program: Any) -> Any:
    arrays = [a.numpy() for a in (program.tile_ptr, program.op_ptr, program.source, program.target,
                                  program.hub_row, program.hub_ptr)]  # fmt: skip
    return _cpu.Program(*arrays, program.num_src, program.num_dst, program.diagonal)


def run_native(
    program: Any, x: Tensor, reduce: str = "sum", threads: int = 1, compiled: Any = None
) -> Tensor:
    y = torch.empty(program.num_dst, x.shape[1], dtype=x.dtype)
    (compiled or native(program)).run(
        x.data_ptr(), y.data_ptr(), 1, x.shape[1], x.stride(0), 0, x.shape[0], program.num_dst,
        CODES[x.dtype], ("sum", "max", "min").index(reduce), 0, 0, threads,
    )  # fmt: skip
    return y


def random_program(seed: int, *, num_src: int, num_dst: int, diagonal: int = 0) -> SimpleNamespace:
    """Tiles with several levels of scratch, copies of scratch rows, empty rows and hubs."""
    rng = np.random.default_rng(seed)
    is_hub = rng.random(num_dst) < 0.1
    hub_row = np.flatnonzero(is_hub)
    hub_ptr = np.concatenate([[0], np.cumsum(rng.integers(1, 5, len(hub_row)))])
    targets = np.concatenate([np.flatnonzero(~is_hub), num_dst + np.arange(hub_ptr[-1])])
    rng.shuffle(targets)
    tile_ptr, op_ptr, source, target = [0], [0], [], []
    while len(targets):
        mine, targets = np.split(targets, [min(len(targets), int(rng.integers(1, 20)))])
        written = 0

        def sources(least: int, written_: int) -> list[int]:
            count = int(rng.integers(least, 7))
            from_scratch = rng.random(count) < 0.5 if written_ else np.zeros(count, bool)
            rows = np.where(
                from_scratch, ~rng.integers(0, max(written_, 1), count),
                rng.integers(0, num_src, count),
            )  # fmt: skip
            return rows.tolist()

        for row in mine.tolist():
            for _ in range(int(rng.integers(0, 3))):
                source.append(sources(1, written))
                target.append(~written)
                written += 1
            if written and rng.random() < 0.4:  # a copy of the row just written
                source.append([~(written - 1)])
            else:
                source.append(sources(0 if row < num_dst else 1, written))
            target.append(row)
        tile_ptr.append(len(target))
    op_ptr = np.concatenate([[0], np.cumsum([len(s) for s in source])])
    return SimpleNamespace(
        tile_ptr=torch.tensor(tile_ptr),
        op_ptr=torch.tensor(op_ptr),
        source=torch.tensor([s for row in source for s in row], dtype=torch.int32),
        target=torch.tensor(target, dtype=torch.int32),
        hub_row=torch.tensor(hub_row, dtype=torch.int32),
        hub_ptr=torch.tensor(hub_ptr),
        num_src=num_src,
        num_dst=num_dst,
        diagonal=diagonal,
    )


# Results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduce", REDUCES)
def test_equals_reference(reduce: str, mode: Any, dtype: torch.dtype) -> None:
    edges = random_graph(40, 40, 200)
    hag = hp.build_hag(edges, num_nodes=40)
    for width in WIDTHS:
        x = torch.randn(40, width).to(dtype)
        y = hp.aggregate(x, hag, reduce, self_loops=mode)
        assert y.dtype == dtype
        assert_equal(y, x, edges, 40, reduce, self_loops=mode)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("scaled", ["source", "target", "both"])
def test_scales_of_any_sign(reduce: str, scaled: str) -> None:
    edges = random_graph(40, 30, 200)
    hag = hp.build_hag(edges, size=(40, 30))
    x = torch.randn(40, 33, dtype=torch.float64)
    how = {}
    if scaled != "target":
        how["source_scale"] = torch.randn(40, dtype=torch.float64)
    if scaled != "source":
        how["target_scale"] = torch.randn(30, dtype=torch.float64)
    assert_equal(hp.aggregate(x, hag, reduce, **how), x, edges, 30, reduce, **how)


def test_half_scales_are_float32() -> None:
    edges = random_graph(40, 40, 200)
    hag = hp.build_hag(edges, num_nodes=40)
    s = torch.rand(40) + 0.5
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(40, 20).to(dtype)
        y = hp.aggregate(x, hag, source_scale=s, target_scale=s.double())
        assert_equal(y, x, edges, 40, source_scale=s, target_scale=s)


@pytest.mark.parametrize("lead", [(1,), (3,), (2, 3), (0,), (2, 1, 2)])
@pytest.mark.parametrize("reduce", REDUCES)
def test_leading_dimensions(lead: tuple[int, ...], reduce: str) -> None:
    edges = random_graph(20, 20, 90)
    hag = hp.build_hag(edges, num_nodes=20)
    x = torch.randn(*lead, 20, 17, dtype=torch.float64)
    assert_equal(hp.aggregate(x, hag, reduce), x, edges, 20, reduce)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize(("num_src", "num_dst"), [(0, 0), (1, 1), (0, 3), (3, 0), (5, 2), (2, 5)])
def test_graphs_with_no_edge(num_src: int, num_dst: int, reduce: str) -> None:
    hag = hp.build_hag(torch.zeros(2, 0, dtype=torch.int64), size=(num_src, num_dst))
    for ties in TIES:
        x = torch.randn(num_src, 5, requires_grad=True)
        y = hp.aggregate(x, hag, reduce, ties=ties)
        assert torch.equal(y, torch.zeros(num_dst, 5))
        y.sum().backward()
        assert torch.equal(x.grad, torch.zeros(num_src, 5))


@pytest.mark.parametrize("mode", MODES)
def test_one_node_with_loops(mode: Any) -> None:
    edges = torch.zeros(2, 3, dtype=torch.int64)
    hag = hp.build_hag(edges, num_nodes=1)
    x = torch.randn(1, 4)
    for reduce in REDUCES:
        assert_equal(hp.aggregate(x, hag, reduce, self_loops=mode), x, edges, 1, reduce,
                     self_loops=mode)  # fmt: skip


def test_zero_width() -> None:
    hag = hp.build_hag(random_graph(5, 5, 9), num_nodes=5)
    assert hp.aggregate(torch.zeros(5, 0), hag).shape == (5, 0)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_bad_row_reaches_only_the_rows_that_aggregate_it(value: float, reduce: str) -> None:
    edges = random_graph(40, 40, 150)
    hag = hp.build_hag(edges, num_nodes=40)
    clean = torch.randn(40, 33)
    x = clean.clone()
    x[7] = value
    y = hp.aggregate(x, hag, reduce)
    reached = torch.zeros(40, dtype=torch.bool)
    reached[edges[1, edges[0] == 7]] = True
    assert torch.equal(y[~reached], hp.aggregate(clean, hag, reduce)[~reached])
    expected = reference.aggregate(x, edges, 40, reduce)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())


def test_strided_inputs() -> None:
    edges = random_graph(30, 30, 150)
    hag = hp.build_hag(edges, num_nodes=30)
    base = torch.randn(2, 3, 30, 64, dtype=torch.float64)
    views = [
        base[0, 0, :, 5:25],
        base[0, :, :, 5:25],
        base.transpose(0, 1)[..., :7],
        base[0, 0].t()[:30, :30],
        base[..., :1],
        base[0, 0, :1].expand(30, 64),
        base[0, 0, :, :1].expand(30, 64),
        base[:, :, ::1, ::2],
        torch.randn(60, 8, dtype=torch.float64)[::2],
    ]
    for x in views:
        for reduce in REDUCES:
            assert_equal(hp.aggregate(x, hag, reduce), x, edges, 30, reduce)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_small_graph(data: st.DataObject) -> None:
    num_src, num_dst = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    square = data.draw(st.booleans())
    num_dst = num_src if square else num_dst
    pairs = st.tuples(st.integers(0, num_src - 1), st.integers(0, num_dst - 1))
    edges = torch.tensor(data.draw(st.lists(pairs, max_size=40)) or [(0, 0)]).t()
    mode = data.draw(st.sampled_from(MODES)) if square else False
    reduce = data.draw(st.sampled_from(REDUCES))
    hag = hp.build_hag(edges, size=(num_src, num_dst))
    x = torch.randn(num_src, data.draw(st.integers(1, 9)), dtype=torch.float64)
    y = hp.aggregate(x, hag, reduce, self_loops=mode)
    assert_equal(y, x, edges, num_dst, reduce, self_loops=mode)


def test_identity_lost_falls_back_to_the_plain_graph() -> None:
    edges = random_graph(40, 40, 200)
    hag = hp.build_hag(edges, num_nodes=40)
    x = torch.randn(40, 8, dtype=torch.float64)
    for mode in ("", "add", "fill"):
        y = torch.ops.hag_plugin.aggregate(
            x, hag.row_ptr.clone(), hag.col.clone(), None, None, 40, mode, False, "mean"
        )
        assert_equal(y, x, edges, 40, "mean", self_loops=mode or False)


def test_out() -> None:
    edges = random_graph(40, 40, 200)
    hag = hp.build_hag(edges, num_nodes=40)
    x = torch.randn(2, 40, 8)
    for reduce in REDUCES:
        out = torch.empty(2, 40, 8)
        assert hp.aggregate(x, hag, reduce, out=out) is out
        assert_equal(out, x, edges, 40, reduce)
    with pytest.raises(ValueError, match="out shares memory"):
        hp.aggregate(x, hag, out=x)
    with pytest.raises(ValueError, match=r"expected torch\.float32"):
        hp.aggregate(x, hag, out=torch.empty(40, 8))
    with pytest.raises(ValueError, match="contiguous"):
        hp.aggregate(x, hag, out=torch.empty(2, 8, 40).transpose(1, 2))
    with pytest.raises(ValueError, match="inference"):
        hp.aggregate(x.requires_grad_(), hag, out=out)
    with torch.no_grad():
        hp.aggregate(x, hag, out=out)


def test_autocast_and_inference_mode_keep_the_dtype() -> None:
    hag = hp.build_hag(random_graph(9, 9, 30), num_nodes=9)
    x = torch.randn(9, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert hp.aggregate(x, hag).dtype == torch.float32
        assert hp.aggregate(x.bfloat16(), hag, "max").dtype == torch.bfloat16
    with torch.inference_mode():
        for reduce in REDUCES:
            hp.aggregate(x, hag, reduce)
    for reduce in REDUCES:
        hp.aggregate(x, hag, reduce).sum().backward()


# Gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_gradients_of_sums(reduce: Any, mode: Any) -> None:
    num_dst = 6 if mode else 4
    hag = hp.build_hag(random_graph(6, num_dst, 15), size=(6, num_dst))
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    s = torch.randn(6, dtype=torch.float64, requires_grad=True)
    t = torch.randn(num_dst, dtype=torch.float64, requires_grad=True)

    def scaled(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return hp.aggregate(x, hag, reduce, self_loops=mode, source_scale=s, target_scale=t)

    assert torch.autograd.gradcheck(scaled, (x, s, t))
    assert torch.autograd.gradgradcheck(scaled, (x, s, t))
    for needed in range(1, 8):  # every subset of what may need a gradient
        inputs = [v.detach().requires_grad_(bool(needed >> i & 1)) for i, v in enumerate((x, s, t))]
        assert torch.autograd.gradcheck(scaled, inputs)
    assert torch.autograd.gradcheck(lambda x: hp.aggregate(x, hag, reduce, self_loops=mode), x)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("reduce", ["max", "min"])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_extrema(mode: Any, reduce: Any, ties: Any) -> None:
    hag = hp.build_hag(random_graph(6, 6, 15), num_nodes=6)
    x = torch.randperm(36).double().view(2, 6, 3).add(1).requires_grad_()
    s = torch.tensor([1.0, -1.1, 1.2, 1.3, -1.4, 1.5], dtype=torch.float64, requires_grad=True)
    t = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def scaled(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return hp.aggregate(
            x, hag, reduce, self_loops=mode, source_scale=s, target_scale=t, ties=ties
        )

    assert torch.autograd.gradcheck(scaled, (x, s, t))
    assert torch.autograd.gradgradcheck(scaled, (x, s, t))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduce", ["max", "min"])
def test_kernels_share_ties_as_torch_does(reduce: Any, mode: Any, dtype: torch.dtype) -> None:
    edges = random_graph(30, 30, 150)
    hag = hp.build_hag(edges, num_nodes=30)
    for width in (1, 3, 16, 33, 70):
        # Few distinct values: ties everywhere, and extrema of exactly 0. NaN, Inf and an
        # untouched gradient too.
        x = torch.randint(-2, 1 if reduce == "max" else 3, (2, 30, width)).to(dtype)
        x[0, 3, 0], x[1, 5, 0] = float("nan"), float("inf")
        grad = torch.randint(1, 9, (2, 30, width)).to(dtype)
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = hp.aggregate(mine, hag, reduce, self_loops=mode)
        expected = reference.aggregate(theirs, edges, 30, reduce, self_loops=mode)
        assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7))
        y.backward(grad)
        expected.backward(grad)
        assert torch.equal(mine.grad.isnan(), theirs.grad.isnan())
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(
            mine.grad, theirs.grad, rtol=20 * eps, atol=60 * eps, equal_nan=True
        )


def test_first_of_tied_sources() -> None:
    edges = torch.tensor([[4, 1, 2, 3, 3], [0, 0, 0, 2, 2]])
    hag = hp.build_hag(edges, num_nodes=5)
    x = torch.tensor([[0.0], [1.0], [2.0], [float("nan")], [2.0]], requires_grad=True)
    y = hp.aggregate(x, hag, "max", ties="first")
    y.backward(torch.tensor([[5.0], [7.0], [11.0], [13.0], [17.0]]))
    assert x.grad.flatten().tolist() == [0, 0, 5, 11, 0]
    x.grad = None
    hp.aggregate(x, hag, "min", self_loops="fill", ties="first").sum().backward()
    assert x.grad.flatten().tolist() == [1, 1, 0, 2, 1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=60),
    st.sampled_from([False, "add", "fill"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(DTYPES),
    st.integers(1, 70),
    st.integers(0, 99),
)
def test_winners(
    pairs: Any, mode: Any, largest: bool, last: bool, dtype: torch.dtype, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    edges = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
    hag = hp.build_hag(edges, num_nodes=9)
    x = torch.randint(-2, 3, (2, 9, width)).to(dtype)
    x[torch.rand(x.shape) < 0.05] = float("nan")
    loops = "" if mode is False else mode
    y, winner = torch.ops.hag_plugin.winners(x, hag.row_ptr, hag.col, loops, largest, last, 9)
    for b in range(2):
        whole = reference.with_self_loops(edges, 9, mode)
        value, source = reference.winners(x[b], whole, 9, largest=largest, last=last)
        assert torch.equal(y[b].nan_to_num(7), value.nan_to_num(7))
        assert torch.equal(winner[b], source)
    grad = torch.randint(1, 9, y.shape).to(dtype)
    expected = torch.zeros_like(x).scatter_add(
        1, winner.clamp(min=0), grad.masked_fill(winner < 0, 0)
    )
    csr = (hag.row_ptr, hag.col)
    assert torch.equal(torch.ops.hag_plugin.add_to_winners(grad, winner, *csr, 9, loops), expected)


@pytest.mark.parametrize("reduce", ["max", "min"])
@pytest.mark.parametrize("ties", ["first", "last"])
def test_winners_on_a_hag_with_hubs(ties: Any, reduce: Any) -> None:
    edges = torch.stack([torch.randint(20_000, (15_000,)), torch.arange(15_000) % 2])
    hag = hp.build_hag(edges, size=(20_000, 3))
    assert hag.program(idempotent=True).hub_row.numel() > 0
    x = torch.randint(-3, 3, (20_000, 20)).double()
    value, source = reference.winners(x, edges, 3, largest=reduce == "max", last=ties == "last")
    y, winner = torch.ops.hag_plugin.winners(
        x, hag.row_ptr, hag.col, "", reduce == "max", ties == "last", 3
    )
    assert torch.equal(y, value)
    assert torch.equal(winner, source)


def test_a_winner_outside_is_passed_over() -> None:
    grad, winner = torch.ones(3, 2), torch.tensor([[7, -1], [1, 2], [-9, 0]])
    hag = hp.build_hag(torch.tensor([[1, 0, 0], [1, 1, 2]]), size=(2, 3))
    out = torch.ops.hag_plugin.add_to_winners(grad, winner, hag.row_ptr, hag.col, 2, "")
    assert out.tolist() == [[0, 1], [1, 0]]


def test_gradient_that_is_expanded() -> None:
    edges = random_graph(20, 20, 90)
    hag = hp.build_hag(edges, num_nodes=20)
    for reduce in REDUCES:
        mine = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
        theirs = mine.detach().clone().requires_grad_()
        hp.aggregate(mine, hag, reduce).sum().backward()
        reference.aggregate(theirs, edges, 20, reduce).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-12)


# torch's own machinery -------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_opcheck_of_aggregate(reduce: str, transposed: bool) -> None:
    hag = hp.build_hag(random_graph(6, 4, 15), size=(6, 4))
    rows, num_rows = (4, 6) if transposed else (6, 4)
    x = torch.randn(2, rows, 3, requires_grad=True)
    s = torch.randn(rows, requires_grad=True)
    t = torch.randn(num_rows, requires_grad=True)
    for source, target in ((None, None), (s, None), (s, t)):
        torch.library.opcheck(
            torch.ops.hag_plugin.aggregate.default,
            (x, hag.row_ptr, hag.col, source, target, num_rows, "", transposed, reduce),
        )


def test_opcheck_of_the_others() -> None:
    hag = hp.build_hag(random_graph(6, 4, 15), size=(6, 4))
    graph = (hag.row_ptr, hag.col)
    x = torch.randn(6, 3, requires_grad=True)
    ops = torch.ops.hag_plugin
    torch.library.opcheck(ops.extremum.default, (x, *graph, "", True, 4))
    x = x.detach()
    y = ops.extremum(x, *graph, "", True, 4)
    v = torch.randn(6, 3, requires_grad=True)
    torch.library.opcheck(ops.masked_sum.default, (v, x, y, *graph, "", False))
    torch.library.opcheck(ops.masked_sum.default, (None, x, y, *graph, "", False))
    w = torch.randn(4, 3, requires_grad=True)
    torch.library.opcheck(ops.masked_sum.default, (w, x, y, *graph, "", True))
    torch.library.opcheck(ops.winners.default, (x.requires_grad_(), *graph, "", True, False, 4))
    grad = torch.randn(4, 3, requires_grad=True)
    winner = torch.tensor([[0, 5, -1]]).expand(4, 3)
    torch.library.opcheck(ops.add_to_winners.default, (grad, winner, *graph, 6, ""))


@pytest.fixture
def traced_anew() -> Iterator[None]:
    """What torch kept on disk of an earlier run may call an operator that has changed since."""
    torch._dynamo.reset()
    with torch._functorch.config.patch(enable_autograd_cache=False):
        yield


@pytest.mark.usefixtures("traced_anew")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole(backend: str) -> None:

    def layer(x: Tensor, w: Tensor, s: Tensor, hag: hp.HAG) -> Tensor:
        y = hp.aggregate(x @ w, hag, "mean", self_loops="fill", source_scale=s)
        return hp.aggregate(y.relu(), hag, "max") + hp.aggregate(y, hag, "min", ties="first")

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    hag = hp.build_hag(random_graph(20, 20, 90), num_nodes=20)
    inputs = [torch.randn(20, 5), torch.randn(5, 4), torch.randn(20)]
    results = []
    for function in (layer, compiled):
        leaves = [v.clone().requires_grad_() for v in inputs]
        y = function(*leaves, hag)
        y.square().sum().backward()
        results.append([y.detach(), *(v.grad for v in leaves)])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs, hag), layer(*inputs, hag))


def test_graphs_of_other_sizes_do_not_recompile() -> None:
    torch._dynamo.reset()
    compilations = []

    def backend(module: Any, inputs: Any) -> Any:
        compilations.append(module)
        return torch._dynamo.lookup_backend("aot_eager")(module, inputs)

    @torch.compile(fullgraph=True, backend=backend)
    def layer(x: Tensor, hag: hp.HAG) -> Tensor:
        return hp.aggregate(hp.aggregate(x, hag, "mean").relu(), hag, "max")

    for seed in range(6):
        nodes = 20 + 3 * seed
        edges = random_graph(nodes, nodes, 90 + seed, seed)
        hag = hp.build_hag(edges, num_nodes=nodes)
        x = torch.randn(nodes, 5, dtype=torch.float64, requires_grad=True)
        y = layer(x, hag)
        y.sum().backward()
        expected = hp.aggregate(hp.aggregate(x.detach(), hag, "mean").relu(), hag, "max")
        torch.testing.assert_close(y.detach(), expected)
    assert len(compilations) <= 2


# The kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_kernels_run_any_program(seed: int) -> None:
    program = random_program(seed, num_src=50, num_dst=80)
    compiled = native(program)
    for dtype in (torch.float64, torch.float32):
        for width in (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 100, 129, 200):
            poison = torch.full((50, width), float("nan"), dtype=dtype)
            run_native(program, poison, compiled=compiled)  # scratch is NaN from here on
            x = torch.rand(50, width, dtype=dtype)
            for reduce in ("sum", "max", "min"):
                y = run_native(program, x, reduce, compiled=compiled)
                expected = reference.run_program(program, x, reduce)
                if reduce == "sum":
                    rtol = 1e-12 if dtype == torch.float64 else 1e-5
                    torch.testing.assert_close(y, expected, rtol=rtol, atol=0)
                else:
                    assert torch.equal(y, expected)


@pytest.mark.parametrize("diagonal", [-1, 1])
def test_kernels_apply_the_diagonal_where_y_is_written(diagonal: int) -> None:
    program = random_program(3, num_src=80, num_dst=80, diagonal=diagonal)
    x = torch.randn(80, 37, dtype=torch.float64)
    expected = reference.run_program(program, x)
    torch.testing.assert_close(run_native(program, x), expected, rtol=1e-12, atol=1e-12)
    if diagonal == 1:
        for reduce in ("max", "min"):
            expected = reference.run_program(program, x, reduce)
            assert torch.equal(run_native(program, x, reduce), expected)
    else:
        with pytest.raises(ValueError, match="cannot compute max or min"):
            run_native(program, x, "max")
    s, t = torch.randn(80, dtype=torch.float64), torch.randn(80, dtype=torch.float64)
    y = torch.empty(80, 37, dtype=torch.float64)
    native(program).run(x.data_ptr(), y.data_ptr(), 1, 37, 37, 0, 80, 80, 1, 0, s.data_ptr(),
                        t.data_ptr(), 1)  # fmt: skip
    expected = t[:, None] * reference.run_program(program, x * s[:, None])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-11)


def test_kernels_convert_half_types_exactly() -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    copy = random_program(0, num_src=1, num_dst=1)
    copy.tile_ptr, copy.op_ptr = torch.tensor([0, 1]), torch.tensor([0, 1])
    copy.source, copy.target = (torch.zeros(1, dtype=torch.int32) for _ in range(2))
    copy.hub_row, copy.hub_ptr = torch.zeros(0, dtype=torch.int32), torch.tensor([0])
    add = SimpleNamespace(**vars(copy))
    add.num_src, add.op_ptr = 2, torch.tensor([0, 2])
    add.source = torch.tensor([0, 1], dtype=torch.int32)
    for dtype in (torch.float16, torch.bfloat16):
        every = patterns.view(dtype)
        for width in (1, 2, 5, 9, 40, 2**16):
            x = every[torch.randint(0, 2**16, (1, width))] if width < 2**16 else every[None]
            y = run_native(copy, x)
            assert torch.equal(y.isnan(), x.isnan())
            assert torch.equal(y.view(torch.int16)[~x.isnan()], x.view(torch.int16)[~x.isnan()])
            pair = torch.cat([x, every[torch.randint(0, 2**16, (1, width))]])
            expected = pair.float().sum(0, keepdim=True).to(dtype)
            y = run_native(add, pair)
            assert torch.equal(y.isnan(), expected.isnan())
            assert torch.equal(y.nan_to_num(nan=1), expected.nan_to_num(nan=1))


def test_kernels_split_wide_scratch_into_blocks() -> None:
    # A chain of 20,000 intermediates does not fit half of L2 at any width.
    rows = 20_000
    target = torch.arange(rows, dtype=torch.int32)
    program = SimpleNamespace(
        tile_ptr=torch.tensor([0, 2 * rows]),
        op_ptr=torch.cat([torch.tensor([0, 1]), 1 + torch.arange(1, rows) * 2,
                          2 * rows - 1 + torch.arange(1, rows + 1)]),
        source=torch.cat([torch.tensor([0]), torch.stack([~torch.arange(rows - 1),
                          torch.arange(1, rows) % 7], 1).flatten(), ~torch.arange(rows)]).int(),
        target=torch.cat([~target, target]),
        hub_row=torch.zeros(0, dtype=torch.int32), hub_ptr=torch.tensor([0]),
        num_src=7, num_dst=rows, diagonal=0,
    )  # fmt: skip
    for width in (5, 200):
        x = torch.randint(-3, 4, (7, width)).float()
        y = run_native(program, x)
        assert torch.equal(y, x[torch.arange(rows) % 7].cumsum(0))


def test_threads_agree_bitwise() -> None:
    if torch.get_num_threads() < 2:
        torch.set_num_threads(2)
    for seed in range(3):
        program = random_program(seed, num_src=500, num_dst=3000)
        x = torch.randn(500, 65)
        one = run_native(program, x)
        for _ in range(5):
            assert torch.equal(run_native(program, x, threads=2), one)
    edges = random_graph(2000, 2000, 30_000)
    hag = hp.build_hag(edges, num_nodes=2000)
    for reduce in REDUCES:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(1)).round(decimals=1)
            y = hp.aggregate(x.requires_grad_(), hag, reduce)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), x)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_python_threads_do_not_disturb_each_other() -> None:
    torch.set_num_threads(2)
    programs = [random_program(seed, num_src=300, num_dst=2000) for seed in (0, 1)]
    inputs = [torch.randn(300, width) for width in (64, 200)]
    expected = [run_native(p, x) for p, x in zip(programs, inputs, strict=True)]
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(run_native(programs[i], inputs[i], threads=2), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Processes -------------------------------------------------------------------------------------


def run_python(code: str, **env: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, **env}, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_runs_alone() -> None:
    code = """
import os, torch, hag_plugin as hp
torch.set_num_threads(2)
edges = torch.randint(0, 2000, (2, 40000))
hag = hp.build_hag(edges, num_nodes=2000)
x = torch.randn(2000, 64)
y = hp.aggregate(x, hag)
child = os.fork()
if child == 0:  # torch's own parallel operators would hang here, so numpy compares
    os._exit(0 if (hp.aggregate(x, hag).numpy() == y.numpy()).all() else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.equal(hp.aggregate(x, hag), y))
"""
    assert run_python(code).split() == ["0", "True"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_one_openmp_runtime() -> None:
    code = """
import hag_plugin as hp, torch
hag = hp.build_hag(torch.randint(0, 2000, (2, 40000)), num_nodes=2000)
hp.aggregate(torch.randn(2000, 64), hag)
lines = open("/proc/self/maps").read().split()
print(len({w for w in lines if any(n in w for n in ("libgomp", "libiomp", "libomp"))}))
"""
    assert run_python(code).strip() == "1"


@pytest.mark.skipif("HAG_PLUGIN_ISA" in os.environ, reason="runs under each instruction set")
@pytest.mark.parametrize("isa", _cpu.instruction_sets())
def test_every_instruction_set(isa: str) -> None:
    if isa == _cpu.instruction_set():
        pytest.skip("the others of this file ran on it")
    arguments = ["-q", "-x", "-k", EVERY_ISA, "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--import-mode=importlib", *arguments],
        capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "HAG_PLUGIN_ISA": isa},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_kernels_are_those_asked_for() -> None:
    forced = os.environ.get("HAG_PLUGIN_ISA")
    assert _cpu.instruction_set() == (forced or _cpu.instruction_sets()[-1])


def test_unknown_instruction_set() -> None:
    code = """
from hag_plugin.kernels import _cpu
try:
    _cpu.instruction_set()
except ValueError as error:
    print(error)
"""
    assert 'HAG_PLUGIN_ISA is "mmx"' in run_python(code, HAG_PLUGIN_ISA="mmx")


# Refusals --------------------------------------------------------------------------------------


def test_bad_inputs() -> None:
    hag = hp.build_hag(random_graph(7, 6, 20), size=(7, 6))
    x = torch.randn(7, 3)

    def refused(error: type[Exception], match: str, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(error, match=match):
            hp.aggregate(*args, **kwargs)

    refused(ValueError, r"x has 5 rows in dimension -2, expected 7 \(the HAG's source nodes\)",
            torch.randn(5, 3), hag)  # fmt: skip
    refused(ValueError, "x has 5 rows", torch.randn(5, 3), hag, "max")
    refused(ValueError, r"x has shape \(7,\)", torch.randn(7), hag)
    refused(TypeError, "x has dtype torch.int64", torch.zeros(7, 3, dtype=torch.int64), hag)
    refused(TypeError, "x has dtype torch.complex64", torch.zeros(7, 3, dtype=torch.cfloat), hag)
    refused(TypeError, "x is a ndarray", x.numpy(), hag)
    refused(TypeError, "hag is a Tensor", x, hag.row_ptr)
    refused(TypeError, "x has layout torch.sparse_coo", x.to_sparse(), hag)
    refused(ValueError, "x is on meta and the HAG on cpu", x.to("meta"), hag)
    refused(ValueError, "reduce is 'prod'", x, hag, "prod")
    refused(ValueError, "self_loops is True", x, hag, self_loops=True)
    refused(ValueError, "self_loops='add' needs", x, hag, self_loops="add")
    refused(ValueError, "ties is 'odd'", x, hag, "max", ties="odd")
    refused(ValueError, r"source_scale has shape \[6\]; expected \[7\]",
            x, hag, source_scale=torch.ones(6))  # fmt: skip
    refused(ValueError, r"target_scale has shape \[7, 1\]; expected \[6\]",
            x, hag, target_scale=torch.ones(7, 1))  # fmt: skip
    refused(TypeError, "source_scale has dtype torch.int64",
            x, hag, source_scale=torch.ones(7, dtype=torch.int64))  # fmt: skip
    refused(TypeError, "source_scale is a float", x, hag, source_scale=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_ptr": [0, 4]}, "tile_ptr ends with 4, expected 3"),
        ({"tile_ptr": [1, 3]}, r"tile_ptr\[0\] is 1, expected 0"),
        ({"tile_ptr": []}, "tile_ptr is empty"),
        ({"op_ptr": [0, 3, 2, 4]}, r"op_ptr\[2\] is 2, expected at least 3"),
        ({"op_ptr": [0, 2, 4]}, "op_ptr has 3 elements, expected 4"),
        ({"op_ptr": [0, 2, 4, 5]}, "op_ptr ends with 5, expected 4"),
        ({"source": [0, 5, -1, -1]}, r"source\[1\] is row 5 of x"),
        ({"source": [0, -1, -1, -1]}, r"source\[1\] reads scratch row 0"),
        ({"source": [0, 1, -2, -1]}, r"source\[2\] reads scratch row 1"),
        ({"target": [-1, 0, 0]}, "row 0 of y, which was written before"),
        ({"target": [-1, 0, 2]}, r"target\[2\] is 2, expected below"),
        ({"target": [-1, 0, -2]}, "row 1 of y is never written"),
        ({"target": [-9, 0, 1]}, r"target\[0\] is scratch row 8"),
        ({"op_ptr": [0, 0, 3, 4]}, "op 0 has no source"),
        ({"hub_row": [1], "hub_ptr": [0, 1], "target": [-1, 0, 1]}, "written before"),
        ({"hub_row": [2], "hub_ptr": [0, 1], "target": [-1, 0, 2]}, r"hub_row\[0\] is 2"),
        ({"hub_row": [1], "hub_ptr": [0, 0]}, "hub_row|hub 0 has no partial sums"),
        ({"hub_row": [1], "hub_ptr": [0, 2], "target": [-1, 0, 2]}, "partial sum 1 is never"),
        ({"hub_row": [1], "hub_ptr": [0, 9], "target": [-1, 0, 2]}, "9 partial sums"),
        ({"hub_ptr": [0, 1]}, "hub_ptr has 2 elements, expected 1"),
        ({"diagonal": -1, "num_src": 1, "source": [0, 0, -1, -1]}, "diagonal is -1"),
        ({"num_dst": -1}, "num_dst is -1"),
        ({"source": np.zeros(4, np.int64)}, "source has another dtype"),
        ({"tile_ptr": np.zeros((1, 2), np.int64)}, "tile_ptr has 2 dimensions"),
        ({"tile_ptr": np.array([0, 0, 3, 0])[::2]}, "tile_ptr has stride 2"),
    ],
)
def test_a_wrong_program_is_refused(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "tile_ptr": [0, 3], "op_ptr": [0, 2, 3, 4], "source": [0, 1, -1, -1],
        "target": [-1, 0, 1], "hub_row": [], "hub_ptr": [0],
    }  # fmt: skip
    numbers = {"num_src": 5, "num_dst": 2, "diagonal": 0}
    _cpu.Program(**as_arrays(fields), **numbers)
    numbers.update({k: v for k, v in change.items() if k in numbers})
    fields.update({k: v for k, v in change.items() if k in fields})
    with pytest.raises(ValueError, match=message):
        _cpu.Program(**as_arrays(fields), **numbers)


def as_arrays(fields: dict[str, Any]) -> dict[str, np.ndarray]:
    wide = ("tile_ptr", "op_ptr", "hub_ptr")
    return {
        k: v if isinstance(v, np.ndarray) else np.array(v, np.int64 if k in wide else np.int32)
        for k, v in fields.items()
    }


def test_run_checks_sizes_at_its_door() -> None:
    program = random_program(0, num_src=5, num_dst=7)
    compiled = native(program)
    x, y = torch.randn(5, 3), torch.empty(7, 3)
    good = [x.data_ptr(), y.data_ptr(), 1, 3, 3, 0, 5, 7, 0, 0, 0, 0, 1]
    compiled.run(*good)
    for position, value, message in (
        (0, 0, "null pointer"),
        (2, -1, "batch -1"),
        (3, -1, "width -1"),
        (4, -1, "strides"),
        (6, 6, "x has 6 rows, expected 5"),
        (7, 6, "y has 6 rows, expected 7"),
        (8, 9, "dtype_code is 9"),
        (9, 9, "reduce_code is 9"),
        (12, 0, "threads is 0"),
    ):
        bad = list(good)
        bad[position] = value
        with pytest.raises(ValueError, match=message):
            compiled.run(*bad)
