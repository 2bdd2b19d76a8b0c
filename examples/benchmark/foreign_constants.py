"""Cost constants of other machines, to see what choices made by wrong ones lose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hag_plugin.hag import constants
from hag_plugin.hag.rates import DEFAULT, Constants, RowCost

OWN = "own"


def _xeon() -> Constants:
    return DEFAULT


def _epyc() -> Constants:
    """Made up after a machine with AVX2 and a small cache: no measurement."""
    return replace(
        DEFAULT,
        op=3.0 * DEFAULT.op,
        written=2.0 * DEFAULT.written,
        scratch=_times(DEFAULT.scratch, 2.0),
        near=_times(DEFAULT.near, 2.0),
        far=_times(DEFAULT.far, 2.5),
        half=_times(DEFAULT.half, 1.7),
        extremum=_times(DEFAULT.extremum, 5.0),
        memory=2.0 * DEFAULT.memory,
        cache_bytes=512 << 10,
        last_bytes=8 << 20,
    )


def _times(row: RowCost, factor: float) -> RowCost:
    return RowCost(factor * row.fixed, factor * row.per_byte)


FOREIGN: dict[str, Callable[[], Constants]] = {"xeon-avx512": _xeon, "epyc-avx2": _epyc}


def environment(name: str, folder: Path) -> dict[str, str]:
    """The environment variables under which a process goes by these constants.

    Args:
        name: of `FOREIGN`, or "own": those that are in force anyhow.
        folder: where the file that they name is written.
    """
    if name == OWN:
        return {}
    path = folder / f"{name}.json"
    if not path.exists():
        constants.write_constants(path, FOREIGN[name](), {"processor": name})
    return {constants.PATH_VARIABLE: str(path)}
