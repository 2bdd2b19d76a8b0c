"""PyTorch Ignite: its trainer and its metrics around an accelerated model.

Needs `pip install pytorch-ignite`. Run: python examples/integration/with_ignite.py
"""

import torch
from generated import collaborations
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy, Loss
from torch import nn
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GraphSAGE, global_mean_pool

import hag_plugin as hp


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gnn = GraphSAGE(in_channels=3, hidden_channels=32, num_layers=2)
        self.out = nn.Linear(32, 3)

    def forward(self, x, graph, batch):
        return self.out(global_mean_pool(self.gnn(x, graph), batch))


def prepare(batch, device, non_blocking):
    """What the model takes of a batch, and what it should give."""
    batch = batch.to(device, non_blocking=non_blocking)  # the HAG moves along
    graph = batch.hag if "hag" in batch else batch.edge_index
    return (batch.x, graph, batch.batch), batch.y


def run(accelerated: bool) -> dict[str, float]:
    torch.manual_seed(0)
    graphs, model = collaborations(), Net()
    if accelerated:
        graphs = hp.pyg.ToHAG().dataset(graphs)
        hp.accelerate(model)
    loss = nn.CrossEntropyLoss()
    shared = {"prepare_batch": prepare, "model_fn": lambda model, given: model(*given)}
    trainer = create_supervised_trainer(
        model, torch.optim.Adam(model.parameters(), lr=0.01), loss, device="cpu", **shared
    )
    metrics = {"accuracy": Accuracy(), "loss": Loss(loss)}
    evaluator = create_supervised_evaluator(model, metrics, device="cpu", **shared)

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate() -> None:
        evaluator.run(DataLoader(graphs[64:], batch_size=32))

    trainer.run(DataLoader(graphs[:64], batch_size=16, shuffle=True), max_epochs=5)
    if accelerated:
        print(hp.explain(model))
    return evaluator.state.metrics


if __name__ == "__main__":
    stock, accelerated = run(False), run(True)
    for number, (name, value) in enumerate(accelerated.items(), 1):
        print(f"{number}. {name} {value:.4f}; stock's differs by {abs(stock[name] - value):.1e}")
