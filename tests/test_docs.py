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


@pytest.mark.mostly_slow("Cora*", "BZR_MD*", "IMDB*")
@pytest.mark.parametrize(("name", "closed", "plain"), rows())
def test_rows_read(shared_data: Path, name: str, closed: str, plain: str) -> None:
    graph = datasets.load(str(shared_data / "npz" / f"{FILES.get(name, name)}.npz"))
    hag = hp.build_hag(graph.edge_index, num_nodes=graph.num_nodes)
    for self_loops, told in (("fill", closed), (False, plain)):
        stats = hag.stats(self_loops)
        assert f"{stats.rows_read_before / stats.rows_read:.2f}" == told


# Pages whose code runs, block after block, and what their readers have before the first.
RUN = {
    "start": "",
    "dgl_to_pyg": "",
    "hag_in_pyg": "",
    "integrations": "",
    "pyg": """
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.nn import SAGEConv
import hag_plugin as hp

class MyModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = SAGEConv(1433, 2)

    def forward(self, x, edge_index, batch):
        return self.conv(x, edge_index)

n = 30
pairs = torch.combinations(torch.arange(n)).t()
edge_index = torch.cat([pairs, pairs.flip(0)], dim=1)
edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
x, model, subsets = torch.randn(n, 64), hp.accelerate(MyModel()), [range(20), range(10, 30)]
subsets = [torch.tensor(nodes) for nodes in subsets]
data = Data(x=torch.randn(n, 1433), edge_index=edge_index, n_id=torch.arange(n))

def loss_of(out):
    return out.square().mean()
""",
    "dgl": """
import dgl
import torch

model = dgl.nn.GraphConv(8, 4, allow_zero_in_degree=True)
graphs = [(dgl.rand_graph(20, 100), torch.tensor(label)) for label in (0, 1)]
for graph, _ in graphs:
    graph.ndata["feat"] = torch.randn(20, 8)
""",
    "several_devices": """
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCN

model = GCN(8, 16, 2, 4)
data = Data(x=torch.randn(64, 8), edge_index=torch.randint(64, (2, 500)))
""",
}
# Blocks that fetch data, or that run on several processes, are read only.
ELSEWHERE = re.compile(r"TUDataset|parallelize|model\.parallel|simulate_plan")


@pytest.mark.parametrize("name", RUN)
def test_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS / f"{name}.md"
    if not page.is_file():
        pytest.skip("no documents beside these tests")
    text = page.read_text()
    blocks = [*re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    lines_before = [0, *(text.count("\n", 0, block.start(1)) for block in blocks)]
    for lines, code in zip(lines_before, [RUN[name], *(block[1] for block in blocks)], strict=True):
        for module in ("torch_geometric", "dgl"):
            if re.search(rf"^(from|import) {module}\b", code, re.MULTILINE):
                pytest.importorskip(module)
        compiled = compile("\n" * lines + code, str(page), "exec")
        if not ELSEWHERE.search(code):
            exec(compiled, names)


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_keep_no_output(path: Path) -> None:
    """The site's build runs them: what it shows is of that build."""
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
