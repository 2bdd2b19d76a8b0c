"""Figures with their units, as people read them."""

from __future__ import annotations


def milliseconds(seconds: float) -> str:
    """Three significant figures."""
    return (f"{seconds * 1e3:#.3g}" if 0 < seconds < 1 else f"{seconds * 1e3:.0f}").rstrip(".")


def size(nbytes: float) -> str:
    """In binary units."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    steps = 0
    while nbytes >= 1024 and steps < len(units) - 1:
        nbytes, steps = nbytes / 1024, steps + 1
    return f"{nbytes:.0f} B" if steps == 0 else f"{nbytes:.3g} {units[steps]}"
