"""The reducers: the ways to combine the sources of a node. Whoever needs their names asks here."""

from __future__ import annotations

from typing import Literal, get_args

from hag_plugin.kernels import _cpu

Reduce = Literal["sum", "mean", "max", "min"]
REDUCES: tuple[Reduce, ...] = get_args(Reduce)

# Those that are linear in the features: sums, which take scales and weights.
LINEAR: tuple[Reduce, ...] = ("sum", "mean")

# As kernels number them; a mean is a sum whose targets are scaled.
CODES = {name: code for code, name in enumerate(_cpu.reducers())}
