"""`hp.report`: a page about any model, whole and alone, that leaves the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hag_plugin as hp
from hag_plugin.notebook import html_page

from ..html_pages import Page, pictures, read_page

pyg = pytest.importorskip("torch_geometric", reason="PyG is not installed")
pytest.importorskip("matplotlib")

from torch_geometric.data import Data, HeteroData  # noqa: E402
from torch_geometric.nn import (  # noqa: E402
    GAT,
    GCN,
    GIN,
    GCNConv,
    GraphSAGE,
    HeteroConv,
    HGTConv,
    SAGEConv,
)
from torch_geometric.utils import dropout_edge  # noqa: E402

Case = tuple[nn.Module, Any]


def edges() -> torch.Tensor:
    pairs = torch.combinations(torch.arange(12)).t()
    return torch.cat([pairs, pairs.flip(0)], dim=1)


def a_graph() -> Data:
    return Data(x=torch.randn(12, 8), edge_index=edges(), edge_weight=torch.rand(132))


def of_types() -> HeteroData:
    data = HeteroData()
    for name in ("paper", "author"):
        data[name].x = torch.randn(12, 8)
    data["author", "writes", "paper"].edge_index = edges()
    data["paper", "by", "author"].edge_index = edges()
    return data


class Twice(nn.Module):
    """Calls one layer twice and another never; between them is what is no layer of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.never = SAGEConv(8, 8), GCNConv(8, 8)
        self.norm, self.out = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x, edge_index)).relu_()
        return self.out(nn.functional.dropout(self.conv(x, edge_index), training=self.training))


class Relations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kinds = {kind: SAGEConv((-1, -1), 8) for kind in of_types().edge_types}
        self.conv = HeteroConv(kinds)

    def forward(self, x_dict: Any, edge_index_dict: Any) -> Any:
        return self.conv(x_dict, edge_index_dict)


class Types(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = HGTConv(8, 8, of_types().metadata(), heads=2)

    def forward(self, x_dict: Any, edge_index_dict: Any) -> Any:
        return self.conv(x_dict, edge_index_dict)


class MakesEdges(nn.Module):
    """What cannot be planned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(8, 3)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.conv(x, dropout_edge(edge_index)[0])


def of_dgl() -> Case:
    dgl = pytest.importorskip("dgl", reason="DGL is not installed")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = dgl.nn.GraphConv(8, 4, allow_zero_in_degree=True)
            self.two = dgl.nn.GATConv(4, 2, 2, allow_zero_in_degree=True)

        def forward(self, graph: Any, x: torch.Tensor) -> torch.Tensor:
            return self.two(graph, self.one(graph, x).relu()).flatten(1)

    return Net(), (dgl.graph(tuple(edges())), torch.randn(12, 8))


def initialised(model: nn.Module, data: Any) -> Case:
    with torch.no_grad():
        model(data.x_dict, data.edge_index_dict)
    return model, data


MODELS: dict[str, Callable[[], Case]] = {
    "GCN": lambda: (GCN(8, 8, 2, 3), a_graph()),
    "GraphSAGE": lambda: (GraphSAGE(8, 8, 2, 3, dropout=0.5), a_graph()),
    "GIN": lambda: (GIN(8, 8, 2, 3), a_graph()),
    "GAT": lambda: (GAT(8, 8, 2, 3, heads=2), a_graph()),
    "in evaluation": lambda: (GCN(8, 8, 2, 3).eval(), a_graph()),
    "accelerated": lambda: (hp.accelerate(GCN(8, 8, 2, 3)), a_graph()),
    "without weights that learn": lambda: (GCN(8, 8, 2, 3).requires_grad_(False), a_graph()),
    "a layer": lambda: (GCNConv(8, 3), a_graph()),
    "a layer twice": lambda: (Twice(), a_graph()),
    "relations": lambda: initialised(Relations(), of_types()),
    "edges of its own": lambda: (MakesEdges(), a_graph()),
    "types": lambda: initialised(Types(), of_types()),
    "DGL": of_dgl,
}


def state(model: nn.Module) -> dict[str, Any]:
    """All that a report might change."""
    return {
        "tensors": copy.deepcopy(model.state_dict()),
        "gradients": [p.grad for p in model.parameters()],
        "classes": [type(module) for module in model.modules()],
        "calls": [str(row.calls) for row in hp.explain(model)],
        "training": [module.training for module in model.modules()],
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def made(folder: Path, model: nn.Module, data: Any, **options: Any) -> tuple[Page, str]:
    hp.report(model, data, folder / "page.html", **options)
    text = (folder / "page.html").read_text()
    return read_page(text), text


def layer_rows(page: Page) -> list[list[str]]:
    """The table of what each layer takes, without its head."""
    start = next(i for i, row in enumerate(page.rows) if row[-1] == "times as fast")
    rest = page.rows[start + 1 :]
    end = next(i for i, row in enumerate(rest) if row[0] == "the whole model")
    return rest[: end + 1]


def can_plan(model: nn.Module, data: Any) -> bool:
    try:
        hp.parallel.plan(hp.restore(copy.deepcopy(model)), data, "cpu2", world_size=1)
    except (TypeError, ValueError):
        return False
    return True


def test_some_models_cannot_be_planned() -> None:
    planned = {name: can_plan(*make()) for name, make in MODELS.items() if name != "DGL"}
    assert planned["GCN"]
    assert not planned["edges of its own"]


@pytest.mark.mostly_slow("GCN", "a layer twice")
@pytest.mark.parametrize("name", MODELS)
def test_the_page_of_any_model(name: str, tmp_path: Path) -> None:
    model, data = MODELS[name]()
    before = state(model)
    page, text = made(tmp_path, model, data)
    assert same(state(model), before)
    names = [row.name or "(itself)" for row in hp.explain(model)]
    assert names
    rows = layer_rows(page)
    assert [row[0] for row in rows] == [*names, "the whole model"]
    for row in rows:
        called = row[0] != "never"
        assert [cell == "-" for cell in (row[2], row[3], row[5])] == [not called] * 3
        if called:
            assert all(float(cell) > 0 for cell in (row[2], row[3], row[5]))
    explained = [row for row in page.rows if len(row) == 6 and row[1] == hp.explain(model)[0].layer]
    assert explained
    planned = {row[0] for row in rows if row[4] != "-"}
    assert planned == ({row[0] for row in rows} - {"never"} if can_plan(model, data) else set())
    assert ("Not predicted" in text) == (not planned)
    assert ("What is shared" in text) == (name not in ("relations", "types"))
    assert len(pictures(text)) == 1


def test_a_plan_and_its_timeline(tmp_path: Path) -> None:
    model, data = GCN(8, 8, 2, 3), a_graph()
    plan = hp.parallel.plan(model, data, "pcie4x4")
    plan.save(tmp_path / "plan.json")
    for given in (plan, tmp_path / "plan.json", str(tmp_path / "plan.json")):
        _, text = made(tmp_path, model, data, plan=given)
        assert len(pictures(text)) == 2
        assert plan._repr_html_() in text
        assert "(predicted)" in pictures(text)[1]
    with pytest.raises(ValueError, match="the plan is for another model"):
        hp.report(GCN(8, 8, 3, 3), data, tmp_path / "page.html", plan=plan)


def test_the_machine_of_a_plan(tmp_path: Path) -> None:
    model, data = GCN(8, 8, 2, 3), a_graph()
    machine = hp.parallel.Topology.from_dict(
        hp.parallel.preset("cpu2").as_dict() | {"name": "ours"}
    )
    plan = hp.parallel.plan(model, data, machine)
    with pytest.raises(ValueError, match="'ours', which is not built in"):
        hp.report(model, data, tmp_path / "page.html", plan=plan)
    _, text = made(tmp_path, model, data, plan=plan, topology=machine)
    assert "ours (predicted)" in text
    with pytest.raises(ValueError, match=r"topology is .* but there is no plan"):
        hp.report(model, data, tmp_path / "page.html", topology=machine)


def test_another_call(tmp_path: Path) -> None:
    def call(model: Any, data: Any) -> Any:
        return model(data.x, data.edge_index, data.edge_weight)

    _, text = made(tmp_path, GCN(8, 8, 2, 3), a_graph(), call=call)
    assert "edge_weight" in text


def test_models_without_a_graph_are_refused(tmp_path: Path) -> None:
    model, data = nn.Linear(8, 3), a_graph()
    with pytest.raises(TypeError, match="model is a Linear without layers of PyG or DGL"):
        hp.report(model, data, tmp_path / "page.html", call=lambda m, d: m(d.x))
    with pytest.raises(TypeError, match="data is"):
        hp.report(model, torch.randn(3, 8), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_names_are_escaped() -> None:
    page = html_page("<a>", "<b>", [])
    assert "<a>" not in page
    assert "<b>" not in page
    read_page(page)


@pytest.mark.parametrize("data", [(torch.ones(2, 3), torch.ones(2, 3)), (), (1,), 3, None])
def test_what_is_no_data_is_refused(data: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="data is"):
        hp.report(GCNConv(3, 2), data, tmp_path / "page.html")
    assert not any(tmp_path.iterdir())
