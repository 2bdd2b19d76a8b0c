"""`HAG`: a graph in canonical form with the programs that aggregate over it."""

from __future__ import annotations

import functools
import itertools
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from multiprocessing.context import get_spawning_popen
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hag_plugin import devices
from hag_plugin.arguments import (
    brief,
    check_choice,
    check_flag,
    check_floating,
    check_optional_flag,
    check_path,
    items,
    whole,
)
from hag_plugin.devices import KINDS
from hag_plugin.hag import concatenate, files, samples, search, seconds
from hag_plugin.hag import copies as shared_copies
from hag_plugin.hag import state as kept_state
from hag_plugin.hag.candidates import (
    PLAIN,
    REORDERED,
    SHARED,
    Choice,
    Table,
    arithmetic_of,
    bytes_of_a_row,
    how_to_choose,
    total,
)
from hag_plugin.hag.copies import Copies
from hag_plugin.hag.gpu import timing
from hag_plugin.hag.gpu.memory import DeviceBytes, device_bytes
from hag_plugin.hag.gpu.schedule import give_schedule, schedule_of
from hag_plugin.hag.graph import (
    MAX_NODES,
    Arrays,
    Graph,
    Order,
    canonical_graph,
    check_arrays,
    with_own_loops,
)
from hag_plugin.hag.graph_set import (
    ASYMMETRIC,
    DUPLICATES,
    EMPTY_ROWS,
    LOOPS,
    GraphSet,
    Places,
)
from hag_plugin.hag.program import ARRAYS, METHODS, SELF_LOOPS, Options, Program, SelfLoops
from hag_plugin.hag.stats import Stats, program_stats
from hag_plugin.kernels import _cpu
from hag_plugin.modes import Array, has_ranks, outside_inference
from hag_plugin.notebook import html_table
from hag_plugin.saved import set_module

# Pickles of these protocols, which processes send each other (torch.save takes an older one), hold
# up to so many bytes themselves: memory that is shared costs a file for each tensor. There numbers
# are as short as they can be.
_INLINE_PROTOCOL, _INLINE_BYTES = 4, 1 << 18
_SHORT = (np.int8, np.int16, np.int32, np.int64)

_LIVE: weakref.WeakValueDictionary[int, HAG] = weakref.WeakValueDictionary()  # by token


def find(row_ptr: Tensor, col: Tensor, token: Tensor | None) -> HAG | None:
    """The live HAG of a token, if these are its arrays or hold the same; otherwise None.

    The arrays say what the graph is, the token only which HAG may stand for it. In place of `col`
    there may be an edge index (see `EdgeHAG`).
    """
    hag = None if token is None else _LIVE.get(int(token))
    if hag is None:
        return None
    own = hag.arrays
    if col.dim() == 2:  # edges, whose token was given out when this code began to run
        return hag if row_ptr.shape == own.row_ptr.shape and col.shape[1] == len(own.col) else None
    return hag if _same(row_ptr, own.row_ptr) and _same(col, own.col) else None


def _same(given: Tensor, own: Tensor) -> bool:
    if given is own:
        return True
    if given.dtype != own.dtype or given.shape != own.shape or given.device != own.device:
        return False
    # A live HAG's memory is its own: who has the address has the array.
    at_own = given.data_ptr() == own.data_ptr() and given.stride() == own.stride()
    return at_own or torch.equal(given, own)


ACROSS_COPIES = "; nodes that are copies have the same features, whose sums are shared"

Token = tuple[int, Tensor]  # a number of a HAG's own, and a tensor that holds it


def _new_tokens(count: int) -> Iterator[Token]:
    numbers = [secrets.randbits(63) for _ in range(count)]
    with outside_inference():
        made = torch.tensor(numbers if count > 1 else numbers[0], dtype=torch.int64, device="cpu")
    return zip(numbers, made.unbind() if count > 1 else (made,), strict=True)


class Chosen(NamedTuple):
    """A program that runs, and what is to be said of why: empty where there was no choice."""

    program: Program
    why: str


@set_module("hag_plugin")
class HAG(Graph):
    """A graph in canonical form (CSR by target, multiplicity kept) and its programs.

    Made by `build_hag`, `HAG.load` and `batch`. Immutable to its users; programs are built when
    first needed and kept. Stands where PyG takes an `edge_index`.

    Attributes:
        arrays: the graph's own, which nobody else may write to.
        num_src: number of source nodes.
        targets_first: the targets are the first `num_dst` sources (PyG's bipartite convention).
        options: what the search was asked for.
        is_reversed: whether the arrays are those of the reverse: see `ReversedHAG`.
        is_looped: whether the edges are those of the arrays but for loops: see `LoopedHAG`.
        is_unread: whether the host has read nothing of it, and shall not wait for that: see
            `DeviceHAG`.
        copies: which sources are copies of others, where that is known.
    """

    copies: Copies | None = None
    is_reversed = False
    is_looped = False
    is_unread = False
    _places: Places | None = None  # where its graphs are kept, if they are in sets

    def __init__(
        self,
        row_ptr: Tensor,
        col: Tensor,
        num_src: int,
        *,
        options: Options | None = None,
        targets_first: bool = False,
        symmetric: bool | None = None,
        parts: Sequence[HAG] = (),
        places: Places | None = None,
        token: Token | None = None,
        owned: bool = False,
        reverse: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Users call `build_hag` or `HAG.from_csr`.

        The arrays are copied and checked, unless they are `owned`: then they were checked, and
        nobody else has them; so it is with those of the `reverse`, where they are known.
        """
        number, tensor = token or next(_new_tokens(1))
        super().__init__(
            row_ptr,
            col,
            num_src,
            token=tensor,
            targets_first=targets_first,
            symmetric=symmetric,
            owned=owned,
        )
        self.options = options or Options()
        self._parts = tuple(parts)
        self._places = places
        self._programs: dict[tuple[SelfLoops, bool], Program] = {}
        self._tables: dict[tuple[SelfLoops, bool], Table] = {}  # by key, where there is a choice
        # By the request, not its key: what runs, for each width and dtype, and what ran last.
        self._chosen: dict[tuple[SelfLoops, bool, int, torch.dtype], Chosen] = {}
        self._ran: dict[tuple[SelfLoops, bool], Chosen] = {}
        self._transpose: HAG | weakref.ref[HAG] | None = None
        self._reverse = reverse  # its arrays, until it is made
        self._handed_over: Any = None  # what new processes were given
        self._lock = threading.RLock()
        _LIVE[number] = self

    @classmethod
    def from_csr(cls, row_ptr: Tensor, col: Tensor, num_src: int, method: str = "auto") -> HAG:
        """A HAG of a graph that is already in canonical form. The arrays are copied.

        Args:
            row_ptr: int64 `[num_dst + 1]`.
            col: int32 `[E]`, increasing inside a row, on the same device.
            num_src: number of source nodes.
            method: as for `build_hag`.

        Raises:
            TypeError: an array is no dense tensor of this dtype.
            ValueError: the arrays are not a canonical CSR of `num_src` sources, or on two devices.
        """
        check_choice("method", method, METHODS)
        options = Options(method=method, choose=how_to_choose(None, method))
        return cls(row_ptr, col, num_src, options=options)

    @property
    def method(self) -> str:
        """The search method: "auto", "greedy" or "none"."""
        return self.options.method

    def _made(self) -> HAG:
        """The graph as a HAG that has its own arrays: see `StandIn`."""
        return self

    # Programs -------------------------------------------------------------------------------

    def program(
        self,
        self_loops: SelfLoops = False,
        *,
        idempotent: bool = False,
        progress: bool | None = None,
    ) -> Program:
        """The program for a self-loop mode, built if it is not there yet.

        Args:
            self_loops: False, "add" (A + I) or "fill" (exactly one loop a node).
            idempotent: for max and min: without subtraction, duplicates once.
            progress: show a bar; by default if the search takes more than two seconds.
        """
        self_loops = self.check_self_loops(self_loops)
        check_flag("idempotent", idempotent)
        check_optional_flag("progress", progress)
        key = self._program_key(self_loops, idempotent)
        found = self._programs.get(key)
        if found is not None:
            return found
        with self._lock:
            if key not in self._programs:
                with outside_inference():
                    made = self._make_program(*key, progress)
                    table = self._make_table(*key, made)
                if table is not None:
                    self._tables[key] = table
                assert made.program is not None
                self._programs[key] = made.program
            return self._programs[key]

    def prepare(
        self,
        modes: Sequence[SelfLoops],
        *,
        transpose: bool = False,
        progress: bool | None = None,
    ) -> None:
        """Searches now what is searched when it is first needed.

        Args:
            modes: of self-loops, whose programs to search.
            transpose: those of the reversed graph, too.
            progress: as for `program`.
        """
        modes = items("modes", modes)
        for mode in modes:
            check_choice("modes", mode, SELF_LOOPS)
            self.check_self_loops(mode)
        check_flag("transpose", transpose)
        check_optional_flag("progress", progress)
        if self._places is None:
            for hag in (self, self.transpose()) if transpose else (self,):
                for mode in modes:
                    hag.program(mode, progress=progress)
            return
        for each in self._places.sets:
            each.prepare(modes, transpose)

    def _program_key(self, self_loops: SelfLoops, idempotent: bool) -> tuple[SelfLoops, bool]:
        """One key for requests that come to the same program."""
        if self_loops == "fill" and self.loops is None:
            self_loops = "add"
        if idempotent and self_loops == "add" and self.loops is not None:
            self_loops = "fill"
        subtracts = self_loops is False and self.options.allow_subtraction
        return self_loops, idempotent and (subtracts or self.has_duplicates)

    def _make_program(
        self, self_loops: SelfLoops, idempotent: bool, progress: bool | None
    ) -> search.Found:
        if self._places is not None:
            key = self._key_in_sets(self_loops, idempotent)
            return search.Found(self._places.program(key, self.num_src), None, 0.0)
        if self._parts:
            parts = [part.program(self_loops, idempotent=idempotent) for part in self._parts]
            program = concatenate.concatenate_programs(parts).to(self.device)
            return search.Found(program, None, 0.0)
        return search.search_program(self, self.options, self_loops, idempotent, progress)

    def _keys(self) -> set[tuple[SelfLoops, bool]]:
        """Of the programs that are there."""
        keys = set(self._programs)
        if self._places is not None:
            for request in itertools.product(SELF_LOOPS, (False, True)):
                key = self._program_key(*request)
                if all(s.has(self._key_in_sets(*key)) for s in self._places.sets):
                    keys.add(key)
        return keys

    def _key_in_sets(self, self_loops: SelfLoops, idempotent: bool) -> tuple[SelfLoops, bool]:
        # The other graphs of a set may have loops: there "add" and "fill" are two programs.
        is_filled = self_loops == "add" and self.loops is None
        return "fill" if is_filled else self_loops, idempotent

    def _make_table(
        self, self_loops: SelfLoops, idempotent: bool, found: search.Found
    ) -> Table | None:
        """The seconds of the candidates, where there is more than one and they are compared."""
        assert found.program is not None
        if self.options.choose not in ("measure", "model") or self._parts or found.program.is_plain:
            return None
        if self._places is not None:
            return self._places.table(self._key_in_sets(self_loops, idempotent))
        if KINDS[self.options.device].launches is not None:
            return self._timed_on_device(self_loops, idempotent, found.program)
        budget = 0.0
        if self.options.choose == "measure" and _may_measure():
            budget = seconds.seconds_to_choose(found.seconds)
        matrix = self_loops, idempotent
        made: dict[str, Program] = {SHARED: found.program}

        def candidate(name: str) -> Program:
            if name not in made:
                order = found.order if name == REORDERED else None
                made[name] = search.plain_program(self, *matrix, order)
            return made[name]

        table = seconds.table_of(self, *matrix, found, candidate, budget)
        fastest = table.fastest(False) | table.fastest(True)
        for name in fastest & made.keys() - {SHARED}:
            self.kept(_kept_as(name, matrix), functools.partial(made.__getitem__, name))
        return table

    def _timed_on_device(
        self, self_loops: SelfLoops, idempotent: bool, program: Program
    ) -> Table | None:
        """The table of a device that runs launches; None where the search has chosen by the
        model."""
        kind = self.options.device
        if self.options.choose != "measure" or not timing.can_time(kind):
            return None
        plain = self.plain_program(self_loops, idempotent=idempotent)
        return timing.table_of({PLAIN: plain, SHARED: program}, devices.current(KINDS[kind]))

    def _table(self, key: tuple[SelfLoops, bool]) -> Table | None:
        if key not in self._tables and self._parts:
            for part in self._parts:
                part.program(key[0], idempotent=key[1])
            of_parts = (part._table(part._program_key(*key)) for part in self._parts)
            tables = [table for table in of_parts if table is not None]
            if tables:
                self._tables[key] = total(tables)
        return self._tables.get(key)

    def choice(
        self,
        width: int | None = None,
        dtype: torch.dtype = torch.float32,
        self_loops: SelfLoops = False,
        *,
        idempotent: bool = False,
    ) -> Choice:
        """Which of the candidates an aggregation of features runs, why, and what each takes.

        Args:
            width: of the features; by default the width that the HAG was built for.
            dtype: of the features.
            self_loops: as for `program`.
            idempotent: as for `program`.
        """
        width = self.options.width if width is None else whole("width", width, 0, MAX_NODES)
        check_floating("dtype", dtype)
        program = self.program(self_loops, idempotent=idempotent)
        how = self.options.choose
        if self.options.method == "none" or how == "plain":
            return Choice(PLAIN, "plain")
        if program.is_plain:
            return Choice(PLAIN, "search")
        if how == "hag":
            return Choice(SHARED, "hag")
        table = self._table(self._program_key(self_loops, idempotent))
        if table is None or not self._is_at_home:
            return Choice(SHARED, "search")
        return table.choose(arithmetic_of(dtype, idempotent), bytes_of_a_row(width, dtype))

    @property
    def _is_at_home(self) -> bool:
        """Whether it is on the kind of device that it was built for, whose seconds it knows."""
        here, built_for = devices.kind_of(self.device), KINDS[self.options.device]
        return (here.launches is None) == (built_for.launches is None)

    def candidates(
        self, self_loops: SelfLoops = False, *, idempotent: bool = False
    ) -> dict[str, Program]:
        """All programs that may run for a matrix, by the names that `choice` gives."""
        program = self.program(self_loops, idempotent=idempotent)
        key = self._program_key(self_loops, idempotent)
        if program.is_plain:
            return {PLAIN: program}
        table = self._tables.get(key)
        names = {PLAIN, SHARED, *(table.names if table else ())}
        return {name: self._candidate(name, key) for name in sorted(names)}

    def _candidate(self, name: str, key: tuple[SelfLoops, bool]) -> Program:
        program = self._programs[key]
        if name == SHARED or program.is_plain:
            return program
        if name == PLAIN:
            return self.plain_program(key[0], idempotent=key[1])
        make = lambda: search.plain_program(self, *key, samples.order_of(program))  # noqa: E731
        return self.kept(_kept_as(REORDERED, key), make)

    def chosen_across_copies(
        self, self_loops: SelfLoops, idempotent: bool, x: Tensor, source_scale: Tensor | None
    ) -> Program:
        """The same for values alone, not for who holds them: where sources are copies of others, it
        goes by whether these have the same features, too."""
        if self.copies is not None:
            program = self.copies.program(self, self_loops, idempotent, x, source_scale)
            if program is not None:
                self._ran[self_loops, idempotent] = Chosen(program, ACROSS_COPIES)
                return program
        return self.chosen(self_loops, idempotent, x)

    def chosen(self, self_loops: SelfLoops, idempotent: bool, x: Tensor) -> Program:
        """The program that an aggregation of features `x` runs: for every call the same."""
        request = self_loops, idempotent, x.shape[-1], x.dtype
        found = self._chosen.get(request)
        if found is None:
            choice = self.choice(request[2], x.dtype, self_loops, idempotent=idempotent)
            program = self._candidate(choice.name, self._program_key(self_loops, idempotent))
            why = f"; {choice}" if choice.seconds else ""
            found = self._chosen[request] = Chosen(program, why)
        self._ran[self_loops, idempotent] = found
        return found.program

    def copies_mode(self, self_loops: SelfLoops) -> SelfLoops:
        """One mode for those that are the same matrix."""
        return self._program_key(self_loops, False)[0]

    def ran(self, self_loops: SelfLoops, idempotent: bool) -> Chosen | None:
        """What the last aggregation ran, and why in words.

        If there was none: what any would run; None where that is not known yet.
        """
        found = self._ran.get((self_loops, idempotent))
        if found is not None:
            return found
        key = self._program_key(self_loops, idempotent)
        if key not in self._programs:
            if torch.compiler.is_compiling() or key not in self._keys():
                return None
            self.program(self_loops, idempotent=idempotent)  # searched, and not made yet
        table = self._table(key)
        if table is None or len(table.fastest(idempotent)) == 1:
            choice = self.choice(self_loops=self_loops, idempotent=idempotent)
        else:
            return None
        return Chosen(self._candidate(choice.name, key), "")

    def plain_program(self, self_loops: SelfLoops = False, *, idempotent: bool = False) -> Program:
        """The program without intermediates: who is a source of whom, in increasing order. Kept.

        Duplicates are kept, too, unless it is `idempotent`.
        """
        self_loops = self.check_self_loops(self_loops)
        check_flag("idempotent", idempotent)
        make = lambda: self._make_plain(self_loops, idempotent)  # noqa: E731
        return self.kept(_kept_as(PLAIN, (self_loops, idempotent)), make)

    def _make_plain(self, self_loops: SelfLoops, idempotent: bool) -> Program:
        return search.plain_program(self, self_loops, idempotent)

    def transpose(self) -> HAG:
        """The HAG of the reversed edges, with its own tiles; itself where the graph is symmetric.

        Symmetric means that the multiset of edges is its own reverse; this is checked.
        """
        if torch.compiler.is_compiling():
            return ReversedHAG(self)
        with self._lock:
            kept = self._transpose
            kept = kept() if isinstance(kept, weakref.ref) else kept
            if kept is None:
                with outside_inference():
                    kept = self._make_transpose()
                self._transpose = kept if kept is not self else weakref.ref(self)
            return kept

    @property
    def reverse_addresses(self) -> tuple[int, int]:
        """Where the arrays of the reversed edges are: no HAG is made of them for that."""
        arrays = self._reverse  # the transpose has them once it is made
        if arrays is None:
            return self.transpose().addresses
        return arrays[0].data_ptr(), arrays[1].data_ptr()

    def _make_transpose(self) -> HAG:
        arrays, symmetric = self._reverse, None  # known: then nobody asks whether it is the graph
        if arrays is None:
            if self.is_symmetric:
                return self
            symmetric = False
        if self._places is not None:
            reverse = hag_of(self._places.transposed(), self.options)
        elif self._parts:
            reverse = batch([part.transpose() for part in self._parts]).to(self.device)
        else:
            if arrays is None:
                matrix = (*self.numpy(), self.num_src, torch.get_num_threads())
                row_ptr, col = map(torch.from_numpy, _cpu.transpose_csr(*matrix))
                arrays = row_ptr.to(self.device), col.to(self.device)
            reverse = type(self)(
                *arrays,
                self.num_dst,
                options=self.options,
                targets_first=self.targets_first,
                symmetric=symmetric,
                owned=True,
            )
            self._reverse = None
        reverse._transpose = weakref.ref(self)
        return reverse

    def stats(self, self_loops: SelfLoops = False, *, idempotent: bool = False) -> Stats:
        """Counts of the program for `self_loops` beside those of the plain graph."""
        program = self.program(self_loops, idempotent=idempotent)
        choice = self.choice(self_loops=self_loops, idempotent=idempotent)
        gpu_bytes = self._device_bytes() if self._is_for_launches else None
        return program_stats(self, self.options, self_loops, program, choice, gpu_bytes)

    @property
    def _is_for_launches(self) -> bool:
        """Whether it is on a device that runs launches, or was built for one."""
        kinds = devices.kind_of(self.device), KINDS[self.options.device]
        return any(kind.launches is not None for kind in kinds)

    def _device_bytes(self) -> DeviceBytes:
        hag = self._made()
        hag._concatenate()
        reverse = hag._transpose
        graphs = [hag, reverse] if isinstance(reverse, HAG) else [hag]
        programs = [program for each in graphs for program in each._programs.values()]
        with outside_inference():
            return device_bytes(graphs, programs, hag._make_plain(False, False))

    def check(self, edge_index: Tensor, self_loops: SelfLoops | None = None) -> None:
        """Expands the programs and compares them with the edges given, exactly.

        Args:
            edge_index: `[2, E]`, in any order.
            self_loops: the mode whose program to check. By default every program built so far,
                and that of the graph as given.

        Raises:
            ValueError: names the first row and source that differ, with the number of edges
                expected and found.
        """
        row_ptr, col = canonical_graph(edge_index, self.num_src, self.num_dst)
        if self_loops is not None:
            self_loops = self.check_self_loops(self_loops)
        keys = {self._program_key(m, i) for m in (self_loops or False,) for i in (False, True)}
        if self_loops is None:
            keys |= self._keys()
        for mode, idempotent in sorted(keys, key=str):
            program = self.program(mode, idempotent=idempotent)
            graph = row_ptr, col, mode or "", idempotent, torch.get_num_threads()
            try:
                _cpu.check_program(program.native, *graph)
            except ValueError as e:
                raise ValueError(f"edge_index holds other edges: {e}") from e

    # Moving and keeping ---------------------------------------------------------------------

    def to(self, device: torch.device | str | int, non_blocking: bool = False, **_: Any) -> HAG:
        """The HAG with its arrays and programs on `device`; itself if they are there.

        On a GPU with all that its first aggregations would wait for. With `non_blocking`, of a HAG
        in page-locked memory, the host does not wait for the copies.
        """
        device = devices.checked(device)
        if device == self.device or (device.type == self.device.type and device.index is None):
            return self
        move = lambda a: a.to(device, non_blocking=non_blocking)  # noqa: E731
        if devices.kind_of(device).launches is None:
            return self._moved(move)
        moved = self._moved_to_launch(move)
        moved._make_candidates()
        return moved

    def _moved_to_launch(self, move: Callable[[Tensor], Tensor]) -> HAG:
        """The HAG where launches run, or on the way there, with what these would wait for."""
        moved = self._moved(move)
        self._tell(moved, move)
        return moved

    def _tell(self, moved: HAG, move: Callable[[Tensor], Tensor]) -> None:
        """Tells a HAG that was moved what is known of this one, with its schedules."""
        asked = {"loops"} if any(mode for mode, _ in moved._programs) else set()
        for name in ("has_duplicates", "has_empty_rows", "loops"):
            if name in self.__dict__ or name in asked:
                known = getattr(self, name)
                moved.__dict__[name] = move(known) if isinstance(known, Tensor) else known
        for key, program in moved._programs.items():
            give_schedule(self._programs[key], program, move)
        if isinstance(self._transpose, HAG) and isinstance(moved._transpose, HAG):
            self._transpose._tell(moved._transpose, move)

    def _make_candidates(self) -> None:
        """Makes the schedules of plain graphs that run in place of their programs."""
        for key in self._programs if self._is_at_home else ():
            table = self._tables.get(key)
            for name in table.fastest(key[1]) if table else ():
                schedule_of(self._candidate(name, key))
        if isinstance(self._transpose, HAG):
            self._transpose._make_candidates()

    def cpu(self) -> HAG:
        """The HAG in main memory."""
        return self.to("cpu")

    def cuda(self, device: int | str | None = None, non_blocking: bool = False) -> HAG:
        """The HAG on a GPU."""
        return self.to("cuda" if device is None else device, non_blocking=non_blocking)

    def pin_memory(self) -> HAG:
        """The HAG in page-locked memory, with the schedules that it takes to a GPU."""
        return self._moved_to_launch(lambda a: a.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> HAG:
        moved: dict[Tensor, Tensor] = {}  # what is there once stays so

        def once(array: Tensor) -> Tensor:
            if array not in moved:
                moved[array] = move(array)
            return moved[array]

        return _rebuild(_mapped(self._state(), once), verify=False, copy=False)

    def _state(self) -> dict[str, Any]:
        """Tensors, numbers and strings that make this HAG again (pickle, files, devices)."""
        self._concatenate()
        reverse = self._transpose
        if reverse is None or isinstance(reverse, weakref.ref):
            reverse_state = None
        else:
            reverse_state = reverse._state()
        programs = []
        for (self_loops, idempotent), program in self._programs.items():
            meta: dict[str, Any] = {"self_loops": self_loops or "", "idempotent": idempotent}
            meta |= {"diagonal": program.diagonal, "search_seconds": program.search_seconds}
            table = self._table((self_loops, idempotent))
            meta["table"] = None if table is None else table.state()
            programs.append(meta | dict(zip(ARRAYS, program.arrays, strict=True)))
        return {
            "row_ptr": self.arrays.row_ptr,
            "col": self.arrays.col,
            "num_src": self.num_src,
            "targets_first": self.targets_first,
            "symmetric": self._symmetric,
            "options": asdict(self.options),
            "programs": programs,
            "transpose": reverse_state,
            "copies": None if self.copies is None else self.copies.state(),
        }

    def _concatenate(self) -> None:
        """Makes what all parts of a batch have: they do not travel with it."""
        if self._places is not None:
            for mode, idempotent in self._keys():
                self.program(mode, idempotent=idempotent)
            if all(s.is_turned for s in self._places.sets):
                self.transpose()
            return
        if not self._parts:
            return
        square = all(part.is_square for part in self._parts)
        for mode, idempotent in itertools.product(
            SELF_LOOPS if square else (False,), (False, True)
        ):
            if all(p._program_key(mode, idempotent) in p._programs for p in self._parts):
                self.program(mode, idempotent=idempotent)
        if all(p._symmetric or isinstance(p._transpose, HAG) for p in self._parts):
            self.transpose()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies: what goes to another process moves into memory that both have.
        spawns = get_spawning_popen() is not None
        if spawns and self._handed_over is not None:
            return self._handed_over
        if self._places is not None and self.copies is None:
            reduced: Any = rebuild_batch, pack(self._places, protocol)
        else:
            reduced = rebuild_hag, (_mapped(self._state(), Tensor.clone),)
        # A process that is started finds tensors by their files, which must stay until it has.
        if spawns:
            self._handed_over = reduced
        return reduced

    def __copy__(self) -> HAG:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> HAG:
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the graph and the programs built so far: arrays and a header, never a pickle.

        The file appears whole or not at all.
        """
        check_path("path", path)
        files.write(path, self._state(), self.content_hash)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> HAG:
        """Reads a file that `save` wrote, in this version of the package or an earlier one.

        Args:
            path: of the file.
            verify: check everything in it, exactly: the graph, that each program is the graph's,
                the reverse, the options. False: for files that nobody else can have written. Then
                only checksums and the kinds of things are checked, and a wrong file may crash the
                process.

        Raises:
            OSError: the file can't be opened or read.
            ValueError: it is damaged, is no HAG file or is of a version to come.
        """
        check_path("path", path)
        check_flag("verify", verify)
        state, content_hash = files.read(path)
        try:
            hag = _rebuild(state, verify=verify, copy=False)
        except (TypeError, ValueError, RecursionError) as e:
            raise ValueError(f"{os.fspath(path)} does not hold a valid HAG: {e}") from e
        if verify and hag.content_hash != content_hash:
            raise ValueError(
                f"{os.fspath(path)} holds edges with hash {hag.content_hash}; its header says "
                f"{content_hash}"
            )
        return hag

    def _take_program(self, entry: Any, verify: bool, copy: bool) -> None:
        """Takes a program that `_state` gave."""
        key = kept_state.key_of(entry)
        diagonal = kept_state.entry(entry, "diagonal", int)
        seconds = kept_state.seconds_of(entry)
        arrays = kept_state.arrays_of(entry, copy)
        program = Program.of(arrays, self.num_src, self.num_dst, diagonal, seconds)
        if verify:
            self._check_program(key, program)
        self._programs[key] = program
        if entry.get("table") is not None:  # earlier versions had none
            self._tables[key] = Table.of(entry["table"])

    def _check_program(self, key: tuple[SelfLoops, bool], program: Program) -> None:
        """Raises unless a program may stand under this key."""
        if key != self._program_key(self.check_self_loops(key[0]), key[1]) or key in self._programs:
            raise ValueError(f"there is a program for {key}, which is no key here, or there twice")
        subtracts = self.options.allow_subtraction and key == (False, False)
        if program.diagonal not in ((0, -1) if subtracts else (0,)):
            raise ValueError(f"the program for {key} has diagonal {program.diagonal}")
        _cpu.check_program(
            program.native, *self.numpy(), key[0] or "", key[1], torch.get_num_threads()
        )

    # Standing where an edge_index stands ----------------------------------------------------

    def flip(self, dims: int | Sequence[int]) -> HAG:
        """The reversed graph, as `edge_index.flip([0])` gives it."""
        given = dims if isinstance(dims, (list, tuple)) else (dims,)
        if len(given) != 1 or type(given[0]) is not int or given[0] not in (0, -2):
            raise ValueError(f"dims is {brief(dims)}; a HAG can be flipped in dimension 0 "
                             "(direction) only")  # fmt: skip
        return self.transpose()

    def __getitem__(self, index: Any) -> Tensor:
        return self.edge_index[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.edge_index)

    def size(self, dim: int | None = None) -> torch.Size | int:
        """The size of the edge index, `[2, E]`."""
        shape = torch.Size([2, self.num_edges])
        return shape if dim is None else shape[whole("dim", dim, -2, 1)]

    def __getattr__(self, name: str) -> Any:
        """Says what to do where code looks for a method of a tensor."""
        words = f"{type(self).__name__!r} object has no attribute {name!r}"
        if not name.startswith("_") and hasattr(Tensor, name):
            words += (
                ". A HAG stands for an edge_index that is handed on to layers; pass "
                "hag.edge_index, or edge_index itself, to code that looks into it"
            )
        raise AttributeError(words)

    def _programs_in_words(self) -> str:
        """Of which matrices there are programs, in words."""
        return ", ".join(
            ("A", "A + I", "A with one loop each")[SELF_LOOPS.index(mode)] + " (max, min)" * only
            for mode, only in sorted(self._keys(), key=str)
        )

    def __repr__(self) -> str:
        return (
            f"HAG({self.num_src} -> {self.num_dst} nodes, {self.num_edges} edges, "
            f"method={self.method!r}, programs=[{self._programs_in_words()}], "
            f"device={str(self.device)!r})"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("HAG", ""),
            ("nodes", f"{self.num_src:,} -> {self.num_dst:,}"),
            ("edges", f"{self.num_edges:,}"),
            ("method", self.method),
            ("programs", self._programs_in_words() or "made when they are needed"),
            ("device", str(self.device)),
        ]
        return html_table(rows, words=2)


class StandIn(HAG):
    """A HAG in code that `torch.compile` traces, where nothing can be made.

    It is told by arrays. Operators find or make what they need when they run. Where it leaves the
    traced code, it works all the same.
    """

    @property
    def edge_index(self) -> Tensor:
        """The edges as int64 `[2, E]`, in any order."""
        raise NotImplementedError

    def degree(self, self_loops: SelfLoops = False) -> Tensor:
        """As `HAG.degree`."""
        self_loops = self.check_self_loops(self_loops)
        source, target = self.edge_index
        degree: Tensor = target.new_zeros(self.num_dst)
        counted = torch.ones_like(target)
        if self_loops == "fill":
            counted = (source != target).long()
        degree = degree.index_add(0, target, counted)
        return degree if self_loops is False else degree + self.looped(degree.device)

    # Outside of traced code ------------------------------------------------------------------

    def choice(
        self,
        width: int | None = None,
        dtype: torch.dtype = torch.float32,
        self_loops: SelfLoops = False,
        *,
        idempotent: bool = False,
    ) -> Choice:
        """As `HAG.choice`."""
        return self._made().choice(width, dtype, self_loops, idempotent=idempotent)

    def candidates(
        self, self_loops: SelfLoops = False, *, idempotent: bool = False
    ) -> dict[str, Program]:
        """As `HAG.candidates`."""
        return self._made().candidates(self_loops, idempotent=idempotent)

    def numpy(self) -> tuple[Array, Array]:
        """As `HAG.numpy`."""
        return self._made().numpy()

    def _order_of(self, ends: Array) -> Order | None:
        return self._made()._order_of(ends)

    @property
    def is_symmetric(self) -> bool:
        """Whether every edge has its reverse, with the same multiplicity."""
        return self._made().is_symmetric

    def degree_scale(
        self, exponent: float, self_loops: SelfLoops = False, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """As `HAG.degree_scale`."""
        return self._made().degree_scale(exponent, self_loops, dtype)

    def kept_scale(self, exponent: float, self_loops: SelfLoops, dtype: torch.dtype) -> Tensor:
        return self._made().kept_scale(exponent, self_loops, dtype)

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


class ReversedHAG(StandIn):
    """The reverse of a HAG in traced code, told by the arrays of that HAG.

    `HAG.transpose` gives it while code is traced. Operators turn the graph round when they run,
    and the HAG keeps what they make.

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
    def num_edges(self) -> int:
        """Number of edges, duplicates counted."""
        return self._of.num_edges

    @property
    def edge_index(self) -> Tensor:
        """The edges as int64 `[2, E]`, as those of the HAG are in order."""
        return self._of.edge_index.flip(0)

    def ends(self) -> tuple[Tensor, Tensor]:
        source, target = self._of.ends()
        return target, source

    def transpose(self) -> HAG:
        """The HAG that this is the reverse of."""
        return self._of

    @property
    def is_symmetric(self) -> bool:
        """Whether every edge has its reverse, with the same multiplicity."""
        return self._of.is_symmetric

    def _made(self) -> HAG:
        made = self._of.transpose()
        if isinstance(made, ReversedHAG):
            raise RuntimeError("the reverse of a HAG has no programs inside torch.compile")
        return made

    def __repr__(self) -> str:
        return f"ReversedHAG({self._of!r})"


class EdgeHAG(StandIn):
    """The HAG of an edge index in traced code: which one that is, is known when the code runs.

    Attributes:
        arrays: `row_ptr` of which nothing but the length is known; the edge index in place of
            `col`; and the token of the HAG, which an operator gives.
    """

    def __init__(self, edge_index: Tensor, row_ptr: Tensor, token: Tensor, num_src: int) -> None:
        self.arrays = Arrays(row_ptr, edge_index, token)
        self.num_src = num_src
        self.targets_first = False
        self.options = Options()
        self._handed_over = None

    @property
    def num_edges(self) -> int:
        """Number of edges, duplicates counted."""
        return self.arrays.col.shape[1]

    @property
    def edge_index(self) -> Tensor:
        """The edges as int64 `[2, E]`, as they are."""
        return self.arrays.col.long()

    def ends(self) -> tuple[Tensor, Tensor]:
        source, target = self.edge_index
        return source, target

    def transpose(self) -> HAG:
        """As `HAG.transpose`."""
        return ReversedHAG(self) if torch.compiler.is_compiling() else self._made().transpose()

    def _made(self) -> HAG:
        return of_arrays(self.arrays, self.num_src)

    def __repr__(self) -> str:
        return f"EdgeHAG({self.num_src} -> {self.num_dst} nodes, {self.num_edges} edges)"


class LoopedHAG(EdgeHAG):
    """The same with one loop on each node, that is a source and a target, in place of the loops of
    the edge index. How many edges that makes is known when the code runs.

    So whatever has a row for each edge has as many as there may be, `num_edges`. Those that count
    are told by an order, or are the first.
    """

    is_looped = True

    @property
    def num_loops(self) -> int:
        """Number of loops that are added."""
        return min(self.num_src, self.num_dst)

    @property
    def num_edges(self) -> int:
        """Number of edges, if none of the edge index is a loop."""
        return self.arrays.col.shape[1] + self.num_loops

    def transpose(self) -> HAG:
        """The reverse, where it is known how many edges there are."""
        return self._made().transpose()

    def _made(self) -> HAG:
        return looped_of_arrays(self.arrays, self.num_src)

    def __repr__(self) -> str:
        return f"LoopedHAG({self.num_src} -> {self.num_dst} nodes, <= {self.num_edges} edges)"


def looped_of_arrays(arrays: Arrays, num_src: int) -> HAG:
    """What a `LoopedHAG` stands for, with a token that was given out for it, or for nothing."""
    num_dst = arrays.row_ptr.shape[0] - 1
    loops = min(num_src, num_dst)
    hag = None if arrays.token is None else _LIVE.get(int(arrays.token))
    if hag is not None and (hag.num_src, hag.num_dst) == (num_src, num_dst):
        most = arrays.col.shape[1] + loops
        if loops <= hag.num_edges <= most:
            return hag
    edges = with_own_loops(arrays.col, loops)
    return of_arrays(Arrays(arrays.row_ptr, edges, None), num_src)


def of_arrays(arrays: Arrays, num_src: int) -> HAG:
    """The HAG that arrays and their token tell; the plain graph where it is not in this process."""
    found = find(*arrays)
    if found is not None:
        return found
    if arrays.col.dim() == 1:
        return HAG.from_csr(arrays.row_ptr, arrays.col, num_src, method="none")
    size = num_src, arrays.row_ptr.shape[0] - 1
    with outside_inference():
        row_ptr, col = (torch.from_numpy(each) for each in canonical_graph(arrays.col, *size))
    device = arrays.col.device
    return HAG.from_csr(row_ptr.to(device), col.to(device), num_src, method="none")


def _kept_as(name: str, matrix: tuple[SelfLoops, bool]) -> tuple[Any, ...]:
    """The key of a plain candidate among what a HAG keeps."""
    return ("program", name, *matrix)


def _may_measure() -> bool:
    """Whether what a HAG chooses may depend on a clock: no other process has to choose alike."""
    return not (torch.are_deterministic_algorithms_enabled() or has_ranks())


def _mapped(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    """A state with something else in the place of each tensor."""
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, dict):
        return {k: _mapped(v, move) for k, v in value.items()}
    return [_mapped(v, move) for v in value] if isinstance(value, list) else value


@set_module("hag_plugin")
def rebuild_hag(state: dict[str, Any]) -> HAG:
    """The HAG of a state as `HAG._state` gives it, from a pickle or a file: nothing is trusted.

    Raises:
        ValueError: it is not the state of a HAG.
    """
    try:
        return _rebuild(state, verify=True, copy=True)
    except (TypeError, RecursionError) as e:
        raise ValueError(f"this is not the state of a HAG: {e}") from e


def pack(places: Places, protocol: int) -> tuple[dict[str, Any], Any, Any]:
    """What `rebuild_batch` and `rebuild_graphs` take, for a pickle of this protocol."""
    header, (wide, narrow) = places.gather().pack()
    if protocol >= _INLINE_PROTOCOL and len(wide) + len(narrow) <= _INLINE_BYTES:
        short = _shortened(wide), _shortened(narrow)
        if sum(array.nbytes for array in short) <= _INLINE_BYTES:
            first, second = ((array.itemsize, array.tobytes()) for array in short)
            return header, first, second
    return header, torch.from_numpy(wide), torch.from_numpy(narrow)


def _shortened(array: Array) -> Array:
    """The same numbers in the shortest dtype that holds them."""
    least, most = int(array.min(initial=0)), int(array.max(initial=0))
    fits = (np.iinfo(dtype).min <= least and most <= np.iinfo(dtype).max for dtype in _SHORT)
    return array.astype(_SHORT[list(fits).index(True)])


def _unpacked(header: dict[str, Any], wide: Any, narrow: Any) -> GraphSet:
    if isinstance(wide, Tensor):
        return GraphSet.unpack(header, wide.numpy(), narrow.numpy())
    arrays = []
    for (size, content), dtype in ((wide, np.int64), (narrow, np.int32)):
        short = next((each for each in _SHORT if np.dtype(each).itemsize == size), None)
        if short is None or not isinstance(content, bytes):
            raise ValueError(f"numbers of a set of graphs have {size!r} bytes; expected 1, 2, 4, 8")
        arrays.append(np.frombuffer(content, short).astype(dtype))
    return GraphSet.unpack(header, *arrays)


@set_module("hag_plugin")
def rebuild_batch(header: dict[str, Any], wide: Any, narrow: Any) -> HAG:
    """The HAG of graphs side by side, from a pickle: nothing is trusted.

    Raises:
        ValueError: an array is no part of a valid set of graphs.
    """
    graphs = _unpacked(header, wide, narrow)
    return hag_of(Places([graphs], list(range(len(graphs)))), graphs.options)


@set_module("hag_plugin")
def rebuild_graphs(header: dict[str, Any], wide: Any, narrow: Any) -> list[HAG]:
    """The HAG of each graph of a set, from a pickle: nothing is trusted.

    Raises:
        ValueError: an array is no part of a valid set of graphs.
    """
    return hags_of(_unpacked(header, wide, narrow))


# Files of weights may hold HAGs: what is rebuilt is checked.
torch.serialization.add_safe_globals([rebuild_hag, rebuild_batch, rebuild_graphs])


def _rebuild(state: Any, *, verify: bool, copy: bool) -> HAG:
    """The HAG of a state.

    Args:
        state: as `HAG._state` gives it.
        verify: check everything: that the arrays are a graph, that the programs are this graph's,
            and that what is to be its reverse is that.
        copy: the arrays; otherwise they become the HAG's own.

    Raises:
        ValueError: it is not the state of a HAG.
    """
    num_src = kept_state.nodes_of(state)
    arrays = [kept_state.entry(state, name, Tensor).detach() for name in ("row_ptr", "col")]
    row_ptr, col = (array.clone() for array in arrays) if copy else arrays
    if verify:
        check_arrays(row_ptr, col, num_src)
    symmetric = kept_state.entry(state, "symmetric", bool, type(None))
    hag = HAG(
        row_ptr,
        col,
        num_src,
        options=kept_state.options_of(state),
        targets_first=kept_state.entry(state, "targets_first", bool),
        symmetric=None if verify else symmetric,
        owned=True,
    )
    for entry in kept_state.entry(state, "programs", list):
        hag._take_program(entry, verify, copy)
    if kept_state.entry(state, "transpose", dict, type(None)) is not None:
        reverse = _rebuild(state["transpose"], verify=verify, copy=copy)
        if verify:
            _check_reverse(hag, reverse)
        reverse._transpose = weakref.ref(hag)
        hag._transpose = reverse
    if state.get("copies") is not None:  # earlier versions had none
        rebuild = functools.partial(_rebuild, verify=verify, copy=copy)
        hag.copies = Copies.of(state["copies"], hag, rebuild, verify, copy)
    return hag


def _check_reverse(hag: HAG, reverse: HAG) -> None:
    row_ptr, col = _cpu.transpose_csr(*hag.numpy(), hag.num_src, torch.get_num_threads())
    found = reverse.numpy()
    if reverse.num_src != hag.num_dst or not (
        np.array_equal(found[0], row_ptr) and np.array_equal(found[1], col)
    ):
        raise ValueError("transpose holds other edges than the graph, reversed")
    alike = (reverse.options, reverse.targets_first) == (hag.options, hag.targets_first)
    if not alike or reverse._transpose is not None:
        raise ValueError("transpose is not what this graph would make")


def hag_of(places: Places, options: Options) -> HAG:
    """The HAG of graphs of sets, side by side."""
    with outside_inference():
        row_ptr, col, facts = places.csr()
    return _hag_in_sets(row_ptr, col, facts, places, options)


def hags_of(graphs: GraphSet) -> list[HAG]:
    """The HAG of each graph of a set."""
    native = graphs.native
    with outside_inference():
        lengths = (np.diff(native.node_ptr) + 1).tolist(), np.diff(native.edge_ptr).tolist()
        row_ptrs = torch.split(torch.from_numpy(native.row_ptr.copy()), lengths[0])
        cols = torch.split(torch.from_numpy(native.col.copy()), lengths[1])
    each = zip(row_ptrs, cols, native.facts.tolist(), _new_tokens(len(graphs)), strict=True)
    return [
        _hag_in_sets(row_ptr, col, facts, Places([graphs], [number]), graphs.options, token)
        for number, (row_ptr, col, facts, token) in enumerate(each)
    ]


def _hag_in_sets(
    row_ptr: Tensor,
    col: Tensor,
    facts: int,
    places: Places,
    options: Options,
    token: Token | None = None,
) -> HAG:
    hag = HAG(
        row_ptr,
        col,
        row_ptr.shape[0] - 1,
        options=options,
        symmetric=not facts & ASYMMETRIC,
        places=places,
        token=token,
        owned=True,
    )
    hag.__dict__["has_duplicates"] = bool(facts & DUPLICATES)
    hag.__dict__["has_empty_rows"] = bool(facts & EMPTY_ROWS)
    if not facts & LOOPS:
        hag.__dict__["loops"] = None
    return hag


def batch(hags: Sequence[HAG]) -> HAG:
    """The HAG of several graphs side by side, as a loader batches them.

    Programs are concatenated from the parts', in O(ops), when they are first needed or when the
    batch is pickled (which is how a loader's worker hands it over); tiles of small graphs are
    joined. A program that a part lacks is searched, and stays with the part.

    Raises:
        ValueError: there is no HAG, or they differ in device or in the convention for targets.
    """
    hags = items("hags", hags)
    if not hags:
        raise ValueError("hags is empty; expected one HAG or more")
    for hag in hags:
        if not isinstance(hag, HAG):
            raise TypeError(f"hags holds {brief(hag)}; expected HAGs")
    made = _side_by_side(hags)
    if hags[0].copies is not None:
        parts = [(hag.num_src, hag.copies) for hag in hags]
        made.copies = shared_copies.of_batch(parts, batch)
    return made


def _side_by_side(hags: Sequence[HAG]) -> HAG:
    places = [hag._places for hag in hags if hag._places is not None]
    if len(places) == len(hags):
        return hag_of(Places.of(places), hags[0].options)
    if len({hag.device for hag in hags}) > 1:
        raise ValueError(
            f"the HAGs are on several devices: {sorted({str(h.device) for h in hags})}"
        )
    targets_first = not all(h.is_square for h in hags)
    if targets_first and any(h.targets_first for h in hags):
        raise ValueError("HAGs whose targets are the first sources keep no such order in a batch")
    with outside_inference():
        row_ptr, col = concatenate.concatenate_graphs(hags)
    # Where a part subtracts, so does the batch's sum, and extrema need a program of their own.
    subtracts = any(h.options.allow_subtraction for h in hags)
    known = [h._symmetric for h in hags]
    return HAG(
        row_ptr,
        col,
        sum(h.num_src for h in hags),
        options=replace(hags[0].options, allow_subtraction=subtracts),
        symmetric=True if all(known) else (False if False in known else None),
        parts=hags,
        owned=True,
    )
