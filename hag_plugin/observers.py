"""Who is told what the operators ran: nobody, but while `hag_plugin.testing` counts.

What runs a program, walks a tree or searches a program says so when it is done:
`if observers: tell(...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Observer = Callable[[str, str, Any], None]

SEARCH = "search"  # stands for the operator where a program was searched

# Called with what `tell` is given, from whatever thread it is.
observers: list[Observer] = []


def tell(operator: str, reduce: str, program: Any) -> None:
    """Tells all observers what ran.

    Args:
        operator: its name, as in `torch.ops.hag_plugin`, or the function's that walked a tree.
            `SEARCH`: nothing ran.
        reduce: "sum", "mean", "max", "min", or "lstm". Of a search, its method.
        program: what ran: a program, a tree, or the graph where there is no program.
    """
    for observer in tuple(observers):
        observer(operator, reduce, program)


# As `torch.compiler.disable` does, which would import the compiler: it is called, not traced.
tell._torchdynamo_disable = True  # type: ignore[attr-defined]
