"""Files that are written: whole or absent, and refused where they can't be."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import hag_plugin as hp
from hag_plugin import files

from .places import PLACES


def hag() -> hp.HAG:
    return hp.build_hag(torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3)


def a_plan() -> Any:
    from torch_geometric.nn import GCN

    from hag_plugin.parallel.model.trace import trace

    graph = hp.parallel.GraphStats.assumed(100, 400)
    return hp.parallel.plan(trace(GCN(8, 8, 2), graph, features=8), "a100x8", world_size=2)


# What writes a file, and the suffix that it wants.
WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "HAG.save": (".npz", lambda path: hag().save(path)),
    "Plan.save": (".json", lambda path: a_plan().save(path)),
    "write_whole": (".txt", lambda path: files.write_whole(path, b"x")),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", WRITERS)
def test_writers_refuse_by_the_name_that_was_given(tmp_path: Path, name: str, place: Any) -> None:
    pytest.importorskip("torch_geometric")
    suffix, save = WRITERS[name]
    path, words = place(tmp_path, suffix)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=words) as error:
        save(path)
    assert error.value.filename == str(path)
    assert ".part" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_what_fails_midway_leaves_what_was_there(
    tmp_path: Path, there: bool, error: BaseException
) -> None:
    path = tmp_path / "out"
    if there:
        path.write_bytes(b"before")

    def fails() -> None:
        with files.whole_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)) as raised:
        fails()
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if there else [])
    assert not there or path.read_bytes() == b"before"
    if isinstance(error, OSError):
        assert isinstance(raised.value, OSError)
        assert raised.value.filename == str(path)


@pytest.mark.parametrize("links", [True, False])
def test_the_first_of_several_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def no_links(*names: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", *names[:1])

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "out"
    for content in (b"first", b"second"):
        error = FileExistsError if path.exists() else None
        with pytest.raises(error) if error else nullcontext(), files.whole_file(path, True) as file:
            file.write(content)
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
        assert path.read_bytes() == b"first"


def test_links_longest_names_and_modes(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    files.write_whole(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "out").read_bytes() == b"x"
    longest = tmp_path / ("x" * 255)
    files.check_output(longest)
    files.write_whole(longest, b"x")
    umask = os.umask(0)
    os.umask(umask)
    assert longest.stat().st_mode & 0o777 == 0o666 & ~umask
    assert not list(tmp_path.rglob("*.part"))


def test_a_checkpoint_takes_the_place_of_a_checkpoint_only(tmp_path: Path) -> None:
    from hag_plugin.parallel.execution.checkpoint import METADATA, _check_folder

    _check_folder(tmp_path / "new")
    _check_folder(tmp_path)
    (tmp_path / "results.csv").write_text("hours of work")
    with pytest.raises(FileExistsError, match="holds other files"):
        _check_folder(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        _check_folder(tmp_path / "results.csv")
    (tmp_path / METADATA).touch()
    _check_folder(tmp_path)


def kill_in_a_save(path: Path) -> None:
    """A process that is killed while it writes `path`."""
    code = (
        "import os, signal, sys\nfrom hag_plugin import files\n"
        "with files.whole_file(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_process_left_goes_at_the_next_save(tmp_path: Path) -> None:
    path = tmp_path / "out"
    files.write_whole(path, b"before")
    kill_in_a_save(path)
    assert len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"before"
    files.write_whole(path, b"after")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert path.read_bytes() == b"after"
    kill_in_a_save(path)
    files.check_output(path)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_save_leaves_alone_what_another_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with files.whole_file(path) as slow:
        slow.write(b"slow")
        with files.whole_file(path) as other:
            other.write(b"other")
            files.write_whole(path, b"quick")
            assert path.read_bytes() == b"quick"
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"slow"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_many_save_at_once(tmp_path: Path) -> None:
    """None of them takes another's for one that was left."""
    path = tmp_path / "out"

    def save(number: int) -> None:
        for _ in range(50):
            files.write_whole(path, bytes([number]) * 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(8)))
    content = path.read_bytes()
    assert len(content) == 1000
    assert len(set(content)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_without_locks_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path = tmp_path / "out"
    with files.whole_file(path) as slow:
        slow.write(b"slow")
        files.write_whole(path, b"quick")
    assert path.read_bytes() == b"slow"
    with pytest.raises(KeyboardInterrupt), files.whole_file(path):
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_mode_of_a_file_stays(tmp_path: Path, name: str, mode: int) -> None:
    pytest.importorskip("torch_geometric")
    suffix, save = WRITERS[name]
    path = tmp_path / f"out{suffix}"
    save(path)
    path.chmod(mode)
    save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
