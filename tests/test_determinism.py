"""The same bits on any number of threads and in any process, as docs/determinism.md says."""

from __future__ import annotations

import re

import pytest

from .determinism import ROOT, ROWS, SAME, THREADS, Process, apart, by_instruction_set

PAGE = ROOT / "docs" / "determinism.md"
ROW = re.compile(r"^\| (.+?) \| (.+?) \| (.+) \|$")


@pytest.fixture(scope="module")
def processes() -> dict[str, Process]:
    """By instruction set, the widest last."""
    return by_instruction_set()


@pytest.fixture(scope="module")
def other() -> Process:
    """With sets of strings in another order, and no instruction set asked for."""
    return Process(PYTHONHASHSEED="12345")


def told() -> dict[str, list[str]]:
    """The cells of each row of the page's table, those of instruction sets."""
    if not PAGE.is_file():
        pytest.skip("no docs beside these tests")
    rows = [ROW.match(line) for line in PAGE.read_text().splitlines()]
    return {m[1]: m[3].split(" | ") for m in rows if m and m[2] == SAME}


@pytest.mark.parametrize("row", ROWS)
def test_threads(row: str, other: Process) -> None:
    assert set(other.digests[row]) == {str(n) for n in THREADS}
    assert len(set(other.digests[row].values())) == 1


@pytest.mark.parametrize("row", ROWS)
def test_processes(row: str, processes: dict[str, Process], other: Process) -> None:
    *_, last = processes.values()
    assert other.digests[row] == last.digests[row]


@pytest.mark.parametrize("row", ROWS)
def test_instruction_sets(row: str, processes: dict[str, Process]) -> None:
    """As far apart as the page says, within a factor of four."""
    *_, last = processes
    for each in processes.values():
        assert len(set(each.digests[row].values())) == 1
    if list(processes) != ["baseline", "avx2", "avx512"]:
        pytest.skip("the page tells of x86 with AVX-512")
    for name, cell in zip(("baseline", "avx2"), told()[row], strict=True):
        found = apart(processes[name], processes[last], row)
        if cell == SAME:
            assert found == 0.0
        else:
            bound = float(cell.split()[0])
            assert found is not None
            assert bound / 4 <= found <= bound * 4


def test_the_page_has_these_rows() -> None:
    assert list(told()) == list(ROWS)
