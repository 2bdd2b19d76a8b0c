"""Graphs with their programs, kept together natively: a data set, or a single small graph.

A HAG of a small graph is a number in a `GraphSet`; a batch is several of them (`Places`). So a
data set is built in one call, and a batch put together in one, without a Python object a graph.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hag_plugin.devices import KINDS
from hag_plugin.hag import constants, cost
from hag_plugin.hag.candidates import CHOOSE, PLAIN, SHARED, Table
from hag_plugin.hag.program import SELF_LOOPS, Options, Program, SelfLoops
from hag_plugin.hag.rates import Constants
from hag_plugin.hag.seconds import in_shape, linear, model_error
from hag_plugin.kernels import _cpu
from hag_plugin.modes import Array, numpy_of
from hag_plugin.observers import SEARCH, observers, tell

LOOPS, DUPLICATES, ASYMMETRIC, EMPTY_ROWS = 1, 2, 4, 8  # what is known of graphs, as bits
NUMBERS = 6 + 2 * 5  # of a program: the lengths of its arrays, what the plain one and it itself do

Key = tuple[SelfLoops, bool]


def takes(options: Options) -> bool:
    """Whether graphs built with these options can be kept in a set."""
    return (
        options.method in ("auto", "none")
        and not options.allow_subtraction
        and KINDS[options.device].launches is None
    )


class GraphSet:
    """Graphs of one kind of node, and the programs of each. Graphs stay, programs are added.

    Attributes:
        native: the graphs and the programs.
        options: what searches are asked for.
    """

    def __init__(self, native: _cpu.GraphSet, options: Options) -> None:
        """Of graphs that `takes` these options."""
        self.native = native
        self.options = options
        self._counts: dict[Key, tuple[Array, Array]] = {}
        self._search_seconds: dict[Key, float] = {}
        self._transposed: GraphSet | None = None
        self._lock = threading.RLock()

    @classmethod
    def of(
        cls, edge_index: Tensor, edge_ptr: Array, num_nodes: Array, options: Options
    ) -> GraphSet:
        """Graphs whose edges stand one after the other.

        Args:
            edge_index: int32 or int64 `[2, E]`, in main memory; each graph's nodes count from 0.
            edge_ptr: int64 `[G + 1]`, where each graph's edges start.
            num_nodes: int64 `[G]`.
            options: what searches are asked for.

        Raises:
            ValueError: an id is out of range.
        """
        source, target = numpy_of(edge_index)
        return cls(
            _cpu.GraphSet(source, target, edge_ptr, num_nodes, torch.get_num_threads()), options
        )

    def __len__(self) -> int:
        return int(self.native.num_graphs)

    def key(self, key: Key) -> Key:
        """The key under which the programs of a matrix are kept."""
        self_loops, idempotent = key
        if self_loops == "fill" and not self._of_any & LOOPS:
            self_loops = "add"
        return self_loops, idempotent and bool(self._of_any & DUPLICATES)

    @cached_property
    def _constants(self) -> Constants:
        return constants.in_force()

    @cached_property
    def _of_any(self) -> int:
        return int(np.bitwise_or.reduce(self.native.facts))

    def prepare(self, modes: Sequence[SelfLoops], transpose: bool) -> None:
        """Searches the programs of some modes, and those of the reversed graphs."""
        turned = transpose and bool(self._of_any & ASYMMETRIC)
        for graphs in (self, self.transposed()) if turned else (self,):
            for mode in modes:
                graphs.search((mode, False))

    def search(self, key: Key) -> None:
        """Searches the program of each graph for a matrix, unless that was done."""
        self_loops, idempotent = key = self.key(key)
        if self.native.has(self_loops or "", idempotent):
            return
        with self._lock:
            start = time.perf_counter()
            finds = self.options.method != "none" and self.options.choose != "plain"
            prices = _prices(self.options.width)
            threads = torch.get_num_threads()
            self.native.search(self_loops or "", idempotent, finds, **prices, threads=threads)
            self._search_seconds[key] = time.perf_counter() - start
            for _ in range(len(self) if observers else 0):
                tell(SEARCH, self.options.method, self)

    def has(self, key: Key) -> bool:
        """Whether the programs of a matrix are there."""
        return bool(self.native.has(key[0] or "", key[1]))

    @property
    def is_turned(self) -> bool:
        """Whether the reversed graphs are there, or none is needed."""
        return self._transposed is not None or not self._of_any & ASYMMETRIC

    def counts(self, key: Key) -> tuple[Array, Array]:
        """What the candidates of each graph do, the plain graph and the HAG, `[G, 2, K]`.

        All 0 where nothing is shared. And the seconds beyond a call that each adds, as `linear`
        gives them.
        """
        key = self.key(key)
        known = self._counts.get(key)
        if known is None:
            counts = self.native.counts(key[0] or "", key[1]).reshape(-1, 2, 5)
            nodes = np.diff(self.native.node_ptr)[:, None, None]
            counts = np.concatenate([counts, np.broadcast_to(nodes, (len(counts), 2, 1))], axis=2)
            known = self._counts[key] = linear(counts, self._constants)
        return known

    def search_seconds(self, key: Key) -> float:
        """What the search of one graph took, on average."""
        return self._search_seconds.get(self.key(key), 0.0) / max(len(self), 1)

    def transposed(self) -> GraphSet:
        """The same graphs with their edges reversed."""
        with self._lock:
            if self._transposed is None:
                self._transposed = GraphSet(self.native.transposed(), self.options)
            return self._transposed

    # Pickles ------------------------------------------------------------------------------------

    def pack(self) -> tuple[dict[str, Any], tuple[Array, Array]]:
        """What makes this set again: names and numbers, and all arrays of each of two dtypes."""
        wide, narrow = [np.diff(self.native.node_ptr), self.native.row_ptr], [self.native.col]
        programs = []
        for key in ((mode, idempotent) for mode in SELF_LOOPS for idempotent in (False, True)):
            if key != self.key(key) or not self.has(key):
                continue
            graphs, numbers, arrays = self.native.programs(key[0] or "", key[1])
            tile_ptr, op_ptr, source, target, hub_row, hub_ptr = arrays
            wide += [graphs, numbers, tile_ptr, op_ptr, hub_ptr]
            narrow += [source, target, hub_row]
            programs.append((*key, self._search_seconds.get(key, 0.0), len(graphs)))
        header = {"graphs": len(self), "options": dict(vars(self.options)), "programs": programs}
        if self._transposed is not None:
            header["transposed"], (more_wide, more_narrow) = self._transposed.pack()
            wide.append(more_wide)
            narrow.append(more_narrow)
        return header, (np.concatenate(wide), np.concatenate(narrow))

    @classmethod
    def unpack(cls, header: dict[str, Any], wide: Array, narrow: Array) -> GraphSet:
        """The set that was packed. Nothing is trusted.

        Raises:
            ValueError: the arrays are no valid set of graphs.
        """
        try:
            return cls._take(header, _Reader(wide), _Reader(narrow))
        except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as e:
            raise ValueError(f"the header of a set of graphs does not fit its arrays: {e!r}") from e

    @classmethod
    def _take(cls, header: dict[str, Any], wide: _Reader, narrow: _Reader) -> GraphSet:
        options = Options(**header["options"])
        known = options.device in KINDS and options.choose in CHOOSE
        if not (known and takes(options)):
            raise ValueError(f"a set of graphs is not built with {options}")
        num_nodes = wide.next(header["graphs"])
        row_ptr = wide.next(len(num_nodes) + int(num_nodes.sum()))
        ends = np.cumsum(num_nodes + 1) - 1
        col = narrow.next(int(row_ptr[ends].sum()))
        found = cls(_cpu.GraphSet.of_csr(num_nodes, row_ptr, col), options)
        for self_loops, idempotent, seconds, count in header["programs"]:
            graphs, numbers = wide.next(count), wide.next(NUMBERS * count)
            size = numbers.reshape(-1, NUMBERS)[:, :6].sum(axis=0).tolist()
            tile_ptr, op_ptr, hub_ptr = (wide.next(size[i]) for i in (0, 1, 5))
            source, target, hub_row = (narrow.next(size[i]) for i in (2, 3, 4))
            arrays = (tile_ptr, op_ptr, source, target, hub_row, hub_ptr)
            found.native.put(self_loops or "", idempotent, graphs, numbers, *arrays)
            found._search_seconds[self_loops, idempotent] = float(seconds)
        if "transposed" in header:
            found._transposed = cls._take(header["transposed"], wide, narrow)
        return found


class _Reader:
    """Hands out one array in pieces."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.at = 0

    def next(self, length: int) -> Array:
        if not 0 <= length <= len(self.array) - self.at:
            raise ValueError(f"a set of graphs asks for {length} more numbers of {self.array.dtype}"
                             f"; there are {len(self.array) - self.at}")  # fmt: skip
        self.at += length
        return self.array[self.at - length : self.at]


class Places(NamedTuple):
    """Graphs of sets, side by side.

    Attributes:
        sets: of each graph, or one for all.
        graphs: their numbers.
    """

    sets: list[GraphSet]
    graphs: list[int]

    @classmethod
    def of(cls, parts: Sequence[Places]) -> Places:
        """Several, side by side."""
        first = parts[0].sets[0]
        graphs = [graph for _, graphs in parts for graph in graphs]
        if len({id(each) for sets, _ in parts for each in sets}) == 1:
            return cls([first], graphs)
        sets = [s for sets, each in parts for s in (sets * len(each) if len(sets) == 1 else sets)]
        return cls(sets, graphs)

    def csr(self) -> tuple[Tensor, Tensor, int]:
        """The CSR of all, and what is known of them, as bits."""
        row_ptr, col, facts = _cpu.batch_graphs([s.native for s in self.sets], self.graphs)
        return torch.from_numpy(row_ptr), torch.from_numpy(col), facts

    def program(self, key: Key, nodes: int) -> Program:
        """The program of all, from each one's; these are searched where they are not there."""
        natives = []
        for each in self.sets:
            each.search(key)
            natives.append(each.native)
        arrays, scratch, shares = _cpu.batch_programs(natives, self.graphs, key[0] or "", key[1])
        repeats = len(self.graphs) if len(self.sets) == 1 else 1
        seconds = repeats * sum(each.search_seconds(key) for each in self.sets)
        program = Program.of(map(torch.from_numpy, arrays), nodes, nodes, 0, seconds)
        # What the program would make of its tensors.
        program.__dict__["native"] = _cpu.Program(
            *arrays, nodes, nodes, 0, is_passing=True, tile_scratch=scratch
        )
        program.__dict__["is_plain"] = not (shares and (arrays[3] < 0).any())
        return program

    def table(self, key: Key) -> Table | None:
        """The seconds of the candidates for all; None where nothing is shared."""
        if len(self.sets) == 1:
            counts, each = self.sets[0].counts(key)
            seconds = counts.take(self.graphs, axis=0).sum(axis=0) @ each
        else:
            of_all = [(*s.counts(key), g) for s, g in zip(self.sets, self.graphs, strict=True)]
            seconds = np.sum([counts[g] @ each for counts, each, g in of_all], axis=0)
        if not seconds.any():
            return None
        c = self.sets[0]._constants
        return Table("model", (PLAIN, SHARED), in_shape(seconds + c.call), model_error(c))

    def transposed(self) -> Places:
        """The same graphs with their edges reversed."""
        return Places([s.transposed() for s in self.sets], self.graphs)

    def gather(self) -> GraphSet:
        """A set of these graphs alone, with the programs that are there."""
        first = self.sets[0]
        found = GraphSet(_cpu.gather([s.native for s in self.sets], self.graphs), first.options)
        share = len(self.graphs) if len(self.sets) == 1 else 1
        for key in first._search_seconds:
            found._search_seconds[key] = share * sum(s.search_seconds(key) for s in self.sets)
        turned = all(s._transposed is not None for s in self.sets)
        if turned and found._of_any & ASYMMETRIC:
            found._transposed = self.transposed().gather()
        return found


@lru_cache(maxsize=8)
def _prices(width: int) -> dict[str, Any]:
    return asdict(cost.prices(width))
