"""Pairs of nodes: rows of any rank with gradients, negative samples, metrics over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.parallel.ranks.transfer import fetch_rows
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned

from ..equality import space_with, whole
from ..models import FEATURES, graph
from ..run_ranks import run_threads

NODES, WIDTH = 45, 6


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_rows_come_with_gradients(drawn: st.DataObject) -> None:
    size = drawn.draw(st.integers(1, 4))
    rows = drawn.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    nodes = sum(rows)
    ids = st.lists(st.integers(0, max(nodes - 1, 0)), max_size=8 if nodes else 0)
    index = [torch.tensor(drawn.draw(ids), dtype=torch.int64) for _ in range(size)]
    x = torch.randn(nodes, 3, dtype=torch.float64, requires_grad=True)
    scale = [torch.randn(len(i), 3, dtype=torch.float64) for i in index]
    expected = [x[i] for i in index]
    sum((e * s).sum() for e, s in zip(expected, scale, strict=True)).backward()
    ends = np.cumsum([0, *rows])

    def case(rank: int) -> Any:
        mine = x.detach()[ends[rank] : ends[rank + 1]].clone().requires_grad_()
        out = fetch_rows(mine, index[rank], np.array(rows), Group.world())
        (out * scale[rank]).sum().backward()
        return out.detach(), mine.grad

    found = run_threads(size, case)
    for (out, _), wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(out, wanted.detach(), rtol=0, atol=0)
    assert x.grad is not None
    torch.testing.assert_close(torch.cat([grad for _, grad in found]), x.grad)


def data() -> Data:
    found = graph(nodes=NODES, edges=220)
    found.x = found.x.double()
    return found


def plan_of(model: torch.nn.Module, given: Data, output: str) -> Plan:
    space = space_with(
        trace(model, given, hag=False),
        2,
        lambda op, c: op.kind != "loss" or str(c.source) == output,
    )
    return planned(space, space.cheapest().configs)


def scores(rows: Tensor) -> Tensor:
    source, target = rows.view(2, -1, rows.shape[-1])
    return (source * target).sum(dim=-1)


@pytest.mark.parametrize("output", ["rows", "replicated"])
def test_pairs_are_decoded_as_in_one_process(output: str) -> None:
    """Each rank has pairs of its own, one of them none; loss and gradients are those of all."""
    torch.manual_seed(0)
    model, given, count = pyg.GraphSAGE(FEATURES, 8, 2, WIDTH).double(), data(), 31
    pairs = torch.randint(NODES, (2, count))
    labels = torch.randint(2, (count,)).double()
    plan = plan_of(model, given, output)

    def alone(chosen: slice) -> tuple[Tensor, list[Any], Tensor]:
        model.zero_grad()
        found = scores(model(given.x, given.edge_index)[pairs[:, chosen].flatten()])
        loss = F.binary_cross_entropy_with_logits(found, labels[chosen])
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters()], found.detach()

    cuts = ((slice(0, 12), slice(12, count)), (slice(0, 0), slice(0, count)))

    def case(rank: int) -> list[Any]:
        ours, results = hp.parallel.parallelize(model, given, plan), []
        for cut in cuts:
            ours.zero_grad()
            chosen = cut[rank]
            found = scores(ours.parallel.rows(ours(), pairs[:, chosen].flatten()))
            losses = F.binary_cross_entropy_with_logits(found, labels[chosen], reduction="none")
            loss = ours.parallel.mean(losses, apart=True)
            loss.backward()
            right = ours.parallel.total(int(((found > 0) == labels[chosen]).sum()), apart=True)
            grads = [whole(p.grad).clone() for p in ours.parameters()]
            results.append((loss.detach(), grads, ours.parallel.concatenate(found), right))
        return results

    for results in run_threads(2, case):
        for (loss, grads, found, right), cut in zip(results, cuts, strict=True):
            wanted = alone(slice(0, count))
            torch.testing.assert_close(loss, wanted[0], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(grads, wanted[1], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(found, wanted[2], rtol=1e-10, atol=1e-10)
            assert right == int(((wanted[2] > 0) == labels).sum())
            assert cut[1].stop == count


def test_what_is_sent_for_rows_is_counted() -> None:
    """A row that is asked for twice comes once; own rows are not sent."""
    model, given = pyg.GraphSAGE(FEATURES, 8, 2, WIDTH).double(), data()
    plan = plan_of(model, given, "rows")

    def case(rank: int) -> tuple[int, int, int]:
        ours = hp.parallel.parallelize(model, given, plan)
        h = ours()
        ours.parallel.sent.reset()
        rows = ours.parallel.rows(h, torch.tensor([0, 0, 1, 44, 44, 44]))
        rows.sum().backward(retain_graph=True)
        sent = ours.parallel.sent
        return sent["ask"], sent["forward"], sent.bytes["backward", "exchange"]

    for rank, (ask, forward, _) in enumerate(run_threads(2, case)):
        others = (1, 2)[rank]  # distinct rows of the other rank: 44, or 0 and 1
        assert ask == 8 + 8 * others
        assert forward == 8 * WIDTH * (3 - others)


def test_negatives_are_no_edges_and_go_by_rank_and_step() -> None:
    model, given = pyg.GraphSAGE(FEATURES, 8, 2, WIDTH).double(), data()
    plan = plan_of(model, given, "rows")
    edges = set(map(tuple, given.edge_index.T.tolist()))

    def case(rank: int) -> list[Tensor]:
        torch.manual_seed(3)
        ours = hp.parallel.parallelize(model, given, plan)
        drawn = []
        for _ in range(2):
            ours()
            drawn += [ours.parallel.negatives(given.edge_index, 40) for _ in range(2)]
        assert ours.parallel.negatives(given.edge_index, 0).shape == (2, 0)
        every = torch.cartesian_prod(torch.arange(NODES), torch.arange(NODES)).T
        with pytest.raises(ValueError, match="5 of 5 pairs without an edge were not found"):
            ours.parallel.negatives(every, 5)
        few = every[:, :1].clone()
        for pair in every.T[-3:]:  # written to, be it unseen by torch
            few.numpy()[:] = pair[:, None].numpy()
            drawn_now = ours.parallel.negatives(few, 4 * NODES**2).T.tolist()
            assert pair.tolist() not in drawn_now
        with pytest.raises((TypeError, ValueError), match="edge_index"):
            ours.parallel.negatives(given.x, 5)
        return drawn

    found = run_threads(2, case)
    drawn = [tuple(map(tuple, each.T.tolist())) for rank in found for each in rank]
    assert len({*drawn}) == len(drawn)  # all differ
    for pairs in drawn:
        assert len(pairs) == 40
        assert all(u != v and (u, v) not in edges for u, v in pairs)
    again = run_threads(2, case)
    assert all(torch.equal(a, b) for one, other in zip(found, again, strict=True)
               for a, b in zip(one, other, strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (torch.tensor([0.5]), "expected a tensor of integers"),
        ([1], "expected a tensor of integers"),
        (torch.tensor([[1]]), r"index has shape \[1, 1\]; expected \[k\]"),
        (torch.tensor([3, NODES]), "index has 3 to 45; expected nodes, 0 to 44"),
        (torch.tensor([-1]), "index has -1 to -1; expected nodes"),
    ],
)
def test_wrong_nodes_end_all_ranks(index: Any, words: str) -> None:
    model, given = pyg.GraphSAGE(FEATURES, 8, 1, WIDTH).double(), data()
    plan = plan_of(model, given, "rows")

    def case(rank: int) -> None:
        ours = hp.parallel.parallelize(model, given, plan)
        h = ours()
        with pytest.raises((TypeError, ValueError, RuntimeError), match=words):
            ours.parallel.rows(h, torch.tensor([0]) if rank else index)
        with pytest.raises((ValueError, RuntimeError), match=r"values has \d+ rows; expected \d+"):
            ours.parallel.rows(h[1:] if rank else h, torch.tensor([0]))

    run_threads(2, case)
