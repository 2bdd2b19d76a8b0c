"""Edge weights: their factors, and their slots in a HAG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hag_plugin as hp
from hag_plugin.ops.weights import edge_slots, factorise

from ..cases import draw_graph

# Factors ---------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(data=st.data())
def test_products_are_found_exactly(data: st.DataObject) -> None:
    edges, num_src, num_dst = draw_graph(data)
    powers = st.sampled_from([0.0, 1.0, -1.0, 0.5, -4.0, 2.0**20, 2.0**-30])
    s = torch.tensor(data.draw(st.lists(powers, min_size=num_src, max_size=num_src)))
    t = torch.tensor(data.draw(st.lists(powers, min_size=num_dst, max_size=num_dst)))
    for dtype in (torch.float64, torch.float32):
        weight = s.to(dtype)[edges[0]] * t.to(dtype)[edges[1]]
        found = factorise(edges, weight, num_src, num_dst, tolerance=0.0)
        assert found is not None
        assert torch.equal(found[0][edges[0]] * found[1][edges[1]], weight.double())
        for side, factor in zip(edges, found, strict=True):
            assert factor.dtype == torch.float64
            alone = torch.bincount(side, minlength=len(factor)) == 0
            assert (factor[alone] == 1).all()


@settings(max_examples=60)
@given(data=st.data())
def test_one_weight_out_of_line_is_noticed(data: st.DataObject) -> None:
    edges, num_src, num_dst = draw_graph(data)
    # The edge 0 -> 0 four ways round a cycle of two sources and two targets.
    edges = torch.cat([edges, torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])], 1)
    num_src, num_dst = max(num_src, 2), max(num_dst, 2)
    s, t = torch.rand(num_src) + 0.5, torch.rand(num_dst) + 0.5
    weight = s[edges[0]] * t[edges[1]]
    assert factorise(edges, weight, num_src, num_dst) is not None
    changed = weight.clone()
    changed[-data.draw(st.integers(1, 4))] *= data.draw(st.sampled_from([1.001, -1.0, 0.0, 1e9]))
    assert factorise(edges, changed, num_src, num_dst) is None
    assert factorise(edges, weight * 1.001 ** (edges[0] == 1), num_src, num_dst) is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounded_products_are_found(dtype: torch.dtype) -> None:
    edges = torch.randint(0, 300, (2, 3000))
    s = torch.randn(300, dtype=torch.float64).exp()
    exact = s[edges[0]] * s.flip(0)[edges[1]]
    found = factorise(edges, exact.to(dtype), 300, 300, tolerance=16 * torch.finfo(dtype).eps)
    assert found is not None
    wrong = (found[0][edges[0]] * found[1][edges[1]] / exact - 1).abs().max()
    assert wrong <= 17 * torch.finfo(dtype).eps


def test_duplicates_must_agree() -> None:
    edges = torch.tensor([[0, 0, 1], [1, 1, 0]])
    assert factorise(edges, torch.tensor([2.0, 2.0, 3.0]), 2, 2) is not None
    assert factorise(edges, torch.tensor([2.0, 2.5, 3.0]), 2, 2) is None


def test_zeros() -> None:
    square = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
    for weight, found in (
        ([0.0, 0.0, 0.0, 0.0], ([0.0, 0.0], [0.0, 0.0])),
        ([0.0, 0.0, 1.0, 1.0], ([0.0, 1.0], [1.0, 1.0])),
        ([1.0, 0.0, -1.0, -0.0], ([1.0, -1.0], [1.0, 0.0])),
    ):
        factors = factorise(square, torch.tensor(weight), 2, 2)
        assert factors is not None
        assert [f.tolist() for f in factors] == list(found)
    assert factorise(square, torch.tensor([0.0, 1.0, 1.0, 1.0]), 2, 2) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(value: float) -> None:
    assert factorise(torch.tensor([[0], [0]]), torch.tensor([value]), 1, 1) is None


def test_factors_are_balanced() -> None:
    # A path 0 -> 0 <- 1 -> 1 <- 2 ... along which s falls from 1 by 2^-200 a step.
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [0, 0, 1, 1, 2, 2]])
    weight = torch.tensor([1.0, 2.0**-200] * 3, dtype=torch.float64)
    found = factorise(edges, weight, 4, 3)
    assert found is not None
    for factor in found:
        assert factor.log2().abs().max() <= 301
    weight[1::2] = 2.0**-400  # s would span 2^1200
    assert factorise(edges, weight, 4, 3) is None
    for large in (1e30, 1e-30):
        found = factorise(edges, torch.full((6,), large), 4, 3)
        assert found is not None
        for factor in found:
            assert (factor / large**0.5).log2().abs().max() <= 1
    apart = torch.tensor([[0, 1], [0, 1]])
    found = factorise(apart, torch.tensor([1e30, 1e-30]), 2, 2)
    assert found is not None
    torch.testing.assert_close(found[0], found[1], rtol=1.0, atol=0.0)


@pytest.mark.parametrize(("num_src", "num_dst"), [(0, 0), (3, 0), (2, 4)])
def test_no_edges(num_src: int, num_dst: int) -> None:
    found = factorise(torch.zeros(2, 0, dtype=torch.int32), torch.zeros(0), num_src, num_dst)
    assert found is not None
    assert torch.equal(found[0], torch.ones(num_src, dtype=torch.float64))
    assert torch.equal(found[1], torch.ones(num_dst, dtype=torch.float64))


def test_factors_of_real_graphs(shared_data: Path) -> None:
    for name in ("Cora", "MUTAG", "CiteSeer"):
        with np.load(shared_data / "npz" / f"{name}.npz") as arrays:
            edges = torch.from_numpy(arrays["edge_index"].astype(np.int64))
        nodes = int(edges.max()) + 1
        loops = torch.arange(nodes).expand(2, nodes)
        edges = torch.cat([edges[:, edges[0] != edges[1]], loops], 1)
        scale = torch.bincount(edges[1]).float().rsqrt()
        weight = scale[edges[0]] * scale[edges[1]]  # GCN's
        found = factorise(edges, weight, nodes, nodes)
        assert found is not None
        torch.testing.assert_close(
            (found[0][edges[0]] * found[1][edges[1]]).float(), weight, rtol=1e-6, atol=0.0
        )
        assert factorise(edges, torch.rand(edges.shape[1]), nodes, nodes) is None


def test_what_factorise_refuses() -> None:
    edges, weight = torch.tensor([[0, 1], [1, 3]]), torch.ones(2)

    def refused(error: type[Exception], match: str, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(error, match=match):
            factorise(*args, **kwargs)

    refused(ValueError, "target of edge 1 is 3; expected 0 to 2", edges, weight, 3, 3)
    refused(ValueError, "source of edge 1 is 1; expected 0 to 0", edges, weight, 1, 4)
    refused(ValueError, r"weight has shape \[3\]; expected \[2\]", edges, torch.ones(3), 4, 4)
    refused(TypeError, "dtype torch.int64; expected a floating", edges, torch.tensor([1, 1]), 4, 4)
    refused(TypeError, "weight is a list", edges, [1.0, 1.0], 4, 4)
    refused(TypeError, "edge_index has dtype", edges.float(), weight, 4, 4)
    refused(ValueError, "tolerance is -1.0", edges, weight, 4, 4, tolerance=-1.0)


# Slots -----------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(data=st.data())
def test_slots_are_a_stable_permutation(data: st.DataObject) -> None:
    edges, num_src, num_dst = draw_graph(data)
    hag = hp.build_hag(edges, size=(num_src, num_dst))
    slots = edge_slots(edges.int(), hag)
    sorted_edges = sorted(range(edges.shape[1]), key=lambda e: (*edges[:, e].tolist()[::-1], e))
    assert slots[sorted_edges].tolist() == list(range(edges.shape[1]))
    assert torch.equal(hag.edge_index[:, slots], edges)


def test_slots_of_another_graph() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    hag = hp.build_hag(edges, num_nodes=3)
    with pytest.raises(ValueError, match="has 2 edges and the HAG 3"):
        edge_slots(edges[:, :2], hag)
    with pytest.raises(ValueError, match="they differ at edge 2, 0 -> 2"):
        edge_slots(edges.flip(0), hag)
    with pytest.raises(ValueError, match="another graph"):
        edge_slots(edges + torch.tensor([[3], [0]]), hag)
    with pytest.raises(ValueError, match="another graph"):
        edge_slots(edges - torch.tensor([[0], [1]]), hag)
    with pytest.raises(ValueError, match="another graph"):
        edge_slots(edges.index_fill(1, torch.tensor([0]), 2), hag)  # a row with one edge too many
