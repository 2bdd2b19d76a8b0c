"""The cost model: counts of rows, and constants that are kept in a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import hag_plugin as hp
from hag_plugin.cli import main
from hag_plugin.hag import constants, cost
from hag_plugin.hag.constants import CostsError
from hag_plugin.hag.cost import Work
from hag_plugin.hag.program import Program
from hag_plugin.hag.rates import ARITHMETICS, DEFAULT, Arithmetic, Constants, RowCost


def naive_work(program: Program) -> Work:
    """The same counts, an op at a time."""
    count = {"scratch": 0, "again": 0, "first": 0, "written": 0}
    ops = 0
    for tile in range(len(program.tile_ptr) - 1):
        seen: set[int] = set()
        for op in range(int(program.tile_ptr[tile]), int(program.tile_ptr[tile + 1])):
            ops += 1
            count["scratch" if program.target[op] < 0 else "written"] += 1
            for source in program.source[program.op_ptr[op] : program.op_ptr[op + 1]].tolist():
                kind = "scratch" if source < 0 else "again" if source in seen else "first"
                count[kind] += 1
                seen.add(source)
    for hub in range(len(program.hub_row)):
        ops += 1
        count["written"] += 1
        count["again"] += int(program.hub_ptr[hub + 1] - program.hub_ptr[hub])
    if program.diagonal:
        count["again"] += program.num_dst
    return Work(ops=ops, num_src=program.num_src, **count)


@given(
    edges=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=300),
    subtract=st.booleans(),
    method=st.sampled_from(["auto", "greedy", "none"]),
)
@settings(max_examples=60)
def test_work_is_what_the_ops_do(edges: list[tuple[int, int]], subtract: bool, method: str) -> None:
    cliques = [(a, b) for a in range(8) for b in range(8) if a != b]
    edge_index = torch.tensor(edges + cliques, dtype=torch.long).t()
    hag = hp.build_hag(edge_index, num_nodes=31, method=method, allow_subtraction=subtract)
    for mode in (False, "add"):
        program = hag.program(mode)
        work = Work.of(program)
        assert work == naive_work(program)
        stats = hag.stats(mode)
        assert work.scratch + work.again + work.first == stats.rows_read + stats.intermediates
        assert work.written + stats.intermediates == stats.rows_written


def test_work_of_a_hub() -> None:
    star = torch.stack([torch.arange(1, 6001), torch.zeros(6000, dtype=torch.long)])
    program = hp.build_hag(star, num_nodes=6001, method="none").program()
    assert Work.of(program) == naive_work(program)
    assert Work.of(program).again == len(program.hub_ptr.diff()) * int(program.hub_ptr[-1])


def test_seconds_add_up() -> None:
    work = Work(ops=10, scratch=20, again=30, first=40, written=5, num_src=995)
    c = Constants(call=1.0, op=2.0, written=0.5, scratch=RowCost(1.0, 0.1), near=RowCost(2.0, 0.2),
                  far=RowCost(3.0, 0.3), parallel=0.5, cache_bytes=1000)  # fmt: skip
    # Of the 1000 rows of x and y, 4 bytes each, the cache holds a quarter.
    ops = 10 * 2.0 + 5 * 4 * (0.75 * 0.5 + 0.25 * 0.2)
    rows = 20 * 1.4 + (30 + 10) * 2.8 + 30 * 4.2
    assert work.seconds(4, constants=c) == pytest.approx(1.0 + ops + rows)
    assert work.seconds(4, threads=3, constants=c) == pytest.approx(1.0 + (ops + rows) / 2.0)
    # All of x and y fits: every row is near.
    small = Work(ops=10, scratch=20, again=30, first=40, written=5, num_src=245)
    rows = 20 * 1.4 + 70 * 2.8 + 5 * 4 * 0.2
    assert small.seconds(4, constants=c) == pytest.approx(1.0 + 10 * 2.0 + rows)


@given(
    num_src=st.integers(1, 1_000_000),
    first=st.integers(0, 10_000_000),
    last=st.integers(0, 64 << 20),
    arithmetic=st.sampled_from(ARITHMETICS),
)
def test_what_the_last_cache_does_not_hold_costs_more(
    num_src: int, first: int, last: int, arithmetic: Arithmetic
) -> None:
    """The more, the longer the rows, the more of them are read again and the smaller the cache;
    nothing where it holds x and y, or where no row is read twice."""
    rows = np.arange(4, 4096, 4)

    def extra(first: int, last: int) -> Any:
        work = Work(100, 50, 1000, first, num_src, num_src)
        c = replace(DEFAULT, last_bytes=last)
        took, held = (
            work.seconds(rows, constants=each, arithmetic=arithmetic)
            for each in (c, replace(c, memory=0.0))
        )
        return took - held

    found = extra(first, last)
    slack = 1e-9 * float(found.max())
    assert (np.diff(found) >= -slack).all()
    assert (extra(2 * first, last) >= found - slack).all()
    assert (extra(first, last // 2) >= found - slack).all()
    outer = rows / 2 if arithmetic.is_half else rows
    assert np.allclose(found[2 * num_src * outer <= last], 0.0, atol=1e-12)
    assert np.allclose(extra(min(first, num_src), last), 0.0, atol=1e-12)


@given(num_src=st.integers(1, 100_000), first=st.integers(0, 1_000_000))
def test_a_few_more_bytes_take_a_little_longer(num_src: int, first: int) -> None:
    """There is no cliff where x outgrows the cache, and no prediction falls as rows grow."""
    work = Work(100, 50, 1000, first, num_src, num_src)
    widths = range(8, 264, 4)
    seconds = np.array([work.seconds(4 * width, constants=DEFAULT) for width in widths])
    growth = seconds[1:] / seconds[:-1] - 1.0
    dearest = DEFAULT.written / DEFAULT.near.per_byte  # byte, beside the cheapest of x and y
    assert (growth >= 0.0).all()
    assert (growth <= dearest * 4 / np.array(widths[:-1])).all()


def test_less_work_is_predicted_to_take_less() -> None:
    edge_index = torch.from_numpy(np.argwhere(np.ones((64, 64))).T)
    stats = hp.build_hag(edge_index, num_nodes=64).stats()
    assert stats.predicted_seconds < 0.5 * stats.predicted_seconds_before
    plain = hp.build_hag(edge_index, num_nodes=64, method="none").stats()
    assert plain.predicted_seconds == plain.predicted_seconds_before
    assert plain.predicted_seconds == stats.predicted_seconds_before


def test_prices_of_the_default_constants() -> None:
    """An intermediate must save the more, the narrower the rows."""
    assert [cost.prices(w).intermediate for w in (16, 64, 256)] == [18.0, 2.0, 2.0]


# Constants in a file ----------------------------------------------------------------------------


def test_calibrated_constants_change_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same graph and arguments: the program is the same, and what runs may be another."""
    members = np.arange(4)
    cliques = [(4 * c + a, 4 * c + b) for c in range(100) for a in members for b in members]
    edges = torch.tensor(cliques).t()
    path = tmp_path / "costs.json"
    made = []
    for each in (DEFAULT, Constants(op=1.0), DEFAULT):
        constants.write_constants(path, each, {})
        monkeypatch.setenv("HAG_PLUGIN_COSTS", str(path))
        hag = hp.build_hag(edges, num_nodes=400, choose="model")
        hag.check(edges)
        made.append((hag.stats().intermediates, hag.choice(64).name, hag.options.constants))
    assert made[0] == made[2]
    assert made[0][0] == made[1][0] > 0
    assert [name for _, name, _ in made] == ["hag", "plain", "hag"]
    assert made[0][2] == DEFAULT.digest != made[1][2]


GOOD: dict[str, Any] = {
    "format": "hag_plugin.costs", "version": 5, "about": {},
    "constants": {
        "call": 1e-6, "op": 1e-9, "written": 1e-10, "memory": 1e-11, "parallel": 1,
        "cache_bytes": 1000, "last_bytes": 9000, "error": 0.5,
        **{
            row: {"fixed": 1e-9, "per_byte": 0}
            for row in ("scratch", "near", "far", "half", "extremum")
        },
    },
}  # fmt: skip


def changed(**values: Any) -> dict[str, Any]:
    return {**GOOD, "constants": {**GOOD["constants"], **values}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "Expecting property name"),
        ([], "does not hold costs"),
        ({"format": "x"}, "there is no 'version'"),
        ({**GOOD, "version": 1}, "expected 'hag_plugin.costs', version 5"),
        ({**GOOD, "constants": {"op": 1}}, r"constants are \['op'\]; expected \['cache_bytes'"),
        ({**GOOD, "constants": 3}, "constants are int; expected"),
        (changed(op=-1), "op is -1; expected a finite number, 0 or more"),
        (changed(op="1"), "op is '1'; expected a number"),
        (changed(call=float("nan")), "call is nan; expected a finite number"),
        (changed(far=2.0), "far is 2.0; expected fixed and per_byte"),
        (changed(far={"fixed": 1.0, "per_byte": None}), "far.per_byte is None; expected a number"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    document: Any,
    message: str,
) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(GOOD))
    assert constants.read_constants(path).cache_bytes == 1000
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(CostsError, match=message) as error:
        constants.read_constants(path)
    assert str(path) in str(error.value)
    assert "hag-plugin calibrate" in str(error.value)
    monkeypatch.setenv("HAG_PLUGIN_COSTS", str(path))
    assert main(["stats", "cliques", "--quiet"]) == 2
    assert "does not hold costs" in capsys.readouterr().err
