"""The kinds of devices: what torch calls them, what programs cost there, what ranks talk through.

A new kind is an entry here. Where it has launches, the Triton kernels run on it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from hag_plugin.arguments import brief


@dataclass(frozen=True)
class Launches:
    """What one launch costs on a device that runs a program level by level.

    Round figures from data sheets, not measured: they only decide whether a search beats the plain
    graph.

    Attributes:
        seconds: of the launch itself.
        bytes_per_second: from and to the device's memory.
        seconds_per_wait: how long rows that are fetched together are under way.
        rows_per_wait: how many are fetched together.
    """

    seconds: float
    bytes_per_second: float
    seconds_per_wait: float
    rows_per_wait: int

    def seconds_of(self, launches: int, moved: int) -> float:
        """Of so many launches that move so many bytes, and keep the device busy."""
        return launches * self.seconds + moved / self.bytes_per_second


@dataclass(frozen=True)
class Kind:
    """A kind of device.

    Attributes:
        name: torch's.
        dispatch_key: under which torch dispatches operators to it.
        collectives: torch.distributed's backend for tensors on it.
        launches: None: programs run tile by tile, in threads.
    """

    name: str
    dispatch_key: str
    collectives: str
    launches: Launches | None = None


KINDS = {
    kind.name: kind
    for kind in (
        Kind("cpu", "CPU", "gloo"),
        # An A100 moves 2e12 bytes a second, an H100 3.3e12.
        Kind("cuda", "CUDA", "nccl", Launches(4e-6, 2e12, 6e-7, 4)),
    )
}


def kind_of(device: torch.device | str) -> Kind:
    """The kind of a device; that of the CPU where it is none of the known ones."""
    return KINDS.get(torch.device(device).type, KINDS["cpu"])


def checked(device: Any, name: str = "device") -> torch.device:
    """The device that an argument says.

    Raises:
        TypeError: it says none.
        ValueError: torch has no such device, or nothing here runs on it.
    """
    expected = f"expected a torch.device or its name, of {', '.join(KINDS)}"
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
        raise TypeError(f"{name} is {brief(device)}; {expected}")
    try:
        found = torch.device(device)
        number = found.index or 0
    except (RuntimeError, ValueError, AssertionError) as e:
        raise ValueError(f"{name} is {brief(device)}; {expected}") from e
    if found.type == "meta":
        return found
    if found.type not in KINDS:
        raise ValueError(f"{name} is {str(found)!r}; {expected}")
    module = module_of(KINDS[found.type])
    count = 1 if module is None else module.device_count() if module.is_available() else 0
    if number >= count:
        words = "no GPU" if count == 0 else f"{count} of them"
        raise ValueError(f"{name} is {str(found)!r}, but torch finds {words}; {expected}")
    return found


def kind_with(collectives: str) -> Kind:
    """The kind whose tensors go through a backend of torch.distributed, as `get_backend` says it.

    Where that names several, as in "cpu:gloo,cuda:nccl", the one beside the CPU.
    """
    named = (k for k in KINDS.values() if k.launches is not None and k.collectives in collectives)
    return next(named, KINDS["cpu"])


def backends() -> tuple[str, ...]:
    """The backends of torch.distributed, of all kinds."""
    return tuple(kind.collectives for kind in KINDS.values())


def module_of(kind: Kind) -> Any:
    """What torch has for devices of a kind beside the CPU, such as `torch.cuda`; None for that."""
    return None if kind.launches is None else torch.get_device_module(kind.name)


def is_available(kind: Kind) -> bool:
    """Whether torch finds a device of this kind."""
    module = module_of(kind)
    return module is None or bool(module.is_available())


def current(kind: Kind) -> torch.device:
    """The device of a kind that torch uses where none is said."""
    module = module_of(kind)
    return (
        torch.device("cpu") if module is None else torch.device(kind.name, module.current_device())
    )


def name_of(device: torch.device | str) -> str | None:
    """What a device beside the CPU calls itself; None for that."""
    module = module_of(kind_of(device))
    return None if module is None else str(module.get_device_properties(device).name)


def synchronize(device: torch.device | str) -> None:
    """Waits until a device has done all that it was told."""
    module = module_of(kind_of(device))
    if module is not None:
        module.synchronize(device)


def event_seconds(call: Callable[[], None], calls: int, device: torch.device) -> float:
    """Of one of so many calls, between two events of a device that runs launches."""
    module = torch.get_device_module(device)
    with module.device(device):
        start, end = (module.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3 / calls


def forked_random_state(device: torch.device) -> AbstractContextManager[None]:
    """`torch.random.fork_rng` of the CPU and this device."""
    kind = kind_of(device)
    others = [] if module_of(kind) is None else [device]
    device_type = kind.name if others else "cuda"
    return torch.random.fork_rng(others, device_type=device_type)


@cache
def processor() -> str:
    """The name of the processor, with the numbers that tell apart those of one name."""
    wanted = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read().partition("\n\n")[0]
    except OSError:
        first = ""
    lines = (line.partition(":") for line in first.splitlines())
    said = {name.strip(): value.strip() for name, _, value in lines}
    words = [
        said[name] if name == "model name" else f"{name} {said[name]}"
        for name in wanted
        if said.get(name)
    ]
    return ", ".join(words) or platform.processor() or platform.machine()
