"""The reverse of a HAG in code that `torch.compile` traces, where nothing can be made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag import HAG
from hag_plugin.program import Array, Program, SelfLoops


class ReversedHAG(HAG):
    """The reverse of a HAG, told by the arrays of that HAG.

    `HAG.transpose` gives it while code is traced. Operators turn the graph round when they run,
    and the HAG keeps what they make. Where it leaves the traced code, it works all the same.

    Attributes:
        arrays: of the HAG itself, not of its reverse; so are `row_ptr` and `col`.
        num_src: of the reverse.
    """

    is_reversed = True

    def __init__(self, hag: HAG) -> None:
        """Takes a HAG that is not reversed."""
        self.arrays = hag.arrays
        self.num_src = hag.num_dst
        self.targets_first = hag.targets_first
        self.options = hag.options
        self._of = hag
        self._handed_over = None

    @property
    def num_dst(self) -> int:
        """Number of target nodes, which are the HAG's sources."""
        return self._of.num_src

    @property
    def edge_index(self) -> Tensor:
        """The edges as int64 `[2, E]`, by source, then by target."""
        return self._of.edge_index.flip(0)

    def _ends(self) -> tuple[Tensor, Tensor]:
        source, target = self._of._ends()
        return target, source

    def degree(self, self_loops: SelfLoops = False) -> Tensor:
        """As `HAG.degree`."""
        self_loops = self._check_self_loops(self_loops)
        source, target = self.edge_index
        degree: Tensor = target.new_zeros(self.num_dst)
        counted = torch.ones_like(target)
        if self_loops == "fill":
            counted = (source != target).long()
        degree = degree.index_add(0, target, counted)
        return degree if self_loops is False else degree.add(1)

    def transpose(self) -> HAG:
        """The HAG that this is the reverse of."""
        return self._of

    # Outside of traced code ------------------------------------------------------------------

    def _made(self) -> HAG:
        made = self._of.transpose()
        if isinstance(made, ReversedHAG):
            raise RuntimeError("the reverse of a HAG has no programs inside torch.compile")
        return made

    def numpy(self) -> tuple[Array, Array]:
        """As `HAG.numpy`."""
        return self._made().numpy()

    @property
    def is_symmetric(self) -> bool:
        """Whether every edge has its reverse, with the same multiplicity."""
        return self._of.is_symmetric

    def degree_scale(
        self, exponent: float, self_loops: SelfLoops = False, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """As `HAG.degree_scale`."""
        return self._made().degree_scale(exponent, self_loops, dtype)

    def _kept_scale(self, exponent: float, self_loops: SelfLoops, dtype: torch.dtype) -> Tensor:
        return self._made()._kept_scale(exponent, self_loops, dtype)

    def program(
        self,
        self_loops: SelfLoops = False,
        *,
        idempotent: bool = False,
        progress: bool | None = None,
    ) -> Program:
        """As `HAG.program`."""
        return self._made().program(self_loops, idempotent=idempotent, progress=progress)

    def plain_program(self, self_loops: SelfLoops = False, *, idempotent: bool = False) -> Program:
        """As `HAG.plain_program`."""
        return self._made().plain_program(self_loops, idempotent=idempotent)

    def check(self, edge_index: Tensor, self_loops: SelfLoops | None = None) -> None:
        """As `HAG.check`."""
        self._made().check(edge_index, self_loops)

    def _state(self) -> dict[str, Any]:
        return self._made()._state()

    def __repr__(self) -> str:
        return f"ReversedHAG({self._of!r})"
