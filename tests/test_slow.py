"""Tests that start processes are marked slow, whatever way they do so."""

from __future__ import annotations

from pathlib import Path

import pytest

from .processes import starting

# A file of tests, in which `test_it` starts a process.
WAYS = {
    "by itself": "import subprocess\ndef test_it():\n    subprocess.run(['ls'])\n",
    "inside": "def test_it():\n    import subprocess\n    subprocess.run(['ls'])\n",
    "a name": "from subprocess import run as go\ndef test_it():\n    go(['ls'])\n",
    "torch's": "import torch.multiprocessing as mp\ndef test_it():\n    mp.spawn(f)\n",
    "torch's, whole": "import torch\ndef test_it():\n    torch.multiprocessing.spawn(f)\n",
    "Python's": "from multiprocessing import Process\ndef test_it():\n    Process(target=f)\n",
    "from its package": "from torch import multiprocessing\ndef test_it():\n"
    "    multiprocessing.spawn(f)\n",
    "a fork": "import os\ndef test_it():\n    os.fork()\n",
    "through others": "import subprocess\ndef f():\n    g()\ndef g():\n    subprocess.run(['ls'])\n"
    "def test_it():\n    f()\n",
    "a table": "import subprocess\nHOW = {'a': subprocess.run}\ndef test_it():\n    HOW['a']()\n",
    "a fixture": "import subprocess\nimport pytest\n@pytest.fixture\ndef child():\n"
    "    return subprocess.run(['ls'])\ndef test_it(child):\n    assert child\n",
    "used fixtures": "import pytest\n@pytest.mark.usefixtures('shared')\ndef test_it(): ...\n",
    "a fixture of conftest.py": "def test_it(shared):\n    assert shared\n",
    "a loader": "from torch.utils.data import DataLoader\ndef test_it():\n"
    "    DataLoader(range(3), num_workers=2)\n",
    "a helper": "from .helper import run_it\ndef test_it():\n    run_it()\n",
    "a helper's helper": "from .more.other import also\ndef test_it():\n    also()\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of tests, with helpers and fixtures."""
    run = "import subprocess\ndef run_it():\n    subprocess.run(['ls'])\n"
    (tmp_path / "helper.py").write_text(f"{run}def quick():\n    pass\n")
    (tmp_path / "more").mkdir()
    other = "from ..helper import run_it\ndef also():\n    run_it()\n"
    (tmp_path / "more" / "other.py").write_text(other)
    fixture = "import pytest\n@pytest.fixture\ndef shared():\n    run_it()\n"
    (tmp_path / "conftest.py").write_text(f"from .helper import run_it\n{fixture}")
    return tmp_path


@pytest.mark.parametrize("way", WAYS)
def test_what_starts_a_process_is_found(way: str, folder: Path) -> None:
    path = folder / "test_made_up.py"
    path.write_text(WAYS[way] + "def test_other():\n    assert True\n")
    found = starting(path)
    assert "test_it" in found
    assert "test_other" not in found


def test_methods_are_told_apart(folder: Path) -> None:
    path = folder / "test_made_up.py"
    path.write_text(
        "import subprocess\nclass TestAll:\n    def test_it(self):\n        subprocess.run([])\n"
        "    def test_other(self): ...\n"
    )
    assert "TestAll.test_it" in starting(path)
    assert "TestAll.test_other" not in starting(path)


def test_helpers_that_start_nothing(folder: Path) -> None:
    path = folder / "test_made_up.py"
    path.write_text("from .helper import quick\ndef test_it():\n    quick()\n")
    assert "test_it" not in starting(path)


def test_those_found_are_marked(request: pytest.FixtureRequest) -> None:
    """In this run: whatever else is collected beside this test."""
    for item in request.session.items:
        name = getattr(item, "originalname", None)
        if name in starting(item.path):
            assert item.get_closest_marker("slow"), item.nodeid
