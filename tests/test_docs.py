"""Figures in docs that do not depend on a machine are what the package gives; code there runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import hag_plugin as hp
from hag_plugin.data import datasets

DOCS = Path(__file__).parents[1] / "docs"
PROFIT, START = DOCS / "profit.md", DOCS / "start.md"
ROW = re.compile(
    r"^\| ([\w -]+?)(?: \(a reconstruction\))? \| ([\d.]+)x fewer \| ([\d.]+)x fewer \|$"
)
FILES = {"COLLAB-like": "COLLAB_ego_recon"}


def rows() -> list[tuple[str, str, str]]:
    if not PROFIT.is_file():  # the tests alone were copied, without the documents
        return []
    found = [ROW.match(line) for line in PROFIT.read_text().splitlines()]
    return [(m[1], m[2], m[3]) for m in found if m]


def test_the_table_is_there() -> None:
    if not PROFIT.is_file():
        pytest.skip("no documents beside these tests")
    assert len(rows()) == 9


@pytest.mark.mostly_slow("Cora*", "BZR_MD*", "IMDB*")
@pytest.mark.parametrize(("name", "closed", "plain"), rows())
def test_rows_read(shared_data: Path, name: str, closed: str, plain: str) -> None:
    graph = datasets.load(str(shared_data / "npz" / f"{FILES.get(name, name)}.npz"))
    hag = hp.build_hag(graph.edge_index, num_nodes=graph.num_nodes)
    for self_loops, told in (("fill", closed), (False, plain)):
        stats = hag.stats(self_loops)
        assert f"{stats.rows_read_before / stats.rows_read:.2f}" == told


def blocks() -> list[str]:
    """The code of the first steps, block by block."""
    if not START.is_file():
        return []
    return re.findall(r"^```python\n(.*?)^```", START.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks(), ids=lambda code: code.split()[1])
def test_the_first_steps_run(code: str) -> None:
    for module in ("torch_geometric", "dgl"):
        if module in code:
            pytest.importorskip(module)
    exec(compile(code, str(START), "exec"), {})


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_keep_no_output(path: Path) -> None:
    """The site's build runs them: what it shows is of that build."""
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
