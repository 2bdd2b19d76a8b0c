"""Graphs that are made on a device are those that are made on the host, and need no waiting.

Tensors in main memory stand for a card's; `tests/kernels/triton/kernels` runs them on the kernels,
`test_host_path.py` beside it on tensors without memory.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.gpu.met_once import hag_on_device, hags_on_device, plain_schedule
from hag_plugin.hag.gpu.schedule import Schedule, schedule_of
from hag_plugin.hag.graph import both_directions, with_own_loops
from hag_plugin.hag.passing import Messages, is_passing, plain_hag
from hag_plugin.hag.program import SELF_LOOPS, Options, Program
from hag_plugin.hag.rates import DEFAULT
from hag_plugin.limits import limits
from hag_plugin.ops.weighted_sum import reversed_order
from hag_plugin.testing import limits as set_limits

from ... import reference
from .walk import run

SHORT = {"op_sources": 3, "window_ops": 4}  # small graphs have parts of rows, and several windows
OPTIONS = Options(method="none", choose="plain")


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int]]:
    """Edges among few nodes: duplicates, loops, long rows and rows without any; and their size."""
    num_src = draw(st.integers(0, 9))
    num_dst = num_src if draw(st.booleans()) else draw(st.integers(0, 9))
    ends = st.tuples(st.integers(0, max(num_src - 1, 0)), st.integers(0, max(num_dst - 1, 0)))
    most = 60 if num_src and num_dst else 0
    edges = draw(st.lists(ends, max_size=most))
    if edges and draw(st.booleans()):
        edges += [(source, edges[0][1]) for source in range(num_src)] * draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    return torch.tensor(edges, dtype=dtype).reshape(-1, 2).T, (num_src, num_dst)


def assert_sound(s: Schedule) -> None:
    """What the kernels take for granted."""
    length = s.op_ptr.diff()
    assert (length >= 0).all()
    assert s.op_ptr[-1] <= len(s.source)
    assert s.level_ptr[-1] == len(length) == len(s.target) == len(s.row)
    for level, (first, last) in enumerate(s.levels):
        if level == 0:
            assert length[first:last].max() <= limits.op_sources
        for start in range(first, last, limits.window_ops):
            window = length[start : min(start + limits.window_ops, last)]
            assert (window.diff() <= 0).all(), "the first op of an instance is not its longest"
    live = length > 0
    rows = s.row[live]
    assert ((rows >= 0) & (rows < s.num_dst)).all()
    whole = s.target >= 0
    assert (s.row[whole] == s.target[whole]).all()


@settings(max_examples=150)
@given(graph=graphs(), both=st.booleans())
def test_arrays_are_those_of_the_host(graph: tuple[Tensor, tuple[int, int]], both: bool) -> None:
    edge_index, size = graph
    hag = hag_on_device(edge_index, size, OPTIONS, both=both)
    row_ptr, col, *reverse = map(torch.from_numpy, both_directions(edge_index, *size))
    assert torch.equal(hag.row_ptr, row_ptr)
    assert torch.equal(hag.col, col)
    back = hag.transpose()
    assert back.transpose() is hag
    assert (back.num_src, back.num_dst) == size[::-1]
    assert torch.equal(back.row_ptr, reverse[0])
    assert torch.equal(back.col, reverse[1])
    plain = hp.HAG.from_csr(row_ptr, col, size[0], method="none")
    assert hag.matches(edge_index)
    assert hag.content_hash == plain.content_hash
    for mode in SELF_LOOPS if size[0] == size[1] else SELF_LOOPS[:1]:
        assert torch.equal(hag.degree(mode), plain.degree(mode))


@settings(max_examples=200)
@given(
    graph=graphs(), mode=st.sampled_from(SELF_LOOPS), idempotent=st.booleans(), back=st.booleans()
)
def test_programs_and_schedules_are_those_of_the_graph(
    graph: tuple[Tensor, tuple[int, int]], mode: Any, idempotent: bool, back: bool
) -> None:
    edge_index, size = graph
    mode = mode if size[0] == size[1] else False
    with set_limits(**SHORT):
        hag = hag_on_device(edge_index, size, OPTIONS, both=False)
        if back:
            hag, edge_index, size = hag.transpose(), edge_index.flip(0), size[::-1]
        program = hag.program(mode, idempotent=idempotent)
        schedule = schedule_of(program)
        assert_sound(schedule)
        x = torch.randint(-9, 9, (size[0], 2)).double()  # sums of integers do not round
        edges = reference.with_self_loops(edge_index.long(), size[1], mode)
        if idempotent:
            edges = edges.unique(dim=1) if edges.numel() else edges
        expected = reference.aggregate(x, edges, size[1])
        assert torch.equal(run(schedule, x, schedule.scratch_rows - 1), expected)
    if size[1]:
        assert torch.equal(reference.run_program(_in_order(program), x), expected)


def _in_order(program: Program) -> Program:
    """The program as the host reads it."""
    arrays = (torch.from_numpy(array.copy()) for array in program.numpy())
    return Program.of(arrays, program.num_src, program.num_dst)


@settings(max_examples=60)
@given(length=st.lists(st.integers(0, 40), max_size=12), most=st.integers(1, 7),
       unused=st.integers(0, 5))  # fmt: skip
def test_rows_of_any_length(length: list[int], most: int, unused: int) -> None:
    """Also with sources behind them that are no row's."""
    row_ptr = torch.tensor([0, *itertools.accumulate(length)])
    source = torch.randint(0, 5, (sum(length) + unused,), dtype=torch.int32)
    x = torch.randint(-9, 9, (5, 1)).double()
    with set_limits(op_sources=most, window_ops=4):
        schedule = plain_schedule(row_ptr, source, 5)
        assert_sound(schedule)
        found = run(schedule, x, schedule.scratch_rows - 1)
    rows = source[: sum(length)].long().split(length) if length else ()
    assert torch.equal(found, torch.stack([x[r].sum(0) for r in rows]) if rows else found)


def assert_edges(hag: hp.HAG, edges: Tensor, size: tuple[int, int]) -> None:
    """Whether a HAG with entries that are no edges has these, in both directions, and runs them."""
    plain = hp.build_hag(edges, size=size, method="none")
    for mine, theirs in ((hag, plain), (hag.transpose(), plain.transpose())):
        assert (mine.num_src, mine.num_dst) == (theirs.num_src, theirs.num_dst)
        for found, expected in zip(mine.numpy(), theirs.numpy(), strict=True):
            assert (found == expected).all()
        source, target = mine.ends()
        is_edge = target < mine.num_dst
        assert torch.equal(torch.stack([source[is_edge], target[is_edge]]), theirs.edge_index)
        assert (source[~is_edge] == mine.num_src).all()
        for mode in SELF_LOOPS if mine.is_square else SELF_LOOPS[:1]:
            assert torch.equal(mine.degree(mode), theirs.degree(mode))
            schedule = schedule_of(mine.plain_program(mode))
            assert_sound(schedule)
            x = torch.randint(-9, 9, (mine.num_src, 2)).double()
            looped = reference.with_self_loops(theirs.edge_index, mine.num_dst, mode)
            expected = reference.aggregate(x, looped, mine.num_dst)
            assert torch.equal(run(schedule, x, schedule.scratch_rows - 1), expected)
    order = reversed_order(hag)
    live = len(hag.transpose().numpy()[1])
    turned = torch.stack(hag.ends())[:, order][:, :live]
    assert torch.equal(turned.flip(0), hag.transpose().make_edge_index()[:, :live])
    assert torch.equal(pickle.loads(pickle.dumps(hag)).edge_index, plain.edge_index)


@settings(max_examples=60)
@given(graph=graphs(), both=st.booleans())
def test_loops_are_put_in_place_of_those_there_are(
    graph: tuple[Tensor, tuple[int, int]], both: bool
) -> None:
    edge_index, size = graph
    loops = min(size)
    with set_limits(**SHORT):
        hag = hag_on_device(edge_index, size, OPTIONS, both=both, loops=loops)
        expected = with_own_loops(edge_index.long(), loops)
        assert_edges(hag, expected, size)
        assert hag.order is not None
        given = torch.cat([edge_index.long(), torch.arange(loops).expand(2, -1)], 1)
        is_edge = hag.ends()[1] < size[1]
        assert torch.equal(given[:, hag.order][:, is_edge], torch.stack(hag.ends())[:, is_edge])
        assert torch.equal(hag.order.sort().values, torch.arange(given.shape[1]))


@settings(max_examples=60)
@given(graph=graphs(), both=st.booleans(), count=st.integers(0, 4), data=st.data())
def test_each_relation_has_its_edges(
    graph: tuple[Tensor, tuple[int, int]], both: bool, count: int, data: st.DataObject
) -> None:
    """Types that are no relation's are of edges that no graph has."""
    edge_index, size = graph
    num_edges = edge_index.shape[1]
    types = st.lists(st.integers(-1, count), min_size=num_edges, max_size=num_edges)
    edge_type = torch.tensor(data.draw(types), dtype=edge_index.dtype)
    with set_limits(**SHORT):
        hags = hags_on_device(edge_index, edge_type, count, size, OPTIONS, both=both)
        assert len(hags) == count
        for relation, hag in enumerate(hags):
            assert_edges(hag, edge_index[:, edge_type == relation], size)


@pytest.mark.parametrize("edges", [[[0, 3], [0, 1]], [[0, 1], [0, 3]], [[-1, 0], [0, 1]]])
def test_ids_out_of_range_are_refused(edges: list[list[int]]) -> None:
    with pytest.raises(RuntimeError, match="edge_index holds an id that is negative, or above"):
        hag_on_device(torch.tensor(edges), (3, 3), OPTIONS, both=True)


@pytest.mark.parametrize("edges", [torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.long)])
def test_what_is_no_edge_index_is_refused(edges: Tensor) -> None:
    with pytest.raises((TypeError, ValueError), match="edge_index has"):
        hag_on_device(edges, (3, 3), OPTIONS, both=True)


def test_is_a_hag_to_everybody() -> None:
    edges = torch.tensor([[0, 1, 2, 2, 2, 1], [1, 0, 2, 1, 1, 1]])
    hag = hag_on_device(edges, (3, 3), OPTIONS, both=True)
    for mode in SELF_LOOPS:
        hag.program(mode), hag.program(mode, idempotent=True)
    hag.check(edges)
    stats = hag.stats("fill")
    assert stats.rows_read == 7  # four that are no loops, and three that are put there
    assert stats.intermediates == 0
    sent = io.BytesIO()
    torch.save(hag, sent)
    sent.seek(0)
    for other in (copy.deepcopy(hag), pickle.loads(pickle.dumps(hag)), torch.load(sent)):
        assert other.matches(edges)
        assert torch.equal(other.edge_index, hag.edge_index)
        x = torch.randn(3, 2)
        for mode in SELF_LOOPS:
            torch.testing.assert_close(
                hp.aggregate(x, other, self_loops=mode), reference.aggregate(
                    x, edges, 3, self_loops=mode)
            )  # fmt: skip


def test_where_launches_run_it_is_made_there() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 0, 0]])
    on_host = plain_hag(edges, (3, 3))
    with set_limits(kernels_anywhere=True):
        on_device = plain_hag(edges, (3, 3))
    assert type(on_host) is hp.HAG
    assert type(on_device) is not hp.HAG
    assert is_passing(on_device)
    assert is_passing(on_host)


# Whether it pays --------------------------------------------------------------------------------


@pytest.mark.parametrize("derived", [False, True])
def test_on_a_card_it_pays_where_bytes_outweigh_launches(derived: bool) -> None:
    def pays(num_edges: int, width: int, graphs: int = 1) -> bool:
        size = num_edges // 10, num_edges // 10
        return Messages(num_edges, size, 4 * width, derived, graphs, device="cuda").pays()

    assert not pays(10_000, 64)
    assert not pays(1_000_000, 4)  # sorts move more than messages
    assert pays(5_000_000, 256)
    assert pays(10_000, 64, graphs=0)  # a graph that is there already
    assert not pays(5_000_000, 256, graphs=100)  # each relation looks at all edges


def test_on_a_card_attention_pays_sooner_than_sums() -> None:
    """Stock scores edges in many launches, and writes their messages once more."""
    sums = Messages(3_000_000, (300_000, 300_000), 4 * 128, True, device="cuda")
    assert sums._replace(heads=8).gain(DEFAULT) > sums.gain(DEFAULT)
    assert sums._replace(weighted=True).gain(DEFAULT) > sums.gain(DEFAULT)


def test_on_a_card_attention_over_relations_pays_by_the_size_of_their_matrices() -> None:
    """Stock gathers one for each message."""
    scored = Messages(100_000, (20_000, 20_000), 4 * 64, True, heads=4, device="cuda")
    gains = [
        scored._replace(relations=20, matrix=width * 64).gain(DEFAULT) for width in (1, 8, 64, 256)
    ]
    assert gains == sorted(gains)
    assert gains[0] < 1.0 < gains[-1]
    assert not scored._replace(num_edges=1000, relations=20, matrix=64 * 64).pays()
