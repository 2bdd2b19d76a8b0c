"""PyTorch Lightning: a module whose model is accelerated, on one graph and on batches of many.

Needs `pip install lightning`. Run: python examples/integration/with_lightning.py
"""

import logging
import warnings

import lightning
import torch
from generated import collaborations, communities
from torch import nn
from torch.nn.functional import cross_entropy
from torch_geometric.data.lightning import LightningNodeData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, GraphSAGE, global_mean_pool

import hag_plugin as hp


class Nodes(lightning.LightningModule):
    """Classifies the nodes of one graph, all in one step."""

    def __init__(self) -> None:
        super().__init__()
        self.gnn = GCN(in_channels=16, hidden_channels=32, num_layers=2, out_channels=4)

    def training_step(self, data, index):
        out = self.gnn(data.x, data.edge_index)  # the same tensors again: they get a HAG
        return cross_entropy(out[data.train_mask], data.y[data.train_mask])

    def validation_step(self, data, index):
        out = self.gnn(data.x, data.edge_index)
        loss = cross_entropy(out[data.val_mask], data.y[data.val_mask])
        self.log("val_loss", loss, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Graphs(lightning.LightningModule):
    """Classifies graphs, in batches whose HAGs are put together of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.gnn = GraphSAGE(in_channels=3, hidden_channels=32, num_layers=2)
        self.out = nn.Linear(32, 3)

    def _loss(self, batch):
        graph = batch.hag if "hag" in batch else batch.edge_index
        nodes = self.gnn(batch.x, graph)
        return cross_entropy(self.out(global_mean_pool(nodes, batch.batch)), batch.y)

    def training_step(self, batch, index):
        return self._loss(batch)

    def validation_step(self, batch, index):
        self.log("val_loss", self._loss(batch), batch_size=batch.num_graphs)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(module: lightning.LightningModule, **data) -> float:
    """Trains five epochs; the loss in the validation that follows."""
    trainer = lightning.Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, **data)
    return float(trainer.callback_metrics["val_loss"])


def one_graph(accelerated: bool) -> float:
    lightning.seed_everything(0)
    module = Nodes()
    if accelerated:
        hp.accelerate(module)  # before fit, or in configure_model
    loss = fit(module, datamodule=LightningNodeData(communities(), loader="full"))
    if accelerated:
        print(hp.explain(module))
    return loss


def many_graphs(accelerated: bool) -> float:
    lightning.seed_everything(0)
    graphs, module = collaborations(), Graphs()
    if accelerated:
        graphs = hp.pyg.ToHAG().dataset(graphs)
        hp.accelerate(module)
    train = DataLoader(graphs[:64], batch_size=16, shuffle=True)
    loss = fit(module, train_dataloaders=train, val_dataloaders=DataLoader(graphs[64:], 32))
    if accelerated:
        print(hp.explain(module))
    return loss


if __name__ == "__main__":
    warnings.filterwarnings(
        "ignore", module="lightning|torch_geometric"
    )  # few workers, and the like
    logging.getLogger("lightning").setLevel(logging.ERROR)
    for number, run in enumerate((one_graph, many_graphs), 1):
        stock, accelerated = run(False), run(True)
        print(f"{number}. {run.__name__}: loss {accelerated:.4f};", end=" ")
        print(f"stock's differs by {abs(stock - accelerated):.1e}")
