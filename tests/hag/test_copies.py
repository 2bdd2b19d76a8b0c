"""Sums across copies of nodes: exact whatever the copies hold, and shared where they are alike."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.copies import REST, SEEN_AT_ONCE
from hag_plugin.hag.hag import HAG, batch, rebuild_hag
from hag_plugin.ops.aggregate import aggregate

from .. import reference
from ..cases import bags

MODES = (False, "add", "fill")
REDUCES = ("sum", "mean", "max", "min")


def is_shared(hag: HAG, mode: Any, idempotent: bool) -> bool:
    """Whether the last call shared sums across copies."""
    ran = hag.ran(mode, idempotent)
    return ran is not None and "copies" in ran.why


@given(
    nodes=st.integers(1, 9),
    count=st.integers(1, 5),
    seed=st.integers(0, 99),
    mode=st.sampled_from(MODES),
    reduce=st.sampled_from(REDUCES),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    unlike=st.booleans(),
    scaled=st.booleans(),
    leading=st.sampled_from([(), (2,), (2, 1)]),
)
def test_equals_the_reference(
    nodes: int, count: int, seed: int, mode: Any, reduce: Any, dtype: torch.dtype, unlike: bool,
    scaled: bool, leading: tuple[int, ...],
) -> None:  # fmt: skip
    edges, ids = bags(nodes, count, seed)
    hag = hp.build_hag(edges, num_nodes=len(ids), self_loops=MODES, choose="hag", copies=ids)
    x = torch.randint(-4, 5, (*leading, nodes, 3)).to(dtype)[..., ids, :]
    scale = torch.randint(1, 3, (nodes,)).to(dtype)[ids] if scaled else None
    if unlike and len(ids):
        x[..., -1, 0] += 1
    x.requires_grad_()
    rest: dict[str, Any] = {"self_loops": mode, "source_scale": scale}
    y = aggregate(x, hag, reduce, **rest)
    alike = all(torch.equal(x[..., ids == i, :], x[..., ids == i, :][..., :1, :].expand_as(
        x[..., ids == i, :])) for i in ids.unique())  # fmt: skip
    shares = alike and x.numel() > 0 and len(ids.unique()) < len(ids)
    assert is_shared(hag, mode, reduce in ("max", "min")) == shares
    twin = x.detach().double().requires_grad_()
    wide = None if scale is None else scale.double()
    expected = reference.aggregate(
        twin, edges, len(ids), reduce, self_loops=mode, source_scale=wide
    )
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    if reduce in ("sum", "mean"):
        weights = torch.randint(-2, 3, y.shape).to(dtype)
        (grad,) = torch.autograd.grad(y, x, weights)
        (right,) = torch.autograd.grad(expected, twin, weights.double())
        torch.testing.assert_close(grad.double(), right, rtol=tolerance, atol=5 * tolerance)


@pytest.mark.parametrize("reduce", REDUCES)
def test_gradients_are_each_copys_own(reduce: Any) -> None:
    """Though copies are alike, a gradient belongs to the copy that its target saw."""
    edges, ids = bags(7, 4, 1)
    size = len(ids)
    hag = hp.build_hag(edges, num_nodes=size, choose="hag", copies=ids)
    plain = hp.build_hag(edges, num_nodes=size, method="none")
    x = torch.randn(7, 5, dtype=torch.float64)[ids].requires_grad_()
    weights = torch.randn(size, 5, dtype=torch.float64)
    grads = [
        torch.autograd.grad(aggregate(x, graph, reduce), x, weights, create_graph=True)[0]
        for graph in (hag, plain)
    ]
    assert is_shared(hag, False, reduce in ("max", "min"))
    torch.testing.assert_close(*grads)
    assert len(grads[0].unique(dim=0)) > 7


def test_nan_and_zeros_of_both_signs() -> None:
    edges, ids = bags(6, 3, 2)
    hag = hp.build_hag(edges, num_nodes=len(ids), choose="hag", copies=ids)
    x = torch.ones(6, 2)
    x[0, 0], x[1, 1] = float("nan"), float("inf")
    y = aggregate(x[ids], hag)
    torch.testing.assert_close(y, reference.aggregate(x[ids], edges, len(ids)), equal_nan=True)
    assert is_shared(hag, False, False)
    zeros = torch.zeros(len(ids), 2)
    zeros[ids == 0] *= torch.tensor([[1.0], [-1.0]]).repeat(len(ids), 1)[: (ids == 0).sum()]
    aggregate(zeros, hag)
    assert not is_shared(hag, False, False)


def whole_copies(nodes: int, times: int) -> tuple[Tensor, Tensor]:
    """A graph so many times, side by side: copies have the same neighbours, too."""
    edges = torch.randint(nodes, (2, 20 * nodes), generator=torch.Generator().manual_seed(0))
    side_by_side = torch.cat([edges + nodes * i for i in range(times)], 1)
    return side_by_side, torch.arange(nodes).repeat(times)


@pytest.mark.parametrize("choose", ["model", "plain"])
def test_runs_where_it_pays(choose: str) -> None:
    edges, ids = whole_copies(60, 60)
    hag = hp.build_hag(edges, num_nodes=len(ids), choose=choose, copies=ids)
    x = torch.randn(60, 64)[ids]
    aggregate(x, hag, "max")
    assert is_shared(hag, False, True) == (choose == "model")
    alone = hp.build_hag(edges, num_nodes=len(ids), choose=choose, copies=torch.arange(len(ids)))
    aggregate(x, alone, "max")
    assert not is_shared(alone, False, True)


@pytest.mark.parametrize("ties", ["first", "last", "even"])
@pytest.mark.parametrize("reduce", ["max", "min"])
def test_who_holds_an_extremum_is_a_neighbour(reduce: Any, ties: Any) -> None:
    edges, ids = bags(8, 4, 9)
    hag = hp.build_hag(edges, num_nodes=len(ids), choose="hag", copies=ids)
    plain = hp.build_hag(edges, num_nodes=len(ids), method="none")
    x = torch.randint(2, (8, 3)).double()[ids].requires_grad_()
    found, expected = (
        torch.autograd.grad(aggregate(x, graph, reduce, ties=ties).sum(), x)[0]
        for graph in (hag, plain)
    )
    torch.testing.assert_close(found, expected)


def test_no_copies_and_no_entries() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    alone = hp.build_hag(edges, num_nodes=3, choose="hag", copies=torch.arange(3))
    aggregate(torch.ones(3, 2), alone)
    assert not is_shared(alone, False, False)
    same = hp.build_hag(edges, num_nodes=3, choose="hag", copies=torch.zeros(3, 0))
    assert aggregate(torch.ones(3, 2), same).tolist() == [[1.0, 1.0]] * 3
    assert is_shared(same, False, False)


def test_backward_of_a_symmetric_graph_looks_at_nothing() -> None:
    edges, ids = whole_copies(60, 60)
    edges = torch.cat([edges, edges.flip(0)], 1)
    hag = hp.build_hag(edges, num_nodes=len(ids), copies=ids, choose="model")
    assert hag.transpose() is hag
    x = torch.randn(60, 64)[ids].requires_grad_()
    for _ in range(3):
        aggregate(x, hag)[-1].sum().backward()
        aggregate(x, hag)
        assert is_shared(hag, False, False)


def test_looking_in_vain_rests() -> None:
    """Where only a late row differs, all are compared once, and then not for some calls."""
    edges, ids = whole_copies(60, 60)
    hag = hp.build_hag(edges, num_nodes=len(ids), choose="model", copies=ids)
    x = torch.randn(60, 64)[ids]
    calls = [(0.0, True), (1.0, False), *[(0.0, False)] * REST, (0.0, True)]
    for last, shares in calls:
        z = x.clone()
        z[-1] += last
        assert len(ids) % SEEN_AT_ONCE != 1  # the last row is not among those that are seen at once
        expected = reference.aggregate(z, edges, len(ids), "max")
        torch.testing.assert_close(aggregate(z, hag, "max"), expected)
        assert is_shared(hag, False, True) == shares


def travelled(hag: HAG, way: str, folder: Path) -> HAG:
    if way == "pickle":
        return pickle.loads(pickle.dumps(hag))
    if way == "deepcopy":
        return copy.deepcopy(hag)
    if way == "file":
        hag.save(folder / "graph.hag")
        return HAG.load(folder / "graph.hag")
    return batch([hag, hag])


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "file", "batch"])
@pytest.mark.parametrize("size", [6, 300])
def test_travels(way: str, size: int, tmp_path: Path) -> None:
    edges, ids = bags(size, 3, 4, density=3 / size)
    hag = hp.build_hag(edges, num_nodes=len(ids), self_loops=MODES, choose="hag", copies=ids)
    x = torch.randn(size, 4)[ids]
    there = travelled(hag, way, tmp_path)
    again = pickle.loads(pickle.dumps(there))
    times = there.num_src // hag.num_src
    for mode in MODES:
        expected = aggregate(x, hag, self_loops=mode)
        for each in (there, again):
            y = aggregate(x.repeat(times, 1), each, self_loops=mode)
            torch.testing.assert_close(y, expected.repeat(times, 1))
            assert is_shared(each, mode, False)


def test_a_batch_of_which_one_graph_knows_no_copies() -> None:
    edges, ids = bags(6, 3, 5)
    with_copies = hp.build_hag(edges, num_nodes=len(ids), choose="hag", copies=ids)
    without = hp.build_hag(edges, num_nodes=len(ids), choose="hag")
    x = torch.randn(6, 4)[ids].repeat(2, 1)
    expected = reference.aggregate(x[: len(ids)], edges, len(ids)).repeat(2, 1)
    for pair in ([with_copies, without], [without, with_copies]):
        torch.testing.assert_close(aggregate(x, batch(pair)), expected)


@pytest.mark.parametrize("fault", ["id", "later", "chain", "dtype", "length", "edges", "mode"])
def test_a_wrong_state_is_refused(fault: str) -> None:
    edges, ids = bags(6, 3, 6)
    state = hp.build_hag(edges, num_nodes=len(ids), copies=ids)._state()
    copies = state["copies"]
    first = copies["first"] = copies["first"].clone()
    if fault == "id":
        first[-1] = len(ids)
    elif fault == "later":
        first[0] = 1
    elif fault == "chain":
        last = int((first != torch.arange(len(first))).nonzero()[0])
        first[-1] = last
    elif fault == "dtype":
        copies["first"] = first.long()
    elif fault == "length":
        copies["first"] = first[:-1]
    elif fault == "edges":
        copies["graphs"][0]["hag"] = hp.build_hag(edges.flip(0), num_nodes=len(ids))._state()
    else:
        copies["graphs"][0]["self_loops"] = "none"
    with pytest.raises(ValueError, match=r"first|copies"):
        rebuild_hag(state)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("n_id", TypeError),
        (torch.zeros(3), ValueError),
        (torch.tensor(1), ValueError),
        (torch.zeros(4, dtype=torch.complex64), TypeError),
        (torch.zeros(4, device="meta"), ValueError),
        (torch.zeros(4, 2).to_sparse(), TypeError),
    ],
)
def test_wrong_copies_are_refused(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="copies"):
        hp.build_hag(torch.tensor([[0, 1], [1, 2]]), num_nodes=4, copies=wrong)
