"""What a rank holds while it trains, against its plan; plans that are made on the spot."""

from __future__ import annotations

import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.execution.executors.rows import Once
from hag_plugin.parallel.execution.graphs.local_graphs import RankGraphs
from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned
from hag_plugin.parallel.strategies.registry import Config

from ..equality import Allow, space_with
from ..run_ranks import run_processes, run_threads

NODES, WIDTH, CLASSES, RELATIONS = 6000, 64, 16, 4

# Autograd does these in place in a backward pass, but not while a mode looks on.
ADDITIONS = {
    torch.ops.aten.add.Tensor, torch.ops.aten.index_add.default, torch.ops.aten.scatter.src,
    torch.ops.aten.scatter_add.default,
}  # fmt: skip


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.most = 0
        self.added: Tensor | None = None
        self.has_sent = False

    def see(self, tensor: Tensor) -> None:
        """Counts a tensor's storage until it dies."""
        if isinstance(tensor, DTensor):
            tensor = tensor.to_local()
        storage = tensor.untyped_storage()
        if storage._cdata in self.alive:
            return
        self.alive[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._dies, storage._cdata)

    def settle(self) -> None:
        """Counts the last sum, after what it was added to has died if nobody else has that."""
        added, self.added = self.added, None
        if added is not None:
            self.see(added)

    def _dies(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.has_sent:  # gloo's own thread lets go of the tensors a moment later
            time.sleep(0.002)
        self.has_sent = func.namespace == "c10d"
        given = {t.untyped_storage()._cdata for t in plain([args, kwargs])}
        self.settle()
        out = func(*args, **(kwargs or {}))
        if func in ADDITIONS and torch._C._current_graph_task_id() != -1:
            self.added = out
            return out
        for tensor in plain(out):
            if tensor.untyped_storage()._cdata not in given:  # no view
                self.see(tensor)
        return out


def held_of_edges(parallel: Any) -> int:
    """Bytes of all arrays that executors and what they share have, weights and rows left out."""
    prepared, group = parallel.data.prepared, parallel.group
    waiting: list[Any] = [prepared.executors]
    seen, arrays = {id(prepared.world), id(group)}, {}
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type | nn.Module | Site | RankGraphs):
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            storage = each.untyped_storage()
            arrays[storage.data_ptr()] = storage.nbytes()
        elif isinstance(each, np.ndarray):
            arrays[each.__array_interface__["data"][0]] = each.nbytes
        elif isinstance(each, Once):
            continue  # rows
        elif isinstance(each, dict | list | tuple):
            waiting += each.values() if isinstance(each, dict) else each
        else:
            names = ("func", "args", "keywords", "__self__", "__closure__", "__wrapped__")
            names += ("cell_contents",)
            waiting += [getattr(each, name) for name in names if hasattr(each, name)]
            waiting += [vars(each)] if hasattr(each, "__dict__") else []
    return sum(arrays.values())


def plain(value: Any) -> list[Tensor]:
    """All tensors in it that have values of their own."""
    found = (t for t in tree_leaves(value) if isinstance(t, Tensor))
    return [t for t in found if not isinstance(t, DTensor) and t.device.type != "meta"]


# Models ---------------------------------------------------------------------------------------


class Skip(nn.Module):
    """GCN with batch normalisation, dropout and residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([pyg.GCNConv(WIDTH, WIDTH) for _ in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(WIDTH) for _ in range(4)])
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.dropout(norm(conv(x, edge_index)).relu(), 0.5, self.training)
            x = h + x
        return self.last(x)


class RGCN(nn.Module):
    """Two relational layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = pyg.RGCNConv(WIDTH, WIDTH, RELATIONS)
        self.second = pyg.RGCNConv(WIDTH, CLASSES, RELATIONS)

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index, edge_type).relu(), edge_index, edge_type)


class PNA(nn.Module):
    """Two layers of PNA, one with towers."""

    def __init__(self) -> None:
        super().__init__()
        options = {"aggregators": ["mean", "max"], "scalers": ["identity", "amplification"],
                   "deg": torch.ones(10, dtype=torch.long)}  # fmt: skip
        self.first = pyg.PNAConv(WIDTH, 16, **options)
        self.second = pyg.PNAConv(16, CLASSES, towers=4, **options)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def basic(kind: Any, **options: Any) -> Any:
    return lambda: kind(WIDTH, WIDTH, 3, CLASSES, **options)


MODELS = {
    "GCN": basic(pyg.GCN),
    "GCN, dropout": basic(pyg.GCN, dropout=0.5),
    "GCN, batch norm, dropout": basic(pyg.GCN, dropout=0.5, norm="batch"),
    "SAGE, layer norm": basic(
        pyg.GraphSAGE, norm="layer", norm_kwargs={"mode": "node"}, dropout=0.5
    ),
    "SAGE, norm of everything": basic(pyg.GraphSAGE, norm="layer"),
    "SAGE, jumping, cat": basic(pyg.GraphSAGE, jk="cat", dropout=0.5),
    "SAGE, jumping, max": basic(pyg.GraphSAGE, jk="max"),
    "SAGE, max": basic(pyg.GraphSAGE, aggr="max"),
    "GIN": basic(pyg.GIN),
    "GIN, batch norm": basic(pyg.GIN, norm="batch", dropout=0.5),
    "residual": Skip,
    "GAT": basic(pyg.GAT, heads=4),
    "GAT, dropout": basic(pyg.GAT, heads=4, dropout=0.5),
    "RGCN": RGCN,
    "PNA": PNA,
}
ROWS = ("rows, all-gather", "rows, halo")
CONVOLUTIONS = (
    "replicate", *ROWS, "rows, vertex-cover halo", "all-to-all around aggregation",
    "columns, row-split weights", "column-split weights", "2-D grid",
)  # fmt: skip
STRATEGIES = {
    "GCN": (*CONVOLUTIONS, "mixed"),
    "GCN, batch norm, dropout": CONVOLUTIONS,
    "SAGE, jumping, cat": CONVOLUTIONS[2:],
    "SAGE, max": ROWS,
    "GIN": ("replicate", *ROWS, "all-to-all around aggregation"),
    "GAT": ("replicate", *ROWS, "heads"),
    "RGCN": ("replicate", *ROWS, "relations"),
    "PNA": ("replicate", "rows, halo"),
}


def data(nodes: int = NODES) -> Data:
    """Cliques of eight, so that HAGs share, and edges between them."""
    generator = torch.Generator().manual_seed(0)
    member = torch.arange(nodes // 32 * 8).view(-1, 8)
    pairs = torch.stack([member.repeat_interleave(8, 1).view(-1), member.repeat(1, 8).view(-1)])
    between = torch.randint(nodes, (2, 2 * nodes), generator=generator)
    edges = torch.cat([pairs[:, pairs[0] != pairs[1]], between], dim=1)
    return Data(
        x=torch.randn(nodes, WIDTH, generator=generator),
        edge_index=edges,
        edge_type=torch.randint(RELATIONS, (edges.shape[1],), generator=generator),
        y=torch.randint(CLASSES, (nodes,), generator=generator),
    )


MIXED = dict(zip(("convs.0", "convs.1", "convs.2"), (*ROWS, "replicate"), strict=True))


def by_strategy(name: str, hag: bool) -> Allow:
    """Layers that can be split so are, with a HAG if there is one and it is wanted. "mixed": each
    in another way, on another graph.
    """

    def allow(op: Op, config: Config) -> bool:
        if op.kind not in ("convolution", "attention"):
            return True
        wanted = MIXED[op.name] if name == "mixed" else name
        return config.strategy == wanted and (config.hag != "off") == hag

    return allow


Job = tuple[str, str, bool, Plan]  # model, strategy, whether with HAGs


def jobs(size: int) -> list[Job]:
    """A plan for every model and strategy."""
    found: list[Job] = []
    given = data()
    for name, make in MODELS.items():
        torch.manual_seed(0)
        graph = trace(make(), given)
        for strategy in STRATEGIES.get(name, ROWS[1:]):
            if strategy == "2-D grid" and size < 4:
                continue
            for hag in (False, True) if name in ("GCN", "GIN") else (False,):
                space = space_with(graph, size, by_strategy(strategy, hag))
                found.append((name, strategy, hag, planned(space, space.cheapest().configs)))
    return found


def train(rank: int, work: list[Job]) -> list[tuple[int, int]]:
    """The peak of each plan on this rank, over two steps, and what is held of edges."""
    given = data()
    return [peak(MODELS[name](), given, plan) for name, _, _, plan in work]


def peak(model: nn.Module, given: Data, plan: Plan) -> tuple[int, int]:
    ours = hp.parallel.parallelize(model, given, plan)
    optimizer = torch.optim.Adam(ours.parameters())
    local = ours.parallel.data
    with Peak() as seen:
        for tensor in (*ours.parameters(), *local.prepared.features[0].values()):
            seen.see(tensor.detach())
        for _ in range(2):
            optimizer.zero_grad()
            out = ours()
            ours.parallel.mean(F.cross_entropy(out, local.y, reduction="none")).backward()
            optimizer.step()
            del out
    return seen.most, held_of_edges(ours.parallel)


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_holds_what_its_plan_says(size: int) -> None:
    work = jobs(size)
    measured = run_processes(size, train, work, limit=300)
    wrong = {}
    for (name, strategy, hag, plan), found in zip(work, zip(*measured, strict=True), strict=True):
        most, edges = (max(sizes) for sizes in zip(*found, strict=True))
        share = most / (plan.memory.retained + plan.memory.transient)
        of_edges = edges / plan.memory.graph
        # Kernels of attention keep their result on a GPU, for which plans are made, and not here,
        # unless it is joined of own rows and others.
        least = 0.8 if "GAT" in name and strategy not in ROWS else 0.9
        if not (least <= share <= 1.1 and 0.8 <= of_edges <= 1.25):
            wrong[name, strategy, hag] = round(share, 3), round(of_edges, 3)
    assert not wrong


def test_kept_tensors_by_hand() -> None:
    """On one device: products keep their inputs, ReLU its output; a shared one counts once."""
    N, hidden = 512, 32
    torch.manual_seed(0)
    graph = trace(pyg.GCN(WIDTH, hidden, 2, CLASSES, dropout=0.5), data(N), hag=False)
    weights = WIDTH * hidden + hidden + hidden * CLASSES + CLASSES
    features, dropped, end = N * WIDTH, N * hidden, 2 * N * CLASSES  # output and log-softmax
    mask = dropped // 4
    for orders, kept in {
        ("aggregate-first", "aggregate-first"): N * WIDTH + dropped + mask + dropped,
        ("transform-first", "aggregate-first"): dropped + mask + dropped,
        ("transform-first", "transform-first"): dropped + mask + dropped,
    }.items():
        wanted = dict(zip(("convs.0", "convs.1"), orders, strict=True))
        space = space_with(graph, 1, lambda op, c, w=wanted: c.order == w.get(op.name, c.order))
        memory = space.memory(space.cheapest().configs)
        assert memory.retained == 4 * (features + kept + end + 4 * weights)
    # The gradients of dropout's output and input, and one between; later layers keep nothing yet.
    assert memory.transient == 4 * (3 * dropped - dropped - N * CLASSES)


def test_plans_from_files_and_on_the_spot(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, given = pyg.GCN(WIDTH, 8, 2, CLASSES), data()
    hp.parallel.plan(model, given, "a100x8", world_size=2).save(tmp_path / "plan.json")
    expected = model(given.x, given.edge_index).detach()

    def case(rank: int) -> list[Tensor]:
        found = [
            hp.parallel.parallelize(model, given, tmp_path / "plan.json"),
            hp.parallel.parallelize(model, given, topology="a100x8"),
        ]
        assert [type(m) for m in found] == [pyg.GCN, pyg.GCN]
        assert all(m.state_dict().keys() == model.state_dict().keys() for m in found)
        with pytest.raises(TypeError, match="are laid out once"):
            found[0](given.x, given.edge_index)
        again = found[0](found[0].parallel.data)
        return [m.parallel.gather(out) for m, out in
                ((found[0], found[0]()), (found[1], found[1]()), (found[0], again))]  # fmt: skip

    for outs in run_threads(2, case):
        for out in outs:
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="is not initialised"):
        hp.parallel.parallelize(model, given, tmp_path / "plan.json")
