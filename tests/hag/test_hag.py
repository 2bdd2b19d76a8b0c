"""`HAG`: moving, pickling, files, batches, and standing where an edge index stands."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import hag_plugin as hp
from hag_plugin.hag.hag import HAG, ReversedHAG, find, rebuild_hag
from hag_plugin.hag.program import SELF_LOOPS, SelfLoops

from .. import reference


def random_graph(seed: int, n: int = 30, edges: int = 150) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 3, (n,), generator=generator)
    edge_index = torch.randint(0, n, (2, edges), generator=generator)
    inside = torch.nonzero(group[:, None] == group[None, :]).t()
    return torch.cat([edge_index, inside], 1)  # duplicates, self-loops, cliques


def make(seed: int = 0, n: int = 30, **arguments: object) -> tuple[HAG, torch.Tensor]:
    edge_index = random_graph(seed, n)
    hag = hp.build_hag(edge_index, num_nodes=n, **arguments)  # type: ignore[arg-type]
    return hag, edge_index


def assert_same(a: HAG, b: HAG) -> None:
    assert torch.equal(a.row_ptr, b.row_ptr)
    assert torch.equal(a.col, b.col)
    assert (a.num_src, a.targets_first, a.options) == (b.num_src, b.targets_first, b.options)
    assert a.content_hash == b.content_hash
    assert a._keys() == b._keys()
    for mode, idempotent in a._keys():
        program = a.program(mode, idempotent=idempotent)
        other = b.program(mode, idempotent=idempotent)
        assert all(map(torch.equal, program.arrays, other.arrays))
        assert program.diagonal == other.diagonal


def test_edge_index_is_the_same_multiset() -> None:
    hag, edge_index = make()
    assert hag.num_edges == edge_index.shape[1]
    key = [sorted(map(tuple, e.t().tolist())) for e in (edge_index, hag.edge_index)]
    assert key[0] == key[1]
    assert hag.matches(edge_index)
    assert hag.matches(edge_index[:, torch.randperm(edge_index.shape[1])].int())
    assert not hag.matches(edge_index.flip(0))
    assert not hag.matches(edge_index[:, 1:])
    changed = edge_index.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 30
    assert not hag.matches(changed)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("both", [False, True])
def test_the_order_of_sorted_edges_is_told(both: bool, end: int, dtype: torch.dtype) -> None:
    """By target of any graph; by source of one that is known to be symmetric."""
    hag, edge_index = make()
    if both:
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        hag = hp.build_hag(edge_index, num_nodes=30)
        assert hag.is_symmetric
    edges = edge_index[:, (edge_index[end] * 100 + edge_index[1 - end]).argsort()].to(dtype)
    order = hag.order_of(edges)
    assert order == ("target" if end else "source" if both else None)
    if order is not None:
        made = hag.edges_in_order(order)
        assert made.dtype == torch.int64
        assert torch.equal(made, edges.long())
    strided = torch.stack([edges, edges], dim=-1)[..., 0]
    for same in (edges, strided):
        assert hag.order_of(same) == order
        assert hag.matches(same)
    for at in (0, edges.shape[1] // 2, edges.shape[1] - 1):
        for row in (0, 1):
            changed = edges.clone()
            changed[row, at] = (changed[row, at] + 1) % 30
            assert hag.order_of(changed) is None
            assert not hag.matches(changed)
    assert hag.order_of(edges[:, 1:]) is None


def test_stands_where_an_edge_index_stands() -> None:
    hag, _ = make()
    source, target = hag
    assert torch.equal(torch.stack([source, target]), hag.edge_index)
    assert torch.equal(hag[1], target)
    assert torch.equal(hag[:, :5], hag.edge_index[:, :5])
    assert hag.size() == (2, hag.num_edges)
    assert hag.size(1) == hag.num_edges
    assert hag.flip([0]) is hag.flip(0) is hag.transpose()
    with pytest.raises(ValueError, match="dimension 0"):
        hag.flip([1])
    assert "30 -> 30 nodes" in repr(hag)


def test_degrees() -> None:
    hag, edge_index = make()
    for mode in SELF_LOOPS:
        edges = reference.with_self_loops(edge_index, 30, mode)
        degree = torch.bincount(edges[1], minlength=30)
        assert torch.equal(hag.degree(mode), degree)
        scale = degree.double().pow(-0.5).nan_to_num(posinf=0.0)
        assert torch.equal(hag.degree_scale(-0.5, mode, torch.float64), scale)


@pytest.mark.parametrize("mode", SELF_LOOPS)
@pytest.mark.parametrize("num_dst", [0, 1, 20, 30])
def test_targets_behind_the_sources_have_no_loop(mode: SelfLoops, num_dst: int) -> None:
    """The reverse of a graph whose targets are its first sources: degrees and what needs them."""
    edges = torch.randint(30, (2, 90))
    edges = edges[:, edges[1] < num_dst]
    hag = hp.build_hag(edges, size=(30, num_dst), targets_first=True)
    whole = hp.build_hag(edges.flip(0), num_nodes=30, method="none")
    degree = whole.degree(mode) - (torch.arange(30) >= num_dst).long() * (mode is not False)
    x = torch.randint(-4, 5, (num_dst, 3)).double()
    sums = hp.aggregate(torch.cat([x, x.new_zeros(30 - num_dst, 3)]), whole, self_loops=mode)
    for reverse in (hag.transpose(), ReversedHAG(hag)):
        assert torch.equal(reverse.degree(mode), degree)
        y = hp.aggregate(x, reverse, "mean", self_loops=mode)
        torch.testing.assert_close(y, sums / degree.clamp(min=1)[:, None])


@pytest.mark.parametrize("subtracts", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("reduce", ["sum", "max"])
@pytest.mark.parametrize("mode", SELF_LOOPS)
def test_a_batch_of_parts_of_which_some_subtract(
    subtracts: tuple[bool, ...], reduce: Any, mode: SelfLoops
) -> None:
    pairs = torch.combinations(torch.arange(30)).T
    edges = torch.cat([pairs, pairs.flip(0)], 1)
    parts = [
        hp.build_hag(edges, num_nodes=30, allow_subtraction=s, choose="hag") for s in subtracts
    ]
    plain = hp.batch([hp.build_hag(edges, num_nodes=30, method="none")] * len(parts))
    x = torch.randint(-9, -1, (30 * len(parts), 3)).double()
    expected = hp.aggregate(x, plain, reduce, self_loops=mode)
    whole = hp.batch(parts)
    for each in (whole, pickle.loads(pickle.dumps(whole)), hp.batch([whole])):
        assert torch.equal(hp.aggregate(x, each, reduce, self_loops=mode), expected)


def test_transpose() -> None:
    hag, edge_index = make()
    reverse = hag.transpose()
    assert reverse is not hag
    assert reverse.transpose() is hag
    assert hag.transpose() is reverse
    reverse.check(edge_index.flip(0))
    both = torch.cat([edge_index, edge_index.flip(0)], 1)
    symmetric = hp.build_hag(both, num_nodes=30)
    assert symmetric.is_symmetric
    assert symmetric.transpose() is symmetric
    # One copy of an edge more than of its reverse: not symmetric.
    uneven = torch.cat([both, torch.tensor([[0], [29]])], 1)
    assert not hp.build_hag(uneven, num_nodes=30).is_symmetric


def test_check_names_the_first_difference() -> None:
    hag, edge_index = make()
    hag.check(edge_index)
    row = 4
    edge = int(torch.nonzero(edge_index[1] == row)[0])
    source = int(edge_index[0, edge])
    count = int(((edge_index[0] == source) & (edge_index[1] == row)).sum())
    fewer = torch.cat([edge_index[:, :edge], edge_index[:, edge + 1 :]], 1)
    message = f"row {row}, source {source}: expected {count - 1} edges, found {count}"
    with pytest.raises(ValueError, match=message):
        hag.check(fewer)
    more = torch.cat([edge_index, torch.tensor([[source], [row]])], 1)
    message = f"row {row}, source {source}: expected {count + 1} edges, found {count}"
    with pytest.raises(ValueError, match=message):
        hag.check(more)
    with pytest.raises(ValueError, match="edge_index"):
        hag.check(edge_index + 1)


def test_idempotent_programs_are_compared_as_sets() -> None:
    hag, edge_index = make()
    program = hag.program(idempotent=True)
    assert program is not hag.program()
    assert len(program.source) <= edge_index.unique(dim=1).shape[1]
    hag.check(edge_index)


def test_wrong_self_loops() -> None:
    hag = hp.build_hag(torch.tensor([[0, 3], [1, 0]]), size=(4, 2))
    for mode in ("add", "fill"):
        with pytest.raises(ValueError, match="4 sources and 2 targets"):
            hag.program(mode)
    with pytest.raises(ValueError, match="expected one of"):
        hag.program("yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["auto", "greedy", "none"])
def test_pickle_and_copies(method: str) -> None:
    hag, edge_index = make(method=method, self_loops=(False, "fill"))
    hag.program(idempotent=True)
    hag.transpose().program("add")
    for copied in (
        pickle.loads(pickle.dumps(hag)),
        rebuild_hag(hag._state()),
    ):
        assert_same(hag, copied)
        assert_same(hag.transpose(), copied.transpose())
        assert copied.transpose().transpose() is copied
        copied.check(edge_index)
    assert copy.deepcopy(hag) is copy.copy(hag) is hag


def test_torch_save_with_weights_only(tmp_path: Path) -> None:
    hag, _ = make(self_loops=(False, "add"))
    torch.save({"hag": hag}, tmp_path / "data.pt")
    assert_same(hag, torch.load(tmp_path / "data.pt", weights_only=True)["hag"])


def test_find_knows_live_hags_only() -> None:
    hag, _ = make()
    arrays = hag.arrays
    assert find(*arrays) is hag
    assert find(*(a.clone() for a in arrays)) is hag
    assert find(arrays.row_ptr, arrays.col, None) is None
    del hag
    assert find(*arrays) is None


def test_meta_device_and_the_same_device() -> None:
    hag, _ = make()
    assert hag.to("cpu") is hag
    assert hag.cpu() is hag
    hag.program()
    moved = hag.to("meta")
    assert moved.device.type == "meta"
    assert moved._programs[False, False].source.device.type == "meta"


# Files ----------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    hag, edge_index = make(self_loops=(False, "fill"), allow_subtraction=True)
    hag.transpose().program()
    hag.save(tmp_path / "graph.hag")
    loaded = HAG.load(str(tmp_path / "graph.hag"))
    assert_same(hag, loaded)
    assert_same(hag.transpose(), loaded.transpose())
    loaded.check(edge_index)
    assert [p.name for p in tmp_path.iterdir()] == ["graph.hag"]


def test_load_refuses_every_truncation_and_every_damage(tmp_path: Path) -> None:
    hag, _ = make(n=8)
    path = tmp_path / "graph.hag"
    hag.save(path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = tmp_path / "damaged.hag"
    for size in [0, 1, 3, 100, *random.integers(0, len(whole), 40).tolist(), len(whole) - 1]:
        damaged.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged"):
            HAG.load(damaged)
    for at in random.integers(0, len(whole), 200).tolist():
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
        try:
            loaded = HAG.load(damaged)
        except ValueError:
            continue
        assert_same(loaded, hag)  # a byte that carries nothing, such as a time stamp


def rewrite(path: Path, change: dict[str, object] | None = None, **arrays: np.ndarray) -> None:
    with np.load(path) as file:
        old = dict(file)
    header = json.loads(old["header"].tobytes()) | (change or {})
    old["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with path.open("wb") as out:
        np.savez(out, **{**old, **arrays})  # type: ignore[arg-type]


def test_load_refuses_what_is_no_hag(tmp_path: Path) -> None:
    hag, _ = make(n=8)
    path = tmp_path / "graph.hag"
    with pytest.raises(FileNotFoundError):
        HAG.load(path)
    for change, message in (
        ({"version": 99}, "version 99 of 'hag_plugin.HAG'; this package reads versions 1 to 1"),
        ({"format": "other"}, "format 'other'"),
        ({"content_hash": [1, 2]}, r"its header says \(1, 2\)"),
        ({"hag": {}}, "does not hold a valid HAG"),
    ):
        hag.save(path)
        rewrite(path, change)
        with pytest.raises(ValueError, match=message):
            HAG.load(path)
    with path.open("wb") as out:
        np.savez(out, x=np.arange(3))
    with pytest.raises(ValueError, match="not a HAG file"):
        HAG.load(path)
    path.write_text("not a zip")
    with pytest.raises(ValueError, match="not a HAG file"):
        HAG.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        archive.writestr("header.npy", buffer.getvalue())
    with pytest.raises(ValueError, match="not a HAG file"):
        HAG.load(path)


@pytest.mark.parametrize("array", ["row_ptr", "col", "programs.0.source", "programs.0.target",
                                   "programs.0.op_ptr", "programs.0.tile_ptr"])  # fmt: skip
@pytest.mark.parametrize("value", [-(2**31), -1, 7, 2**31 - 1])
def test_load_checks_every_index(tmp_path: Path, array: str, value: int) -> None:
    hag, _ = make(n=8)
    path = tmp_path / "graph.hag"
    hag.save(path)
    with np.load(path) as file:
        good = file[f"hag.{array}"]
    for at in range(min(len(good), 12)):
        if good[at] == value:
            continue
        bad = good.copy()
        bad[at] = value
        rewrite(path, **{f"hag.{array}": bad})
        try:
            loaded = HAG.load(path)
        except ValueError:
            continue
        # In range, if wrong: it must at least be safe to run.
        assert array.startswith("programs")
        hp.aggregate(torch.ones(8, 3), loaded)


def test_save_leaves_nothing_behind_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hag, _ = make()
    path = tmp_path / "graph.hag"
    hag.save(path)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space"):
        hag.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["graph.hag"]


# Batches --------------------------------------------------------------------------------------


def side_by_side(graphs: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, int]:
    offset, parts = 0, []
    for edge_index, n in graphs:
        parts.append(edge_index + offset)
        offset += n
    return torch.cat(parts, 1), offset


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    method=st.sampled_from(["auto", "greedy", "none"]),
    subtract=st.booleans(),
    symmetric=st.booleans(),
)
@settings(max_examples=40)
def test_batch(sizes: list[int], method: str, subtract: bool, symmetric: bool) -> None:
    graphs = []
    for seed, n in enumerate(sizes):
        edge_index = random_graph(seed, n, 2 * n if seed % 2 else 0)
        edge_index = edge_index if seed % 3 else edge_index[:, edge_index[0] != edge_index[1]]
        if symmetric:
            edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
        graphs.append((edge_index, n))
    hags = [
        hp.build_hag(
            e, num_nodes=n, method=method, allow_subtraction=subtract, self_loops=(False, "fill")
        )
        for e, n in graphs
    ]
    joined = hp.batch(hags)
    edge_index, n = side_by_side(graphs)
    assert joined.matches(edge_index)
    if len(sizes) % 2:
        joined = pickle.loads(pickle.dumps(joined))
        assert (False, False) in joined._keys()
    x = torch.randn(n, 3, dtype=torch.float64)
    for direction, edges in ((joined, edge_index), (joined.transpose(), edge_index.flip(0))):
        for mode, reduce in itertools.product(SELF_LOOPS, ("sum", "max")):
            direction.check(edges, mode)
            program = direction.program(mode, idempotent=reduce == "max")
            got = reference.run_program(program, x, reduce)
            want = reference.aggregate(x, edges, n, reduce, self_loops=mode)
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_batch_packs_tiles() -> None:
    hags = [make(seed, 8)[0] for seed in range(32)]
    for hag in hags:
        hag.program()
    joined = hp.batch(hags).program()
    ops = joined.tile_ptr.diff()
    assert ops.max() <= 64
    assert len(ops) <= sum(len(h.program().target) for h in hags) / 30


def test_batch_of_hubs() -> None:
    n = 9000
    star = torch.stack([torch.arange(1, n), torch.zeros(n - 1, dtype=torch.long)])
    graphs = [(star, n), (random_graph(1), 30), (star, n)]
    joined = hp.batch([hp.build_hag(e, num_nodes=k) for e, k in graphs])
    edge_index, _ = side_by_side(graphs)
    joined.check(edge_index)
    joined.check(edge_index, "fill")
    assert joined.program().hub_row.tolist() == [0, n + 30]


def test_batch_of_bipartite_graphs() -> None:
    a = hp.build_hag(torch.tensor([[0, 2], [1, 0]]), size=(3, 2))
    b = hp.build_hag(torch.tensor([[1, 1], [0, 2]]), size=(2, 3))
    joined = hp.batch([a, b])
    assert (joined.num_src, joined.num_dst) == (5, 5)
    joined.check(torch.tensor([[0, 2, 4, 4], [1, 0, 2, 4]]))


def test_batch_builds_what_its_parts_lack() -> None:
    hags = [make(seed)[0] for seed in range(3)]
    joined = hp.batch(hags)
    joined.program("add")
    assert all(("add", False) in h._keys() for h in hags)


def test_bad_batches() -> None:
    with pytest.raises(ValueError, match="expected one HAG or more"):
        hp.batch([])
    with pytest.raises(TypeError, match="hags holds a tensor"):
        hp.batch([torch.ones(2)])  # type: ignore[list-item]
    bipartite = hp.build_hag(torch.tensor([[2], [0]]), size=(3, 2), targets_first=True)
    with pytest.raises(ValueError, match="targets are the first sources"):
        hp.batch([bipartite, bipartite])


def test_from_csr_refuses() -> None:
    row_ptr, col = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1], dtype=torch.int32)
    HAG.from_csr(row_ptr, col, 3)
    for bad_ptr, bad_col, message in (
        (torch.tensor([0, 2, 4]), col, "row_ptr does not run"),
        (torch.tensor([0, 4, 3]), col, r"row_ptr\[1\] is 4"),
        (row_ptr, torch.tensor([0, 3, 1], dtype=torch.int32), r"col\[1\] is 3"),
        (row_ptr, torch.tensor([0, -1, 1], dtype=torch.int32), r"col\[1\] is -1"),
        (row_ptr, torch.tensor([2, 0, 1], dtype=torch.int32), "not increasing"),
    ):
        with pytest.raises(ValueError, match=message):
            HAG.from_csr(bad_ptr, bad_col, 3)
