"""`HAG`: a graph in canonical form with the programs that aggregate over it."""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from multiprocessing.context import get_spawning_popen
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from hag_plugin.kernels import _cpu
from hag_plugin.program import ARRAYS, SELF_LOOPS, Array, Options, Program, SelfLoops, Stats


class Arrays(NamedTuple):
    """A graph as torch's operators are given it: with the token by which its HAG is found again.

    The token is a number of its HAG's own, int64 `[]`. A copy of it, or of the arrays, is as good.
    """

    row_ptr: Tensor
    col: Tensor
    token: Tensor | None


_LIVE: weakref.WeakValueDictionary[int, HAG] = weakref.WeakValueDictionary()  # by token


def find(row_ptr: Tensor, col: Tensor, token: Tensor | None) -> HAG | None:
    """The live HAG of a token, if these are its arrays or hold the same; otherwise None.

    The arrays say what the graph is, the token only which HAG may stand for it.
    """
    hag = None if token is None else _LIVE.get(int(token))
    if hag is None:
        return None
    own = hag.arrays
    return hag if _same(row_ptr, own.row_ptr) and _same(col, own.col) else None


def _same(given: Tensor, own: Tensor) -> bool:
    if given is own:
        return True
    if given.dtype != own.dtype or given.shape != own.shape or given.device != own.device:
        return False
    # A live HAG's memory is its own: who has the address has the array.
    at_own = given.data_ptr() == own.data_ptr() and given.stride() == own.stride()
    return at_own or torch.equal(given, own)


def outside_inference() -> AbstractContextManager[Any]:
    """For what is kept beyond a call: made of plain tensors, whatever mode the caller is in.

    Not of inference tensors, nor of the wrappers of `torch.func`'s transforms, forward-mode AD or
    a dispatch mode.
    """
    if torch.compiler.is_compiling() or not (
        torch.is_inference_mode_enabled()
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    ):
        return nullcontext()
    return _outside_modes()


@contextmanager
def _outside_modes() -> Iterator[None]:
    with (
        torch.inference_mode(False),
        temporarily_clear_interpreter_stack(),
        forward_ad._set_fwd_grad_enabled(False),
        torch.no_grad(),
        _disable_current_modes(),
    ):
        yield


def in_memory(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in main memory, also of one that a transform has wrapped.

    Raises:
        RuntimeError: there is no one tensor, as in a batch of `torch.vmap`.
    """
    while torch._C._functorch.is_gradtrackingtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    with outside_inference():
        return tensor.detach().cpu()


def numpy_of(tensor: Tensor) -> Array:
    """The same as an array."""
    with outside_inference():
        return in_memory(tensor).numpy()


class HAG:
    """A graph in canonical form (CSR by target, multiplicity kept) and its programs.

    Made by `build_hag`, `HAG.load` and `batch`. Immutable to its users; programs are built when
    first needed and kept. Stands where PyG takes an `edge_index`.

    Attributes:
        arrays: the graph's own, which nobody else may write to.
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
        owned: bool = False,
    ) -> None:
        """Users call `build_hag` or `HAG.from_csr`.

        The arrays are copied and checked, unless they are `owned`: then they were checked, and
        nobody else has them.
        """
        with outside_inference():
            if not owned:
                row_ptr, col = _checked_copies(row_ptr, col, num_src)
            number = secrets.randbits(63)
            token = torch.tensor(number, device="cpu")
        self.arrays = Arrays(row_ptr, col, token)
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
        self._edge_index_version = 0  # made anew once somebody wrote to it
        self._transpose: HAG | weakref.ref[HAG] | None = None
        self._handed_over: dict[str, Any] | None = None  # the state that new processes were given
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
        return cls(row_ptr, col, num_src, options=Options(method=method))

    # What the graph is ----------------------------------------------------------------------

    @property
    def row_ptr(self) -> Tensor:
        """Where each target's sources start, int64 `[num_dst + 1]`: a copy."""
        return self.arrays.row_ptr.clone()

    @property
    def col(self) -> Tensor:
        """The sources of each target in increasing order, int32 `[E]`: a copy."""
        return self.arrays.col.clone()

    def _made(self) -> HAG:
        """The graph as a HAG that has its own arrays: see `ReversedHAG`."""
        return self

    def numpy(self) -> tuple[Array, Array]:
        """The arrays themselves in main memory, which can be read only."""
        with outside_inference():
            arrays = self.arrays.row_ptr.cpu().numpy(), self.arrays.col.cpu().numpy()
        for array in arrays:
            array.setflags(write=False)
        return arrays

    @property
    def addresses(self) -> tuple[int, int]:
        """Where the arrays are."""
        return self.arrays.row_ptr.data_ptr(), self.arrays.col.data_ptr()

    @property
    def num_dst(self) -> int:
        """Number of target nodes."""
        return self.arrays.row_ptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """Number of edges, duplicates counted."""
        return self.arrays.col.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.arrays.col.device

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
        """The edges as int64 `[2, E]`, by target, then by source: a copy, kept until it is
        written to. What writes to it through NumPy or `.data` goes unseen here, and changes nothing
        but this copy."""
        if torch.compiler.is_compiling():  # nothing can be kept
            return self._make_edge_index()
        if self._edge_index is None or self._edge_index._version != self._edge_index_version:
            with outside_inference():
                self._edge_index = self._make_edge_index()
                self._edge_index_version = self._edge_index._version
        return self._edge_index

    @cached_property
    def own_edge_index(self) -> Tensor:
        """The same for layers that look into their edges, which nobody else may write to."""
        with outside_inference():
            return self._make_edge_index()

    def _make_edge_index(self) -> Tensor:
        return torch.stack(self._ends())

    def _ends(self) -> tuple[Tensor, Tensor]:
        """The source and the target of each edge, int64 `[E]`."""
        nodes = torch.arange(self.num_dst, device=self.device)
        degree = self.arrays.row_ptr.diff()
        target = nodes.repeat_interleave(degree, output_size=self.num_edges)
        return self.arrays.col.long(), target

    @cached_property
    def content_hash(self) -> tuple[int, int]:
        """128 bits of the multiset of edges, whatever their order."""
        with outside_inference():
            source, target = self._ends()
        low, high = _cpu.edge_hash(numpy_of(source), numpy_of(target))
        return low, high

    def matches(self, edge_index: Tensor) -> bool:
        """Whether `edge_index` `[2, E]` has this graph's edges (by content hash, any order)."""
        if edge_index.shape != (2, self.num_edges):
            return False
        source, target = numpy_of(edge_index)
        return bool(_cpu.edge_hash(source, target) == self.content_hash)

    @cached_property
    def _loops(self) -> Tensor | None:
        """Self-loops of each target, int64 `[num_dst]`, or None where there is none."""
        count = _cpu.count_self_loops(*self.numpy())
        with outside_inference():
            return None if count is None else torch.from_numpy(count).to(self.device)

    def degree(self, self_loops: SelfLoops = False) -> Tensor:
        """In-degrees as aggregated, int64 `[num_dst]`: duplicates and self-loops counted."""
        self_loops = self._check_self_loops(self_loops)
        degree = self.arrays.row_ptr.diff()
        if self_loops is False:
            return degree
        if self_loops == "fill" and self._loops is not None:
            degree = degree - self._loops
        return degree + 1

    def degree_scale(
        self, exponent: float, self_loops: SelfLoops = False, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """`degree(self_loops) ** exponent`, `[num_dst]`, 0 where the degree is 0."""
        return self._kept_scale(exponent, self_loops, dtype).clone()

    def _kept_scale(self, exponent: float, self_loops: SelfLoops, dtype: torch.dtype) -> Tensor:
        """The same, not to be written to."""
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
        return bool(_cpu.has_duplicates(*self.numpy()))

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
            self._symmetric = self.is_square and bool(_cpu.is_symmetric(*self.numpy()))
        return self._symmetric

    def _make_transpose(self) -> HAG:
        if self.is_symmetric:
            return self
        if self._parts:
            reverse = batch([part.transpose() for part in self._parts]).to(self.device)
        else:
            row_ptr, col = _cpu.transpose_csr(*self.numpy(), self.num_src)
            reverse = HAG(
                torch.from_numpy(row_ptr).to(self.device),
                torch.from_numpy(col).to(self.device),
                self.num_dst,
                options=self.options,
                targets_first=self.targets_first,
                symmetric=False,
                owned=True,
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
        return _rebuild(_mapped(self._state(), move), trusted=True)

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
            "row_ptr": self.arrays.row_ptr,
            "col": self.arrays.col,
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
        # Copies: what goes to another process moves into memory that both have.
        if get_spawning_popen() is None:
            return rebuild_hag, (_mapped(self._state(), Tensor.clone),)
        # A process that is started finds them by their files, which must stay until it has.
        if self._handed_over is None:
            self._handed_over = _mapped(self._state(), Tensor.clone)
        return rebuild_hag, (self._handed_over,)

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


def _mapped(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    """A state with something else in the place of each tensor."""
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, dict):
        return {k: _mapped(v, move) for k, v in value.items()}
    return [_mapped(v, move) for v in value] if isinstance(value, list) else value


def rebuild_hag(state: dict[str, Any]) -> HAG:
    """The HAG of a state as `HAG._state` gives it, from a pickle or a file: nothing is trusted.

    Raises:
        ValueError: an array is no part of a valid HAG.
    """
    return _rebuild(state, trusted=False)


# Files of weights may hold HAGs: what is rebuilt is checked.
torch.serialization.add_safe_globals([rebuild_hag])


def _checked_copies(row_ptr: Tensor, col: Tensor, num_src: int) -> tuple[Tensor, Tensor]:
    """Own memory for a CSR, which is then checked.

    Raises:
        TypeError: an array is no dense tensor of the right dtype.
        ValueError: the arrays are not a canonical CSR of `num_src` sources, or on two devices.
    """
    for name, array, dtype in (("row_ptr", row_ptr, torch.int64), ("col", col, torch.int32)):
        if not isinstance(array, Tensor):
            raise TypeError(f"{name} is a {type(array).__name__}; expected a torch.Tensor")
        if array.dtype != dtype or array.layout != torch.strided:
            raise TypeError(
                f"{name} is {array.dtype}, {array.layout}; expected dense {dtype}, as CSR arrays "
                "of a HAG are"
            )
        if array.dim() != 1:
            raise ValueError(f"{name} has shape {list(array.shape)}; expected one dimension")
    if row_ptr.device != col.device:
        raise ValueError(f"row_ptr is on {row_ptr.device} and col on {col.device}; expected one")
    kept = [a.detach().clone(memory_format=torch.contiguous_format) for a in (row_ptr, col)]
    if row_ptr.device.type != "meta":
        _cpu.check_csr(kept[0].cpu().numpy(), kept[1].cpu().numpy(), num_src)
    return kept[0], kept[1]


def _rebuild(state: dict[str, Any], trusted: bool) -> HAG:
    num_src = int(state["num_src"])
    hag = HAG(
        state["row_ptr"],
        state["col"],
        num_src,
        options=Options(**state["options"]),
        targets_first=bool(state["targets_first"]),
        symmetric=state["symmetric"] if trusted else None,
        owned=trusted,
    )
    for entry in state["programs"]:
        arrays = [entry[name] for name in ARRAYS]
        program = Program.of(
            # Those of a pickle may be shared with the process that made it.
            arrays if trusted else [a.clone() for a in arrays],
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
    with outside_inference():
        row_ptr, col = build.concatenate_graphs(hags)
    known = [h._symmetric for h in hags]
    return HAG(
        row_ptr,
        col,
        sum(h.num_src for h in hags),
        options=hags[0].options,
        symmetric=True if all(known) else (False if False in known else None),
        parts=hags,
        owned=True,
    )
