"""What is saved of models and data names public places only; a fresh process finds them there."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.nn import GATConv, GCNConv, MessagePassing, SAGEConv, Sequential

import hag_plugin as hp
from hag_plugin.pyg import PrefixLSTMAggregation, ToHAG

from ..saving import assert_names_stay, run_fresh

NODES = 40
EDGES = torch.randint(NODES, (2, 300), generator=torch.Generator().manual_seed(0))
EDGES = EDGES[:, EDGES[1].argsort(stable=True)]  # as an LSTM needs them


def _data() -> Data:
    return Data(x=torch.arange(NODES * 4.0).view(NODES, 4) / NODES, edge_index=EDGES)


def _hetero() -> HeteroData:
    data = HeteroData()
    data["paper"].x = _data().x
    data["paper", "cites", "paper"].edge_index = EDGES
    return data


def _model() -> nn.Module:
    torch.manual_seed(0)
    layers = [GCNConv(4, 8), SAGEConv(8, 8, aggr="lstm"), GATConv(8, 8), SAGEConv(8, 3)]
    return hp.accelerate(Sequential("x, e", [(layer, "x, e -> x") for layer in layers]))


def _called() -> nn.Module:
    model, data = _model(), _data()
    for _ in range(3):
        model(data.x, data.edge_index).sum().backward()
    return model


def _declared() -> nn.Module:
    @hp.hag_layer
    class Tanh(MessagePassing):
        def forward(self, x: Tensor, edge_index: Any) -> Tensor:
            out: Tensor = self.propagate(edge_index, x=x)
            return out

        def message(self, x_j: Tensor) -> Tensor:
            return x_j.tanh()

    globals()["Tanh"] = Tanh  # so that a pickle finds it
    Tanh.__qualname__ = "Tanh"
    model, data = hp.accelerate(Tanh()), _data()
    for _ in range(3):
        model(data.x, data.edge_index)
    return model


SAVED: dict[str, Callable[[], Any]] = {
    "transform": ToHAG,
    "used transform": lambda: [(t := ToHAG()), t(_data())][0],
    "item": lambda: ToHAG()(_data()),
    "item without edges": lambda: ToHAG(remove_edge_index=True)(_data()),
    "batch": lambda: Batch.from_data_list([ToHAG()(_data()) for _ in range(3)]),
    "hetero": lambda: ToHAG()(_hetero()),
    "model": _model,
    "called model": _called,
    "copied model": lambda: copy.deepcopy(_called()),
    "aggregation": lambda: PrefixLSTMAggregation(
        4, 4, sequence=hp.sequence.build_sequence(EDGES, num_nodes=NODES)
    ),
    "layers": hp.pyg.layers,
}


@pytest.mark.parametrize("name", [*SAVED, "declared"])
def test_names_stay(name: str, tmp_path: Path) -> None:
    value = SAVED[name]() if name in SAVED else _declared()
    assert_names_stay(value)
    torch.save(value, tmp_path / "value.pt")


def test_dataset(tmp_path: Path) -> None:
    """As `InMemoryDataset` saves its collated items: with many HAGs in a few tensors."""
    from torch_geometric.data import InMemoryDataset

    items = [ToHAG()(_data()) for _ in range(3)]
    collated = InMemoryDataset.collate(items)
    assert_names_stay(collated)


def test_a_fresh_process_gets_the_same(tmp_path: Path) -> None:
    values = {name: make() for name, make in SAVED.items()}
    (tmp_path / "all.pkl").write_bytes(pickle.dumps(values))
    torch.save(values, tmp_path / "all.pt")
    code = (
        "import pickle, torch\n"
        "pickled = pickle.load(open('all.pkl', 'rb'))\n"
        "for found in (pickled, torch.load('all.pt', weights_only=False)):\n"
        "    item, batch = found['item'], found['batch']\n"
        "    outs = [found[n](item.x, g) for n in ('model', 'called model', 'copied model')\n"
        "            for g in (item.edge_index, item.edge_index)]\n"
        "    torch.save([outs, item.hag.content_hash, batch.hag.num_edges], 'out.pt')\n"
    )
    run_fresh(code, tmp_path)
    outs, content, num_edges = torch.load(tmp_path / "out.pt")
    expected = hp.restore(_model())(_data().x, EDGES)
    for out in outs:
        torch.testing.assert_close(out, expected)
    assert (content, num_edges) == (values["item"].hag.content_hash, 3 * EDGES.shape[1])


def test_counts_are_not_saved() -> None:
    """Copies and pickles count their own calls, and `restore` forgets them."""
    model = _called()
    assert all(sum(row.calls.counts.values()) == 3 for row in hp.explain(model))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any(row.calls.counts for row in hp.explain(twin))
    hp.restore(model)
    assert not any(row.calls.counts for row in hp.explain(model))
