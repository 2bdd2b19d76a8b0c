"""The fit of the cost model's constants, and the programs that are measured for it."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from hag_plugin.hag import calibration
from hag_plugin.hag.cost import Work

from ..reference import run_program


@given(
    hidden=st.lists(st.just(0.0) | st.floats(0.01, 10.0), min_size=3, max_size=3).filter(any),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
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


@pytest.mark.parametrize("shape", calibration.SHAPES)
def test_synthetic_programs_are_what_they_are_called(shape: calibration.Shape) -> None:
    program = calibration.synthetic_program(shape, tiles=5, num_src=4096)
    x = torch.randn(4096, 3, dtype=torch.float64)
    run_program(program, x)  # reads no scratch before it is written
    _ = program.native  # every index is in range
    work = Work.of(program)
    assert work.written == 5 * shape.rows
    assert (work.scratch > 0) == (shape.scratch > 0)
    if shape.window:
        assert work.first <= 5 * shape.window
    elif shape.arity > 2:
        assert work.first > work.again
