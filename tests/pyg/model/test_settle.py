"""What `explain` says of calls is what ran: every layer, called in every way."""

from __future__ import annotations

import copy
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric import EdgeIndex
from torch_geometric import nn as pyg
from torch_geometric.nn import LSTMAggregation, MessagePassing, aggr
from torch_geometric.utils import to_torch_csr_tensor

import hag_plugin as hp
from hag_plugin.pyg import PrefixLSTMAggregation
from hag_plugin.pyg.model import choice, facts
from hag_plugin.testing import count_programs, limits

from ..recipes import test_equal, test_table
from ..recipes.test_table import variants

NODES, WIDTH = 24, 6


class Declared(MessagePassing):
    """A user's own."""

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=x)
        return out

    def message(self, x_j: Tensor) -> Tensor:
        return x_j.tanh()


hp.hag_layer(Declared)

LAYERS: dict[str, Callable[[], nn.Module]] = {
    **test_table.CONFIGURATIONS,
    **{
        name: (lambda make=make: pad(make))  # type: ignore[misc]
        for name, make in test_equal.CONFIGURATIONS.items()
    },
    "sage-lstm": lambda: pyg.SAGEConv(WIDTH, 4, aggr="lstm"),
    "graph-lstm": lambda: pyg.GraphConv(WIDTH, 4, aggr=aggr.LSTMAggregation(WIDTH, WIDTH)),
    "gcn-lstm": lambda: pyg.GCNConv(
        WIDTH, 4, add_self_loops=False, aggr=aggr.LSTMAggregation(4, 4)
    ),
    "sage-tree": lambda: pyg.SAGEConv(WIDTH, 4, aggr=PrefixLSTMAggregation(WIDTH, WIDTH)),
    "sage-median": lambda: pyg.SAGEConv(WIDTH, 4, aggr="median"),
    "declared": lambda: Declared("max"),
    "declared-median": lambda: Declared("median"),
    # In one pass over edges.
    "gat": lambda: pyg.GATConv(WIDTH, 4),
    "gatv2": lambda: pyg.GATv2Conv(WIDTH, 4),
    "transformer": lambda: pyg.TransformerConv(WIDTH, 4),
    "rgat": lambda: pyg.RGATConv(WIDTH, 4, test_table.RELATIONS),
    # Without a recipe.
    "edge": lambda: pyg.EdgeConv(nn.Linear(2 * WIDTH, 4)),
    "feast": lambda: pyg.FeaStConv(WIDTH, 4),
    "gated-edges": lambda: pyg.ResGatedGraphConv(WIDTH, 4),
}
NOTHING_RUNS = {"cheb-one"}  # K=1 is a linear layer


def pad(make: Callable[[], nn.Module]) -> nn.Module:
    """A layer of test_equal.py's, for features of its own width."""
    conv = make()
    conv._test_width = test_equal.WIDTH
    return conv


class Dense:
    """Most neighbours are shared."""

    num_src = NODES
    edge_index = torch.tensor(
        [(j, i) for i in range(NODES) for j in range(NODES) if i != j]
    ).T.contiguous()


class Ring:
    """Nothing is shared."""

    num_src = NODES
    edge_index = torch.stack([torch.arange(NODES), (torch.arange(NODES) + 1) % NODES])
    edge_index = edge_index[:, edge_index[1].argsort()]


GRAPHS = {"dense": Dense, "ring": Ring}


def counts_of(module: nn.Module) -> Counter[str]:
    return sum((Counter(row.calls.counts) for row in hp.explain(module)), Counter())


def observed(ran: Any) -> str:
    if ran.hag or ran.trees:
        return "HAG"
    return "plain" if ran.plain else "stock"


def check(conv: Any, *args: Any, call: Any = None, **kwargs: Any) -> tuple[str, str]:
    """Calls a layer. One call more is told of, of the kind that ran; the kind and the reason."""
    before = counts_of(conv)
    with warnings.catch_warnings(), count_programs() as ran:
        warnings.simplefilter("ignore")
        try:
            (call or conv)(*args, **kwargs)
        except Exception as error:
            assert counts_of(conv) == before
            return "raised", str(error)
    (kind,) = (counts_of(conv) - before).elements()
    if conv.__dict__.get("_test_name") not in NOTHING_RUNS:
        assert kind == observed(ran), hp.explain(conv)
    return kind, hp.explain(conv)[0].calls.reasons[kind]


@pytest.fixture
def made(request: pytest.FixtureRequest) -> tuple[Any, list[Any], list[Any]]:
    """A layer, its arguments with tensors, and with HAGs."""
    name, graph = request.param
    conv: Any = LAYERS[name]()
    width = conv.__dict__.pop("_test_width", WIDTH)
    x = torch.randn(NODES, width, requires_grad=True)
    plain, handed = variants(conv, x, GRAPHS[graph])
    conv = hp.accelerate(conv)
    conv.__dict__["_test_name"] = name
    return conv, plain, handed


def anew(arguments: list[Any]) -> list[Any]:
    """The same with tensors of edges that were never met."""
    return [
        a.clone() if isinstance(a, Tensor) and not a.is_floating_point() else a for a in arguments
    ]


def replaced(arguments: list[Any], make: Callable[[Tensor], Any]) -> list[Any]:
    return [
        make(a) if isinstance(a, Tensor) and a.dtype == torch.int64 and a.dim() == 2 else a
        for a in arguments
    ]


def adjacency(edge_index: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return to_torch_csr_tensor(edge_index, size=(NODES, NODES)).t()


CASES = [(name, graph) for name in LAYERS for graph in GRAPHS]


@pytest.mark.mostly_slow("g*-ring", "s*-ring")
@pytest.mark.parametrize("made", CASES, indirect=True, ids="-".join)
def test_explain_tells_what_ran(made: Any) -> None:
    conv, plain, handed = made
    accelerated = hp.explain(conv)[0].accelerated
    assert not hp.explain(conv)[0].calls.counts
    kind, reason = check(conv, *plain)
    keeps = getattr(conv, "cached", False) and getattr(conv, "normalize", True)
    passes = accelerated and not keeps
    passes = passes and not isinstance(conv.aggr_module, LSTMAggregation)
    assert (kind == "plain") == (reason in (choice.MET, choice.SCORED)) == passes
    assert reason
    for arguments in (plain, plain):
        kind, reason = check(conv, *arguments)
        if accelerated and not getattr(conv, "cached", False):
            assert reason in (choice.BACK, choice.LSTM_SLOW, choice.SCORED)
            assert kind != "stock" or reason == choice.LSTM_SLOW
    kind, reason = check(conv, *handed)
    if kind in ("HAG", "plain"):
        assert reason in (choice.PASSED, choice.SCORED_PASSED)
        assert accelerated
    for _ in range(2):  # a sampler's batches
        assert check(conv, *anew(plain))[0] == ("plain" if passes else "stock")
    with torch.no_grad():
        check(conv, *anew(plain)), check(conv, *plain), check(conv, *handed)
    check(conv, *replaced(plain, lambda e: EdgeIndex(e, sparse_size=(NODES, NODES))))
    check(conv, *replaced(plain, adjacency))
    conv.eval()
    check(conv, *plain), check(conv, *handed)
    conv.train()
    conv.explain = True
    for arguments in (plain, handed):
        kind, _ = check(conv, *arguments)
        assert kind in ("stock", "raised")
    conv.explain = False
    check(conv, *plain), check(conv, *handed)
    with limits(few_messages=10**9):
        for arguments in (plain, handed, anew(plain)):
            kind, reason = check(conv, *arguments)
            assert (reason == choice.FEW) <= (kind == "stock")
    rows = hp.explain(conv)
    assert sum(rows[0].calls.counts.values()) == sum(counts_of(conv).values())
    assert str(rows[0].calls) in str(rows)
    hp.restore(conv)
    assert not counts_of(conv)


@pytest.mark.parametrize("name", ["sage-lstm", "graph-lstm"])
def test_prefix_trees(name: str, always_pays: None) -> None:
    conv = hp.accelerate(LAYERS[name]())
    edges = Dense.edge_index[:, Dense.edge_index[1].argsort(stable=True)]
    tree = hp.sequence.build_sequence(edges, num_nodes=NODES)
    x = torch.randn(NODES, WIDTH)
    assert check(conv, x, edges)[0] == "stock"
    assert check(conv, x, edges) == ("HAG", choice.BACK)
    assert check(conv, x, tree) == ("HAG", choice.TREE_PASSED)
    conv.register_propagate_forward_hook(lambda *_: None)
    kind, reason = check(conv, x, tree)
    assert kind == "stock"
    assert "hooks" in reason


CONSTANT = ["sage-mean", "gin", "gcn", "graph-add", "simple", "gat"]


@pytest.mark.parametrize("made", [(n, "dense") for n in CONSTANT], indirect=True, ids="-".join)
def test_kept_aggregates_are_of_a_hag(made: Any) -> None:
    """What was aggregated from constant features, once, was aggregated over a HAG."""
    conv, plain, handed = made
    x = plain[0].detach()
    for arguments in (handed, plain):
        for _ in range(4):
            conv(x, *arguments[1:])
    calls = hp.explain(conv)[0].calls
    if "HAG" in calls.counts:
        assert calls.counts == {"HAG": 7, "plain": 1}
    assert ("HAG" in calls.counts) == (not isinstance(conv, pyg.GATConv))


WEIGHTED = ["gcn", "graph-add", "graph-mean", "graph-max", "simple", "tag", "appnp", "le", "cheb"]


@pytest.mark.parametrize("made", [(n, "dense") for n in WEIGHTED], indirect=True, ids="-".join)
@pytest.mark.parametrize("kind", ["ones", "any", "learned"])
def test_edge_weights(made: Any, kind: str) -> None:
    conv, plain, handed = made
    weight = torch.ones(plain[-1].shape[1])
    if kind != "ones":
        weight = torch.rand_like(weight) + 0.5
    weight.requires_grad_(kind == "learned")
    found = [check(conv, *plain, edge_weight=weight) for _ in range(3)]
    if found[-1][0] == "stock":
        assert found[0] == found[-1]
    else:
        assert found[0] == ("plain", choice.MET_WEIGHTS)
    if found[-1][0] == "plain":
        assert (found[-1][1], kind != "ones") == (choice.NO_FACTORS, True)
    if found[-1][0] == "HAG":
        assert (found[-1][1], kind) == (choice.FACTORS, "ones")
    assert check(conv, *handed, edge_weight=weight)[0] == "raised"


# Compiled code -----------------------------------------------------------------------------------


MEETS = ("gcn", "sage-max", "pna", "film", "graph-add")  # graphs that an operator finds


@pytest.mark.mostly_slow("gcn", "declared")
@pytest.mark.parametrize(
    "name", ["gcn", "sage-max", "pna", "gat", "feast", "declared", "film", "graph-add"]
)
def test_compiled(name: str) -> None:
    """Told once, when it is compiled; nothing is compiled anew because calls are counted."""
    torch._dynamo.reset()
    conv: Any = LAYERS[name]()
    width = conv.__dict__.pop("_test_width", WIDTH)
    x = torch.randn(NODES, width, requires_grad=True)
    plain, handed = variants(conv, x, Dense)
    conv = hp.accelerate(conv)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(conv, backend=counter, fullgraph=True)
    for _ in range(3):
        compiled(*plain)
    assert counter.frame_count == 1
    calls = hp.explain(conv)[0].calls
    kind = "plain" if name in (*MEETS, "gat") else "stock"
    assert calls.counts == {kind: 1}
    expected = {
        "gat": f"compiled: {choice.SCORED}",
        "feast": f"compiled: {facts.why_no_recipe(pyg.FeaStConv)}",
        "declared": choice.COMPILED,
    }
    assert calls.reasons[kind] == expected.get(name, choice.COMPILED_PLAIN)
    for _ in range(3):
        with count_programs() as ran:
            compiled(*handed)
    assert counter.frame_count == 2
    calls = hp.explain(conv)[0].calls
    if name in ("gat", "feast"):
        assert calls.counts == {kind: 2}
    else:
        assert calls.counts == {kind: 1, "HAG": 1}
        assert calls.reasons["HAG"].startswith(f"compiled: {choice.PASSED}")
        assert observed(ran) == "HAG"
    conv(*handed)  # outside of compiled code they are counted one by one
    assert sum(hp.explain(conv)[0].calls.counts.values()) == 3


def test_layers_share_compiled_code() -> None:
    """A layer's count is no part of what is compiled."""
    torch._dynamo.reset()
    layers = [hp.accelerate(pyg.SAGEConv(WIDTH, WIDTH)) for _ in range(6)]
    counter = torch._dynamo.testing.CompileCounter()
    for layer in layers:
        torch.compile(layer, backend=counter, fullgraph=True)(
            torch.ones(NODES, WIDTH), Ring.edge_index
        )
    assert counter.frame_count == 1


# Models ------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """As a Lightning module: what is called is `training_step`."""

    def __init__(self) -> None:
        super().__init__()
        self.gnn = pyg.GraphSAGE(WIDTH, 8, 2, 3)

    def training_step(self, x: Tensor, edges: Any) -> Tensor:
        out: Tensor = self.gnn(x, edges)
        return out


def models() -> Iterator[tuple[str, nn.Module, Callable[[Any], Any]]]:
    gae = pyg.GAE(pyg.GCN(WIDTH, 8, 2))
    yield "GAE", gae, gae.encode
    for name in ("GCN", "GraphSAGE", "GIN", "GAT", "PNA"):
        options = {}
        if name == "PNA":
            options = {
                "aggregators": ["mean", "max"],
                "scalers": ["identity"],
                "deg": torch.ones(4),
            }
        model = getattr(pyg, name)(WIDTH, 8, 2, **options)
        yield name, model, model
    wrapper = Wrapper()
    yield "wrapper", wrapper, wrapper.training_step
    model = pyg.DirGNNConv(pyg.SAGEConv(WIDTH, 8))
    yield "DirGNN", model, model


@pytest.mark.parametrize("name", [name for name, *_ in models()])
def test_models(name: str) -> None:
    ((model, method),) = [(model, method) for n, model, method in models() if n == name]
    hp.accelerate(model)
    layers = [m for m in model.modules() if isinstance(m, MessagePassing)]
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    hag = hp.build_hag(Dense.edge_index, num_nodes=NODES)
    for edges in (Dense.edge_index, Dense.edge_index, hag, Dense.edge_index.clone()):
        before = counts_of(model)
        with count_programs() as ran:
            method(x, edges)
        told = counts_of(model) - before
        assert sum(told.values()) == len(layers)
        assert bool(told["HAG"]) == bool(ran.hag)
        assert bool(told["plain"]) == bool(ran.plain)
        assert told["HAG"] <= ran.hag
    assert all(sum(row.calls.counts.values()) == 4 for row in hp.explain(model))


def test_light_gcn() -> None:
    model = hp.accelerate(pyg.LightGCN(NODES, 8, 2))
    for edges in (Dense.edge_index, hp.build_hag(Dense.edge_index, num_nodes=NODES)):
        with count_programs() as ran:
            model.get_embedding(edges)
        kinds = {kind for row in hp.explain(model) for kind in row.calls.counts}
        assert ("HAG" in kinds) == bool(ran.hag)
    assert [row.calls.counts for row in hp.explain(model)] == [{"plain": 1, "HAG": 1}] * 2


def test_threads() -> None:
    """As `DataParallel` calls copies that share what the layer has."""
    conv = hp.accelerate(pyg.SAGEConv(WIDTH, 4))
    hag = hp.build_hag(Dense.edge_index, num_nodes=NODES)
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    twins = [conv._replicate_for_data_parallel() for _ in range(4)]
    conv(x, hag)
    threads = [threading.Thread(target=twin, args=(x, hag)) for twin in twins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(hp.explain(conv)[0].calls.counts) == {"HAG"}


def test_a_call_that_raises_is_not_counted() -> None:
    conv = hp.accelerate(pyg.SAGEConv(WIDTH, 4))
    hag = hp.build_hag(Dense.edge_index, num_nodes=NODES)
    with pytest.raises(ValueError, match="rows"):
        conv(torch.randn(NODES + 1, WIDTH), hag)
    assert not hp.explain(conv)[0].calls.counts


def test_copies_count_anew() -> None:
    conv = hp.accelerate(pyg.SAGEConv(WIDTH, 4))
    conv(torch.randn(NODES, WIDTH), Dense.edge_index)
    assert not hp.explain(copy.deepcopy(conv))[0].calls.counts


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_that_runs_a_layer_again_counts_its_call_once(reentrant: bool) -> None:
    conv = hp.accelerate(pyg.SAGEConv(4, 3))
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    for _ in range(3):
        x = torch.ones(4, 4, requires_grad=True)
        checkpoint(conv, x, edge_index, use_reentrant=reentrant).sum().backward()
    assert sum(hp.explain(conv)[0].calls.counts.values()) == 3


def test_replicas_count_their_calls_for_the_layer_that_they_are_of() -> None:
    conv = hp.accelerate(pyg.SAGEConv(4, 3))
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    for _ in range(2):
        replica = conv._replicate_for_data_parallel()  # as torch.nn.DataParallel does
        replica._parameters, replica._modules = conv._parameters, conv._modules
        replica(torch.ones(4, 4), edge_index)
    assert sum(hp.explain(conv)[0].calls.counts.values()) == 2


# What a layer inside of another, a copy, and compiled code say ------------------------------------


def test_layers_inside_say_what_the_outer_one_was_given() -> None:
    torch.manual_seed(0)
    edges, x = torch.randint(0, 40, (2, 200)), torch.randn(40, 4)
    model = hp.accelerate(pyg.DirGNNConv(pyg.SAGEConv(4, 4)))
    for _ in range(3):
        model(x, edges)
    for row in hp.explain(model):
        assert "passed" not in str(row.calls)
        assert "its graph came back" in row.calls.reasons.values()


def test_a_shallow_copy_counts_for_itself() -> None:
    model = hp.accelerate(pyg.SAGEConv(4, 4))
    model(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]]))
    other = copy.copy(model)
    assert hp.explain(other)[0].calls.counts == {}
    other(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]]))
    assert sum(hp.explain(model)[0].calls.counts.values()) == 1


@pytest.mark.parametrize("shares", [True, False])
def test_compiled_code_says_whether_its_program_shares(shares: bool) -> None:
    clique = torch.combinations(torch.arange(40)).T
    edges = torch.cat([clique, clique.flip(0)], 1) if shares else clique[:, :39]
    hag = hp.build_hag(edges, num_nodes=40, self_loops=False)
    hag.program()  # a small graph's is made when it is first asked for
    model = hp.accelerate(pyg.SAGEConv(4, 4))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with count_programs() as ran:
        compiled(torch.randn(40, 4), hag)
    assert (ran.hag, ran.plain) == ((1, 0) if shares else (0, 1))
    kind = "HAG" if shares else "plain"
    assert hp.explain(model)[0].calls.counts == {kind: 1}
