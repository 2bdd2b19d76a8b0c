"""HAG files: arrays and a header in a zip (NumPy's npz), never a pickle.

Every version that was written stays readable; tests/hag/files holds one file of each.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from typing import IO, Any

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

    No more memory is taken than the file has bytes, whatever it says of itself.

    Raises:
        OSError: the file can't be opened or read.
        ValueError: it is damaged, is no HAG file or is of a version to come.
    """
    name = os.fspath(path)
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        raise ValueError(f"{name} is a pipe or a device; expected a file")
    with open(path, "rb") as file:
        try:
            with interruptible():
                arrays = _arrays(file)
            header = json.loads(arrays.pop("header").tobytes())
        except MemoryError:
            raise
        except Exception as e:  # whatever a zip or an array header of wrong bytes leads to
            raise ValueError(f"{name} is damaged, truncated or not a HAG file: {e}") from e
    if not isinstance(header, dict) or header.get("format") != FILE_FORMAT:
        kind = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"{name} is not a HAG file: it is of format {kind!r}; expected "
                         f"{FILE_FORMAT!r}")  # fmt: skip
    version = header.get("version")
    if type(version) is not int or not 1 <= version <= FILE_VERSION:
        raise ValueError(f"{name} is of version {version!r} of {FILE_FORMAT!r}; this package reads "
                         f"versions 1 to {FILE_VERSION}")  # fmt: skip
    try:
        state = _join_arrays(header["hag"], arrays)
        low, high = header["content_hash"]
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise ValueError(f"{name} does not hold a valid HAG: {e!r}") from e
    return state, (low, high)


def _arrays(file: IO[bytes]) -> dict[str, np.ndarray]:
    """The arrays of a zip by name, in memory of their own."""
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        left = os.stat(file.fileno()).st_size
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise ValueError(f"{entry.filename} is compressed or encrypted; expected neither")
            left -= entry.file_size
            if left < 0 or entry.file_size != entry.compress_size:
                raise ValueError(f"{entry.filename} is to have {entry.file_size} bytes; expected "
                                 "no more than the file has")  # fmt: skip
            content = bytearray(entry.file_size)
            at, rest = 0, memoryview(content)
            with archive.open(entry) as stored:  # which compares the checksum at the end
                while at < len(content):
                    read = stored.readinto(rest[at:])  # type: ignore[attr-defined]
                    if not read:
                        raise ValueError(f"{entry.filename} ends after {at} bytes")
                    at += read
            arrays[entry.filename.removesuffix(".npy")] = _array(entry.filename, content)
    return arrays


def _array(name: str, content: bytearray) -> np.ndarray:
    """The array in the bytes of a .npy file."""
    head = io.BytesIO(memoryview(content)[: 1 << 16])
    version = np.lib.format.read_magic(head)
    reads = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, _, dtype = reads[version](head)
    found = np.frombuffer(content, np.uint8)[head.tell() :]
    found = found if head.tell() % 16 == 0 else found.copy()  # aligned, as NumPy's are
    if dtype.hasobject or len(shape) != 1 or shape[0] * dtype.itemsize != len(found):
        raise ValueError(f"{name} is to be {dtype} {list(shape)} in {len(found)} bytes; expected "
                         "an array of one dimension that fills them")  # fmt: skip
    return found.view(dtype)


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
    """The other way round; no array serves twice."""
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return torch.from_numpy(arrays.pop(value["array"]))
        return {k: _join_arrays(v, arrays) for k, v in value.items()}
    return [_join_arrays(v, arrays) for v in value] if isinstance(value, list) else value
