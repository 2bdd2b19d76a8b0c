"""Checks of what a user passes: an error names the argument, what it was and what was expected."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def brief(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        if value.is_nested:
            return "a nested tensor"
        return f"a tensor of {value.dtype} {list(value.shape)} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    words = repr(value)
    return words if len(words) <= 80 else f"{words[:77]}..."


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Raises ValueError unless a value is one of a few names, False or None."""
    if not (value is None or isinstance(value, (str, bool))) or value not in known:
        raise ValueError(f"{name} is {brief(value)}; expected one of {tuple(known)}")


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError unless a value is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {brief(value)}; expected a bool")


def check_optional_flag(name: str, value: Any) -> None:
    """Raises TypeError unless a value is True, False or None."""
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} is {brief(value)}; expected a bool or None")


def some(name: str, value: Any) -> list[Any]:
    """The things in a list or another iterable, of which there must be one at least.

    Raises:
        TypeError: it is none.
        ValueError: it is empty.
    """
    found = items(name, value)
    if not found:
        raise ValueError(f"{name} is empty; expected one or more")
    return found


def check_path(name: str, value: Any) -> None:
    """Raises TypeError unless a value is the path of a file: a text or a `PathLike`."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is {brief(value)}; expected a str or a PathLike")


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number in a range, NumPy's too.

    Raises:
        TypeError: it is none.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {brief(value)}; expected an int")
    if not least <= value <= most:
        raise ValueError(f"{name} is {brief(value)}; expected {least} to {most}")
    return int(value)


def pair(name: str, value: Any, most: int) -> tuple[int, int]:
    """Two whole numbers, from 0 to `most`.

    Raises:
        TypeError: these are none.
        ValueError: there are more or less than two, or one is out of range.
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} is {brief(value)}; expected (num_src, num_dst)")
    if len(value) != 2:
        raise ValueError(f"{name} is {brief(value)}; expected (num_src, num_dst)")
    return whole(name, value[0], 0, most), whole(name, value[1], 0, most)


def check_dense(name: str, value: Any) -> None:
    """Raises TypeError unless a value is a tensor of numbers side by side in memory."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {brief(value)}; expected a torch.Tensor")
    if value.is_nested or value.is_quantized or value.layout != torch.strided:
        kind = "quantized" if value.is_quantized else value.layout
        raise TypeError(f"{name} is {brief(value)}, {kind}; expected a dense tensor")
    check_memory(name, value)


def check_memory(name: str, tensor: Tensor) -> None:
    """Raises ValueError where a tensor reaches beyond its storage.

    A storage that is resized, as FSDP does with parameters that are not in use, asks none of its
    tensors; torch would read on.
    """
    if torch.compiler.is_compiling():
        return  # operators look when they run
    try:
        there = tensor.untyped_storage().nbytes()
    except RuntimeError:  # a wrapper, whose own tensor is looked at where it is unwrapped
        return
    if there == tensor.nbytes and not tensor.storage_offset() and tensor.is_contiguous():
        return  # it is all of its storage, as most are
    if tensor.numel() == 0:
        return
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    reach = (tensor.storage_offset() + steps + 1) * tensor.element_size()
    if reach > there:
        raise ValueError(f"{name} is {brief(tensor)} that reaches over {reach} bytes, but its "
                         f"storage was resized to {there}; expected all of it")  # fmt: skip


def number(name: str, value: Any, least: float = 0.0) -> float:
    """A finite number, as a float.

    Raises:
        TypeError: it is none.
        ValueError: it is below `least`, NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} is {brief(value)}; expected a number")
    if not least <= value < float("inf"):
        raise ValueError(f"{name} is {brief(value)}; expected a finite number from {least:g} on")
    return float(value)


def check_kind(name: str, value: Any, *kinds: type) -> None:
    """Raises TypeError unless a value is of one of some classes."""
    if not isinstance(value, kinds):
        words = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} is {brief(value)}; expected a {words}")


def check_function(name: str, value: Any) -> None:
    """Raises TypeError unless a value can be called, or is None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} is {brief(value)}; expected a function or None")


def check_floating(name: str, value: Any) -> None:
    """Raises TypeError unless a value is a dtype of floating-point numbers."""
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise TypeError(f"{name} is {brief(value)}; expected a floating-point torch.dtype")


def items(name: str, value: Any) -> list[Any]:
    """What a list, a tuple or the like holds.

    Raises:
        TypeError: it is a text or a tensor, or nothing that can be gone through.
    """
    try:
        if not isinstance(value, (str, bytes, dict, Tensor)):
            return list(value)
    except TypeError:
        if isinstance(value, Iterable) or hasattr(type(value), "__getitem__"):
            raise  # in its own code, and no class
    raise TypeError(f"{name} is {brief(value)}; expected a list")
