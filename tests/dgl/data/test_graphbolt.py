"""The stand-in for `dgl.graphbolt`, in processes of their own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("dgl", reason="DGL is not installed")
VERSION = importlib.metadata.version("dgl")

USE = """
import hag_plugin as hp
hp.dgl.graphbolt_stand_in()
hp.dgl.graphbolt_stand_in()
import dgl, pickle, torch
import dgl.function as fn
graph = hp.dgl.ToHAG()(dgl.add_self_loop(dgl.rand_graph(20, 60)))
graph = pickle.loads(pickle.dumps(hp.dgl.batch([graph, graph.clone()])))
conv = hp.accelerate(dgl.nn.GraphConv(3, 2))
x = torch.randn(40, 3)
torch.testing.assert_close(conv(graph, x), conv(dgl.batch(hp.dgl.unbatch(graph)), x))
conv(graph, x).sum().backward()
print(dgl.__version__, graph.hag.num_edges)
"""


FAILS = "raise FileNotFoundError('Cannot find DGL C++ graphbolt library')"


def run(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own that looks for modules in `path` first."""
    paths = [str(path)] if path else []
    paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )


@pytest.fixture
def with_graphbolt(tmp_path: Path) -> Path:
    """The DGL installed as newer versions are laid out: its import imports a GraphBolt that fails.

    Links to the package's files, and beside them what DGL 2.1.0 has: `dgl.distributed` does
    `from .. import graphbolt`, which loads a library made for another torch.
    """
    if not VERSION.startswith("1."):
        pytest.skip(f"DGL {VERSION} is laid out so itself")
    spec = importlib.util.find_spec("dgl")
    assert spec is not None
    assert spec.origin is not None
    package = tmp_path / "dgl"
    package.mkdir()
    for file in Path(spec.origin).parent.iterdir():
        if file.name not in ("__init__.py", "__pycache__"):
            (package / file.name).symlink_to(file)
    (package / "graphbolt").mkdir()
    (package / "graphbolt" / "__init__.py").write_text(FAILS + "\n")
    source = Path(spec.origin).read_text()
    (package / "__init__.py").write_text(f"from . import graphbolt as gb\n{source}")
    return tmp_path


def test_a_package_that_needs_it(with_graphbolt: Path) -> None:
    """Without the stand-in it cannot be imported; with it everything but GraphBolt works."""
    without = run("import dgl", with_graphbolt)
    assert without.returncode == 1
    assert "Cannot find DGL C++ graphbolt library" in without.stderr
    done = run(USE + "print(dgl.__file__, vars(dgl.gb).get('__file__'))", with_graphbolt)
    assert done.returncode == 0, done.stderr
    package = str(with_graphbolt / "dgl" / "__init__.py")
    assert done.stdout.split() == [VERSION, "160", package, "None"]


def test_after_an_import_that_failed(with_graphbolt: Path) -> None:
    """DGL's failed import leaves no half of it behind: the stand-in can still be put there."""
    code = "import hag_plugin as hp\ntry:\n    import dgl\nexcept FileNotFoundError:\n    pass\n"
    done = run(code + "hp.dgl.graphbolt_stand_in()\nimport dgl", with_graphbolt)
    assert done.returncode == 0, done.stderr


def test_with_the_stand_in() -> None:
    done = run(USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [VERSION, "160"]


def test_too_late() -> None:
    if not VERSION.startswith("1."):
        pytest.skip(f"DGL {VERSION} cannot be imported without the stand-in")
    done = run("import dgl, hag_plugin as hp; hp.dgl.graphbolt_stand_in()")
    assert "was imported already" in done.stderr


def test_it_is_needed() -> None:
    if VERSION.startswith("1."):
        pytest.skip(f"DGL {VERSION} has no graphbolt")
    assert "graphbolt" in run("import dgl").stderr
