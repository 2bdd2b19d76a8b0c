"""The kinds of devices: what torch calls them, what programs cost there, what ranks talk through.

A new kind is an entry here. Where it has launches, the Triton kernels run on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch


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


def module_of(kind: Kind) -> ModuleType | None:
    """What torch has for devices of a kind beside the CPU, such as `torch.cuda`."""
    return None if kind.launches is None else torch.get_device_module(kind.name)


def is_available(kind: Kind) -> bool:
    """Whether torch finds a device of this kind."""
    module = module_of(kind)
    return module is None or bool(module.is_available())


def synchronize(device: torch.device | str) -> None:
    """Waits until a device has done all that it was told."""
    module = module_of(kind_of(device))
    if module is not None:
        module.synchronize(device)


def with_random_state(device: torch.device) -> list[torch.device]:
    """The devices, beside the CPU, whose random state `torch.random.fork_rng` is to keep."""
    return [] if module_of(kind_of(device)) is None else [device]
