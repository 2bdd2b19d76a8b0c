"""Work that ends early leaves no store, and what a killed process has left goes with the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hag_plugin as hp
from hag_plugin.parallel.graphs.store.folder import whole_folder
from hag_plugin.parallel.graphs.store.streams import EdgeStream, RowStream

from ....data.test_edge_stream import FILES
from ....saving import run_fresh

hpp = hp.parallel

SLOW = """
import sys, time
import numpy as np, torch
import hag_plugin as hp
from hag_plugin.parallel.graphs.store.streams import EdgeStream, RowStream

stage, edges = sys.argv[1], np.random.default_rng(0).integers(0, 1000, (2, 5000))

def paused(array, wait):
    def blocks(most):
        for number, block in enumerate(np.array_split(array, 10)):
            if wait and number == 5:
                print("here", flush=True)
                time.sleep(600)
            yield block
    return blocks

by_edge = paused(edges.T, stage == "edges")
rows = {"x": RowStream(1000, np.dtype("f8"), (), paused(np.ones(1000), stage == "rows"))}
stream = EdgeStream(lambda most: (block.T for block in by_edge(most)), "slow", 1000, rows=rows)
hp.parallel.write_partitions(stream, 3, "parts", method="fennel")
"""


def stream(**rows: np.ndarray) -> EdgeStream:
    return EdgeStream.of(np.random.default_rng(0).integers(0, 1000, (2, 5000)), 1000, rows)


@pytest.mark.parametrize("stage", ["edges", "rows"])
def test_what_a_killed_process_leaves(stage: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW, stage]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        (left,) = tmp_path.iterdir()
        # One that works beside it does not disturb it.
        hpp.write_partitions(stream(), 2, tmp_path / "parts")
        assert {*tmp_path.iterdir()} == {left, tmp_path / "parts"}
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert {*tmp_path.iterdir()} == {left, tmp_path / "parts"}
    assert any((left / "work").iterdir())
    assert hpp.PartitionedData(tmp_path / "parts", 0).ranks == 2  # the other one's
    (tmp_path / "parts").rename(tmp_path / "moved")
    hpp.write_partitions(stream(), 3, tmp_path / "parts")
    assert {*tmp_path.iterdir()} == {tmp_path / "moved", tmp_path / "parts"}
    assert hpp.PartitionedData(tmp_path / "parts", 2).ranks == 3


class Ended(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, Ended, OSError])
@pytest.mark.parametrize("stage", ["edges", "rows"])
def test_errors_leave_nothing(stage: str, error: type[BaseException], tmp_path: Path) -> None:
    def broken(most: int) -> Iterator[np.ndarray]:
        yield np.ones((2, 1), np.int64)
        raise error

    edges = EdgeStream.of(np.ones((2, 3), np.int64), 3).blocks
    rows = {"x": RowStream(3, np.dtype("i8"), (1,), broken)}
    bad = EdgeStream(broken, "", 3)
    if stage == "rows":
        bad = EdgeStream(edges, "", 3, rows=rows)
    with pytest.raises(error):
        hpp.write_partitions(bad, 2, tmp_path / "parts")
    assert not list(tmp_path.iterdir())


FULL = """
import resource, signal, sys
import numpy as np
import hag_plugin as hp
from hag_plugin.parallel.graphs.store.streams import EdgeStream

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
edges = np.random.default_rng(0).integers(0, 1000, (2, 50_000))
stream = EdgeStream.of(edges, 1000, {"x": np.ones((1000, 100))})
for limit in (1000, 50_000, 190_000, 390_000):  # of a file, as where the disk is full
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        hp.parallel.write_partitions(stream, 2, "parts", method="fennel")
    except OSError as e:
        print(e.strerror, "|", e.filename)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
hp.parallel.write_partitions(stream, 2, "parts", method="fennel")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    said = run_fresh(FULL, tmp_path).splitlines()
    assert len(said) == 4
    for line in said:
        words, _, name = line.partition(" | ")
        assert words == "File too large"
        assert name.startswith(f"{tmp_path}/.parts.0.part/")
    assert [each.name for each in tmp_path.iterdir()] == ["parts"]


# The command ------------------------------------------------------------------------------------

KINDS = ["int32", "compressed npz", "packed text", "symmetric", "Parquet", "Feather"]
MOMENTS = 4  # of each kind of input, for each signal

# Runs the command again and again, each time in a process that is forked, so that imports are not
# what is interrupted. Says what each trial left, and what a run after it did.
TRIALS = """
import os, random, signal, sys, time
from pathlib import Path
from hag_plugin.cli import main
from hag_plugin.parallel import PartitionedData

number, trials, files = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
command = ["--ranks", "3", "--quiet", "--method", "fennel", "-o"]

def start(file, folder):
    pid = os.fork()
    if pid:
        return pid
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        code = main(["partition", file, *command, f"{folder}/parts"])
    except KeyboardInterrupt:  # before or after the command
        code = 130
    os._exit(code)

def left(folder):
    names = sorted(path.name for path in Path(folder).iterdir())
    if "parts" in names:
        for rank in range(3):
            PartitionedData(f"{folder}/parts", rank)  # whole
    return names

def seconds(file):
    folder, began = f"whole-{files.index(file)}", time.perf_counter()
    os.mkdir(folder)
    assert os.waitpid(start(file, folder), 0)[1] == 0
    return time.perf_counter() - began

choose = random.Random(0)
for trial, file in enumerate(files * trials):
    if trial < len(files):
        lasts = [*(lasts if trial else []), seconds(file)]
    folder = f"trial-{trial}"
    os.mkdir(folder)
    pid = start(file, folder)
    time.sleep(choose.random() * lasts[trial % len(files)])
    os.kill(pid, number)
    os.waitpid(pid, 0)
    found = left(folder)
    if "parts" not in found:
        assert os.waitpid(start(file, folder), 0)[1] == 0
    print(*found, "then", *left(folder))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_at_any_moment(number: signal.Signals, tmp_path: Path) -> None:
    """Whatever it reads: there is a whole store or none. Ctrl-C leaves nothing else; what a killed
    one leaves goes with the next."""
    edges, files = np.random.default_rng(0).integers(0, 2000, (2, 20_000)), []
    for kind in KINDS:
        name, content = FILES[kind]
        files.append(str(tmp_path / f"{len(files)}{name}"))
        Path(files[-1]).write_bytes(content(edges, 2000))
    command = [sys.executable, "-c", TRIALS, str(int(number)), str(MOMENTS), *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    trials = [line.split("then") for line in done.stdout.splitlines()]
    assert len(trials) == MOMENTS * len(KINDS)
    allowed = {"parts"} if number == signal.SIGINT else {"parts", ".parts.0.part"}
    for found, after in trials:
        assert {*found.split()} <= allowed
        assert after.split() in (["parts"], found.split())


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from hag_plugin.cli import main

code = main(["partition", "edges.npy", "--ranks", "2", "--method", "fennel", "--rows", "x=x.npy",
             "--quiet", "-o", "disk/parts"])
print(code, *sorted(path.name for path in Path("disk").iterdir()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs tmpfs")
@pytest.mark.parametrize("pages", [1, 40, 110, 250, 330])
def test_a_disk_that_fills_up(pages: int, tmp_path: Path) -> None:
    """A real one, of some pages, that is full at another stage each time: the command says so in a
    line that names a file, and leaves nothing."""
    np.save(tmp_path / "edges.npy", np.random.default_rng(0).integers(0, 1000, (2, 50_000)))
    np.save(tmp_path / "x.npy", np.ones((1000, 100)))
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size={pages * 4}k none disk"
    unshare = ["unshare", "--mount", "sh", "-c"]
    try:
        subprocess.run([*unshare, mount], cwd=tmp_path, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no disk can be mounted here: {e}")
    done = subprocess.run(
        [*unshare, f'{mount} && "$@"', "sh", sys.executable, "-c", ON_A_SMALL_DISK],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2"]
    (line,) = [line for line in done.stderr.splitlines() if "hag-plugin partition:" in line]
    assert "No space left on device: " in line
    assert f"{tmp_path}/disk/.parts.0.part/" in line


# Folders ----------------------------------------------------------------------------------------


def test_what_is_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    hpp.write_partitions(stream(), 2, folder)  # it was empty
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="it is there; expected a new folder"):
        hpp.write_partitions(stream(), 3, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="it is a file; expected a new folder"):
        hpp.write_partitions(stream(), 3, tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        hpp.write_partitions(stream(), 3, tmp_path / "no" / "parts")
    with pytest.raises(OSError, match="can't write to the folder /proc"):
        hpp.write_partitions(stream(), 3, "/proc/parts")
    with pytest.raises(OSError, match="File name too long"):
        hpp.write_partitions(stream(), 3, tmp_path / ("x" * 300))
    assert {path.name for path in tmp_path.iterdir()} == {"parts", "file"}


def test_a_folder_that_another_one_finished_first(tmp_path: Path) -> None:
    first, second = whole_folder(tmp_path / "parts"), whole_folder(tmp_path / "parts")
    first.__enter__()
    (second.__enter__() / "theirs").write_text("")
    second.__exit__(None, None, None)
    with pytest.raises(OSError, match="parts"):
        first.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["theirs"]


# Memory -----------------------------------------------------------------------------------------

BOUNDED = textwrap.dedent("""
    import sys
    from pathlib import Path
    import numpy as np
    import hag_plugin as hp
    from hag_plugin.data.edge_stream import open_edges

    method, memory = sys.argv[1], int(sys.argv[2])
    found = hp.parallel.write_partitions(
        open_edges("edges.npy"), 2, "parts", method=method, memory=memory
    )
    peak = [l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l]
    print(found.edges, found.method, int(peak[0].split()[1]) << 10)
""")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/self/status")
@pytest.mark.parametrize("method", ["contiguous", "fennel"])
def test_memory_is_bounded(method: str, tmp_path: Path) -> None:
    """20 million edges, of which the keys alone have 160 MB and sorting takes a GB."""
    edges, nodes, memory = 20_000_000, 1_000_000, 512 << 20
    array = np.lib.format.open_memmap(tmp_path / "edges.npy", "w+", np.int32, (2, edges))
    random = np.random.default_rng(0)
    for at in range(0, edges, 4_000_000):
        array[:, at : at + 4_000_000] = random.integers(0, nodes, (2, 4_000_000))
    del array
    command = [sys.executable, "-c", BOUNDED, method, str(memory)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    count, made, peak = done.stdout.split()
    assert (int(count), made) == (edges, method)
    assert int(peak) <= memory, f"{int(peak) >> 20} MiB"
