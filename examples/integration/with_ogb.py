"""OGB: its evaluators on what an accelerated model predicts, here of generated graphs.

Needs `pip install ogb`. Run: python examples/integration/with_ogb.py

With OGB's own data: the graph of `PygNodePropPredDataset("ogbn-arxiv")` goes through an accelerated
model as it is; `PygGraphPropPredDataset("ogbg-molhiv", pre_transform=hp.pyg.ToHAG())` has HAGs.
"""

import torch
from generated import collaborations, communities
from ogb.graphproppred import Evaluator as GraphEvaluator
from ogb.nodeproppred import Evaluator as NodeEvaluator
from torch import nn
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, GraphSAGE, global_mean_pool

import hag_plugin as hp


def nodes(accelerated: bool) -> float:
    """Accuracy as of ogbn-arxiv."""
    torch.manual_seed(0)
    data = communities()
    model = GCN(in_channels=16, hidden_channels=32, num_layers=2, out_channels=4)
    if accelerated:
        hp.accelerate(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        nn.functional.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        predicted = model(data.x, data.edge_index).argmax(dim=1)
    given = {"y_true": data.y[data.val_mask, None], "y_pred": predicted[data.val_mask, None]}
    if accelerated:
        print(hp.explain(model))
    return NodeEvaluator("ogbn-arxiv").eval(given)["acc"]


def graphs(accelerated: bool) -> float:
    """Area under the ROC curve as of ogbg-molhiv."""
    torch.manual_seed(0)
    dataset = collaborations()
    model = GraphSAGE(in_channels=3, hidden_channels=32, num_layers=2, out_channels=1)
    if accelerated:
        dataset = hp.pyg.ToHAG().dataset(dataset)
        hp.accelerate(model)

    def score(batch):
        graph = batch.hag if "hag" in batch else batch.edge_index
        return global_mean_pool(model(batch.x, graph), batch.batch).squeeze(1)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        for batch in DataLoader(dataset[:64], batch_size=16, shuffle=True):
            optimizer.zero_grad()
            target = (batch.y == 0).float()
            nn.functional.binary_cross_entropy_with_logits(score(batch), target).backward()
            optimizer.step()
    model.eval()
    (batch,) = DataLoader(dataset[64:], batch_size=32)
    with torch.no_grad():
        given = {"y_true": (batch.y == 0).long()[:, None], "y_pred": score(batch)[:, None]}
    if accelerated:
        print(hp.explain(model))
    return GraphEvaluator("ogbg-molhiv").eval(given)["rocauc"]


if __name__ == "__main__":
    for number, run in enumerate((nodes, graphs), 1):
        stock, accelerated = run(False), run(True)
        print(f"{number}. {run.__name__}: {accelerated:.4f};", end=" ")
        print(f"stock's differs by {abs(stock - accelerated):.1e}")
