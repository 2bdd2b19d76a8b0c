"""Where the cells of the benchmark on a GPU run: on the card, or, for a rehearsal, on stand-ins."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from hag_plugin.devices import kind_of
from hag_plugin.testing import limits

Call = Callable[[], Any]
COPIED = 1 << 28  # numbers, of the copy whose rate is that of the card's memory


class Card:
    """The card: CUDA events, CUDA graphs, its memory.

    Attributes:
        device: torch's.
        is_rehearsal: whether no card is there, and no figure counts.
        warm: calls before the first that is timed.
        rounds: of timing, at least and at most.
        copied: numbers of the copy that `facts` times.
        batches: that a call trains on, of those that are met once.
        fanouts: neighbours that are drawn of a node of these, hop by hop.
    """

    device = torch.device("cuda")
    is_rehearsal = False
    warm = 3
    rounds = 5, 101
    copied = COPIED
    batches = 8
    fanouts: tuple[int, ...] = (15, 10)

    def __init__(self) -> None:
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def facts(self, copy_milliseconds: Callable[[Call], float]) -> dict[str, Any]:
        """The card, its driver, and the rate of a copy inside its memory, bytes read and written.

        Args:
            copy_milliseconds: times a call.
        """
        properties = torch.cuda.get_device_properties(0)
        return {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30),
            "multiprocessors": properties.multi_processor_count,
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "copy_bytes_per_second": self._copy_rate(copy_milliseconds),
        }

    def _copy_rate(self, copy_milliseconds: Callable[[Call], float]) -> float:
        source = torch.empty(self.copied, dtype=torch.float32, device=self.device).fill_(1)
        target = torch.empty_like(source)
        seconds = copy_milliseconds(lambda: target.copy_(source)) / 1e3
        return 2 * source.nbytes / seconds

    def free_bytes(self) -> int:
        """Of the card's memory."""
        return int(torch.cuda.mem_get_info()[0])

    def milliseconds(self, call: Call, calls: int) -> float:
        """Of one of so many calls, between two events."""
        self._start.record()
        for _ in range(calls):
            call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / calls

    def captured(self, call: Call) -> Call:
        """What replays a call that was captured in a CUDA graph, with its result."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.warm):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()

        def replay() -> Any:
            graph.replay()
            return result

        return replay

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`torch.compile` of a function or a module."""
        made: Callable[..., Any] = torch.compile(function, **options)
        return made

    @contextmanager
    def group(self) -> Iterator[None]:
        """A process group of this process alone, whose tensors are here. One that hangs on a card
        ends the process, not the call."""
        backend, store = kind_of(self.device).collectives, distributed.HashStore()
        distributed.init_process_group(
            backend, store=store, rank=0, world_size=1, timeout=timedelta(seconds=60)
        )
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def adam(self, parameters: Any) -> torch.optim.Optimizer:
        """An optimizer whose steps can be captured."""
        return torch.optim.Adam(parameters, lr=1e-3, capturable=True)

    def autocast(self) -> AbstractContextManager[Any]:
        """Of bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def why_waits(self, call: Call) -> str | None:
        """What a call says that waits for the card; None: it does not wait."""
        call()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as e:
            return first_line(e)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return None


class Rehearsal(Card):
    """Stand-ins for the card: Triton's interpreter on tensors in main memory, and a clock.

    Graphs are captured by keeping the call, code is traced but not compiled.
    """

    device = torch.device("cpu")
    is_rehearsal = True
    warm = 1
    rounds = 1, 1
    copied = 1 << 16
    batches = 1
    fanouts = (2, 1)

    def __init__(self) -> None:
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError("a rehearsal needs TRITON_INTERPRET=1 before Triton is imported")
        self._limits = ExitStack()
        few = {"few_messages": 0, "passing_gain": 0.0, "loop_calls": 0}  # of a graph so small
        self._limits.enter_context(limits(kernels_anywhere=True, **few))

    def facts(self, copy_milliseconds: Callable[[Call], float]) -> dict[str, Any]:
        """As of a card, with nothing that could be taken for one."""
        rate = self._copy_rate(copy_milliseconds)
        return {"name": "no card", "driver": None, "cuda": None, "copy_bytes_per_second": rate}

    def free_bytes(self) -> int:
        """Enough."""
        return 1 << 34

    def milliseconds(self, call: Call, calls: int) -> float:
        """By the clock."""
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) * 1e3 / calls

    def captured(self, call: Call) -> Call:
        """The call."""
        return call

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Traced, and run as it is."""
        made: Callable[..., Any] = torch.compile(function, backend="eager")
        return made

    def adam(self, parameters: Any) -> torch.optim.Optimizer:
        """The optimizer that a CPU has."""
        return torch.optim.Adam(parameters, lr=1e-3)

    def why_waits(self, call: Call) -> str | None:
        """That nothing can be said."""
        call()
        return "no card was asked"


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True).stdout.split()[0]
    except (OSError, IndexError):
        return None
