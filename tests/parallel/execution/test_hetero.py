"""Models of several types of nodes: the same results on ranks as in one process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import HeteroData

import hag_plugin as hp
from hag_plugin.parallel.execution.dropout import keep
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.model.trace import copied, trace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned

from ..equality import (
    Allow,
    check_by_type,
    space_with,
    train_by_type,
    train_by_type_together,
    whole,
)
from ..run_ranks import run_processes, run_threads

pytestmark = pytest.mark.filterwarnings("ignore:There exist node types")
Run = Callable[[int, nn.Module, HeteroData, Plan], list[Any]]
WIDTH, CLASSES, STEPS = 8, 3, 3
# By type: nodes, features. Nothing goes to "tag", and "site" has fewer nodes than there are ranks.
TYPES = {"paper": (13, 7), "author": (9, 4), "tag": (6, 8), "site": (2, 3)}
RELATIONS = (
    ("author", "writes", "paper"),
    ("paper", "by", "author"),
    ("paper", "cites", "paper"),
    ("tag", "of", "paper"),
    ("site", "shows", "paper"),
    ("paper", "at", "site"),
)


def data(kinds: Any = RELATIONS, dtype: torch.dtype = torch.float64) -> HeteroData:
    """Half of the papers have no edges into them; edges may occur twice."""
    draw, found = torch.Generator().manual_seed(3), HeteroData()
    types = dict.fromkeys(end for source, _, target in kinds for end in (source, target))
    for of in types:
        nodes, features = TYPES[of]
        found[of].x = torch.randn(nodes, features, generator=draw, dtype=dtype)
        found[of].y = torch.randint(CLASSES, (nodes,), generator=draw)
        found[of].train_mask = torch.rand(nodes, generator=draw) < 0.8
    for kind in kinds:
        source, target = TYPES[kind[0]][0], -(-TYPES[kind[-1]][0] // 2)
        ends = [torch.randint(n, (17,), generator=draw) for n in (source, target)]
        found[kind].edge_index = torch.stack(ends)
        found[kind].edge_weight = torch.rand(17, generator=draw, dtype=dtype)
    return found


class Net(nn.Module):
    """Two HeteroConvs with a linear layer for each type that the second gives."""

    def __init__(
        self, layer: Callable[[Any, int], nn.Module], kinds: Any, aggr: str | None, depth: int = 2
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        given = data(kinds)
        hidden = given.x_dict
        self.aggr = aggr
        for _ in range(depth):
            wide = {of: x.shape[-1] for of, x in hidden.items()}
            convs = {
                kind: layer((wide[kind[0]], wide[kind[-1]]), kind[0] == kind[-1])
                for kind in kinds
                if kind[0] in hidden and kind[-1] in hidden
            }
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There exist node types", UserWarning)
                self.convs.append(pyg.HeteroConv(convs, aggr=aggr).double())
                hidden = self.step(self.convs[-1], hidden, given.edge_index_dict)
        self.last = nn.ModuleDict({of: nn.Linear(x.shape[-1], CLASSES) for of, x in hidden.items()})

    def step(self, conv: Any, x_dict: Any, edge_index_dict: Any) -> Any:
        found = conv(x_dict, edge_index_dict)
        return {of: x.flatten(1).relu() for of, x in found.items()}

    def forward(self, x_dict: Any, edge_index_dict: Any) -> Any:
        for conv in self.convs:
            x_dict = self.step(conv, x_dict, edge_index_dict)
        return {of: self.last[of](x) for of, x in x_dict.items()}


def loss_of(out: Any, values: Any, mean: Any) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for of in sorted(out):
        mask, y = values[of].train_mask, values[of].y
        total = total + mean(F.cross_entropy(out[of][mask], y[mask], reduction="none"))
    return total


def train_alone(model: nn.Module, given: HeteroData) -> Any:
    model = copied(model)
    return train_by_type(
        model,
        lambda: model(given.x_dict, given.edge_index_dict),
        lambda out: loss_of(out, given, torch.Tensor.mean),
    )


def train_together(rank: int, model: nn.Module, given: HeteroData, plan: Plan) -> Any:
    ours = hp.parallel.parallelize(model, given, plan)
    parallel = ours.parallel
    return train_by_type_together(ours, lambda out: loss_of(out, parallel.data, parallel.mean))


def on_threads(size: int, model: nn.Module, given: HeteroData, plan: Plan) -> list[Any]:
    return run_threads(size, lambda rank: train_together(rank, model, given, plan))


def check(
    model: nn.Module, given: HeteroData, size: int, allow: Allow, *, hag: bool = False,
    run: Run = on_threads,
) -> Plan:  # fmt: skip
    """Trains with a plan and alone; everything must be equal, and the bytes those of the plan."""
    space = space_with(trace(model, given, hag=hag), size, allow)
    expected = train_alone(model, given)
    return check_by_type(space, expected, lambda plan: run(size, model, given, plan))


def sage(widths: Any, same: bool) -> nn.Module:
    return pyg.SAGEConv(widths, WIDTH)


LAYERS: dict[str, Callable[[Any, bool], nn.Module]] = {
    "SAGEConv": sage,
    "SAGEConv, max": lambda widths, same: pyg.SAGEConv(widths, WIDTH, aggr="max"),
    "SAGEConv, normalised": lambda widths, same: pyg.SAGEConv(widths, WIDTH, normalize=True),
    "GraphConv": lambda widths, same: pyg.GraphConv(widths, WIDTH, aggr="mean"),
    "GATConv": lambda widths, same: pyg.GATConv(widths, 4, heads=2, add_self_loops=False),
    "GATv2Conv": lambda widths, same: pyg.GATv2Conv(widths, WIDTH, add_self_loops=False),
    "TransformerConv": lambda widths, same: pyg.TransformerConv(widths, WIDTH),
    "GCNConv, SAGEConv": lambda widths, same: (
        pyg.GCNConv(widths[0], WIDTH) if same else pyg.SAGEConv(widths, WIDTH)
    ),
}
SPLIT = ("SAGEConv", "SAGEConv, max", "SAGEConv, normalised", "GraphConv", "GCNConv, SAGEConv")


def by_strategy(name: str) -> Allow:
    """It where an operation over edges may have it, else whatever there is."""
    return lambda op, config: op.kind != "convolution" or config.strategy == name


def by_rows(op: Op, config: Any) -> bool:
    return "replicate" not in config.strategy or op.kind in ("normalisation",)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_of_each_type_are_shared_out(name: str, size: int) -> None:
    torch.manual_seed(0)
    plan = check(Net(LAYERS[name], RELATIONS, "sum").double(), data(), size, by_rows)
    found = {k.config.strategy for k in plan.layers if k.kind in ("convolution", "opaque")}
    assert "replicate" not in found
    assert any((name in SPLIT and "rows" in each) or each == "rows, halo" for each in found)


STRATEGIES = (
    "replicate", "rows, all-gather", "rows, halo", "rows, vertex-cover halo",
    "all-to-all around aggregation", "columns, row-split weights", "column-split weights",
    "2-D grid",
)  # fmt: skip


@pytest.mark.parametrize("hag", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_of_convolutions(strategy: str, hag: bool) -> None:
    torch.manual_seed(0)
    kinds = [k for k in RELATIONS if "site" not in k]

    def allow(op: Op, config: Any) -> bool:
        if op.kind != "convolution":
            return True
        return config.strategy == strategy and (config.hag != "off") == hag

    model = Net(sage, kinds, "mean").double()
    check(model, data(kinds), 4, allow, hag=True)


@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "min", "cat", None])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_relations_give_is_combined(aggr: str | None, count: int) -> None:
    torch.manual_seed(0)
    kinds = [RELATIONS[k] for k in (2, 0, 3)][:count]
    model = Net(sage, kinds, aggr, depth=1).double()
    check(model, data(kinds), 2, by_rows)


@pytest.mark.mostly_slow("GraphSAGE-mean", "GAT-max")
@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "min", "mul"])
@pytest.mark.parametrize("make", [pyg.GraphSAGE, pyg.GAT])
def test_to_hetero(make: Any, aggr: str) -> None:
    torch.manual_seed(0)
    kinds = [*RELATIONS, ("author", "tags", "tag")]
    kinds.remove(("tag", "of", "paper"))
    given, options = data(kinds), {"add_self_loops": False} if make is pyg.GAT else {}
    plain = make((-1, -1), WIDTH, num_layers=2, out_channels=CLASSES, **options).double()
    model = pyg.to_hetero(plain, given.metadata(), aggr=aggr)
    with torch.no_grad():
        model(given.x_dict, given.edge_index_dict)  # which sets its widths
    del given["tag"].train_mask
    given["tag"].train_mask = torch.ones(TYPES["tag"][0], dtype=torch.bool)
    check(model, given, 2, by_rows)


def on_process(rank: int, plan: Plan) -> Any:
    return train_together(rank, mixed(), data(), plan)


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Net(LAYERS["GCNConv, SAGEConv"], RELATIONS, "sum").double()


@pytest.mark.parametrize("size", [2, 4])
def test_on_processes(size: int) -> None:
    def run(size: int, model: nn.Module, given: HeteroData, plan: Plan) -> list[Any]:
        return run_processes(size, on_process, plan)

    check(mixed(), data(), size, by_rows, run=run)


class Learned(nn.Module):
    """Tags without features: a table of one row each."""

    def __init__(self) -> None:
        super().__init__()
        self.tags = nn.Embedding(*TYPES["tag"])
        self.net = Net(sage, RELATIONS, "sum", depth=1)

    def forward(self, x_dict: Any, edge_index_dict: Any) -> Any:
        return self.net(x_dict | {"tag": self.tags.weight}, edge_index_dict)


def test_features_of_a_type_may_be_learned() -> None:
    torch.manual_seed(0)
    given = data()
    del given["tag"].x
    given["tag"].num_nodes = TYPES["tag"][0]
    plan = check(Learned().double(), given, 2, by_rows)
    assert plan.layer("tags").config.strategy in ("rows", "columns")


def test_rows_and_pairs_of_a_type() -> None:
    """Every rank asks for its own; gradients come back to those who have the rows."""
    model, given = mixed(), data()
    graph = trace(model, given, hag=False)
    plan = planned(space := space_with(graph, 2, by_rows), space.cheapest().configs)
    out = model(given.x_dict, given.edge_index_dict)
    asked = torch.tensor([[12, 0, 3], [7, 7, 1]])
    expected = out["paper"][asked.flatten()]
    expected.square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    edges = given["author", "writes", "paper"].edge_index

    def case(rank: int) -> Any:
        ours = hp.parallel.parallelize(model, given, plan)
        parallel = ours.parallel
        found = parallel.rows(ours()["paper"], asked[rank], "paper")
        parallel.mean(found.square(), apart=True).backward()
        for wrong in ("", "papers"):
            with pytest.raises(ValueError, match=r"no type .*; expected one of \['author', 'pap"):
                parallel.rows(found, asked[rank], wrong)
        pairs = parallel.negatives(edges, 30, ("author", "paper"))
        with pytest.raises(KeyError, match="'papers' is no type of nodes"):
            parallel.data["papers"]
        mine = {n: whole(p.grad) for n, p in ours.named_parameters() if p.grad is not None}
        return found.detach(), mine, pairs

    results = run_threads(2, case)
    torch.testing.assert_close(torch.cat([r[0] for r in results]), expected.detach())
    known = set(zip(*edges.tolist(), strict=True))
    for _, mine, pairs in results:
        used = {n: g for n, g in mine.items() if n in grads}
        torch.testing.assert_close(used, grads, rtol=1e-9, atol=1e-9)
        assert not known & set(zip(*pairs.tolist(), strict=True))
        assert pairs[0].max() < TYPES["author"][0]
        assert pairs[1].max() < TYPES["paper"][0]


def test_other_data_with_other_numbers_of_nodes() -> None:
    model, given = mixed(), data()
    space = space_with(trace(model, given, hag=False), 2, by_rows)
    plan, other = planned(space, space.cheapest().configs), data()
    for kind in RELATIONS:
        other[kind].edge_index = other[kind].edge_index.flip(1)[:, :9]
    other["author"].x = torch.cat([other["author"].x, other["author"].x * 2])
    expected = {of: x.detach() for of, x in model(other.x_dict, other.edge_index_dict).items()}

    def case(rank: int) -> Any:
        parallel = (ours := hp.parallel.parallelize(model, given, plan)).parallel
        before, parallel.data = parallel.data, parallel.share(other)
        found = {of: parallel.gather(x, of).detach() for of, x in ours(parallel.data).items()}
        parallel.data = before
        return found

    for found in run_threads(2, case):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_layers_that_are_given_nothing_of_targets_are_refused() -> None:
    kinds, given = [("author", "writes", "paper")], data()
    conv = pyg.HeteroConv({kinds[0]: pyg.SAGEConv((4, -1), WIDTH, root_weight=False)})
    del given["paper"].x
    given["paper"].num_nodes = TYPES["paper"][0]
    with pytest.raises(TypeError, match="is given nothing of the nodes that its edges go to"):
        trace(conv, given, call=lambda m, d: m(d.x_dict, d.edge_index_dict))


# Layers that take all types at once -------------------------------------------------------------

# Every type has edges into it, so that layers may follow each other.
CLOSED = (*RELATIONS, ("author", "tags", "tag"))


class AtOnce(nn.Module):
    """Layers over all types, with a linear layer for each type that the last one gives."""

    def __init__(self, layer: Callable[[Any, Any], nn.Module], kinds: Any, depth: int) -> None:
        super().__init__()
        given = data(kinds)
        wide = {of: given[of].x.shape[-1] for of in given.node_types}
        self.convs = nn.ModuleList()
        for _ in range(depth):
            self.convs.append(layer(wide, given.metadata()))
            wide = dict.fromkeys(wide, WIDTH)
        goals = {kind[-1] for kind in kinds}
        self.last = nn.ModuleDict({of: nn.Linear(WIDTH, CLASSES) for of in sorted(goals)})

    def forward(self, x_dict: Any, edge_index_dict: Any) -> Any:
        for conv in self.convs:
            x_dict = {of: x for of, x in conv(x_dict, edge_index_dict).items() if x is not None}
        return {of: self.last[of](x) for of, x in x_dict.items()}


AT_ONCE: dict[str, Callable[[Any, Any], nn.Module]] = {
    "HGTConv": lambda wide, metadata: pyg.HGTConv(wide, WIDTH, metadata, heads=2),
    "HGTConv, one head": lambda wide, metadata: pyg.HGTConv(wide, WIDTH, metadata, heads=1),
    "HANConv": lambda wide, metadata: pyg.HANConv(wide, WIDTH, metadata, heads=2),
    "HANConv, one head": lambda wide, metadata: pyg.HANConv(wide, WIDTH, metadata, heads=1),
}


def at_once(name: str, kinds: Any, depth: int) -> nn.Module:
    torch.manual_seed(0)
    model = AtOnce(AT_ONCE[name], kinds, depth).double()
    with torch.no_grad():
        for parameter in model.parameters():  # factors and skips start at 1, alike
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("kinds", "depth"), [(RELATIONS, 1), (CLOSED, 2)], ids=["open", "closed"])
@pytest.mark.parametrize("name", AT_ONCE)
def test_layers_over_all_types_at_once(name: str, kinds: Any, depth: int, size: int) -> None:
    given = data(kinds)
    for of in given.node_types:
        given[of].train_mask[0] = True
    plan = check(at_once(name, kinds, depth), given, size, by_rows)
    over_edges = [f"convs.{i}.{'.'.join(kind)}" for i in range(depth) for kind in kinds]
    assert {plan.layer(name).config.strategy for name in over_edges} == {"rows, halo"}
    assert all("rows" in k.config.strategy for k in plan.layers if k.kind == "opaque")


def whole_only(op: Op, config: Any) -> bool:
    return "replicate" in config.strategy or op.kind == "input"


@pytest.mark.parametrize("name", ["HGTConv", "HANConv"])
def test_layers_over_all_types_whole(name: str) -> None:
    check(at_once(name, CLOSED, 2), data(CLOSED), 2, whole_only)


def on_process_at_once(rank: int, plan: Plan) -> Any:
    return train_together(rank, at_once("HGTConv", CLOSED, 2), data(CLOSED), plan)


def test_layers_over_all_types_on_processes() -> None:
    def run(size: int, model: nn.Module, given: HeteroData, plan: Plan) -> list[Any]:
        return run_processes(size, on_process_at_once, plan)

    check(at_once("HGTConv", CLOSED, 2), data(CLOSED), 2, by_rows, run=run)


class Masks:
    """Dropout of the layers of one process, with the masks that ranks have."""

    def __init__(self, operations: list[int]) -> None:
        self.operations, self.calls = operations, 0

    def __call__(self, alpha: Tensor, p: float, training: bool) -> Tensor:
        step, which = divmod(self.calls, len(self.operations))
        self.calls += 1
        key = (torch.initial_seed(), step + 1, self.operations[which])
        numbers, heads = (torch.arange(n) for n in alpha.shape)
        assert training
        return torch.where(keep(key, numbers, heads, p), alpha / (1 - p), 0)


@pytest.mark.parametrize("replicated", [False, True])
def test_attention_drops_the_edges_of_one_process(
    replicated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = at_once("HANConv", CLOSED, 2), data(CLOSED)
    for conv in model.convs:
        conv.dropout = 0.4
    names = [op.name for op in trace(model, given, hag=False).ops]
    wanted = [f"convs.{i}.{'.'.join(kind)}" for i in range(2) for kind in CLOSED]
    masks = Masks([names.index(name) for name in wanted])
    functional = SimpleNamespace(**vars(F) | {"dropout": masks})
    with monkeypatch.context() as patch:
        patch.setattr(pyg.conv.han_conv, "F", functional)
        check(model, given, 4, whole_only if replicated else by_rows)
    assert masks.calls == STEPS * len(wanted)


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (pyg.HANConv, lambda m, d: m(d.x_dict, d.edge_index_dict, True)[0]),
        (
            pyg.HGTConv,
            lambda m, d: m(d.x_dict, {kind: d.edge_index_dict[kind] for kind in RELATIONS[1:]}),
        ),
    ],
    ids=["weights of relations", "fewer relations"],
)
def test_what_they_cannot_do_by_a_plan_is_refused_by_name(make: Any, call: Any) -> None:
    given = data()
    conv = make(-1, WIDTH, given.metadata()).double()
    with torch.no_grad():
        conv(given.x_dict, given.edge_index_dict)
    model = nn.ModuleDict({"conv": conv})
    match = rf"'conv' \({make.__name__}\) .* cannot be planned; expected layers in"
    with pytest.raises(TypeError, match=match):
        hp.parallel.plan(model, given, "a100x8", call=lambda m, d: call(m["conv"], d))
