"""Schedules: what a GPU runs is the program, and no launch reads what it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hag_plugin as hp
from hag_plugin import testing
from hag_plugin.data import datasets
from hag_plugin.hag.gpu import schedule
from hag_plugin.hag.program import Program
from hag_plugin.limits import limits

from ... import reference
from .walk import run


def assert_sound(s: schedule.Schedule) -> None:
    """What the kernels take for granted, for schedules of any size."""
    op_ptr, source, target = (a.numpy() for a in (s.op_ptr, s.source, s.target))
    length = np.diff(op_ptr)
    level = np.repeat(np.arange(s.num_levels), np.diff(s.level_ptr))
    assert len(level) == len(length)
    assert length.max(initial=0) <= limits.op_sources
    written = np.full(s.scratch_rows, -1)
    inner = target < 0
    written[~target[inner]] = level[inner]
    assert inner.sum() == s.scratch_rows
    assert (written >= 0).all(), "a row of scratch is never written"
    reader = np.repeat(level, length)
    reads = source < 0
    assert (written[~source[reads]] < reader[reads]).all(), "a launch reads what it writes"
    assert (reader[~reads] >= 0).all()
    assert not reads[reader == 0].any()
    assert source.max(initial=-1) < s.num_src
    assert sorted(target[~inner]) == list(range(s.num_dst))
    assert (s.row.numpy()[~inner] == target[~inner]).all()
    for first, last in s.levels:
        for start in range(first, last, limits.window_ops):
            window = length[start : min(start + limits.window_ops, last)]
            assert (np.diff(window) <= 0).all(), "the first op of an instance is not its longest"


# Lengths at which small graphs have parts of parts, shortcuts and several windows.
SHORT = {"op_sources": 3, "program_levels": 3, "window_ops": 8}


@settings(max_examples=60)
@given(data=st.data())
def test_equals_the_program(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(0, 14))
    node = st.integers(0, max(nodes - 1, 0))
    edges = data.draw(st.lists(st.tuples(node, node), max_size=90 if nodes else 0))
    edge_index = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
    method = data.draw(st.sampled_from(("auto", "greedy", "none")))
    subtract = method == "auto" and data.draw(st.booleans())
    hag = hp.build_hag(edge_index, num_nodes=nodes, method=method, allow_subtraction=subtract)
    program = hag.program(data.draw(st.sampled_from((False, "add", "fill"))))
    x = torch.randint(-9, 9, (nodes, 2)).double()  # sums of integers do not round
    expected = reference.run_program(program, x)
    for values in ({}, SHORT):
        with testing.limits(**values):
            s = schedule.make_schedule(program)
            assert_sound(s)
            assert torch.equal(run(s, x), expected)


def test_hubs_become_parts_of_parts() -> None:
    star = torch.stack([torch.arange(40), torch.zeros(40, dtype=torch.long)])
    with testing.limits(**SHORT):
        s = schedule.make_schedule(hp.build_hag(star, num_nodes=40, method="none").program())
        assert_sound(s)
    assert s.num_levels == 4  # 40, 14, 5, 2 parts and their sum
    parts = s.target.numpy() < 0
    assert (s.row.numpy()[parts] == 0).all()
    x = torch.randint(-9, 9, (40, 1)).double()
    assert run(s, x)[0] == x.sum()


def test_long_chains_get_shortcuts() -> None:
    """A clique without loops is prefix and suffix sums: as deep as it has members."""
    clique = torch.combinations(torch.arange(100)).T
    program = hp.build_hag(torch.cat([clique, clique.flip(0)], 1), num_nodes=100).program()
    s = schedule.make_schedule(program)
    assert_sound(s)
    assert schedule.depth(program) > 90
    assert s.num_levels <= 24
    assert len(s.source) < 2 * len(program.source)
    x = torch.randint(-9, 9, (100, 1)).double()
    assert torch.equal(run(s, x), reference.run_program(program, x))


def test_rows_of_scratch_may_be_written_again() -> None:
    """Each read means the last write before it."""
    arrays = [[0, 4], [0, 1, 2, 3, 4], [0, -1, 1, -1], [-1, 0, -1, 1], [], [0]]
    kinds = (torch.int64, torch.int64, torch.int32, torch.int32, torch.int32, torch.int64)
    tensors = [torch.tensor(a, dtype=k) for a, k in zip(arrays, kinds, strict=True)]
    s = schedule.make_schedule(Program.of(tensors, 2, 2))
    assert_sound(s)
    assert run(s, torch.tensor([[3.0], [5.0]])).flatten().tolist() == [3.0, 5.0]


def test_invalid_program_is_refused() -> None:
    program = hp.build_hag(torch.tensor([[0, 1], [1, 0]]), num_nodes=2).program()
    arrays = list(program.arrays)
    arrays[2] = torch.tensor([0, 7], dtype=torch.int32)
    with pytest.raises(ValueError, match="is row 7 of x, expected below num_src = 2"):
        schedule.make_schedule(Program.of(arrays, 2, 2))


@pytest.mark.mostly_slow("BZR_MD")
@pytest.mark.parametrize("name", ["IMDB-MULTI", "ca-HepPh", "BZR_MD", "AmazonPhoto"])
def test_real_graphs(shared_data: Path, name: str) -> None:
    graph = datasets.load(name, shared_data / "npz")
    hag = hp.build_hag(graph.edge_index, num_nodes=graph.num_nodes)
    for mode in (False, "add"):
        program = hag.program(mode)
        s = schedule.make_schedule(program)
        assert_sound(s)
        assert s.num_levels <= max(limits.program_levels, schedule.depth(program))
        assert len(s.source) <= 1.5 * len(program.source)
        if name == "BZR_MD":
            x = torch.randint(-9, 9, (graph.num_nodes, 1)).double()
            assert torch.equal(run(s, x), hp.aggregate(x, hag, self_loops=mode))


def test_a_plan_for_a_card_must_pay() -> None:
    """A small graph is over before a second launch would start; a large one is not."""
    clique = torch.combinations(torch.arange(12)).T
    small = torch.cat([clique, clique.flip(0)], 1)
    large = torch.cat([small + 12 * i for i in range(3000)], 1)
    for edge_index, nodes, shared in ((small, 12, False), (large, 36_000, True)):
        on_cpu = hp.build_hag(edge_index, num_nodes=nodes)
        options = replace(on_cpu.options, device="cuda")
        hag = hp.HAG(on_cpu.row_ptr.clone(), on_cpu.col, nodes, options=options)
        assert (hag.stats("add").intermediates > 0) == shared
        assert hag.stats("add").predicted_seconds >= 4e-6 * (1 + shared)
        hag.check(edge_index)
    assert on_cpu.stats("add").levels == 2


def test_no_card_is_found_before_work_is_lost() -> None:
    if torch.cuda.is_available():
        pytest.skip("torch finds a GPU")
    with pytest.raises(ValueError, match="device is 'cuda', but torch finds no GPU"):
        hp.build_hag(torch.tensor([[0], [0]]), num_nodes=1, device="cuda")


@pytest.mark.parametrize("method", ["auto", "greedy", "none"])
def test_many_small_graphs_run_in_the_launches_of_one(method: str) -> None:
    """As many as the graph of them needs that needs most."""
    hags = []
    for seed in range(40):
        dense = torch.rand(12, 12, generator=torch.Generator().manual_seed(seed)) < seed / 40
        hags.append(hp.build_hag(dense.nonzero().t(), num_nodes=12, method=method))
    counts = [schedule.schedule_of(hag.program()).num_levels for hag in hags]
    batched = schedule.schedule_of(hp.batch(hags).program())
    assert_sound(batched)
    assert batched.num_levels == max(counts)
    assert method == "none" or max(counts) > 1
