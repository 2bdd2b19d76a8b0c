"""The choice between candidates by what a device was timed to take, without the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import hag_plugin as hp
from hag_plugin.hag.candidates import PLAIN, ROW_BYTES, SHARED
from hag_plugin.hag.gpu import timing
from hag_plugin.hag.graph import Arrays
from hag_plugin.hag.program import Options, Program
from hag_plugin.hag.rates import ARITHMETICS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def hag() -> hp.HAG:
    clique = torch.combinations(torch.arange(30)).T
    return hp.build_hag(torch.cat([clique, clique.flip(0)], 1), num_nodes=30)


def seconds(of: Callable[[int, int], float]) -> timing.Seconds:
    """Stands for a clock: says what the next candidate takes, by its number and that of the
    width."""
    calls = iter((at, candidate) for at in range(len(timing.WIDTHS)) for candidate in range(2))

    def take(call: Callable[[], None], device: torch.device) -> float:
        at, candidate = next(calls)
        return of(candidate, at)

    return take


def candidates(hag: hp.HAG) -> dict[str, Program]:
    return {PLAIN: hag.plain_program(), SHARED: hag.program()}


def test_the_table_is_what_was_timed(hag: hp.HAG) -> None:
    """At the widths that were timed, and between them by interpolation."""
    table = timing.table_of(candidates(hag), CPU, seconds(lambda c, at: (3.0 - c) * 4.0**at))
    assert table is not None
    assert table.by == "measure"
    for arithmetic in ARITHMETICS:
        for at, width in enumerate(timing.WIDTHS):
            choice = table.choose(arithmetic, 4 * width)
            assert choice.name == SHARED
            assert choice.seconds[PLAIN] == pytest.approx(3.0 * 4.0**at)
            assert choice.seconds[SHARED] == pytest.approx(2.0 * 4.0**at)
    assert (np.diff(table.seconds, axis=-1) >= 0).all()
    assert table.seconds.shape[-1] == len(ROW_BYTES)


@pytest.mark.parametrize(
    ("shared", "name"), [(0.5, SHARED), (0.9, SHARED), (1.0, PLAIN), (2.0, PLAIN)]
)
def test_the_faster_one_runs_on_the_device_that_was_timed(
    hag: hp.HAG, shared: float, name: str
) -> None:
    table = timing.table_of(
        candidates(hag), CPU, seconds(lambda candidate, at: shared if candidate else 1.0)
    )
    assert table is not None
    sizes = ((31, torch.long), (hag.num_edges, torch.int))
    with FakeTensorMode():
        row_ptr, col = (torch.empty(n, dtype=dtype, device="cuda") for n, dtype in sizes)
    for built_for, expected in (("cuda", name), ("cpu", SHARED)):
        options = Options(device=built_for, choose="measure")
        on_card = hp.HAG(hag.row_ptr, hag.col, 30, options=options)
        on_card._programs[False, False] = hag.program()
        on_card._tables[False, False] = table
        assert not on_card.has_duplicates  # known before the memory is gone
        on_card.arrays = Arrays(row_ptr, col, on_card.arrays.token)
        assert on_card.choice(64).name == expected


def test_wide_rows_of_many_nodes_are_not_timed(hag: hp.HAG) -> None:
    huge = Program.of(hag.program().arrays, 2**31 - 1, hag.num_dst)
    program = {PLAIN: huge, SHARED: huge}
    assert timing.table_of(program, CPU, seconds(lambda candidate, at: 1.0)) is None


def test_what_is_timed_are_the_candidates(hag: hp.HAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each over rows of each width, by the runner that `ops` has given."""
    ran = []

    def run(schedule: Any, x: torch.Tensor, y: torch.Tensor, reduce: str) -> None:
        assert (x.shape[0], y.shape[0]) == (schedule.num_src, schedule.num_dst)
        ran.append((len(schedule.source), x.shape[1]))

    monkeypatch.setitem(timing.RUNNERS, "cpu", run)

    def once(call: Callable[[], None], device: torch.device) -> float:
        call()
        return 1.0

    timing.table_of(candidates(hag), CPU, once)
    assert [width for _, width in ran] == [w for w in timing.WIDTHS for _ in range(2)]
    reads = {sources for sources, _ in ran}
    assert len(reads) == 2
    assert hag.num_edges in reads


def test_nothing_is_timed_where_no_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not timing.can_time("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert timing.can_time("cuda")
    assert not timing.can_time("cpu")
    torch.use_deterministic_algorithms(True)
    try:
        assert not timing.can_time("cuda")
    finally:
        torch.use_deterministic_algorithms(False)


class Event:
    """Stands for an event of a card, and for its clock."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        assert self.at is not None

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None
        assert end.at is not None
        return end.at - self.at


def test_events_time_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter([50.0, *[3.0] * 4, *[2.0] * 4, *[5.0] * 4])  # the first is not timed

    def call() -> None:
        Event.now += next(took)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    assert timing.event_seconds(call, torch.device("cuda")) == pytest.approx(2e-3)
    assert not list(took)
