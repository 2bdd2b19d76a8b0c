"""Layers that no HAG serves run exactly as before when they are handed one."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain, relation_hags
from hag_plugin.pyg.recipes.table import RECIPES
from hag_plugin.testing import count_programs, limits

NODES, WIDTH, EDGES = 12, 4, 40
X, POS = torch.randn(NODES, WIDTH), torch.randn(NODES, 3)
EDGE_ATTR = torch.rand(EDGES, 3)
TYPES = torch.randint(2, (EDGES,))


def mlp(inputs: int, outputs: int = 3) -> nn.Module:
    return nn.Linear(inputs, outputs)


# The layer, what comes before the edge index and what comes after it.
LAYERS: dict[str, tuple[Any, list[Any], dict[str, Any]]] = {
    "AGNNConv": (lambda: pyg.AGNNConv(), [X], {}),
    "CGConv": (lambda: pyg.CGConv(WIDTH), [X], {}),
    "DNAConv": (lambda: pyg.DNAConv(WIDTH), [X.view(NODES, 1, WIDTH)], {}),
    "EdgeConv": (lambda: pyg.EdgeConv(mlp(2 * WIDTH)), [X], {}),
    "FAConv": (lambda: pyg.FAConv(WIDTH), [X, X], {}),
    "FeaStConv": (lambda: pyg.FeaStConv(WIDTH, 3), [X], {}),
    "GATConv": (lambda: pyg.GATConv(WIDTH, 3), [X], {}),
    "GATv2Conv": (lambda: pyg.GATv2Conv(WIDTH, 3), [X], {}),
    "MeshCNNConv": (lambda: pyg.MeshCNNConv(WIDTH, 3), [X], {}),
    "PointGNNConv": (
        lambda: pyg.PointGNNConv(mlp(WIDTH), mlp(3 + WIDTH), mlp(3, WIDTH)),
        [X, POS],
        {},
    ),
    "PointNetConv": (lambda: pyg.PointNetConv(mlp(WIDTH + 3)), [X, POS], {}),
    "PointTransformerConv": (lambda: pyg.PointTransformerConv(WIDTH, 3), [X, POS], {}),
    "PPFConv": (lambda: pyg.PPFConv(mlp(WIDTH + 4)), [X, POS, POS], {}),
    "ResGatedGraphConv": (lambda: pyg.ResGatedGraphConv(WIDTH, 3), [X], {}),
    "SuperGATConv": (lambda: pyg.SuperGATConv(WIDTH, 3), [X], {}),
    "TransformerConv": (lambda: pyg.TransformerConv(WIDTH, 3), [X], {}),
    "WLConv": (lambda: pyg.WLConv(), [torch.arange(NODES) % 3], {}),
    # Values on edges have an order that a HAG does not keep.
    "GINEConv": (lambda: pyg.GINEConv(mlp(WIDTH), edge_dim=3), [X], {"edge_attr": EDGE_ATTR}),
    "GMMConv": (lambda: pyg.GMMConv(WIDTH, 3, 3, 2), [X], {"edge_attr": EDGE_ATTR}),
    "NNConv": (lambda: pyg.NNConv(WIDTH, 3, mlp(3, 3 * WIDTH)), [X], {"edge_attr": EDGE_ATTR}),
    "PDNConv": (lambda: pyg.PDNConv(WIDTH, 3, 3, 5), [X], {"edge_attr": EDGE_ATTR}),
    "SplineConv": (lambda: pyg.SplineConv(WIDTH, 3, 3, 2), [X], {"edge_attr": EDGE_ATTR}),
    "RGATConv": (lambda: pyg.RGATConv(WIDTH, 3, 2), [X], {"edge_type": TYPES}),
    "HEATConv": (
        lambda: pyg.HEATConv(WIDTH, 3, 2, 2, 2, 3, 2),
        [X],
        {"node_type": torch.arange(NODES) % 2, "edge_type": TYPES, "edge_attr": EDGE_ATTR},
    ),
}
BY_TYPE = {
    "HANConv": lambda metadata: pyg.HANConv(WIDTH, 4, metadata),
    "HGTConv": lambda metadata: pyg.HGTConv(WIDTH, 4, metadata),
}
# No edge index at all; packages that are absent; wrappers, which test_wrappers.py tries.
ELSEWHERE = {
    *("GravNetConv", "DynamicEdgeConv", "XConv"),
    *("CuGraphSAGEConv", "CuGraphGATConv", "CuGraphRGCNConv", "FusedGATConv", "PANConv"),
    *("HeteroConv", "GPSConv", "AntiSymmetricConv", "DirGNNConv", "MessagePassing"),
}


KNOWN = {cls.__name__ for cls in RECIPES}
# Older versions of PyG lack MeshCNNConv.
INELIGIBLE = [name for name in LAYERS if name not in KNOWN and hasattr(pyg, name)]


def test_every_layer_is_tried() -> None:
    assert set(pyg.conv.__all__) <= KNOWN | set(LAYERS) | set(BY_TYPE) | ELSEWHERE


@pytest.mark.parametrize("name", INELIGIBLE)
def test_runs_as_before(name: str) -> None:
    make, before, after = LAYERS[name]
    edge_index = torch.randint(NODES, (2, EDGES))
    if name == "MeshCNNConv":  # four neighbours each, in order
        edge_index = torch.stack(
            [torch.randint(NODES, (4 * NODES,)), torch.arange(NODES).repeat_interleave(4)]
        )
    hag = hp.build_hag(edge_index, num_nodes=NODES)
    with warnings.catch_warnings():  # SplineConv and MeshCNNConv speak of missing packages
        warnings.simplefilter("ignore")
        try:
            stock = make().eval()
            stock(*before, edge_index, **after)
        except ImportError as e:
            pytest.skip(str(e))
        accelerated = accelerate(copy.deepcopy(stock))
        for _ in range(3):
            ours = accelerated(*before, edge_index, **after)
            assert torch.equal(ours, stock(*before, edge_index, **after))
        if after:
            with pytest.raises(ValueError, match="pass edge_index instead"):
                accelerated(*before, hag, **after)
        else:
            expected = stock(*before, edge_index)
            reordered = edge_index.flip([1])
            if not torch.allclose(expected, stock(*before, reordered), atol=1e-5):
                assert name == "MeshCNNConv"
                with pytest.raises(ValueError, match="MeshCNNConv got a HAG, but depends on the"):
                    accelerated(*before, hag)
                return
            torch.testing.assert_close(accelerated(*before, hag), expected)
            assert torch.equal(accelerated(*before, hag), stock(*before, hag.edge_index))
    assert not any(row.accelerated for row in explain(accelerated))


@pytest.mark.parametrize("name", INELIGIBLE)
def test_without_accelerate(name: str) -> None:
    """A stock layer says that it does not know a HAG, if it does not come to the same."""
    make, before, after = LAYERS[name]
    edge_index = torch.randint(NODES, (2, EDGES))
    hag = hp.build_hag(edge_index, num_nodes=NODES)
    given = [x.clone() for x in before]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stock = make().eval()
            expected = stock(*before, edge_index, **after)
        except (ImportError, RuntimeError) as e:
            pytest.skip(str(e))
        try:
            ours = stock(*given, hag, **after)
        except (AttributeError, NotImplementedError, TypeError, ValueError):
            pass
        else:
            torch.testing.assert_close(ours, expected)
    assert all(map(torch.equal, given, before))


@pytest.mark.parametrize("name", BY_TYPE)
def test_layers_that_take_dictionaries(name: str) -> None:
    kinds = [("a", "to", "a"), ("a", "to", "b")]
    stock = BY_TYPE[name]((["a", "b"], kinds)).eval()
    x = {"a": X, "b": X.flip(0)}
    edges = {kind: torch.randint(NODES, (2, EDGES)) for kind in kinds}
    hags = {kind: hp.build_hag(e, num_nodes=NODES) for kind, e in edges.items()}
    plain = {kind: hag.edge_index for kind, hag in hags.items()}
    accelerated = accelerate(copy.deepcopy(stock))
    for given in (hags, plain, plain):
        for kind, ours in accelerated(x, given).items():
            torch.testing.assert_close(ours, stock(x, plain)[kind])


# Few messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SAGEConv", "GENConv", "GCNConv", "FastRGCNConv"])
def test_few_messages_run_stock_code(name: str) -> None:
    """Below so many numbers in all messages only what stock normalises anew runs over a HAG."""
    make: Any = {
        "SAGEConv": lambda: pyg.SAGEConv(WIDTH, 3),
        "GENConv": lambda: pyg.GENConv(WIDTH, 3, norm="layer"),
        "GCNConv": lambda: pyg.GCNConv(WIDTH, 3),
        "FastRGCNConv": lambda: pyg.FastRGCNConv(WIDTH, 3, 2),
    }[name]
    edge_index = torch.randint(NODES, (2, EDGES))
    stock = make()
    accelerated = accelerate(copy.deepcopy(stock))
    plain: list[Any] = [edge_index]
    handed: Any = hp.build_hag(edge_index, num_nodes=NODES)
    if name == "FastRGCNConv":
        plain.append(TYPES)
        handed = relation_hags(edge_index, TYPES, 2, (NODES, NODES))
    session = next(iter(accelerated._forward_pre_hooks.values()))
    expected = stock(X, *plain)
    for least, runs in ((EDGES * WIDTH + 1, name == "GCNConv"), (EDGES * WIDTH, True)):
        with limits(few_messages=least), count_programs() as ran:
            torch.testing.assert_close(accelerated(X, handed), expected)
            assert bool(ran.programs) == runs
            for _ in range(2):
                torch.testing.assert_close(accelerated(X, *plain), expected)
            assert (session.num_hags > 0) == runs
    with limits(few_messages=10**6):
        told = f"{name}: in training, a call with fewer than 1,000,000 numbers"
        assert (told in str(hp.explain(accelerated))) != (name == "GCNConv")
        with pytest.raises(ValueError, match=r"rows|size"):  # a wrong graph is still said to be one
            accelerated(X[:-1], handed)
        with pytest.raises((ValueError, RuntimeError), match="meta"):  # so is one elsewhere
            accelerated(X, [h.to("meta") for h in handed] if len(plain) > 1 else handed.to("meta"))
