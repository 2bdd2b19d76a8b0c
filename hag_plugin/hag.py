"""`HAG`: a graph in canonical form with the programs that aggregate over it."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hag_plugin.kernels import _cpu
from hag_plugin.program import ARRAYS, SELF_LOOPS, Options, Program, SelfLoops, Stats

_LIVE: weakref.WeakValueDictionary[int, HAG] = weakref.WeakValueDictionary()


def find(row_ptr: Tensor) -> HAG | None:
    """The live HAG whose `row_ptr` this is, or None.

    Sound although it goes by address: while a HAG lives it owns that memory, and where its own
    array has moved since (to shared memory, say) the comparison fails.
    """
    hag = _LIVE.get(row_ptr.data_ptr())
    if hag is None or hag.row_ptr.data_ptr() != row_ptr.data_ptr():
        return None
    return hag if hag.row_ptr.shape == row_ptr.shape else None


def outside_inference() -> AbstractContextManager[Any]:
    """What is kept beyond a call must not be made of inference tensors."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    return torch.inference_mode(False)


class HAG:
    """A graph in canonical form (CSR by target, multiplicity kept) and its programs.

    Made by `build_hag`, `HAG.load` and `batch`. Immutable to its users; programs are built when
    first needed and kept. Stands where PyG takes an `edge_index`.

    Attributes:
        row_ptr: int64 `[num_dst + 1]`.
        col: int32 `[E]`, the sources of each target in increasing order.
        num_src: number of source nodes.
        targets_first: the targets are the first `num_dst` sources (PyG's bipartite convention).
        options: what the search was asked for.
        is_reversed: whether the arrays are those of the reverse: see `ReversedHAG`.
    """

    is_reversed = False

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
    ) -> None:
        """Takes a CSR that is known to be valid: users call `build_hag` or `HAG.from_csr`."""
        self.row_ptr = row_ptr
        self.col = col
        self.num_src = num_src
        self.targets_first = targets_first
        self.options = options or Options()
        self._symmetric = symmetric
        self._parts = tuple(parts)
        self._programs: dict[tuple[SelfLoops, bool], Program] = {}
        self._requested: dict[tuple[SelfLoops, bool], Program] = {}  # by the request, not its key
        self._plain: dict[tuple[SelfLoops, bool], Program] = {}
        self._scales: dict[tuple[float, SelfLoops, torch.dtype], Tensor] = {}
        self._edge_index: Tensor | None = None
        self._transpose: HAG | weakref.ref[HAG] | None = None
        self._lock = threading.RLock()
        if row_ptr.device.type != "meta":
            _LIVE[row_ptr.data_ptr()] = self

    @classmethod
    def from_csr(cls, row_ptr: Tensor, col: Tensor, num_src: int, method: str = "auto") -> HAG:
        """A HAG of a graph that is already in canonical form.

        Args:
            row_ptr: int64 `[num_dst + 1]`.
            col: int32 `[E]`, increasing inside a row.
            num_src: number of source nodes.
            method: as for `build_hag`.

        Raises:
            ValueError: the arrays are not a canonical CSR of `num_src` sources.
        """
        _cpu.check_csr(row_ptr.cpu().numpy(), col.cpu().numpy(), num_src)
        return cls(row_ptr, col, num_src, options=Options(method=method))

    # What the graph is ----------------------------------------------------------------------

    @property
    def num_dst(self) -> int:
        """Number of target nodes."""
        return self.row_ptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """Number of edges, duplicates counted."""
        return self.col.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.col.device

    @property
    def method(self) -> str:
        """The search method: "auto", "greedy" or "none"."""
        return self.options.method

    @property
    def is_square(self) -> bool:
        """Whether sources and targets are the same nodes."""
        return self.num_src == self.num_dst

    @property
    def edge_index(self) -> Tensor:
        """The edges as int64 `[2, E]`, by target, then by source. Kept."""
        if torch.compiler.is_compiling():  # nothing can be kept
            return self._make_edge_index()
        if self._edge_index is None:
            with outside_inference():
                self._edge_index = self._make_edge_index()
        return self._edge_index

    def _make_edge_index(self) -> Tensor:
        nodes = torch.arange(self.num_dst, device=self.device)
        target = nodes.repeat_interleave(self.row_ptr.diff(), output_size=self.num_edges)
        return torch.stack([self.col.long(), target])

    @cached_property
    def content_hash(self) -> tuple[int, int]:
        """128 bits of the multiset of edges, whatever their order."""
        source, target = self.edge_index.cpu().numpy()
        low, high = _cpu.edge_hash(source, target)
        return low, high

    def matches(self, edge_index: Tensor) -> bool:
        """Whether `edge_index` `[2, E]` has this graph's edges (by content hash, any order)."""
        if edge_index.shape != (2, self.num_edges):
            return False
        source, target = edge_index.detach().cpu().numpy()
        return bool(_cpu.edge_hash(source, target) == self.content_hash)

    @cached_property
    def _loops(self) -> Tensor | None:
        """Self-loops of each target, int64 `[num_dst]`, or None where there is none."""
        count = _cpu.count_self_loops(self.row_ptr.cpu().numpy(), self.col.cpu().numpy())
        with outside_inference():
            return None if count is None else torch.from_numpy(count).to(self.device)

    def degree(self, self_loops: SelfLoops = False) -> Tensor:
        """In-degrees as aggregated, int64 `[num_dst]`: duplicates and self-loops counted."""
        self_loops = self._check_self_loops(self_loops)
        degree = self.row_ptr.diff()
        if self_loops is False:
            return degree
        if self_loops == "fill" and self._loops is not None:
            degree = degree - self._loops
        return degree + 1

    def degree_scale(
        self, exponent: float, self_loops: SelfLoops = False, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """`degree(self_loops) ** exponent`, `[num_dst]`, 0 where the degree is 0. Kept."""
        key = (exponent, self_loops, dtype)
        if key not in self._scales:
            with outside_inference():
                degree = self.degree(self_loops).to(dtype)
                self._scales[key] = degree.pow(exponent).masked_fill(degree == 0, 0.0)
        return self._scales[key]

    def _check_self_loops(self, self_loops: SelfLoops) -> SelfLoops:
        if self_loops not in SELF_LOOPS:
            raise ValueError(f"self_loops is {self_loops!r}; expected one of {SELF_LOOPS}")
        if self_loops is not False and not (self.is_square or self.targets_first):
            raise ValueError(
                f"self_loops={self_loops!r} needs targets that are sources too; this HAG has "
                f"{self.num_src} sources and {self.num_dst} targets (build it with "
                "targets_first=True if the targets are the first sources)"
            )
        return self_loops

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
        found = self._requested.get((self_loops, idempotent))
        if found is not None:
            return found
        key = self._program_key(self._check_self_loops(self_loops), idempotent)
        with self._lock:
            if key not in self._programs:
                with outside_inference():
                    self._programs[key] = self._make_program(*key, progress)
            self._requested[self_loops, idempotent] = self._programs[key]
            return self._programs[key]

    def _program_key(self, self_loops: SelfLoops, idempotent: bool) -> tuple[SelfLoops, bool]:
        """One key for requests that come to the same program."""
        if self_loops == "fill" and self._loops is None:
            self_loops = "add"
        if idempotent and self_loops == "add" and self._loops is not None:
            self_loops = "fill"
        subtracts = self_loops is False and self.options.allow_subtraction
        return self_loops, idempotent and (subtracts or self._has_duplicates)

    @cached_property
    def _has_duplicates(self) -> bool:
        return bool(_cpu.has_duplicates(self.row_ptr.cpu().numpy(), self.col.cpu().numpy()))

    def _make_program(
        self, self_loops: SelfLoops, idempotent: bool, progress: bool | None
    ) -> Program:
        from hag_plugin import build

        if self._parts:
            parts = [part.program(self_loops, idempotent=idempotent) for part in self._parts]
            return build.concatenate_programs(parts).to(self.device)
        return build.search_program(self, self_loops, idempotent, progress)

    def plain_program(self, self_loops: SelfLoops = False, *, idempotent: bool = False) -> Program:
        """The program without intermediates: who is a source of whom, in increasing order. Kept.

        Duplicates are kept, too, unless it is `idempotent`.
        """
        from hag_plugin import build

        key = self_loops, idempotent
        with self._lock:
            if key not in self._plain:
                with outside_inference():
                    self._plain[key] = build.plain_program(self, *key)
            return self._plain[key]

    def transpose(self) -> HAG:
        """The HAG of the reversed edges, with its own tiles; itself where the graph is symmetric.

        Symmetric means that the multiset of edges is its own reverse; this is checked.
        """
        if torch.compiler.is_compiling():
            from hag_plugin.reversed import ReversedHAG

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
    def is_symmetric(self) -> bool:
        """Whether every edge has its reverse, with the same multiplicity."""
        if self._symmetric is None:
            self._symmetric = self.is_square and bool(
                _cpu.is_symmetric(self.row_ptr.cpu().numpy(), self.col.cpu().numpy())
            )
        return self._symmetric

    def _make_transpose(self) -> HAG:
        if self.is_symmetric:
            return self
        if self._parts:
            reverse = batch([part.transpose() for part in self._parts]).to(self.device)
        else:
            row_ptr, col = _cpu.transpose_csr(
                self.row_ptr.cpu().numpy(), self.col.cpu().numpy(), self.num_src
            )
            reverse = HAG(
                torch.from_numpy(row_ptr).to(self.device),
                torch.from_numpy(col).to(self.device),
                self.num_dst,
                options=self.options,
                targets_first=self.targets_first,
                symmetric=False,
            )
        reverse._transpose = weakref.ref(self)
        return reverse

    def stats(self, self_loops: SelfLoops = False, *, idempotent: bool = False) -> Stats:
        """Counts of the program for `self_loops` beside those of the plain graph."""
        from hag_plugin import cost

        return cost.program_stats(self, self_loops, self.program(self_loops, idempotent=idempotent))

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
        from hag_plugin import build

        row_ptr, col = build.canonical_graph(edge_index, self.num_src, self.num_dst)
        keys = {self._program_key(m, i) for m in (self_loops or False,) for i in (False, True)}
        if self_loops is None:
            keys |= set(self._programs)
        for mode, idempotent in sorted(keys, key=str):
            program = self.program(mode, idempotent=idempotent)
            _ = program.native  # checks that every index is in range
            graph = (self.num_src, program.diagonal, row_ptr, col, mode or "", idempotent)
            _cpu.check_program(*program.numpy(), *graph)

    # Moving and keeping ---------------------------------------------------------------------

    def to(self, device: torch.device | str, non_blocking: bool = False, **_: Any) -> HAG:
        """The HAG with its arrays and programs on `device`; itself if they are there."""
        device = torch.device(device)
        if device == self.device or (device.type == self.device.type and device.index is None):
            return self
        moved = self._moved(lambda a: a.to(device, non_blocking=non_blocking))
        if device.type == "cuda":
            moved._make_schedules()
        return moved

    def _make_schedules(self) -> None:
        """Makes now what the first launch would wait for the GPU to make."""
        for program in self._programs.values():
            _ = program.schedule
        if isinstance(self._transpose, HAG):
            self._transpose._make_schedules()

    def cpu(self) -> HAG:
        """The HAG in main memory."""
        return self.to("cpu")

    def cuda(self, device: int | str | None = None, non_blocking: bool = False) -> HAG:
        """The HAG on a GPU."""
        target = torch.device("cuda" if device is None else device)
        return self.to(target, non_blocking=non_blocking)

    def pin_memory(self) -> HAG:
        """The HAG in page-locked memory."""
        return self._moved(lambda a: a.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> HAG:
        state = self._state()

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return move(value)
            if isinstance(value, dict):
                return {k: moved(v) for k, v in value.items()}
            return [moved(v) for v in value] if isinstance(value, list) else value

        return _rebuild(moved(state), trusted=True)

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
            programs.append(meta | dict(zip(ARRAYS, program.arrays, strict=True)))
        return {
            "row_ptr": self.row_ptr,
            "col": self.col,
            "num_src": self.num_src,
            "targets_first": self.targets_first,
            "symmetric": self._symmetric,
            "options": asdict(self.options),
            "programs": programs,
            "transpose": reverse_state,
        }

    def _concatenate(self) -> None:
        """Makes what all parts of a batch have: they do not travel with it."""
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

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], HAG], tuple[dict[str, Any]]]:
        return rebuild_hag, (self._state(),)

    def __copy__(self) -> HAG:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> HAG:
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the graph and the programs built so far: arrays and a header, never a pickle.

        The file appears whole or not at all.
        """
        from hag_plugin import files

        files.write(path, self._state(), self.content_hash)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HAG:
        """Reads a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, is no HAG file or is of another version.
        """
        from hag_plugin import files

        state, content_hash = files.read(path)
        try:
            hag = rebuild_hag(state)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ValueError(f"{os.fspath(path)} does not hold a valid HAG: {e}") from e
        if hag.content_hash != content_hash:
            raise ValueError(
                f"{os.fspath(path)} holds edges with hash {hag.content_hash}; its header says "
                f"{content_hash}"
            )
        return hag

    # Standing where an edge_index stands ----------------------------------------------------

    def flip(self, dims: int | Sequence[int]) -> HAG:
        """The reversed graph, as `edge_index.flip([0])` gives it."""
        if dims not in (0, -2) and tuple(dims if isinstance(dims, Sequence) else ()) != (0,):
            raise ValueError(f"a HAG can be flipped in dimension 0 (direction) only, not {dims}")
        return self.transpose()

    def __getitem__(self, index: Any) -> Tensor:
        return self.edge_index[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.edge_index)

    def size(self, dim: int | None = None) -> torch.Size | int:
        """The size of the edge index, `[2, E]`."""
        shape = torch.Size([2, self.num_edges])
        return shape if dim is None else shape[dim]

    def __getattr__(self, name: str) -> Any:
        """Says what to do where code looks for a method of a tensor."""
        words = f"{type(self).__name__!r} object has no attribute {name!r}"
        if not name.startswith("_") and hasattr(Tensor, name):
            words += (
                ". A HAG stands for an edge_index that is handed on to layers; pass "
                "hag.edge_index, or edge_index itself, to code that looks into it"
            )
        raise AttributeError(words)

    def __repr__(self) -> str:
        programs = ", ".join(
            ("A", "A + I", "A with one loop each")[SELF_LOOPS.index(mode)] + " (max, min)" * only
            for mode, only in self._programs
        )
        return (
            f"HAG({self.num_src} -> {self.num_dst} nodes, {self.num_edges} edges, "
            f"method={self.method!r}, programs=[{programs}], device={str(self.device)!r})"
        )


def rebuild_hag(state: dict[str, Any]) -> HAG:
    """The HAG of a state as `HAG._state` gives it, from a pickle or a file: nothing is trusted.

    Raises:
        ValueError: an array is no part of a valid HAG.
    """
    return _rebuild(state, trusted=False)


# Files of weights may hold HAGs: what is rebuilt is checked.
torch.serialization.add_safe_globals([rebuild_hag])


def _rebuild(state: dict[str, Any], trusted: bool) -> HAG:
    row_ptr, col, num_src = state["row_ptr"], state["col"], int(state["num_src"])
    if not trusted:
        _cpu.check_csr(row_ptr.cpu().numpy(), col.cpu().numpy(), num_src)
    hag = HAG(
        row_ptr,
        col,
        num_src,
        options=Options(**state["options"]),
        targets_first=bool(state["targets_first"]),
        symmetric=state["symmetric"] if trusted else None,
    )
    for entry in state["programs"]:
        program = Program.of(
            [entry[name] for name in ARRAYS],
            num_src,
            hag.num_dst,
            int(entry["diagonal"]),
            float(entry["search_seconds"]),
        )
        if not trusted:
            _ = program.native  # its construction checks every index
        hag._programs[entry["self_loops"] or False, bool(entry["idempotent"])] = program
    if state["transpose"] is not None:
        hag._transpose = _rebuild(state["transpose"], trusted)
        hag._transpose._transpose = weakref.ref(hag)
    return hag


def batch(hags: Sequence[HAG]) -> HAG:
    """The HAG of several graphs side by side, as a loader batches them.

    Programs are concatenated from the parts', in O(ops), when they are first needed or when the
    batch is pickled (which is how a loader's worker hands it over); tiles of small graphs are
    joined. A program that a part lacks is searched, and stays with the part.

    Raises:
        ValueError: there is no HAG, or they differ in device or in the convention for targets.
    """
    from hag_plugin import build

    hags = list(hags)
    if not hags:
        raise ValueError("batch takes at least one HAG, got none")
    for hag in hags:
        if not isinstance(hag, HAG):
            raise TypeError(f"batch takes HAGs, got {type(hag).__name__}")
    if len({hag.device for hag in hags}) > 1:
        raise ValueError(
            f"the HAGs are on several devices: {sorted({str(h.device) for h in hags})}"
        )
    targets_first = not all(h.is_square for h in hags)
    if targets_first and any(h.targets_first for h in hags):
        raise ValueError("HAGs whose targets are the first sources keep no such order in a batch")
    row_ptr, col = build.concatenate_graphs(hags)
    known = [h._symmetric for h in hags]
    return HAG(
        row_ptr,
        col,
        sum(h.num_src for h in hags),
        options=hags[0].options,
        symmetric=True if all(known) else (False if False in known else None),
        parts=hags,
    )
