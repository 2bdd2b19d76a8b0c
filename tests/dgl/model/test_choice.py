"""What `explain` says of a choice among programs is what ran."""

from __future__ import annotations

import math

import dgl
import dgl.function as fn
import dgl.nn.pytorch
import pytest
import torch

import hag_plugin as hp
from hag_plugin.hag.candidates import CHOOSE
from hag_plugin.testing import count_programs, limits

EDGES = torch.combinations(torch.arange(40))
EDGES = torch.cat([EDGES, EDGES.flip(1)]).T


@pytest.mark.parametrize("choose", CHOOSE)
def test_counts_agree_with_what_ran(choose: str) -> None:
    graph = hp.dgl.ToHAG(choose=choose)(dgl.graph((EDGES[0], EDGES[1]), num_nodes=40))
    model = hp.accelerate(dgl.nn.pytorch.SAGEConv(16, 16, "mean"))
    with limits(timed_seconds=1.0, timed_share=math.inf), torch.no_grad(), count_programs() as ran:
        model(graph, torch.randn(40, 16))
    counts = hp.explain(model)[0].calls.counts
    assert counts == {"HAG" if ran.hag else "plain": 1}
    if choose in ("hag", "plain"):
        assert bool(ran.hag) == (choose == "hag")
    else:
        (reason,) = hp.explain(model)[0].calls.reasons.values()
        assert " by model: " in reason or " by measure: " in reason


@pytest.mark.parametrize("choose", CHOOSE)
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_update_all_is_the_same_whatever_is_chosen(choose: str, reduce: str) -> None:
    plain = dgl.graph((EDGES[0], EDGES[1]), num_nodes=40)
    x = torch.randint(-4, 5, (40, 16)).double()
    results = []
    for graph in (plain, hp.dgl.ToHAG(choose=choose)(plain)):
        with graph.local_scope():
            graph.ndata["x"] = x
            graph.update_all(fn.copy_u("x", "m"), getattr(fn, reduce)("m", "y"))
            results.append(graph.ndata["y"])
    torch.testing.assert_close(*results)
