"""Devices and the links between them, and how long messages and collectives take on them.

Everything here is a model: what it says is predicted, or comes from fits that `hag-plugin probe`
measured. How devices are joined is told in `levels`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from hag_plugin.arguments import brief, check_choice, items, number, whole
from hag_plugin.files import read_json
from hag_plugin.parallel.machine.collectives import COLLECTIVES
from hag_plugin.parallel.machine.levels import SHAPES, Level, Tree
from hag_plugin.saved import set_module

FORMAT, VERSION = "hag_plugin.topology", 1
MOST_DEVICES = 2**20
# What a field of each type may be in a file, and in words.
VALUES: dict[str, tuple[tuple[type, ...], str]] = {
    "float": ((float, int), "a number"),
    "int": ((int,), "a whole number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a text"),
    "tuple[float, ...]": ((list, tuple), "a list of numbers"),
}


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Device:
    """One device. Peaks are published figures; the efficiencies say what share of them is met.

    Attributes:
        name: of the product.
        flops: peak floating-point operations a second in float32.
        bandwidth: of its memory, peak bytes a second.
        memory: bytes.
        overhead: seconds that an operation takes besides its work (launch, allocation, autograd).
        flops_efficiency: share of `flops` that dense products reach.
        bandwidth_efficiency: share of `bandwidth` that streams and gathers of rows reach.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    overhead: float = 1e-5
    flops_efficiency: float = 0.7
    bandwidth_efficiency: float = 0.7


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Fit:
    """A measured line: `collective` over `world_size` devices takes `alpha + beta * sent`.

    Attributes:
        collective: as in `COLLECTIVES`.
        world_size: devices.
        alpha: seconds.
        beta: seconds a byte sent by each device, as `Topology.seconds` counts them.
        error: largest relative error over the sizes measured.
    """

    collective: str
    world_size: int
    alpha: float
    beta: float
    error: float = 0.0


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Topology(Tree):
    """Devices and the links that join them.

    Attributes:
        name: of the machine.
        device: what each device is.
        levels: innermost first; the number of devices is the product of their sizes.
        fits: measured collectives; they go before the model.
        backend: "nccl", "gloo": what the collectives run on. gloo's reduce-scatter is one
            all-reduce per rank.
        source: where the figures come from.
        devices: where devices are not alike, what each is, in place of `device`. Plans give all of
            them equal work, so the slowest one sets the pace, and the smallest memory the limit.

    Example:
        >>> machine = preset("a100x8")
        >>> machine.num_devices, [link.name for link in machine.route(0, 3)]
        (8, ['0>NVLink 3', 'NVLink 3>3'])
    """

    name: str
    device: Device
    levels: tuple[Level, ...]
    fits: tuple[Fit, ...] = ()
    backend: str = "nccl"
    source: tuple[str, ...] = field(default=(), compare=False)
    devices: tuple[Device, ...] = ()

    def __post_init__(self) -> None:
        for device in (self.device, *self.devices):
            for key in ("flops", "bandwidth", "memory", "flops_efficiency", "bandwidth_efficiency"):
                _check_positive(f"{self.name}: device {key}", getattr(device, key))
        if self.devices and len(self.devices) != self.num_devices:
            raise ValueError(f"{self.name}: devices has {len(self.devices)} entries; expected one "
                             f"for each of {self.num_devices}")  # fmt: skip
        for i, level in enumerate(self.levels):
            links = self.num_links(i)
            if level.bandwidths and len(level.bandwidths) != links:
                raise ValueError(f"{self.name}: level {level.name!r} has {len(level.bandwidths)} "
                                 f"bandwidths; expected one for each of {links} links")  # fmt: skip
            for rate in level.bandwidths:
                _check_positive(f"{self.name}: level {level.name!r} bandwidths", rate)
            what = f"{self.name}: level {level.name!r}"
            if level.shape not in SHAPES:
                raise ValueError(f"{what} has shape {level.shape!r}; expected one of {SHAPES}")
            for key in ("size", "bandwidth", "latency", "efficiency"):
                _check_positive(f"{what} {key}", getattr(level, key))
        for fit in self.fits:
            if fit.collective not in COLLECTIVES:
                raise ValueError(
                    f"{self.name}: fit of {fit.collective!r}; expected one of {list(COLLECTIVES)}"
                )

    @cached_property
    def kinds(self) -> tuple[Device, ...]:
        """The devices that there are, each once."""
        return tuple(dict.fromkeys(self.devices or (self.device,)))

    def device_at(self, place: int) -> Device:
        """What the device of a number is."""
        return self.devices[place] if self.devices else self.device

    @property
    def memory(self) -> float:
        """Bytes that every device has."""
        return min(device.memory for device in self.kinds)

    def resized(self, num_devices: int) -> Topology:
        """The same machine with another number of devices: fewer, or more outermost groups.

        Raises:
            ValueError: `num_devices` is neither a whole number of the outermost groups nor fits
                into inner ones evenly.
        """
        num_devices = whole("num_devices", num_devices, 1, MOST_DEVICES)
        if num_devices == self.num_devices:
            return self
        if self.devices or any(level.bandwidths for level in self.levels):
            raise ValueError(f"{self.name} has devices or links that are not alike: it cannot have "
                             f"{num_devices} devices; expected {self.num_devices}")  # fmt: skip
        levels: list[Level] = []
        left = num_devices
        for i, level in enumerate(self.levels):
            size = left if i == len(self.levels) - 1 else min(level.size, left)
            if size < 1 or left % size:
                raise ValueError(
                    f"{self.name} cannot have {num_devices} devices: its groups of {level.size} "
                    f"({level.name}) would not be full; expected a multiple of {self.spans[-2]}, "
                    "or a divisor of it"
                )
            levels.append(replace(level, size=size))
            left //= size
        while len(levels) > 1 and levels[-1].size == 1:
            levels.pop()
        return replace(self, name=f"{self.name}, {num_devices} devices", levels=tuple(levels))

    # Collectives -----------------------------------------------------------------------------

    def seconds(
        self,
        collective: str,
        sent: float,
        group: Sequence[int] | None = None,
        *,
        algorithm: str | None = None,
        at_once: int = 1,
    ) -> float:
        """How long a collective takes.

        Args:
            collective: one of `COLLECTIVES`.
            sent: bytes that each device sends (the most of any), by the count of a ring: for P
                devices and a whole tensor of V bytes, (P-1)/P V in an all-gather or a
                reduce-scatter, 2(P-1)/P V in an all-reduce; in an exchange what goes to others.
            group: the devices that take part; by default all.
            algorithm: one of those of the collective; by default the fastest.
            at_once: so many such groups work at the same time and share links.

        Returns:
            Seconds; 0 for a single device.
        """
        check_choice("collective", collective, list(COLLECTIVES))
        check_choice("algorithm", algorithm, [*COLLECTIVES[collective], None])
        sent, at_once = number("sent", sent), whole("at_once", at_once, 1, MOST_DEVICES)
        members = list(range(self.num_devices))
        if group is not None:
            most = self.num_devices - 1
            members = sorted(whole("group", member, 0, most) for member in items("group", group))
        if len(members) < 2:
            return 0.0
        for fit in self.fits:
            if fit.collective == collective and fit.world_size == len(members):
                return fit.alpha + fit.beta * sent
        models = COLLECTIVES[collective]
        chosen = models if algorithm is None else {algorithm: models[algorithm]}
        return min(float(model(self, sent, members, at_once)) for model in chosen.values())

    # Files -----------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """What a file holds."""
        return {"format": FORMAT, "version": VERSION} | asdict(self)

    @classmethod
    def from_dict(cls, document: Any) -> Topology:
        """The topology of a file's content.

        Raises:
            ValueError: it is of another format or version, or a field is missing or wrong.
        """
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(
                f"the document is no topology: expected an object of format {FORMAT!r}"
            )
        if document.get("version") != VERSION:
            raise ValueError(
                f"topology is of version {document.get('version')!r}; expected {VERSION}"
            )
        values = {k: v for k, v in document.items() if k not in ("format", "version")}
        values["device"] = _record(Device, values.get("device"), "device")
        for key, kind in (("levels", Level), ("fits", Fit), ("devices", Device)):
            items = values.get(key, [])
            if not isinstance(items, (list, tuple)):
                raise ValueError(f"topology's {key} are {items!r}; expected a list")
            values[key] = tuple(_record(kind, v, f"{key}[{i}]") for i, v in enumerate(items))
        sources = values.get("source", [])
        if not (isinstance(sources, (list, tuple)) and all(isinstance(s, str) for s in sources)):
            raise ValueError(f"topology's source is {sources!r}; expected a list of texts")
        values["source"] = tuple(sources)
        topology: Topology = _record(cls, values, "topology")
        return topology


def _record(kind: Any, values: Any, what: str) -> Any:
    names = {f.name: f for f in fields(kind)}
    if not isinstance(values, dict):
        raise ValueError(f"{what} is {values!r}; expected an object with {sorted(names)}")
    unknown = sorted(values.keys() - names.keys())
    if unknown:
        raise ValueError(f"{what} has unknown fields {unknown}; expected {sorted(names)}")
    for name, value in values.items():
        types, words = VALUES.get(str(names[name].type), ((type(value),), ""))
        if type(value) not in types or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{what}.{name} is {value!r}; expected {words}")
        if words == VALUES["tuple[float, ...]"][1]:
            if not all(type(v) in (float, int) and math.isfinite(v) for v in value):
                raise ValueError(f"{what}.{name} is {value!r}; expected {words}")
            values = values | {name: tuple(value)}
    try:
        return kind(**values)
    except TypeError as e:
        raise ValueError(f"{what}: {e}") from e


def _check_positive(what: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{what} is {value}; expected a positive number")


def name_of_all(name: str, num_devices: int) -> str:
    """The name of the machine of which `Topology.resized` may have taken so many devices.

    Example:
        >>> name_of_all("a100x8, 4 devices", 4), name_of_all("a100x8", 8)
        ('a100x8', 'a100x8')
    """
    return name.removesuffix(f", {num_devices} devices")


# Presets --------------------------------------------------------------------------------------


@set_module("hag_plugin.parallel")
def presets() -> list[str]:
    """The names of the machines that come with the package."""
    folder = resources.files("hag_plugin.parallel.machine") / "presets"
    return sorted(f.name[: -len(".json")] for f in folder.iterdir() if f.name.endswith(".json"))


@set_module("hag_plugin.parallel")
def preset(name: str) -> Topology:
    """A machine that comes with the package.

    Raises:
        ValueError: there is none of this name.
    """
    if not isinstance(name, str) or name not in presets():
        raise ValueError(f"topology is {brief(name)}; expected a file, or the name of one of "
                         f"{presets()}")  # fmt: skip
    text = (resources.files("hag_plugin.parallel.machine") / "presets" / f"{name}.json").read_text()
    return Topology.from_dict(json.loads(text))


def load(source: str | os.PathLike[str] | Topology) -> Topology:
    """A topology from a preset's name or a JSON file; a topology is handed back.

    Raises:
        OSError: the file can't be opened or read.
        ValueError: neither a preset nor a file, or the file is no topology.
    """
    if isinstance(source, Topology):
        return source
    if not isinstance(source, (str, os.PathLike)) or "\0" in os.fspath(source):
        raise TypeError(f"topology is {brief(source)}; expected a Topology, a file or one of "
                        f"{presets()}")  # fmt: skip
    path = Path(source)
    if not path.is_file():
        return preset(os.fspath(source))
    document = read_json(path)
    try:
        return Topology.from_dict(document)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e
