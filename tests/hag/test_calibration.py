"""The fit of the cost model's constants, and the programs that are measured for it."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from hag_plugin.hag import calibration
from hag_plugin.hag.cost import Work
from hag_plugin.hag.rates import DEFAULT, Constants, RowCost
from hag_plugin.kernels import _cpu
from hag_plugin.testing import limits

from ..reference import run_program


@given(
    hidden=st.lists(st.just(0.0) | st.floats(0.01, 10.0), min_size=3, max_size=3).filter(any),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_fit_finds_what_made_the_times(hidden: list[float], seed: int) -> None:
    terms = np.random.default_rng(seed).uniform(0.1, 5.0, (12, 3))
    seconds = terms @ np.array(hidden)
    found = calibration.fit(terms, seconds, np.zeros(terms.shape[1]))
    assert (found >= 0).all()
    np.testing.assert_allclose(terms @ found, seconds, rtol=1e-4)


def test_fit_is_not_negative() -> None:
    """Where least squares would take a negative constant, the best without it is found."""
    optimize = pytest.importorskip("scipy.optimize")
    terms = np.random.default_rng(0).uniform(0.0, 1.0, (20, 5))
    seconds = terms @ np.array([3.0, -1.0, 2.0, 1.0, -0.5]) + 2.0
    found = calibration.fit(terms, seconds, np.zeros(terms.shape[1]))
    want, _ = optimize.nnls(terms / seconds[:, None], np.ones(20))
    assert (want == 0).any()
    np.testing.assert_allclose(found, want, atol=1e-6)


@given(
    terms=arrays(np.float64, (12, 9), elements=st.floats(0.0, 1e6)),
    seconds=arrays(np.float64, 12, elements=st.floats(1e-7, 1.0)),
)
@settings(max_examples=10)
def test_no_constant_is_less_than_possible(terms: np.ndarray, seconds: np.ndarray) -> None:
    """However noisy the times: nothing is free, and nothing is cheaper for being far away."""
    call, op, written, _, scratch, near, near_byte, far, far_byte = calibration.fit_constants(
        terms, seconds
    )
    least = calibration.FLOORS
    assert call >= least["call"]
    assert op >= least["op"]
    assert min(scratch, near_byte) >= least["per_byte"]
    assert min(written, far_byte) >= near_byte
    assert min(far, near) >= 0.0


@pytest.mark.parametrize("cache", [1 << 18, 1 << 20, 1 << 21, 1 << 24])
@pytest.mark.parametrize("rates", [DEFAULT, Constants(op=3e-9, far=RowCost(1e-9, 6e-11))])
def test_few_programs_tell_the_constants_apart(cache: int, rates: Constants) -> None:
    """From the times that they would take on a processor, its constants follow."""
    runs = calibration.runs_of(calibration.QUICK_SHAPES, cache, calibration.QUICK_SOURCES)
    terms = np.array([(1.0, *run.work.terms(run.row_bytes, cache)) for run in runs])
    hidden = replace(rates, cache_bytes=cache, memory=0.0)
    seconds = np.array([run.work.seconds(run.row_bytes, constants=hidden) for run in runs])
    rows = (hidden.scratch, hidden.near, hidden.far)
    flat = [hidden.call, hidden.op, hidden.written, *(n for r in rows for n in asdict(r).values())]
    found = calibration.fit_constants(terms, seconds)
    np.testing.assert_allclose(found, flat, rtol=0.02, atol=2e-11)


@pytest.mark.parametrize("cache", [1 << 16, 1 << 21, 1 << 30])
def test_buffers_are_bounded(cache: int) -> None:
    runs = calibration.runs_of(calibration.QUICK_SHAPES, cache, calibration.QUICK_SOURCES)
    buffers = {id(buffer): buffer.nbytes for run in runs for buffer in run.buffers}
    assert len(buffers) == 2
    assert sum(buffers.values()) <= 2 * calibration.BUFFER_BYTES
    assert max(len(run.program.source) for run in runs) <= 2 * calibration.QUICK_SOURCES


@pytest.mark.parametrize("threads", [1, 2])
def test_a_calibration_says_how_far_it_is_off(threads: int) -> None:
    said: list[float] = []
    with limits(calibration_step=3):
        found = calibration.calibrate(
            2, threads, said.append, calibration.QUICK_SHAPES, sources=calibration.QUICK_SOURCES
        )
    assert said == sorted(said)
    assert said[-1] == 1.0
    assert found.constants.error == found.largest_error >= found.mean_error
    assert 0.0 < found.constants.parallel <= 1.0
    if threads == 1:
        assert found.constants.parallel == DEFAULT.parallel


@pytest.mark.parametrize("shape", calibration.SHAPES)
def test_synthetic_programs_are_what_they_are_called(shape: calibration.Shape) -> None:
    program = calibration.synthetic_program(shape, tiles=5, num_src=1 << 15)
    x = torch.randn(1 << 15, 3, dtype=torch.float64)
    run_program(program, x)  # reads no scratch before it is written
    _ = program.native  # every index is in range
    work = Work.of(program)
    assert work.written == 5 * shape.rows
    assert (work.scratch > 0) == (shape.scratch > 0)
    if shape.window:
        assert work.first <= 5 * shape.window
    elif shape.arity > 2:
        assert work.first > work.again


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [([3e-5, 2e-5, 4e-5], 2e-5), ([3e-5, 0.0, 4e-5], 3e-5), ([0.0], 1e-7), ([0.0, 0.0], 1e-7),
     ([-1e-6, 2e-5], 2e-5)],
)  # fmt: skip
def test_a_clock_that_stands_still_is_not_believed(seconds: list[float], expected: float) -> None:
    assert calibration.shortest(seconds) == expected


@pytest.mark.parametrize("lost", range(4))
def test_constants_are_finite_however_the_clock_reads(
    lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some readings in four show no time at all."""
    read = itertools.count()
    thread_time = time.thread_time
    stood = [0.0]

    def clock() -> float:
        if next(read) % 8 > 2 * lost:
            stood[0] = thread_time()
        return stood[0]

    monkeypatch.setattr(time, "thread_time", clock)
    found = calibration.calibrate(1, 1, None, calibration.QUICK_SHAPES, sources=1 << 15)
    assert Constants.of(asdict(found.constants)) == found.constants


def test_the_caches_are_this_machines() -> None:
    assert _cpu.second_cache_bytes() >= 0
    found = calibration.calibrate(1, 1, None, calibration.QUICK_SHAPES, sources=1 << 15)
    assert found.constants.cache_bytes == (_cpu.second_cache_bytes() or DEFAULT.cache_bytes)
    assert _cpu.last_cache_bytes() >= 0
    assert found.constants.last_bytes == (_cpu.last_cache_bytes() or DEFAULT.last_bytes)
    assert found.constants.memory > 0.0
