"""Programs: what the search makes of a graph, and the counts that describe them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from hag_plugin.kept import Keeper
from hag_plugin.kernels import _cpu
from hag_plugin.modes import Array

SixArrays = tuple[Array, Array, Array, Array, Array, Array]
SelfLoops = Literal[False, "add", "fill"]
SELF_LOOPS: tuple[SelfLoops, ...] = (False, "add", "fill")
METHODS = ("auto", "greedy", "none")


@dataclass(frozen=True)
class Options:
    """What a search was asked for. Kept with the HAG, for its other programs and its transpose.

    `constants` is the digest of the cost constants in force when the HAG was built, empty where
    they don't matter; `choose` is how it chooses among the candidates: see `candidates.CHOOSE`.
    """

    method: str = "auto"
    allow_subtraction: bool = False
    capacity: int | None = None
    width: int = 64
    device: str = "cpu"  # the kind of device that the price is for, "cpu" or "cuda"
    constants: str = ""
    choose: str = "hag"


@dataclass(frozen=True, eq=False)
class Program(Keeper):
    """A list of tiles of ops that computes `y = P x + d x`, where `d` is an integer.

    An op sums (or takes the max or min of) a few rows and writes one. Nothing is shared between
    tiles, so tiles run in any order.

    Attributes:
        arrays: the six arrays below, the program's own, which nobody else may write to.
        num_src: rows of x.
        num_dst: rows of y.
        diagonal: `d`. 1 also stands for "and x itself" in max and min.
        search_seconds: what the search took.
    """

    arrays: tuple[Tensor, ...]
    num_src: int
    num_dst: int
    diagonal: int = 0
    search_seconds: float = 0.0

    @classmethod
    def of(
        cls,
        arrays: Iterable[Tensor],
        num_src: int,
        num_dst: int,
        diagonal: int = 0,
        search_seconds: float = 0.0,
    ) -> Program:
        """The program of the six arrays, in the order of `ARRAYS`, which become its own."""
        return cls(tuple(arrays), num_src, num_dst, diagonal, search_seconds)

    @classmethod
    def of_plain(
        cls,
        arrays: SixArrays,
        num_src: int,
        num_dst: int,
        is_passing: bool = False,
        col: Tensor | None = None,
    ) -> Program:
        """The program of what `_cpu.plain_program` gave, which is not checked again.

        Args:
            arrays: the six.
            num_src: as above.
            num_dst: as above.
            is_passing: it may be run only once.
            col: the graph's, where these are the sources in this order: then they are there once.
        """
        tensors = [*map(torch.from_numpy, arrays)]
        if col is not None:
            tensors[ARRAYS.index("source")] = col
            tensors = [a.to(col.device) for a in tensors]
        program = cls.of(tensors, num_src, num_dst)
        program.__dict__["is_plain"] = True
        if col is not None and col.device.type != "cpu":
            return program
        native = _cpu.Program(*program.numpy(), num_src, num_dst, 0, True, is_passing)
        program.__dict__["native"] = native
        return program

    def timed(self, search_seconds: float) -> Program:
        """The same program, with what its search took."""
        program = replace(self, search_seconds=search_seconds)
        known = {k: v for k, v in self.__dict__.items() if k in ("is_plain", "native")}
        program.__dict__.update(known)
        return program

    @property
    def tile_ptr(self) -> Tensor:
        """The ops of each tile, in an order that may be run, int64 `[T + 1]`: a copy."""
        return self.arrays[0].clone()

    @property
    def op_ptr(self) -> Tensor:
        """The sources of each op, int64 `[O + 1]`: a copy."""
        return self.arrays[1].clone()

    @property
    def source(self) -> Tensor:
        """`s >= 0`: row `s` of x; `s < 0`: row `~s` of the tile's scratch. int32 `[S]`, a copy."""
        return self.arrays[2].clone()

    @property
    def target(self) -> Tensor:
        """Where each op writes, int32 `[O]`: a copy.

        `t < 0`: row `~t` of the tile's scratch; `t < num_dst`: row `t` of y; otherwise row
        `t - num_dst` of the partial sums of long rows.
        """
        return self.arrays[3].clone()

    @property
    def hub_row(self) -> Tensor:
        """The rows of y that are summed from partial sums in a second pass, int32 `[H]`: a copy."""
        return self.arrays[4].clone()

    @property
    def hub_ptr(self) -> Tensor:
        """The partial sums of each of these rows, int64 `[H + 1]`: a copy."""
        return self.arrays[5].clone()

    def numpy(self) -> SixArrays:
        """The arrays in main memory, without a copy where they are there; they can be read only."""
        first, *rest = arrays = [a.cpu().numpy() for a in self.arrays]
        for array in arrays:
            array.setflags(write=False)
        return (first, rest[0], rest[1], rest[2], rest[3], rest[4])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(a.numel() * a.element_size() for a in self.arrays)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Program:
        """The program with its arrays on `device`; itself if they are there."""
        if self.arrays[0].device == torch.device(device):
            return self
        moved = [a.to(device, non_blocking=non_blocking) for a in self.arrays]
        numbers = (self.num_src, self.num_dst, self.diagonal, self.search_seconds)
        return Program.of(moved, *numbers)

    @cached_property
    def is_plain(self) -> bool:
        """Whether it shares no sums: there are no intermediates."""
        return not bool((self.arrays[3] < 0).any())

    @cached_property
    def native(self) -> _cpu.Program:
        """The program as the CPU kernels take it: every index checked, once."""
        return _cpu.Program(*self.numpy(), self.num_src, self.num_dst, self.diagonal)


ARRAYS = ("tile_ptr", "op_ptr", "source", "target", "hub_row", "hub_ptr")
