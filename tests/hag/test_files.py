"""HAG files that are wrong: each is refused, or holds a HAG that computes what its edges say."""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hag_plugin as hp
from hag_plugin.hag.files import FILE_VERSION
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SELF_LOOPS, SelfLoops
from hag_plugin.kernels import _cpu

from .. import reference

FILES = Path(__file__).parent / "files"
MUTANTS = 500  # of each file

Arrays = dict[str, np.ndarray]


def edges(n: int, seed: int = 0) -> torch.Tensor:
    """Cliques, random edges, duplicates and loops."""
    random = np.random.default_rng(seed)
    group = random.integers(0, 3, n)
    inside = np.nonzero(group[:, None] == group)
    others = random.integers(0, n, (2, 2 * n))
    return torch.from_numpy(np.concatenate([np.stack(inside), others], 1))


def everything() -> HAG:
    """All programs that a graph can have, and those of its reverse."""
    hag = hp.build_hag(edges(18), num_nodes=18, choose="hag")
    for mode in SELF_LOOPS:
        for idempotent in (False, True):
            hag.program(mode, idempotent=idempotent)
    hag.transpose().program()
    return hag


def subtracting() -> HAG:
    hag = hp.build_hag(edges(20).unique(dim=1), num_nodes=20, choose="hag", allow_subtraction=True)
    hag.program()
    hag.program(idempotent=True)
    return hag


def bipartite() -> HAG:
    source = torch.arange(24).repeat(10)
    target = torch.arange(10).repeat_interleave(24)
    kept = torch.rand(240, generator=torch.Generator().manual_seed(0)) < 0.7
    pairs = torch.stack([source, target])[:, kept]
    hag = hp.build_hag(pairs, size=(24, 10), targets_first=True, method="greedy")
    hag.prepare((False, "add"), transpose=True)
    return hag


def with_table() -> HAG:
    hag = hp.build_hag(edges(60), num_nodes=60, choose="model")
    hag.program()
    assert hag._tables
    return hag


def batched() -> HAG:
    parts = [hp.build_hag(edges(n, n), num_nodes=n, choose="hag") for n in (5, 9, 3)]
    hag = hp.batch(parts)
    hag.program("add")
    return hag


HAGS = {f.__name__: f for f in (everything, subtracting, bipartite, with_table, batched)}


def assert_right(hag: HAG) -> None:
    """What a HAG computes is what its edges say, forward and backward."""
    edge_index = hag.edge_index
    x = torch.randint(-9, 10, (hag.num_src, 2), generator=torch.Generator().manual_seed(1))
    modes: tuple[SelfLoops, ...] = SELF_LOOPS if hag.is_square or hag.targets_first else (False,)
    for mode in modes:
        if mode is not False and hag.num_dst > hag.num_src:
            continue
        for reduce in ("sum", "max"):
            leaf, other = (x.double().requires_grad_() for _ in range(2))
            y = hp.aggregate(leaf, hag, reduce=reduce, self_loops=mode)
            expected = reference.aggregate(other, edge_index, hag.num_dst, reduce, self_loops=mode)
            assert torch.equal(y, expected)
            if reduce == "sum":  # the gradient of equal maxima is shared out otherwise
                weight = torch.arange(y.numel(), dtype=y.dtype).view_as(y)
                (y * weight).sum().backward()
                (expected * weight).sum().backward()
                assert torch.equal(leaf.grad, other.grad)  # type: ignore[arg-type]


def written(path: Path) -> tuple[dict[str, Any], Arrays]:
    with np.load(path) as file:
        arrays = dict(file)
    return json.loads(arrays.pop("header").tobytes()), arrays


def write(path: Path, header: dict[str, Any], arrays: Arrays) -> None:
    """With checksums that are right, that of the edges included where there are any."""
    with np.errstate(all="ignore"):
        try:
            row_ptr, col = arrays["hag.row_ptr"], arrays["hag.col"]
            lengths = np.diff(row_ptr)
            if (lengths > 10**6).any():
                raise MemoryError
            target = np.repeat(np.arange(len(row_ptr) - 1), lengths)
            header["content_hash"] = _cpu.edge_hash(col.astype(np.int64), target)
        except (KeyError, TypeError, ValueError, MemoryError):
            pass
    arrays = {**arrays, "header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    with path.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


VALUES = [None, True, False, -1, 0, 1, 2, 7, 2**31, 2**40, 10**400, 0.5, float("nan"), "", "add",
          "fill", "none", "cuda", "x", [], [1], {}, {"array": "hag.col"}, {"array": 3}]  # fmt: skip
DTYPES = [np.int8, np.int32, np.int64, np.uint32, np.float32, np.complex64, np.bool_, ">i4", "S4"]


def changed_header(header: Any, random: np.random.Generator) -> None:
    """One value somewhere in it is another, is gone, or there is one more."""
    value, keys = header, list(header)
    while True:
        key = keys[random.integers(len(keys))]
        inner = value[key]
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(
            inner, list) else []  # fmt: skip
        if not keys or random.random() < 0.15:
            break
        value = inner
    kind = random.random()
    if kind < 0.1:
        del value[key]
    elif kind < 0.2 and isinstance(value, dict):
        value["more"] = VALUES[random.integers(len(VALUES))]
    else:
        value[key] = copy.deepcopy(VALUES[random.integers(len(VALUES))])


def changed_array(arrays: Arrays, random: np.random.Generator) -> None:
    name = sorted(arrays)[random.integers(len(arrays))]
    array = arrays[name].copy()
    kind = random.random()
    if kind < 0.7 and len(array):
        for _ in range(random.integers(1, 3)):
            near = array[random.integers(len(array))] + random.integers(-1, 2)
            far = random.choice([-(2**31), -1, 0, 2**31 - 1])
            value = np.asarray(near if random.random() < 0.8 else far)
            array[random.integers(len(array))] = value.astype(array.dtype)
    elif kind < 0.75:
        array = array[: random.integers(len(array) + 1)]
    elif kind < 0.8:
        array = np.concatenate([array, array[-1:]])
    elif kind < 0.85:
        array = array.astype(np.float64).astype(DTYPES[random.integers(len(DTYPES))])
    elif kind < 0.9:
        array = array[None]
    elif kind < 0.95 and len(array) > 1:
        a, b = random.integers(0, len(array), 2)
        array[[a, b]] = array[[b, a]]
    else:
        del arrays[name]
        return
    arrays[name] = array


@pytest.mark.parametrize("name", HAGS)
def test_a_changed_file_is_refused_or_right(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    path = tmp_path / "graph.npz"
    HAGS[name]().save(path)
    header, arrays = written(path)
    assert_right(HAG.load(path))
    loaded = 0
    for _ in range(MUTANTS):
        new_header, new_arrays = copy.deepcopy(header), dict(arrays)
        for _ in range(random.integers(1, 3)):
            if random.random() < 0.3:
                changed_header(new_header, random)
            elif new_arrays:
                changed_array(new_arrays, random)
        with np.errstate(invalid="ignore"):
            write(path, new_header, new_arrays)
        try:
            hag = HAG.load(path)
        except ValueError:
            continue
        loaded += 1
        assert hag.num_src < 10**6
        assert_right(hag)
        hag.save(tmp_path / "again.npz")
    assert loaded > 5


# Versions -----------------------------------------------------------------------------------------


def released() -> HAG:
    """What tests/hag/files holds in each version of the format."""
    return everything()


@pytest.mark.parametrize("version", range(1, FILE_VERSION + 1))
def test_every_version_is_readable(version: int) -> None:
    hag = HAG.load(FILES / f"version-{version}.npz")
    expected = released()
    assert torch.equal(hag.col, expected.col)
    assert torch.equal(hag.row_ptr, expected.row_ptr)
    assert hag._keys() == expected._keys()
    assert hag.transpose()._keys() == expected.transpose()._keys()
    assert_right(hag)
    assert_right(hag.transpose())
    hag.check(edges(18))


# Other ways to be wrong ---------------------------------------------------------------------------


def npy(shape: tuple[int, ...], dtype: str = "<i8", content: bytes = b"") -> bytes:
    out = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + content


def a_zip(path: Path, content: bytes, name: str = "header.npy", compression: int = 0) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, content)


def huge_shape(path: Path) -> None:
    a_zip(path, npy((2**50,)))


def huge_items(path: Path) -> None:
    a_zip(path, npy((1,), "|V1000000000000"))


def a_bomb(path: Path) -> None:
    a_zip(path, npy((2**26,), "|u1", bytes(2**26)), compression=zipfile.ZIP_DEFLATED)


def huge_entry(path: Path) -> None:
    """The directory says that the entry has 2 GB."""
    a_zip(path, npy((0,)))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    for field in (20, 24):
        content[at + field : at + field + 4] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(content)


def objects(path: Path) -> None:
    out = io.BytesIO()
    np.save(out, np.array([{}], dtype=object), allow_pickle=True)
    a_zip(path, out.getvalue())


def deep_header(path: Path) -> None:
    text = b"[" * 100_000
    a_zip(path, npy((len(text),), "|u1", text))


def deep_state(path: Path) -> None:
    text = b'{"format": "hag_plugin.HAG", "version": 1, "content_hash": [0, 0], "hag": '
    text += b"[" * 900 + b"]" * 900 + b"}"
    a_zip(path, npy((len(text),), "|u1", text))


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def empty(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize("make", [huge_shape, huge_items, a_bomb, huge_entry, objects, deep_header,
                                  deep_state, a_pipe, empty])  # fmt: skip
def test_what_is_no_hag_file_is_refused_at_once(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "graph.npz"
    make(path)
    with pytest.raises(ValueError, match=r"graph\.npz") as error:
        HAG.load(path)
    assert len(str(error.value)) < 500


def test_what_cannot_be_opened_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HAG.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        HAG.load(tmp_path)


@pytest.mark.parametrize("name", HAGS)
def test_a_file_that_is_trusted_is_not_verified(name: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    HAGS[name]().save(path)
    hag = HAG.load(path, verify=False)
    assert_right(hag)
    header, arrays = written(path)
    arrays["hag.programs.0.source"] = arrays["hag.programs.0.source"][::-1].copy()
    write(path, header, arrays)
    HAG.load(path, verify=False)
    with pytest.raises(ValueError, match="does not hold a valid HAG"):
        HAG.load(path)
