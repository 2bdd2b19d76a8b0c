"""What comes back: the one memory of tensors that were met, and of what was made of them.

A tensor is known by its memory (a weak reference to its storage, where in it, how it lies), by
torch's counter of writes, and by a checksum of its contents: writes through NumPy, `.data`, other
processes or collectives are not counted by torch. Nothing here refers to a tensor itself, so that
`torch.utils.swap_tensors` works on those that were met.

Whatever is decided because something was met before goes through `decide`: a checkpoint that runs
a forward again gets the decisions of the first run.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hag_plugin.arguments import check_memory
from hag_plugin.kernels import _cpu
from hag_plugin.modes import top_hooks
from hag_plugin.saved import set_module

T = TypeVar("T")
Things = tuple[Any, ...]  # tensors, or other objects, which are known by their identity

UNKNOWN: Any = object()
UNCOUNTED = -1  # writes to tensors made in inference mode


# What identifies things -------------------------------------------------------------------------


# The storages of tensors, or the objects themselves; where all lie, and in which form; and torch's
# counts of writes.
_Facts = tuple[tuple[Any, ...], tuple[Any, ...], tuple[int, ...]]


def _facts_of(things: Things, features: bool = False) -> _Facts | None:
    """Things as they are now, but for their contents; None where they cannot be known again.

    `features`: as in `Known`.
    """
    try:
        if len(things) == 1:
            storage, where, version = _facts_of_one(things[0], features)
            return (storage,), where, (version,)
        each = [_facts_of_one(thing, features) for thing in things]
    except RuntimeError:  # one has no storage or no version: made in inference mode, in torch.func
        return None
    return (
        tuple(storage for storage, _, _ in each),
        tuple(where for _, where, _ in each),
        tuple(version for _, _, version in each),
    )


def _facts_of_one(thing: Any, features: bool) -> tuple[Any, tuple[Any, ...], int]:
    if type(thing) is not Tensor and type(thing) is not nn.Parameter:
        if isinstance(thing, Tensor):
            raise RuntimeError("a tensor of another class may hold more than its storage")
        return thing, (id(thing),), 0
    storage, address, shape = thing.untyped_storage(), thing.data_ptr(), thing.shape
    if not address and thing.numel():
        raise RuntimeError("a tensor without memory: a meta or a functional one")
    where = id(storage), address, shape, thing.stride(), thing.dtype, thing.is_neg()
    if thing.is_inference() and thing.is_cpu and not features:
        return storage, where, UNCOUNTED  # what it holds tells
    return storage, where, thing._version


def checksum(tensor: Tensor) -> int:
    """64 bits of what a tensor on the CPU holds, and in which order.

    Raises:
        ValueError: it reaches beyond its storage.
    """
    rows, row, stride = 1, tensor.nbytes, 0
    if tensor.is_contiguous():
        if tensor.untyped_storage().nbytes() != row or tensor.storage_offset():
            check_memory("an argument", tensor)
    else:
        check_memory("an argument", tensor)
        if tensor.dim() == 2 and tensor.stride(1) == 1:
            size = tensor.element_size()
            rows, row, stride = len(tensor), tensor.shape[1] * size, tensor.stride(0) * size
        else:
            tensor = tensor.detach().contiguous()
    threads = 1 if row < 65536 else torch.get_num_threads()
    sum64: int = _cpu.checksum(tensor.data_ptr(), rows, row, stride, threads)
    return sum64


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _may_be_written_unseen(tensor: Tensor) -> bool:
    """Whether others than torch may write to the memory of a tensor.

    Memory that came from NumPy, from a file or through DLPack, or was handed to NumPy, cannot be
    resized. Collectives write without counting.
    """
    storage = tensor.untyped_storage()
    return not storage.resizable() or _is_distributed() or storage.is_shared()


class Known:
    """Things as they were when they were met.

    Args:
        facts: theirs.
        features: things are large: their contents count only where others may write to them.
        vanished: called once one of them is no more.
    """

    __slots__ = ("_contents", "_features", "_owners", "_versions", "_where")

    def __init__(
        self,
        facts: _Facts,
        features: bool = False,
        vanished: Callable[[Any], Any] | None = None,
    ) -> None:
        owners, self._where, self._versions = facts
        self._owners = tuple(weakref.ref(owner, vanished) for owner in owners)
        self._features = features
        self._contents: list[int | None] | None = None

    @classmethod
    def of(cls, things: Things, contents: bool = True) -> Known | None:
        """Things as they are now, with their contents; None where they cannot be known again."""
        facts = _facts_of(things, features=not contents)
        if facts is None:
            return None
        known = cls(facts, features=not contents)
        if contents:
            known.take_contents(things)
        return known

    def holds(self, things: Things) -> bool:
        """Whether these are the things, unchanged, with the contents, if they were taken."""
        facts = _facts_of(things, self._features)
        return facts is not None and self.agrees(facts) and self.is_same(things)

    def agrees(self, facts: _Facts) -> bool:
        """Whether these are the facts; contents are not compared."""
        owners, where, versions = facts
        if self._versions != versions or self._where != where:
            return False
        for known, owner in zip(self._owners, owners, strict=True):  # noqa: SIM110  (at every call)
            if known() is not owner:
                return False
        return True

    def take_contents(self, things: Things) -> None:
        """Remembers what things hold now."""
        self._contents = self._read(things)

    def is_same(self, things: Things) -> bool:
        """Whether things that agree hold what they held when contents were taken, if they were."""
        return self._contents is None or self._contents == self._read(things)

    def _read(self, things: Things) -> list[int | None]:
        return [
            checksum(thing)
            if isinstance(thing, Tensor)
            and thing.is_cpu  # others would have to be waited for
            and (not self._features or _may_be_written_unseen(thing))
            else None
            for thing in things
        ]


# What was made of them --------------------------------------------------------------------------


class Passing:
    """What was made of things when they were met first, for as long as they do not come back."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def value_of(found: Any) -> Any:
    """What was made of things, whether they are met first or came back."""
    return found.value if type(found) is Passing else found


class _Entry:
    """Things that were met, by whom, and what was made of them at first and once they came back."""

    __slots__ = ("known", "occasion", "passing", "readers", "value")

    def __init__(self, known: Known) -> None:
        self.known = known
        self.value: Any = UNKNOWN
        self.passing: Passing | None = None
        self.occasion: Any = UNKNOWN
        self.readers: weakref.WeakKeyDictionary[Any, Any] | None = None

    def came_back(self, reader: Any, occasion: Any) -> bool:
        """Whether they were met before, by this reader, on another occasion. Notes the first."""
        if reader is None:
            met, self.occasion = self.occasion, occasion
        else:
            if self.readers is None:
                self.readers = weakref.WeakKeyDictionary()
            met = self.readers.get(reader, UNKNOWN)
            if callable(occasion):
                occasion = occasion(None if met is UNKNOWN else met)
            self.readers[reader] = occasion
        return met is not UNKNOWN and (occasion is None or met != occasion)


@set_module("hag_plugin")
class Recall:
    """A memory of things that come back, and of what was made of them.

    Things go from it when they are deleted. Safe to use from several threads, which do not make
    the same value twice. Copies and pickles start empty.

    Args:
        limit: how many are remembered, the latest; None: as many as live.
        features: things are large, and their contents are compared only where others than torch
            may write to them. What writes through `.data` then goes unseen.
    """

    def __init__(self, limit: int | None = None, features: bool = False) -> None:
        self.limit = limit
        self.features = features
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()  # the latest used last
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recall, (self.limit, self.features)

    def __len__(self) -> int:
        return len(self._entries)

    def values(self) -> Iterator[Any]:
        """All that was made of what came back."""
        return (e.value for e in list(self._entries.values()) if e.value is not UNKNOWN)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()

    def value(
        self,
        things: Things,
        purpose: Hashable,
        make: Callable[[], Any],
        *,
        reader: Any = None,
        occasion: Any = None,
        passing: Callable[[], Any] | None = None,
    ) -> Any:
        """What `make` gives for things that came back; None where they did not, or cannot.

        Until they do, and where `make` gives None: what `passing` gave, as `Passing`.

        Args:
            things: tensors, or objects that are known by their identity.
            purpose: what is made, and all that it depends on besides.
            make: makes it, of the things as they are.
            reader: the layer that must meet them twice; None: whoever asks.
            occasion: things that are met again on the same one did not come back; None: each
                call is another. Where there is a reader it may be a function, which is given the
                occasion on which the reader met them last, or None, and gives that of this call.
            passing: makes what serves things that may never come back. It is asked again until it
                gives something; None: nothing does.
        """
        hooks: Any = top_hooks(True)
        if hooks is None:
            return self._value(things, purpose, make, reader, occasion, passing)
        take = lambda: self._value(things, purpose, make, reader, occasion, passing)  # noqa: E731
        return decide(purpose, take)

    def _value(
        self,
        things: Things,
        purpose: Hashable,
        make: Callable[[], Any],
        reader: Any,
        occasion: Any,
        passing: Callable[[], Any] | None,
    ) -> Any:
        facts = _facts_of(things, self.features)
        if facts is None:
            return None
        with self._lock:
            entry = self._met(facts, purpose)
            if entry is None:
                if is_run_again():
                    return None
                entry = self._note(facts, purpose)
                entry.came_back(reader, occasion)
                return _pass(entry, things, passing)
            known = entry.known
            if known.is_same(things):
                if entry.value is not UNKNOWN:
                    return entry.value
                if is_run_again():
                    return entry.passing
                if not entry.came_back(reader, occasion):
                    return entry.passing or _pass(entry, things, passing)
                known.take_contents(things)
                made = make()
                entry.value = entry.passing if made is None else made
                entry.passing = None
                return entry.value
            if is_run_again():
                return None
            # Changed behind torch's back: only what stays as it is now is worth anything anew.
            entry = self._note(facts, purpose)
            entry.known.take_contents(things)
            entry.came_back(reader, occasion)
            return _pass(entry, things, passing)

    def is_back(self, things: Things, purpose: Hashable) -> bool:
        """Whether `value` will know, or make, something. The first time, things are noted."""
        return bool(decide((purpose, "is_back"), lambda: self._is_back(things, purpose)))

    def _is_back(self, things: Things, purpose: Hashable) -> bool:
        facts = _facts_of(things, self.features)
        if facts is None:
            return False
        with self._lock:
            entry = self._met(facts, purpose)
            if entry is None:
                if not is_run_again():
                    self._note(facts, purpose).came_back(None, None)
                return False
            return entry.value is not None

    def get(self, things: Things, purpose: Hashable) -> Any:
        """What was put for these things, if they are unchanged; None otherwise."""
        facts = _facts_of(things, self.features)
        if facts is None:
            return None
        with self._lock:
            entry = self._met(facts, purpose)
            if entry is None or not entry.known.is_same(things):
                return None
            return None if entry.value is UNKNOWN else entry.value

    def put(self, things: Things, purpose: Hashable, value: Any) -> None:
        """Keeps what is known of things as they are now, if they can be known again."""
        facts = _facts_of(things, self.features)
        if facts is None:
            return
        with self._lock:
            entry = self._note(facts, purpose)
            entry.known.take_contents(things)
            entry.value = value

    def drop(self, things: Things, purpose: Hashable) -> None:
        """Forgets what is known of these things."""
        facts = _facts_of(things, self.features)
        if facts is not None:
            with self._lock:
                self._entries.pop((purpose, facts[1]), None)

    def _met(self, facts: _Facts, purpose: Hashable) -> _Entry | None:
        key = (purpose, facts[1])
        entry = self._entries.get(key)
        if entry is None or not entry.known.agrees(facts):
            return None
        try:  # noqa: SIM105  (at every call)
            self._entries.move_to_end(key)
        except KeyError:
            pass
        return entry

    def _note(self, facts: _Facts, purpose: Hashable) -> _Entry:
        key = (purpose, facts[1])
        entries = self._entries
        entries.pop(key, None)
        while self.limit is not None and len(entries) >= self.limit:
            with contextlib.suppress(KeyError):  # it vanished meanwhile
                entries.popitem(last=False)
        mine = weakref.ref(self)

        def vanished(_: Any) -> None:
            recall = mine()
            if recall is not None:
                recall._entries.pop(key, None)

        entry = entries[key] = _Entry(Known(facts, self.features, vanished))
        return entry


def _pass(entry: _Entry, things: Things, passing: Callable[[], Any] | None) -> Passing | None:
    """What serves things that were met first, and is kept with them."""
    made = None if passing is None else passing()
    if made is None:
        return None
    entry.known.take_contents(things)
    entry.passing = Passing(made)
    return entry.passing


# Decisions, once a forward ----------------------------------------------------------------------


def decide(about: Hashable, take: Callable[[], T]) -> T:
    """What `take` gives; where a checkpoint runs a forward again, what it gave the first time.

    Non-reentrant checkpoints count the tensors that a forward saves and those that its
    recomputation does. What is remembered may change in between: by another forward before the
    backward, by `forget`, by an eviction.

    Args:
        about: what is decided. Kept with the decision: one about something else is not taken.
        take: decides, by memory.
    """
    hooks: Any = top_hooks(True)
    if hooks is None:
        return take()
    frame, again = _checkpoint_frame(hooks[0])
    if frame is None:
        return take()
    taken: list[tuple[Hashable, Any]] = frame.__dict__.setdefault("_hag_decisions", [])
    if not again:
        decision = take()
        taken.append((about, decision))
        return decision
    run, position = frame.__dict__.get("_hag_replayed", (None, 0))
    if run is not hooks[0]:  # each recomputation starts from the first decision
        position = 0
    if position < len(taken) and taken[position][0] == about:
        frame._hag_replayed = hooks[0], position + 1
        found: T = taken[position][1]
        return found
    return take()


def is_run_again() -> bool:
    """Whether a checkpoint runs a forward again, or a forward runs inside a backward.

    Nothing counts as coming back there.
    """
    if torch._C._current_graph_task_id() >= 0:
        return True
    hooks: Any = top_hooks(True)
    return hooks is not None and _checkpoint_frame(hooks[0])[1]


def _checkpoint_frame(pack: Any) -> tuple[Any, bool]:
    """The frame of the checkpoint whose hook this is, and whether it runs again.

    From torch/utils/checkpoint.py: the hooks of a forward hold its frame, those of a recomputation
    a reference to it. None where they are somebody else's, or look otherwise in another version.
    """
    pack = getattr(pack, "_torchdynamo_orig_callable", pack)
    if getattr(pack, "__module__", None) != "torch.utils.checkpoint":
        return None, False
    for name, cell in zip(pack.__code__.co_freevars, pack.__closure__ or (), strict=True):
        if name == "frame":
            return cell.cell_contents, False
        if name == "target_frame_ref":
            return cell.cell_contents(), True
    return None, False
