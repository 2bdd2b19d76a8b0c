"""Plain edge indices in an accelerated model: which get a HAG, and when."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import subgraph

from hag_plugin.limits import limits as in_force
from hag_plugin.pyg import accelerate
from hag_plugin.pyg.model.session import Session
from hag_plugin.testing import limits


class Twice(nn.Module):
    """One graph, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([SAGEConv(3, 3), SAGEConv(3, 3)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index)
        return x


@pytest.fixture
def model() -> nn.Module:
    return accelerate(Twice().double())


def session_of(model: Any) -> Session:
    found: Session = model.layers[0]._hag_session
    return found


def edges(seed: int, count: int = 60, nodes: int = 20) -> Tensor:
    return torch.randint(nodes, (2, count), generator=torch.Generator().manual_seed(seed))


X = torch.linspace(0, 1, 60, dtype=torch.float64).view(20, 3)


def test_second_forward_builds(model: Any) -> None:
    edge_index = edges(0)
    first = model(X, edge_index)
    assert session_of(model).num_hags == 0  # although two layers met it
    second = model(X, edge_index)
    assert session_of(model).num_hags == 1
    torch.testing.assert_close(first, second)


def test_sampled_batches_are_never_searched(model: Any) -> None:
    for seed in range(2 * in_force.pyg_graphs):
        model(X, edges(seed))
    assert session_of(model).num_hags == 0
    assert len(session_of(model).graphs) <= in_force.pyg_graphs


def test_many_graphs_in_turn_run_stock(model: Any) -> None:
    graphs = [edges(seed) for seed in range(in_force.pyg_graphs + 1)]
    for _ in range(3):
        for edge_index in graphs:
            model(X, edge_index)
    assert len(session_of(model).graphs) <= in_force.pyg_graphs


def test_in_place_changes(model: Any) -> None:
    edge_index = edges(0)
    model(X, edge_index), model(X, edge_index)
    edge_index[0, :30] = 0
    expected = accelerate_free(model, edge_index)
    torch.testing.assert_close(model(X, edge_index), expected)
    assert session_of(model).num_hags == 0
    torch.testing.assert_close(model(X, edge_index), expected)
    assert session_of(model).num_hags == 1


def accelerate_free(model: Any, edge_index: Tensor) -> Tensor:
    """The stock result."""
    stock = Twice().double()
    stock.load_state_dict(model.state_dict())
    result: Tensor = stock(X, edge_index)
    return result


def test_tensors_are_not_kept_alive(model: Any) -> None:
    for seed in range(3):
        edge_index = edges(seed)
        model(X, edge_index), model(X, edge_index)
        del edge_index
    gc.collect()
    assert len(session_of(model).graphs) == 0


def test_one_tensor_two_numbers_of_nodes(model: Any) -> None:
    edge_index = edges(0)
    for _ in range(2):
        assert model(X, edge_index).shape[0] == 20
        more = torch.cat([X, X])
        assert model(more, edge_index).shape[0] == 40
    assert session_of(model).num_hags == 2


def test_subgraph_is_another_tensor(model: Any) -> None:
    edge_index = edges(0)
    model(X, edge_index), model(X, edge_index)
    part = subgraph(torch.arange(10), edge_index, num_nodes=20)[0]
    torch.testing.assert_close(model(X, part), accelerate_free(model, part))


def test_too_many_edges_warn_once(model: Any) -> None:
    edge_index = edges(0)
    with limits(searched_edges=50):
        model(X, edge_index)
        with pytest.warns(UserWarning, match="call hag_plugin.build_hag once"):
            model(X, edge_index)
        model(X, edge_index)  # a second warning would be an error
    assert session_of(model).num_hags == 0


def test_inference_tensors_are_known_by_what_they_hold(model: Any) -> None:
    with torch.inference_mode():
        edge_index = edges(0)
        for _ in range(3):
            torch.testing.assert_close(model(X, edge_index), accelerate_free(model, edge_index))
        assert session_of(model).num_hags == 1
        edge_index[0, :30] = 0
        torch.testing.assert_close(model(X, edge_index), accelerate_free(model, edge_index))
    assert session_of(model).num_hags == 0


def test_built_in_inference_mode_trained_later(model: Any) -> None:
    edge_index = edges(0)
    with torch.inference_mode():
        model(X, edge_index), model(X, edge_index)
    assert session_of(model).num_hags == 1
    model(X, edge_index).sum().backward()
    assert model.layers[0].lin_l.weight.grad is not None


def test_checkpointing(model: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    edge_index = edges(0)
    x = X.clone().requires_grad_()
    gradients = []
    for _ in range(3):
        x.grad = None
        checkpoint(model, x, edge_index, use_reentrant=False).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[2])
