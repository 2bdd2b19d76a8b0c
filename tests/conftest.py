"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from hag_plugin.sequence import SequentialHAG
from hag_plugin.testing import Ran, count_programs, limits

from .processes import starting

os.environ.setdefault("DGLBACKEND", "pytorch")  # or DGL writes a file into the home directory
# Plans depend on the cost constants: tests take the defaults, whatever was calibrated here.
os.environ["HAG_PLUGIN_COSTS"] = ""
# And what runs depends on the machine: tests of what a HAG computes run it, whatever is faster.
os.environ.setdefault("HAG_PLUGIN_CHOOSE", "hag")
# Workers of pytest-xdist have more threads than there are cores: they do not spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# How long an example takes, and to make, says how busy the machine is.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that start processes, and most of those that are marked so, as slow."""
    for item in items:
        if isinstance(item, pytest.Function) and is_slow(item):
            item.add_marker("slow")


def is_slow(item: pytest.Function) -> bool:
    """Whether a test starts processes, or is none of those that `mostly_slow` leaves."""
    function = item.originalname
    if (function if item.cls is None else f"{item.cls.__name__}.{function}") in starting(item.path):
        return True
    mark = item.get_closest_marker("mostly_slow")
    return mark is not None and not any(fnmatchcase(item.callspec.id, each) for each in mark.args)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` hands out NaN (or an absurd integer), so that an unwritten row is noticed."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs)
        if type(tensor) is torch.Tensor and not torch.compiler.is_compiling():
            if tensor.dtype.is_floating_point:
                tensor.fill_(float("nan"))
            elif tensor.dtype in (torch.int32, torch.int64):
                tensor.fill_(torch.iinfo(tensor.dtype).min // 2)
        return tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state, and leaves the thread count as it was."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ran() -> Iterator[Ran]:
    """What the operators ran during the test."""
    with count_programs() as ran:
        yield ran


@pytest.fixture(scope="session")
def bounded() -> Callable[[int, int], settings]:
    """Settings for a state machine, of how many runs and steps each; always the same ones.

    With `HAG_PLUGIN_TIMES` in the environment so many times the runs, and others at each time.
    """
    times = int(os.environ.get("HAG_PLUGIN_TIMES", "0"))

    def made(examples: int, steps: int) -> settings:
        return settings(
            max_examples=examples * max(times, 1),
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
            derandomize=not times,
            # Not shrunk: that takes minutes, with a new model at every try.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        )

    return made


# LSTMs over prefix trees ----------------------------------------------------------------------


@pytest.fixture
def walks() -> Iterator[list[SequentialHAG]]:
    """The trees that LSTMs walked, one entry a call."""
    with count_programs() as ran:
        yield ran.trees


@pytest.fixture
def always_pays() -> Iterator[None]:
    """Small graphs take the tree, too: what is tested is what runs, not whether it pays."""
    with limits(tree_gain=0.0):
        yield


# Real graphs ----------------------------------------------------------------------------------

REAL_DATA = Path(
    os.environ.get("HAG_PLUGIN_DATA", Path(__file__).parents[2] / "shared" / "data")
).resolve()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-data",
        action="store_true",
        help="fail, instead of skipping, the tests on real graphs where these are absent",
    )


@pytest.fixture(scope="session")
def shared_data(request: pytest.FixtureRequest) -> Path:
    """The folder of real graphs: HAG_PLUGIN_DATA, or shared/data beside the repository."""
    if not (REAL_DATA / "npz").is_dir():
        reason = f"no real graphs in {REAL_DATA} (set HAG_PLUGIN_DATA)"
        if request.config.getoption("--require-data"):
            pytest.fail(reason)
        pytest.skip(reason)
    return REAL_DATA


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how many tests ran on real graphs."""
    ran = {"passed": 0, "failed": 0, "skipped": 0}
    for outcome in ran:
        for report in terminalreporter.stats.get(outcome, []):
            ran[outcome] += "shared_data" in getattr(report, "fixtures_used", ())
    terminalreporter.write_line(
        f"tests on real graphs: {ran['passed'] + ran['failed']} ran, {ran['skipped']} skipped"
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    request = getattr(item, "_request", None)  # knows fixtures that were asked for in passing, too
    report.fixtures_used = tuple(getattr(request, "_fixture_defs", ()))
