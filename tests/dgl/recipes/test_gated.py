"""GatedGraphConv with several edge types: on a HAG whose sources are pairs of a type and a node."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402
from dgl.nn.pytorch import GatedGraphConv, RelGraphConv  # noqa: E402

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import ToHAG, explain  # noqa: E402
from hag_plugin.testing import Ran  # noqa: E402

WIDTH = 6
TYPES = 4


def conv(steps: int = 1) -> Any:
    return GatedGraphConv(WIDTH, WIDTH, steps, TYPES).double()


def features(graph: Any) -> Tensor:
    return torch.randn(graph.num_nodes(), WIDTH, dtype=torch.float64)


def types_of(graph: Any) -> Tensor:
    """Of the four types one never occurs."""
    return torch.randint(TYPES - 1, (graph.num_edges(),))


def results(layer: nn.Module, graph: Any, x: Tensor, types: Tensor) -> list[Tensor]:
    """Output and the gradients of features and parameters."""
    x = x.clone().requires_grad_()
    y = layer(graph, x, types)
    factor = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    inputs = [x, *layer.parameters()]
    gradients = torch.autograd.grad((y * factor).sum(), inputs, allow_unused=True)
    assert sum(g is None for g in gradients) == 2 * isinstance(layer, GatedGraphConv)
    return [y.detach(), *(g for g in gradients if g is not None)]


def assert_equal(ours: list[Tensor], stock: list[Tensor]) -> None:
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("idtype", [torch.int32, torch.int64])
def test_a_layer_that_comes_back(
    idtype: torch.dtype, steps: int, multigraph: Any, ran: Ran
) -> None:
    """The steps of one call are no coming back: a batch that is met once never waits for a HAG."""
    plain, layer = multigraph(idtype), conv(steps)
    x, types = features(plain), types_of(plain)
    stock = results(layer, plain, x, types)
    graph = ToHAG()(plain)
    for call in range(3):
        assert_equal(results(layer, graph, x, types), stock)
        assert len(ran.forward) == call * steps
    pairs = torch.stack([types, plain.edges()[0].long()]).unique(dim=1).shape[1]
    assert {run.program.num_src for run in ran.forward} == {pairs}
    assert pairs < plain.num_edges()


def test_two_layers_do_not_come_back(multigraph: Any, ran: Ran) -> None:
    graph, first, second = ToHAG()(multigraph()), conv(), conv()
    x, types = features(graph), types_of(graph)
    for layer in (first, second):
        layer(graph, x, types)
    assert not ran.programs
    first(graph, x, types)
    second(graph, x, types)
    assert len(ran.forward) == 2


def test_other_types(multigraph: Any, ran: Ran) -> None:
    """As many edges of each type, but others: each call has the result of its own types."""
    plain, layer = multigraph(), conv()
    graph, x = ToHAG()(plain), features(plain)
    several = [types_of(plain) for _ in range(2)]
    several.append(several[0].flip(0))
    for types in [*several, *several]:
        assert_equal(results(layer, graph, x, types), results(layer, plain, x, types))
    assert len(ran.forward) == len(several)  # each came back once


def test_one_type_that_is_told(multigraph: Any, ran: Ran) -> None:
    """Types are given to a layer that has only one."""
    plain, layer = multigraph(), GatedGraphConv(WIDTH, WIDTH, 1, 1).double()
    graph, x, types = ToHAG()(plain), features(plain), torch.zeros(plain.num_edges()).long()
    for _ in range(2):
        torch.testing.assert_close(layer(graph, x, types), layer(plain, x, types))
    assert len(ran.forward) == 1


def test_a_plain_graph_that_comes_back(multigraph: Any, ran: Ran) -> None:
    graph, layer = multigraph(), conv()
    x, types = features(graph), types_of(graph)
    stock = results(layer, graph, x, types)
    hp.accelerate(layer)
    for _ in range(4):
        assert_equal(results(layer, graph, x, types), stock)
    assert len(ran.forward) == 2
    hp.restore(layer)
    assert_equal(results(layer, graph, x, types), stock)
    assert len(ran.forward) == 2


def test_copies_of_a_graph(multigraph: Any, ran: Ran) -> None:
    """Reversed, batched and looped graphs have pairs of their own."""
    plain, layer = multigraph(), conv()
    made = ToHAG()(plain)
    pairs = [
        (made.clone(), plain),
        (hp.dgl.reverse(made), dgl.reverse(plain)),
        (hp.dgl.batch([made, made]), dgl.batch([plain, plain])),
        (dgl.add_self_loop(made), dgl.add_self_loop(plain)),
    ]
    for graph, other in pairs:
        x, types = features(other), types_of(other)
        for _ in range(2):
            assert_equal(results(layer, graph, x, types), results(layer, other, x, types))
    assert len(ran.forward) == len(pairs)


def test_hooks_and_other_layers_are_dgls(multigraph: Any, ran: Ran) -> None:
    plain, hooked, replaced = multigraph(), conv(), conv()
    seen: list[int] = []
    hooked.linears[0].register_forward_hook(lambda _, given, y: seen.append(len(given[0])))
    replaced.linears[1] = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double()
    graph, x, types = ToHAG()(plain), features(plain), types_of(plain)
    for layer in (hooked, replaced):
        for _ in range(2):
            torch.testing.assert_close(layer(graph, x, types), layer(plain, x, types))
    assert not ran.programs
    assert set(seen) == {int((types == 0).sum())}
    reasons = [explain(layer)[0].reason for layer in (hooked, replaced)]
    assert reasons[0].startswith("hooks on its linear layers")
    assert reasons[1].startswith("a linear layer was replaced by a Sequential")


def test_a_call_that_fails_leaves_nothing(multigraph: Any, ran: Ran) -> None:
    plain, layer = multigraph(), conv()
    graph, x, types = ToHAG()(plain), features(plain), types_of(plain)
    for _ in range(2):
        layer(graph, x, types)
    with pytest.raises(RuntimeError):
        layer(graph, x.float(), types)
    torch.testing.assert_close(layer(graph, x, types), layer(plain, x, types))
    with graph.local_scope():
        graph.edata["e"] = torch.ones(graph.num_edges(), 1)
        graph.update_all(fn.copy_e("e", "m"), fn.sum("m", "y"))
        assert torch.equal(graph.ndata["y"].flatten(), graph.in_degrees().float())


def test_apply_edges_of_others(multigraph: Any) -> None:
    plain = multigraph()
    found = []
    for graph in (plain, ToHAG()(plain)):
        graph.ndata["x"] = torch.arange(57.0)
        graph.apply_edges(fn.u_sub_v("x", "x", "a"))
        graph.apply_edges(lambda edges: {"b": edges.src["x"]}, torch.arange(9))
        found.append(torch.stack([graph.edata["a"], graph.edata["b"]]))
    assert torch.equal(*found)


# Checkpoints ------------------------------------------------------------------------------------

CHECKPOINTED: dict[str, Callable[[], nn.Module]] = {
    "GatedGraphConv": lambda: conv(2),
    "RelGraphConv": lambda: RelGraphConv(WIDTH, 4, TYPES).double(),
    "SAGEConv": lambda: Sequential(),
}


class Sequential(nn.Module):
    """An LSTM does not read the edge types."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = dgl.nn.SAGEConv(WIDTH, 4, "lstm").double()

    def forward(self, graph: Any, x: Tensor, types: Tensor) -> Tensor:
        return self.conv(graph, x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpoints(name: str, multigraph: Any, always_pays: None) -> None:
    """The second run of a forward, in the backward, is no coming back: it repeats the first."""
    plain, layer = multigraph(), CHECKPOINTED[name]()
    x, types = features(plain), types_of(plain)
    stock = copy.deepcopy(layer)
    graph = ToHAG()(plain)
    for _ in range(4):
        found = []
        for each, g in ((stock, plain), (layer, graph)):
            each.zero_grad()
            given = x.clone().requires_grad_()
            # Stopped early, DGL's `local_scope` would leave the features of the second run.
            with set_checkpoint_early_stop(False):
                y = checkpoint(each, g, given, types, use_reentrant=False)
            y.square().sum().backward()
            found.append([y.detach(), given.grad])
        assert_equal(*found)
