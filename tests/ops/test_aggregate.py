"""`aggregate` against `reference.py`: what it gives, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hag_plugin as hp
from hag_plugin.reducers import REDUCES

from .. import reference
from ..cases import DTYPES, MODES, TIES, random_graph
from ..equality import assert_equal

WIDTHS = (1, 3, 16, 33, 64, 130)


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


@settings(max_examples=40)
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
    refused(ValueError, "reduce is 'most'", x, hag, "most")
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
