"""What a HAG is in pickles and files: names, numbers and tensors, of which nothing is trusted."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hag_plugin.devices import KINDS
from hag_plugin.hag.candidates import CHOOSE
from hag_plugin.hag.graph import MAX_NODES
from hag_plugin.hag.program import ARRAYS, METHODS, SELF_LOOPS, Options, SelfLoops


def entry(state: Any, name: str, *kinds: type) -> Any:
    """What a dictionary holds under a name, of one of these types exactly.

    Raises:
        ValueError: there is none, or it is of another type.
    """
    if not isinstance(state, dict) or name not in state:
        raise ValueError(f"there is no {name!r}")
    value = state[name]
    if type(value) not in kinds:
        words = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name} is a {type(value).__name__}; expected {words}")
    return value


def arrays_of(state: Any, copy: bool) -> list[Tensor]:
    """The six arrays of a program."""
    found = [entry(state, name, Tensor).detach() for name in ARRAYS]
    for name, array in zip(ARRAYS, found, strict=True):
        dtype = torch.int64 if name.endswith("_ptr") else torch.int32
        if array.dtype != dtype or array.layout != torch.strided or array.dim() != 1:
            raise ValueError(f"{name} is {array.dtype}, {array.layout}, {list(array.shape)}; "
                             f"expected dense {dtype} of one dimension")  # fmt: skip
    return [array.clone() if copy else array for array in found]


def nodes_of(state: Any) -> int:
    """The number of source nodes."""
    num_src: int = entry(state, "num_src", int)
    if not 0 <= num_src <= MAX_NODES:
        raise ValueError(f"num_src is {num_src}; expected 0 to 2^31 - 1")
    return num_src


def options_of(state: Any) -> Options:
    """The options of a search; what an earlier version did not have is as by default."""
    given = entry(state, "options", dict)
    unknown = given.keys() - {field.name for field in fields(Options)}
    if unknown:
        raise ValueError(f"there are unknown options: {sorted(map(str, unknown))}")
    options = Options(**given)
    width, capacity = options.width, options.capacity
    expected = {
        "method": (options.method in METHODS, f"one of {METHODS}"),
        "choose": (options.choose in CHOOSE, f"one of {CHOOSE}"),
        "device": (options.device in tuple(KINDS), f"one of {tuple(KINDS)}"),
        "width": (type(width) is int and width > 0, "an int from 1 on"),
        "capacity": (
            capacity is None or (type(capacity) is int and capacity >= 0),
            "None or an int from 0 on",
        ),
        "allow_subtraction": (type(options.allow_subtraction) is bool, "a bool"),
        "constants": (type(options.constants) is str, "a str"),
    }
    for name, (is_right, words) in expected.items():
        if not is_right:
            raise ValueError(f"{name} is {getattr(options, name)!r}; expected {words}")
    return options


def key_of(state: Any) -> tuple[SelfLoops, bool]:
    """The matrix that a program is for."""
    self_loops = entry(state, "self_loops", str) or False
    if self_loops not in SELF_LOOPS:
        raise ValueError(f"self_loops is {self_loops!r}; expected one of {SELF_LOOPS}")
    return self_loops, entry(state, "idempotent", bool)


def seconds_of(state: Any) -> float:
    """What a search took."""
    seconds = entry(state, "search_seconds", int, float)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"search_seconds is {seconds}; expected a finite number, 0 or more")
    return float(seconds)
