"""HAG files: arrays and a header in a zip (NumPy's npz), never a pickle."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin.files import interruptible, whole_file

FILE_FORMAT = "hag_plugin.HAG"
FILE_VERSION = 1


def write(
    path: str | os.PathLike[str], state: dict[str, Any], content_hash: tuple[int, int]
) -> None:
    """Writes the state of a HAG. The file appears whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    header: dict[str, Any] = {"format": FILE_FORMAT, "version": FILE_VERSION}
    header["hag"] = _split_arrays(state, arrays, "hag")
    header["content_hash"] = list(content_hash)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with whole_file(path) as file, interruptible():
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], tuple[int, int]]:
    """The state and the content hash in a file. What the arrays hold is not checked here.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no HAG file or is of another version.
    """
    name = os.fspath(path)
    try:
        with (
            interruptible(),
            open(path, "rb") as file,
            np.load(file, allow_pickle=False) as archive,
        ):
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes())
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as e:  # whatever a zip or an array header of wrong bytes leads to
        raise ValueError(f"{name} is damaged, truncated or not a HAG file: {e}") from e
    if not isinstance(header, dict):
        raise ValueError(f"{name} is not a HAG file: its header is no object")
    if header.get("format") != FILE_FORMAT or header.get("version") != FILE_VERSION:
        raise ValueError(
            f"{name} is of format {header.get('format')!r}, version {header.get('version')!r}; "
            f"expected {FILE_FORMAT!r}, version {FILE_VERSION}"
        )
    try:
        state = _join_arrays(header["hag"], arrays)
        low, high = header["content_hash"]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(f"{name} does not hold a valid HAG: {e}") from e
    return state, (low, high)


def _split_arrays(value: Any, arrays: dict[str, np.ndarray], name: str) -> Any:
    """`value` for JSON: every tensor goes to `arrays`, its name stays."""
    if isinstance(value, Tensor):
        arrays[name] = value.cpu().numpy()
        return {"array": name}
    if isinstance(value, dict):
        return {k: _split_arrays(v, arrays, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_split_arrays(v, arrays, f"{name}.{i}") for i, v in enumerate(value)]
    return value


def _join_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return torch.from_numpy(np.ascontiguousarray(arrays[value["array"]]))
        return {k: _join_arrays(v, arrays) for k, v in value.items()}
    return [_join_arrays(v, arrays) for v in value] if isinstance(value, list) else value
