"""Ranks that work together: collectives of torch.distributed, and the bytes they send.

The only file of the package that communicates: NCCL on GPUs, gloo on CPUs, nothing of its own
below them. Bytes are counted as `layouts` counts them, what a rank hands to others in a ring, so
that they can be compared with the planner's figures whatever algorithm the backend runs.
"""

from __future__ import annotations

import atexit
import math
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.profiler import record_function
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hag_plugin import devices
from hag_plugin.parallel.layouts import sent_bytes
from hag_plugin.saved import set_module

# torch renamed these two; the old names warn.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


@set_module("hag_plugin.parallel")
class Sent:
    """Bytes that this rank sent, by phase and collective.

    Example:
        >>> sent = Sent()
        >>> sent.add("forward", "all_gather", 12)
        >>> sent["forward"], sent["update"], sent.total
        (12, 0, 12)
    """

    def __init__(self) -> None:
        self.bytes: dict[tuple[str, str], int] = {}

    def add(self, phase: str, collective: str, nbytes: int) -> None:
        """Counts one collective."""
        key = (phase, collective)
        self.bytes[key] = self.bytes.get(key, 0) + nbytes

    def __getitem__(self, phase: str) -> int:
        return sum(n for (p, _), n in self.bytes.items() if p == phase)

    @property
    def phases(self) -> dict[str, int]:
        """Bytes by phase: "forward", "backward", "update" and others that were named."""
        return {phase: self[phase] for phase in dict.fromkeys(p for p, _ in self.bytes)}

    @property
    def total(self) -> int:
        """Bytes in all phases."""
        return sum(self.bytes.values())

    def reset(self) -> None:
        """Starts again from zero."""
        self.bytes.clear()

    def __repr__(self) -> str:
        return f"Sent({self.phases})"


class Begun:
    """A collective that was begun: others may still be sending.

    Args:
        out: what it makes; nothing may read it before `wait`.
        wait: ends when it is made.
        kept: what is sent, which stays until then.
    """

    def __init__(self, out: Tensor, wait: Callable[[], Any], kept: Tensor) -> None:
        self.out, self._wait, self._kept = out, wait, kept

    def wait(self) -> Tensor:
        """What it made."""
        self._wait()
        del self._kept
        self._wait, self._kept = _nothing, self.out
        return self.out

    def then(self, what: Callable[[Tensor], Tensor]) -> Then:
        """Followed by something that is done with it."""
        return Then(self, what)


class Then:
    """A collective that was begun, and what is done with what it makes.

    Args:
        begun: the collective.
        what: done once it is made.
    """

    def __init__(self, begun: Begun, what: Callable[[Tensor], Tensor]) -> None:
        self._begun, self._what = begun, what

    def wait(self) -> Tensor:
        """What is made of it."""
        return self._what(self._begun.wait())


def _nothing() -> None:
    pass


@dataclass(frozen=True, eq=False)
class Group:
    """Ranks that take part in a collective; every one of them must call it, in the same order.

    Attributes:
        ranks: in the world, of its members.
        rank: which member this process is.
        device: where tensors lie.
        sent: what this process sent, in this group and those made from it.
        phase: under which phase everything is counted; None: as the caller says.
        overlaps: whether what is begun goes on while the caller does something else; if not, it
            ends before that.
    """

    ranks: tuple[int, ...]
    rank: int
    device: torch.device
    sent: Sent
    phase: str | None = None
    overlaps: bool = True
    _axis: tuple[DeviceMesh, int] | None = None  # of a grid; None: all ranks
    _grids: dict[int, tuple[DeviceMesh, Group, Group]] = field(default_factory=dict, repr=False)

    @classmethod
    def world(cls, device: torch.device | str | None = None) -> Group:
        """All ranks.

        Args:
            device: by default the current GPU with NCCL, else the CPU.

        Raises:
            RuntimeError: torch.distributed is not initialised.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "torch.distributed is not initialised; expected "
                "torch.distributed.init_process_group('gloo' or 'nccl') before, under torchrun"
            )
        if device is None:
            device = devices.current(devices.kind_with(str(dist.get_backend())))
        ranks = tuple(range(dist.get_world_size()))
        return cls(ranks, dist.get_rank(), torch.device(device), Sent())

    @property
    def process_group(self) -> dist.ProcessGroup:
        """Of torch.distributed, which alone keeps it: see `_let_go`."""
        found = dist.group.WORLD if self._axis is None else self._axis[0].get_group(self._axis[1])
        if found is None:
            raise RuntimeError("torch.distributed was left: its process group is destroyed")
        return found

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.ranks)

    # Groups made from the world ------------------------------------------------------------------

    def neighbours(self, columns: int) -> Group:
        """This rank's group of k neighbours, i*k to i*k+k-1: a row of blocks in a grid.

        The first call for a number makes the groups, on all ranks at once.
        """
        return self._grid(columns)[1]

    def strided(self, columns: int) -> Group:
        """The ranks at the same place in their group of k neighbours: a column of the grid."""
        return self._grid(columns)[2]

    def mesh(self, columns: int = 1) -> DeviceMesh:
        """All ranks for DTensor: "ranks" `[P]`, or "rows" and "columns" `[P/k, k]`."""
        return self._grid(columns)[0]

    def _grid(self, columns: int) -> tuple[DeviceMesh, Group, Group]:
        if columns not in self._grids:
            kind, size = self.device.type, self.size
            if columns < 1 or size % columns:
                raise ValueError(f"{size} ranks make no grid of {columns} columns")
            if columns == 1:
                mesh = _mesh(kind, (size,), ("ranks",))
                alone = replace(self, ranks=(self.ranks[self.rank],), rank=0, _grids={})
                self._grids[1] = mesh, alone, self
            else:
                shape = (size // columns, columns)
                mesh = _mesh(kind, shape, ("rows", "columns"))
                row, column = divmod(self.rank, columns)
                members = (
                    (1, column, self.ranks[row * columns : (row + 1) * columns]),
                    (0, row, self.ranks[column::columns]),
                )
                neighbours, strided = (
                    replace(self, ranks=ranks, rank=at, _axis=(mesh, d), _grids={})
                    for d, at, ranks in members
                )
                self._grids[columns] = mesh, neighbours, strided
        return self._grids[columns]

    def counted_as(self, phase: str) -> Group:
        """The same ranks, with everything counted under one phase."""
        return replace(self, phase=phase)

    # Collectives ---------------------------------------------------------------------------------

    def all_gather(self, x: Tensor, phase: str) -> Tensor:
        """`[n, ...]`, the same shape on every member, to `[P * n, ...]`."""
        return self.begin_all_gather(x, phase, overlaps=False).wait()

    def begin_all_gather(self, x: Tensor, phase: str, overlaps: bool | None = None) -> Begun:
        """Begins `all_gather`; `overlaps` in place of the group's."""
        self._count("all_gather", x, phase)
        if self.size == 1:
            return Begun(x.clone(), _nothing, x)
        out, mine = _empty(x, self.size * x.shape[0]), x.contiguous()

        def call(apart: bool) -> Any:
            return _all_gather(out, mine, group=self.process_group, async_op=apart)

        return self._begun("all_gather", call, out, mine, overlaps)

    def reduce_scatter(self, x: Tensor, phase: str) -> Tensor:
        """`[P * n, ...]` to `[n, ...]`: the sum over members of this one's block."""
        return self.begin_reduce_scatter(x, phase, overlaps=False).wait()

    def begin_reduce_scatter(self, x: Tensor, phase: str, overlaps: bool | None = None) -> Begun:
        """Begins `reduce_scatter`; `overlaps` in place of the group's."""
        out = _empty(x, x.shape[0] // self.size)
        self._count("reduce_scatter", out, phase)
        if self.size == 1:
            return Begun(x.clone(), _nothing, x)
        mine = x.contiguous()

        def call(apart: bool) -> Any:
            return _reduce_scatter(out, mine, group=self.process_group, async_op=apart)

        return self._begun("reduce_scatter", call, out, mine, overlaps)

    def all_reduce(self, x: Tensor, phase: str, reduce: str = "sum") -> Tensor:
        """The sum, "max" or "min" over members, a new tensor on each."""
        self._count("all_reduce", x, phase)
        out = x.clone(memory_format=torch.contiguous_format)
        if self.size > 1 and out.numel():
            op = _REDUCTIONS[reduce]
            self._run("all_reduce", lambda: dist.all_reduce(out, op, group=self.process_group))
        return out

    def all_to_all(
        self,
        x: Tensor,
        send: Sequence[int],
        receive: Sequence[int],
        phase: str,
        collective: str = "all_to_all",
    ) -> Tensor:
        """Rows `[sum(send), ...]`, `send[q]` of them for member q, to `[sum(receive), ...]`.

        Args:
            x: the rows, those for member 0 first.
            send: how many go to each member.
            receive: how many come from each.
            phase: under which it is counted.
            collective: "all_to_all" or "exchange", under which it is counted.
        """
        return self.begin_all_to_all(x, send, receive, phase, collective, overlaps=False).wait()

    def begin_all_to_all(
        self,
        x: Tensor,
        send: Sequence[int],
        receive: Sequence[int],
        phase: str,
        collective: str = "all_to_all",
        overlaps: bool | None = None,
    ) -> Begun:
        """Begins `all_to_all`; `overlaps` in place of the group's."""
        if len(send) != self.size or len(receive) != self.size or sum(send) != x.shape[0]:
            raise ValueError(
                f"x has shape {list(x.shape)}, send is {list(send)} and receive {list(receive)}; "
                f"expected {self.size} counts each, and as many rows as send says"
            )
        width = math.prod(x.shape[1:])
        nbytes = (x.shape[0] - send[self.rank]) * width * x.element_size()
        self.sent.add(self.phase or phase, collective, nbytes)
        if self.size == 1:
            return Begun(x.clone(), _nothing, x)
        out, mine = _empty(x, sum(receive)), x.contiguous()

        def call(apart: bool) -> Any:
            return dist.all_to_all_single(
                out, mine, list(receive), list(send), group=self.process_group, async_op=apart
            )

        return self._begun(collective, call, out, mine, overlaps)

    def begin_sum(self, x: Tensor, phase: str) -> Begun:
        """Begins to sum `x` over members, in its place."""
        self._count("all_reduce", x, phase)
        if self.size == 1 or not x.numel():
            return Begun(x, _nothing, x)

        def call(apart: bool) -> Any:
            return dist.all_reduce(x, group=self.process_group, async_op=apart)

        return self._begun("all_reduce", call, x, x)

    def _begun(
        self, what: str, call: Callable[[bool], Any], out: Tensor, kept: Tensor,
        overlaps: bool | None = None,
    ) -> Begun:  # fmt: skip
        if not (self.overlaps if overlaps is None else overlaps):
            self._run(what, lambda: call(False))
            return Begun(out, _nothing, kept)
        with record_function(f"begin {what}"):
            work = self._run(what, lambda: call(True))

        def wait() -> None:
            with record_function(f"wait for {what}"):
                self._run(what, work.wait)

        return Begun(out, wait, kept)

    def barrier(self) -> None:
        """Waits for all members."""
        self._run("barrier", lambda: dist.barrier(self.process_group))

    def broadcast(self, value: Any) -> Any:
        """Member 0's value, of any kind that can be pickled; not counted."""
        box = [value]
        source = self.ranks[0]
        self._run(
            "broadcast",
            lambda: dist.broadcast_object_list(
                box, source, group=self.process_group, device=self.device
            ),
        )
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """Every member's value, in their order; not counted."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        self._run("collect", lambda: dist.all_gather_object(found, value, group=self.process_group))
        return found

    # Failure -------------------------------------------------------------------------------------

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Work of each rank that all leave with success, or all with an error.

        Inside, a rank must not communicate: it may stop at any point while others go on.

        Args:
            what: is being done, for the error: "setting up the model".

        Raises:
            RuntimeError: this rank was fine, another was not; says which, and its error.
            Exception: this rank's own error.

        Example:
            with group.together("cutting the graph"):
                graph = cut(data)
        """
        error: Exception | None = None
        try:
            yield
        except Exception as e:
            error = e
        said = self.collect(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, words in zip(self.ranks, said, strict=True):
            if words is not None:
                raise RuntimeError(f"{what} failed on rank {rank}: {words}")

    def _run(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as e:  # of the backend: a connection closed, a time limit
            raise RuntimeError(
                f"rank {self.ranks[self.rank]}: {what} among ranks {list(self.ranks)} failed; "
                f"another rank has ended, is elsewhere in the program, or took longer than the "
                f"process group's time limit. The backend says: {e}"
            ) from e

    def _count(self, collective: str, x: Tensor, phase: str) -> None:
        nbytes = x.numel() * x.element_size()
        self.sent.add(self.phase or phase, collective, sent_bytes(collective, nbytes, self.size))


@contextmanager
def session(
    backend: str, meeting: str, rank: int, size: int, timeout: timedelta
) -> Iterator[Group]:
    """All ranks, from when torch.distributed is initialised until it is left.

    Args:
        backend: "gloo" or "nccl".
        meeting: where ranks find each other: "file://..." or "env://" (as torchrun sets it).
        rank: of this process.
        size: how many there are.
        timeout: after which a collective gives up.
    """
    dist.init_process_group(
        backend, init_method=meeting, rank=rank, world_size=size, timeout=timeout
    )
    try:
        yield Group.world()
    finally:
        dist.destroy_process_group()


def _mesh(kind: str, shape: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
    """A mesh that lets go of its process groups before the interpreter ends."""
    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    groups = getattr(mesh, "_pg_registry", None)  # older versions of torch keep names alone
    if groups is not None:
        weakref.finalize(mesh, groups.clear)
    return mesh


@atexit.register
def _let_go() -> None:
    """Ends gloo's threads before the interpreter.

    They run until the last reference to their group is gone, after `destroy_process_group` too;
    one that still has to release a tensor when the interpreter is gone aborts the process.
    torch.distributed.nn, which DTensor imports, keeps the world as a default of its functions.
    """
    module = sys.modules.get("torch.distributed.nn.functional")
    for function in vars(module).values() if module else ():
        defaults = getattr(function, "__defaults__", None)
        if defaults:
            function.__defaults__ = tuple(
                None if isinstance(d, dist.ProcessGroup) else d for d in defaults
            )


def _empty(x: Tensor, rows: int) -> Tensor:
    return torch.empty((rows, *x.shape[1:]), dtype=x.dtype, device=x.device)
