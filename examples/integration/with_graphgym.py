"""GraphGym: two names in a configuration run its networks over HAGs.

Needs `pip install lightning yacs`. Run: python examples/integration/with_graphgym.py

In graphgym.yaml, `dataset.format: PyG-HAG` gives each graph of a data set its HAG, and
`model.type: hag_gnn` is GraphGym's own network, accelerated. A `main.py` of your own needs what is
registered here, but for the generated data set.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import lightning
import torch
from generated import collaborations
from torch_geometric.data import InMemoryDataset
from torch_geometric.graphgym.config import assert_cfg, cfg, set_cfg
from torch_geometric.graphgym.loader import load_pyg, set_dataset_attr
from torch_geometric.graphgym.loss import compute_loss
from torch_geometric.graphgym.model_builder import create_model
from torch_geometric.graphgym.models.gnn import GNN
from torch_geometric.graphgym.register import register_loader, register_network
from torch_geometric.graphgym.train import GraphGymDataModule, train
from torch_geometric.transforms import Compose

import hag_plugin as hp


class HagGNN(GNN):
    """GraphGym's network; its layers are given the HAG where the data has one."""

    def forward(self, batch):
        if "hag" in batch:
            batch.edge_index = batch.hag
        return super().forward(batch)


@register_network("hag_gnn")
def accelerated_gnn(dim_in, dim_out):
    return hp.accelerate(HagGNN(dim_in, dim_out))


@register_loader("hag")
def load_with_hags(format, name, folder):
    if format != "PyG-HAG":
        return None  # another loader's
    dataset = load_generated("PyG", name, folder) or load_pyg(name, folder)
    to_hag = hp.pyg.ToHAG()  # which knows the graphs that it met
    dataset.transform = Compose([dataset.transform, to_hag]) if dataset.transform else to_hag
    return dataset


@register_loader("generated")
def load_generated(format, name, folder):
    if (format, name) != ("PyG", "generated"):
        return None
    dataset = InMemoryDataset()
    dataset.data, dataset.slices = InMemoryDataset.collate(collaborations())
    for split, (first, last) in {"train": (0, 64), "val": (64, 80), "test": (80, 96)}.items():
        index = torch.arange(first, last)
        set_dataset_attr(dataset, f"{split}_graph_index", index, len(index))
    return dataset


def run(*options: str) -> float:
    """Trains as graphgym.yaml says, but for these options; the loss in the test that follows."""
    set_cfg(cfg)
    cfg.merge_from_file(Path(__file__).with_name("graphgym.yaml"))
    cfg.merge_from_list([*options])
    assert_cfg(cfg)
    lightning.seed_everything(cfg.seed)
    data, model = GraphGymDataModule(), create_model()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    train(model, data, logger=False, trainer_config=quiet)
    if cfg.model.type == "hag_gnn":
        print(hp.explain(model))
    model.eval()
    (batch,) = data.test_dataloader()
    with torch.no_grad():
        return float(compute_loss(*model(batch))[0])


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        accelerated = run("out_dir", folder)
        stock = run("out_dir", folder, "model.type", "gnn", "dataset.format", "PyG")
    print(f"1. loss {accelerated:.4f}; stock's differs by {abs(stock - accelerated):.1e}")
