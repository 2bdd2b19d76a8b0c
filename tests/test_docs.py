"""Figures in docs that do not depend on a machine are what the package gives; code there runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import hag_plugin as hp
from hag_plugin.data import datasets

DOCS = Path(__file__).parents[1] / "docs"
PROFIT, IN_PYG = DOCS / "profit.md", DOCS / "hag_in_pyg.md"
ROW = re.compile(
    r"^\| ([\w -]+?)(?: \(a reconstruction\))? \| ([\d.]+)x fewer \| ([\d.]+)x fewer \|$"
)
FILES = {"COLLAB-like": "COLLAB_ego_recon"}


def rows(page: Path = PROFIT) -> list[tuple[str, str, str]]:
    if not page.is_file():  # the tests alone were copied, without the documents
        return []
    found = [ROW.match(line) for line in page.read_text().splitlines()]
    return [(m[1], m[2], m[3]) for m in found if m]


def test_the_table_is_there() -> None:
    if not PROFIT.is_file():
        pytest.skip("no documents beside these tests")
    assert len(rows()) == 9
    assert 0 < len({*rows(IN_PYG)} & {*rows()}) == len(rows(IN_PYG))


# A row of the page on PyG: what the report of the benchmark calls it.
MEANS = {
    "sorted edges over PyG's gather and scatter": "none over PyG gather + scatter, fresh",
    "a HAG over PyG's gather and scatter": "auto over PyG gather + scatter, fresh",
    "a HAG over sorted edges": "auto over none, fresh",
    "sorted edges over torch's CSR product (MKL)": "none over torch CSR (MKL), fresh",
    "a HAG over torch's CSR product (MKL)": "auto over torch CSR (MKL), fresh",
}


def test_what_is_gained_in_pyg_is_what_was_measured() -> None:
    if not IN_PYG.is_file():
        pytest.skip("no documents beside these tests")
    results = DOCS.parent / "examples/benchmark/results/intel-xeon-avx512/summary.json"
    measured = json.loads(results.read_text())["geometric_means"]
    told = dict(re.findall(r"^\| (.* over .*) \| ([\d.]+)x \|$", IN_PYG.read_text(), re.MULTILINE))
    assert told == {row: f"{measured[name]:.2g}" for row, name in MEANS.items()}


@pytest.mark.mostly_slow("Cora*", "BZR_MD*", "IMDB*")
@pytest.mark.parametrize(("name", "closed", "plain"), rows())
def test_rows_read(shared_data: Path, name: str, closed: str, plain: str) -> None:
    graph = datasets.load(str(shared_data / "npz" / f"{FILES.get(name, name)}.npz"))
    hag = hp.build_hag(graph.edge_index, num_nodes=graph.num_nodes)
    for self_loops, told in (("fill", closed), (False, plain)):
        stats = hag.stats(self_loops)
        assert f"{stats.rows_read_before / stats.rows_read:.2f}" == told


# Pages whose code runs, block after block.
RUN = ("start", "dgl_to_pyg", "hag_in_pyg", "integrations")


@pytest.mark.parametrize("name", RUN)
def test_code_runs(name: str) -> None:
    page = DOCS / f"{name}.md"
    if not page.is_file():
        pytest.skip("no documents beside these tests")
    text = page.read_text()
    blocks = [*re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        for module in ("torch_geometric", "dgl"):
            if re.search(rf"^(from|import) {module}\b", block[1], re.MULTILINE):
                pytest.importorskip(module)
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], str(page), "exec"), names)


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_keep_no_output(path: Path) -> None:
    """The site's build runs them: what it shows is of that build."""
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
