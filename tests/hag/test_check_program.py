"""Whether a program is a graph's: the native check against the program run over the identity."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import hag_plugin as hp
from hag_plugin.hag.program import ARRAYS
from hag_plugin.kernels import _cpu

from .. import reference
from ..native_programs import native, random_program

MODES = ("", "add", "fill")


def edges_of(program: Any) -> np.ndarray:
    """How often each source stands in each row, `[num_dst, num_src]`."""
    identity = torch.eye(program.num_src, dtype=torch.float64)
    counts: np.ndarray = reference.run_program(program, identity).numpy().astype(np.int64)
    return counts


def csr(counts: np.ndarray, num_src: int) -> tuple[np.ndarray, np.ndarray, int]:
    row_ptr = np.concatenate([[0], counts.sum(1).cumsum()]).astype(np.int64)
    col = np.repeat(
        np.tile(np.arange(counts.shape[1], dtype=np.int32), len(counts)), counts.ravel()
    )
    return row_ptr, col, num_src


def with_parts_of_rows(program: Any) -> Any:
    """The same, but that partial sums are of rows of x alone, as those of long rows are."""
    of_partial = (program.target >= program.num_dst).repeat_interleave(program.op_ptr.diff())
    rows = torch.where(program.source < 0, ~program.source, program.source) % program.num_src
    program.source = torch.where(of_partial, rows, program.source)
    return program


def check(program: Any, counts: np.ndarray, mode: str = "", idempotent: bool = False) -> None:
    row_ptr, col, _ = csr(counts, program.num_src)
    for threads in (1, 3):
        _cpu.check_program(native(program), row_ptr, col, mode, idempotent, threads)


# With few sources they are counted, with many sorted.
@pytest.mark.parametrize("num_src", [60, 100_000])
@pytest.mark.parametrize("seed", range(8))
def test_any_program_is_that_of_its_edges_alone(seed: int, num_src: int) -> None:
    random = np.random.default_rng(seed)
    diagonal = (0, 1)[seed % 2]
    program = with_parts_of_rows(random_program(seed, num_src=60, num_dst=50, diagonal=diagonal))
    counts = edges_of(program)
    program.num_src = num_src
    check(program, counts)
    for _ in range(20):
        wrong = counts.copy()
        row, source = random.integers(0, 50), random.integers(0, 60)
        wrong[row, source] += 1 if random.random() < 0.5 or not wrong[row, source] else -1
        words = (f"at row {row}, source {source}: expected {wrong[row, source]} edges, "
                 f"found {counts[row, source]}")  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(words)):
            check(program, wrong)


def mutated(program: Any, random: np.random.Generator) -> Any:
    """A program with one number changed; None where its indices are then out of range."""
    changed = SimpleNamespace(**{n: getattr(program, n).clone() for n in ARRAYS})
    changed.num_src, changed.num_dst = program.num_src, program.num_dst
    changed.diagonal = program.diagonal
    if random.random() < 0.05:
        changed.diagonal = int(random.integers(-3, 4))
    array = getattr(changed, ARRAYS[random.choice([0, 1, 2, 2, 2, 2, 3, 3, 4, 5])])
    if len(array):
        other = array[random.integers(len(array))] + int(random.integers(-2, 3))
        array[random.integers(len(array))] = other
    try:
        native(changed)
    except ValueError:
        return None
    return changed


@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_changed_program_is_refused_where_it_sums_other_rows(mode: str, idempotent: bool) -> None:
    """The matrix is told by Python, in which no row is expanded by hand."""
    random = np.random.default_rng(0)
    n = 40
    group = random.integers(0, 3, n)
    counts = (group[:, None] == group).astype(np.int64) + (random.random((n, n)) < 0.1)
    source, target = (torch.from_numpy(a) for a in np.nonzero(counts.T))
    repeats = torch.from_numpy(counts.T)[source, target]
    edges = torch.stack([source, target]).repeat_interleave(repeats, dim=1)
    matrix = counts.copy()
    if mode == "add":
        matrix += np.eye(n, dtype=np.int64)
    if mode == "fill":
        np.fill_diagonal(matrix, 1)
    if idempotent:
        matrix = np.minimum(matrix, 1)
    hag = hp.build_hag(edges, num_nodes=n, choose="hag", allow_subtraction=not idempotent)
    program = hag.program(mode or False, idempotent=idempotent)  # type: ignore[arg-type]
    assert not program.is_plain
    seen = {True: 0, False: 0}
    for _ in range(1500):
        changed = mutated(program, random)
        if changed is None:
            continue
        same = abs(changed.diagonal) < 2 and np.array_equal(edges_of(changed), matrix)
        seen[same] += 1
        try:
            check(changed, counts, mode, idempotent)
            refused = False
        except ValueError:
            refused = True
        assert refused is not same
    assert min(seen.values()) > 20


def test_a_program_that_would_expand_without_end_is_refused_at_once() -> None:
    """Each op sums the one before it twice: 2^60 rows."""
    depth = 60
    source = [0, 0] + [~i for i in range(depth - 1) for _ in range(2)]
    program = SimpleNamespace(
        tile_ptr=torch.tensor([0, depth]),
        op_ptr=torch.arange(0, 2 * depth + 1, 2),
        source=torch.tensor(source, dtype=torch.int32),
        target=torch.tensor([*(~i for i in range(depth - 1)), 0], dtype=torch.int32),
        hub_row=torch.zeros(0, dtype=torch.int32),
        hub_ptr=torch.zeros(1, dtype=torch.int64),
        num_src=1,
        num_dst=1,
        diagonal=0,
    )
    for count in (0, 1, 100):
        with pytest.raises(ValueError, match=f"expected {count} edges, found {count + 1024}"):
            check(program, np.array([[count]]))


def test_long_rows_are_checked_in_their_parts() -> None:
    random = np.random.default_rng(0)
    counts = (random.random((4, 9000)) < 0.7).astype(np.int64)
    row_ptr, col, num_src = csr(counts, 9000)
    arrays = _cpu.plain_program(row_ptr, col, num_src, "", False)
    program = SimpleNamespace(**dict(zip(ARRAYS, map(torch.from_numpy, arrays), strict=True)))
    program.num_src, program.num_dst, program.diagonal = num_src, 4, 0
    assert len(program.hub_row) == 4
    check(program, counts)
    for _ in range(20):
        wrong = counts.copy()
        row, source = random.integers(0, 4), random.integers(0, 9000)
        wrong[row, source] ^= 1
        with pytest.raises(ValueError, match=f"at row {row}, source {source}: "):
            check(program, wrong)
