"""The constants of the cost model are found for the machine at hand, whatever its folders are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hag_plugin as hp
from hag_plugin.hag import calibration, constants
from hag_plugin.hag.constants import CostsError
from hag_plugin.hag.rates import DEFAULT, Constants
from hag_plugin.testing import limits

HIGH = replace(DEFAULT, op=2e-9, error=0.25)  # what no measuring comes to
# Measuring programs of one shape takes no time; what it comes to does not matter here.
HASTE = {"calibration_step": len(calibration.QUICK_SHAPES), "calibration_seconds": 0.0}
EDGES = torch.tensor([[0, 1], [1, 0]])


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Path]]:
    """A user who set nothing and has new folders; a call makes this process as good as new.

    It gives the user's cache folder.
    """
    numbers = count()

    def as_new() -> Path:
        monkeypatch.setenv("HOME", str(tmp_path / f"home {next(numbers)}"))
        return tmp_path / "cache" / "hag_plugin"

    monkeypatch.delenv(constants.PATH_VARIABLE)
    monkeypatch.delenv("HAG_PLUGIN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with limits(**HASTE):
        as_new()
        yield as_new


def kept(folder: Path) -> list[Path]:
    """The files, but for the one of the lock."""
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


def document(about: dict[str, Any], values: Constants = HIGH) -> dict[str, Any]:
    path = constants.cache_path()
    constants.write_constants(path, values, about)
    written: dict[str, Any] = json.loads(path.read_bytes())
    path.unlink()
    return written


# Measured once ----------------------------------------------------------------------------------


def test_measured_once_and_read_by_others(user: Callable[[], Path]) -> None:
    found = constants.found()
    assert found.source == "measured"
    assert found.path == constants.cache_path()
    assert kept(user()) == [found.path]
    other = constants.found()
    assert (other.source, other.path, other.constants) == ("cache", found.path, found.constants)
    assert constants.found() is other
    assert constants.in_force() is other.constants
    assert constants.read_constants(other.path) == other.constants


def test_what_needs_no_constants_measures_none(user: Callable[[], Path]) -> None:
    for options in ({"method": "none"}, {"choose": "plain"}):
        assert hp.build_hag(EDGES, num_nodes=2, **options).options.constants == ""
    assert not user().exists()
    hag = hp.build_hag(EDGES, num_nodes=2)
    assert hag.options.constants == constants.in_force().digest
    assert len(kept(user())) == 1


def test_the_environment_goes_first(
    user: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(constants.PATH_VARIABLE, "")
    assert constants.found() == constants.Found(DEFAULT, "default", None)
    path = tmp_path / "costs.json"
    monkeypatch.setenv(constants.PATH_VARIABLE, str(path))
    with pytest.raises(FileNotFoundError):
        constants.found()
    constants.write_constants(path, HIGH, {})
    assert constants.found() == constants.Found(HIGH, "environment", path)
    assert not user().exists()


OTHER = {"processor": {"processor": "Z80"}, "instruction set": {"instruction_set": "altivec"}}


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("error", [0.25, 3.0])
def test_constants_of_another_processor_are_that_far_off(
    user: Callable[[], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: str,
    error: float,
) -> None:
    path = tmp_path / "costs.json"
    monkeypatch.setenv(constants.PATH_VARIABLE, str(path))
    for about, expected in (({}, error), (OTHER[other], max(error, 1.0))):
        constants.write_constants(path, replace(HIGH, error=error), about)
        assert constants.in_force() == replace(HIGH, error=expected)


def test_the_users_own_file_goes_before_the_cache(user: Callable[[], Path]) -> None:
    constants.found()  # fills the cache
    own = constants.path_in_force()
    assert own is not None
    constants.write_constants(own, HIGH, {})
    user()
    assert constants.found() == constants.Found(HIGH, "own file", own)
    for about in OTHER.values():
        constants.write_constants(own, HIGH, about)
        user()
        assert constants.found().source == "cache"
    own.write_text(json.dumps({**document({}), "version": constants.FILE_VERSION - 1}))
    user()
    assert constants.found().source == "measured"  # `document` has emptied the cache
    own.write_text("{")
    user()
    with pytest.raises(CostsError, match="delete it"):
        constants.found()


# What may be in the cache folder ------------------------------------------------------------------

BAD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing": lambda good: "",
    "half of a file": lambda good: json.dumps(good)[:100],
    "no JSON": lambda good: "\x00\xff",
    "something else": lambda good: [],
    "nothing about it": lambda good: {k: v for k, v in good.items() if k != "about"},
    "an odd about": lambda good: {**good, "about": 3},
    "another version": lambda good: {**good, "version": constants.FILE_VERSION - 1},
    "another processor": lambda good: {**good, "about": {**good["about"], "processor": "Z80"}},
    "another library": lambda good: {**good, "about": {**good["about"], "library": "0"}},
    "an odd number": lambda good: {**good, "constants": {**good["constants"], "op": -1.0}},
    "a number beyond floats": lambda good: {
        **good,
        "constants": {**good["constants"], "op": 10**400},
    },
    "nested without end": lambda good: "[" * 100_000,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_written_over(user: Callable[[], Path], name: str) -> None:
    content = BAD[name](document({}))
    path = constants.cache_path()
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    found = constants.found()
    assert found.source == "measured"
    assert kept(user()) == [path]
    assert constants.found().constants == found.constants
    assert constants.found().source == "cache"


def test_a_good_file_is_taken(user: Callable[[], Path]) -> None:
    """The bad ones differ from it in one thing each."""
    good = document({})
    constants.cache_path().write_text(json.dumps(good))
    assert constants.found() == constants.Found(HIGH, "cache", constants.cache_path())


def test_a_file_for_each_instruction_set(user: Callable[[], Path], tmp_path: Path) -> None:
    """As for each processor, where machines share a home."""
    from hag_plugin.kernels import _cpu

    others = [name for name in _cpu.instruction_sets() if name != _cpu.instruction_set()]
    code = "from hag_plugin.hag import constants; print(constants.cache_path())"
    paths = {constants.cache_path()}
    for name in others[:1]:
        environment = {**os.environ, "HAG_PLUGIN_ISA": name}
        paths.add(Path(run(code, environment=environment)[0]))
    assert len(paths) == 1 + len(others[:1])
    assert {path.parent for path in paths} == {user()}


NOWHERE = {
    "a folder that can't be made": "/proc/nowhere",
    "below a file": "{file}",
    "a file in the way": "{blocked}",
    "a folder in its place": "{taken}",
}


@pytest.mark.parametrize("name", NOWHERE)
def test_without_a_folder_they_are_kept_in_memory(
    user: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "hag_plugin").touch()
    places = {each: str(tmp_path / each) for each in ("file", "blocked", "taken")}
    monkeypatch.setenv("XDG_CACHE_HOME", NOWHERE[name].format(**places))
    monkeypatch.setenv("XDG_CONFIG_HOME", NOWHERE[name].format(**places))
    if name == "a folder in its place":
        (constants.cache_path() / "inside").mkdir(parents=True)
    found = constants.found()
    assert (found.source, found.path) == ("measured", None)
    assert constants.found() is found
    assert hp.build_hag(EDGES, num_nodes=2).options.constants == found.constants.digest


def test_a_user_without_a_home(user: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(Path, "home", no_home)
    found = constants.found()
    assert (found.source, found.path) == ("measured", None)
    assert constants.found() is found


# Who measures -------------------------------------------------------------------------------------


class Refusing(TorchDispatchMode):
    """No operator of torch runs."""

    def __torch_dispatch__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("seen by a mode")


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "dispatch": Refusing,
    "another device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", MODES)
def test_measured_in_any_mode(user: Callable[[], Path], name: str) -> None:
    with MODES[name]():
        found = constants.found()
    assert found.source == "measured"
    user()
    assert constants.found() == replace(found, source="cache")


def test_measured_whatever_is_set(user: Callable[[], Path]) -> None:
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        assert constants.found().source == "measured"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)


def test_measured_inside_a_transform(user: Callable[[], Path]) -> None:
    found = []

    def f(x: torch.Tensor) -> torch.Tensor:
        found.append(constants.found())
        return x.sum()

    torch.func.grad(f)(torch.ones(3))
    assert found[0].source == "measured"


def test_of_many_threads_one_measures(user: Callable[[], Path]) -> None:
    threads = 8
    barrier = threading.Barrier(threads)

    def find(_: int) -> constants.Found:
        barrier.wait()
        return constants.found()

    with ThreadPoolExecutor(threads) as pool:
        found = [*pool.map(find, range(threads))]
    assert all(each is found[0] for each in found)
    assert found[0].source == "measured"


@pytest.mark.slow  # waits for a signal
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signal.setitimer")
def test_an_interrupt_leaves_nothing(user: Callable[[], Path]) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for seconds in (0.05, 0.2, 0.4):
            signal.setitimer(signal.ITIMER_REAL, seconds)
            with limits(calibration_seconds=30.0), pytest.raises(KeyboardInterrupt):
                constants.found()
            assert kept(user()) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert constants.found().source == "measured"


# Other processes ----------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

START = f"""
import os, signal, sys, threading, time, torch
from hag_plugin.hag import constants
from hag_plugin.testing import limits
haste = limits(calibration_step={HASTE["calibration_step"]}, calibration_seconds=0.1)
haste.__enter__()

def child(work):
    \"\"\"A forked child that ends with 0, 3, or what kills it.\"\"\"
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if work() else 3)
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
            os._exit(4)
    return pid

def ends(*pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
"""


def run(code: str, environment: dict[str, str] | None = None) -> list[str]:
    """The lines that a process printed; it has nothing to complain of."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@forks
def test_ten_processes_find_the_same(user: Callable[[], Path]) -> None:
    """At once, with an old lock and a bad file in the folder, also where there are no locks."""
    code = (
        START
        + """
import fcntl
path = constants.cache_path()
path.parent.mkdir(parents=True)
def ten():
    def find():
        found = constants.found()
        with open(path.parent / f"{os.getpid()}.found", "w") as file:
            file.write(found.source + " " + found.constants.digest)
        return found.path == path
    print(set(ends(*[child(find) for _ in range(10)])))
    files = [*path.parent.glob("*.found")]
    words = [file.read_text().split() for file in files]
    for file in files: file.unlink()
    print(len(words), len({digest for _, digest in words}))
    print(sorted(source for source, _ in words).count("measured"))
path.with_suffix(".lock").touch()
path.write_text("{")
ten()
path.unlink()
def refuse(*args): raise OSError(37, "no locks available")
fcntl.lockf = refuse
ten()
"""
    )
    lines = run(code)
    assert lines[:5] == ["{0}", "10 1", "1", "{0}", "10 1"]
    assert int(lines[5]) >= 1


@forks
def test_forked_children(user: Callable[[], Path]) -> None:
    code = (
        START
        + """
torch.set_num_threads(2)
torch.ones(1_000_000).sum()  # the pool of threads is there, and no child has it

# A child measures for itself.
print(ends(child(lambda: constants.found().source == "measured")))
print(constants.found().source)

# A child has what its parent has, whatever became of the file.
found = constants.found()
found.path.unlink()
print(ends(child(lambda: constants.found() is found)), found.path.exists())

# A fork while another thread measures.
os.environ["HOME"] += "new"
with limits(calibration_seconds=1.0):
    thread = threading.Thread(target=constants.found)
    thread.start()
    time.sleep(0.3)
    pid = child(lambda: constants.found().path == constants.cache_path())
    thread.join()
print(ends(pid), constants.found().path.exists())

# Nobody waits forever for one that does not go on.
found = constants.found()
found.path.unlink()
os.environ["HOME"] += "newer"
def stop():
    with limits(calibration_seconds=30.0): constants.found()
pid = child(stop)
time.sleep(0.3)
os.kill(pid, signal.SIGSTOP)
with limits(calibration_wait=0.2): print(constants.found().source)
os.kill(pid, signal.SIGKILL)
print(ends(pid))
"""
    )
    assert run(code) == ["[0]", "cache", "[0] False", "[0] True", "measured", "[-9]"]
