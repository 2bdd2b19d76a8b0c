"""What is sent while ranks compute: the order of events in traces of torch's profiler, no times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned

from ..equality import space_with, whole
from ..models import CLASSES, FEATURES, RGCN, graph
from ..run_ranks import run_processes, run_threads

BEGIN, WAIT = "begin exchange", "wait for exchange"
OWN = ("sum over own rows", "attention over own rows")
BEGIN_SUM, WAIT_SUM = "begin all_reduce", "wait for all_reduce"


MODELS = {
    "sum": lambda: pyg.GCN(FEATURES, 12, 3, CLASSES),
    "relations": lambda: RGCN(aggr="mean"),
    "attention": lambda: pyg.GAT(FEATURES, 12, 3, CLASSES, heads=2, dropout=0.4),
}


def model_and_data(kind: str = "sum") -> tuple[torch.nn.Module, Data]:
    torch.manual_seed(0)
    return MODELS[kind]().double(), graph(nodes=45, edges=220)


def plan_of(model: torch.nn.Module, data: Data, strategy: str = "rows, halo") -> Plan:
    data.x = data.x.double()
    traced = trace(model, data, hag=False)

    def allow(op: Any, c: Any) -> bool:
        return op.kind not in ("convolution", "attention") or c.strategy == strategy

    space = space_with(traced, 2, allow)
    return planned(space, space.cheapest().configs)


def step(ours: Any) -> Tensor:
    ours.zero_grad()
    loss: Tensor = ours.parallel.mean(ours().square())
    loss.backward()
    return loss


def events(rank: int, plan: Plan, overlap: bool, kind: str = "sum") -> list[str]:
    """Names of what a rank does in the second step, in the order in which it begins."""
    model, data = model_and_data(kind)
    data.x = data.x.double()
    ours = hp.parallel.parallelize(model, data, plan, overlap=overlap)
    step(ours)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step(ours)
    listed = [e for e in seen.events() if not e.is_async]
    return [e.name for e in sorted(listed, key=lambda e: e.time_range.start)]


def both(rank: int, plan: Plan) -> list[list[str]]:
    return [events(rank, plan, overlap) for overlap in (True, False)]


def between(names: list[str], first: str, last: str) -> list[list[str]]:
    """What lies between each `first` and the `last` that follows it."""
    found = []
    for i, name in enumerate(names):
        if name == first:
            found.append(names[i + 1 : names.index(last, i)])
    return found


def is_sum(name: str) -> bool:
    """Whether it is a sum over neighbours, or over the own ones, or its gradient, by its autograd
    function.
    """
    return name.removesuffix("Backward") in ("Eager", "_First")


def test_own_rows_are_summed_while_others_come() -> None:
    model, data = model_and_data()
    plan = plan_of(model, data)
    for names, blocking in run_processes(2, both, plan):
        inside = between(names, BEGIN, WAIT)
        fixed = plan.layer("convs.0").config.order == "aggregate-first"
        assert len(inside) == 2 * (3 - fixed)  # forward and backward
        assert all(any(map(is_sum, part)) for part in inside)
        assert names.count(OWN[0]) == 3  # of given features, too, whose rows are there
        # Gradients of weights: all begin before one is waited for, and the last layers' before
        # gradients of rows are sent on.
        assert names.count(BEGIN_SUM) == names.count(WAIT_SUM) == 3
        assert max(i for i, n in enumerate(names) if n == BEGIN_SUM) < names.index(WAIT_SUM)
        first, last = names.index(BEGIN_SUM), names.index(WAIT_SUM)
        assert BEGIN in names[first:last]
        assert not {BEGIN, WAIT, BEGIN_SUM, WAIT_SUM} & {*blocking}
        assert any(map(is_sum, blocking))


# By strategy and kind of model: what brings rows, and gradients back.
FIRST = {
    ("rows, vertex-cover halo", "sum"): ("exchange", "exchange"),
    ("rows, all-gather", "sum"): ("all_gather", "reduce_scatter"),
    ("rows, halo", "relations"): ("exchange", "exchange"),
    ("rows, all-gather", "relations"): ("all_gather", "reduce_scatter"),
    ("rows, halo", "attention"): ("exchange", "exchange"),
    ("rows, all-gather", "attention"): ("all_gather", "reduce_scatter"),
}


def each_first(rank: int, plans: Any) -> list[list[str]]:
    return [events(rank, plan, True, kind) for (_, kind), plan in plans.items()]


def test_every_strategy_that_fetches_rows_sums_its_own_first() -> None:
    plans = {case: plan_of(*model_and_data(case[1]), case[0]) for case in FIRST}
    for listed in run_processes(2, each_first, plans):
        for names, ways in zip(listed, FIRST.values(), strict=True):
            begin, wait = f"begin {ways[0]}", f"wait for {ways[0]}"
            assert {*OWN} & {*names}
            for i in (i for i, name in enumerate(names) if name in OWN and begin in names[:i]):
                assert next(n for n in names[i::-1] if n in (begin, wait)) == begin
            for way in dict.fromkeys(ways):
                parts = between(names, f"begin {way}", f"wait for {way}")
                assert parts
                assert all(any(map(is_sum, part)) for part in parts)


@pytest.mark.parametrize("case", [("rows, halo", "sum"), *FIRST])
def test_results_are_the_same_to_the_bit(case: tuple[str, str]) -> None:
    strategy, kind = case
    model, data = model_and_data(kind)
    plan = plan_of(model, data, strategy)

    def train(rank: int) -> Any:
        found = []
        for overlap in (True, False):
            ours = hp.parallel.parallelize(model, data, plan, overlap=overlap)
            for _ in range(2):
                loss = step(ours)
            found.append((loss.detach(), [whole(p.grad) for p in ours.parameters()]))
        return found

    for one, other in run_threads(2, train):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_gradients_add_up_over_backward_passes() -> None:
    """Of one forward pass, of two, and of a weight that several layers use."""
    torch.manual_seed(0)

    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = pyg.GCNConv(FEATURES, FEATURES)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            for _ in range(3):
                x = self.conv(x, edge_index).tanh()
            return x

    model, data = Shared().double(), graph(nodes=45, edges=220)
    plan = plan_of(model, data)
    loss = model(data.x, data.edge_index).square().mean()
    loss.backward()

    def case(rank: int) -> Any:
        ours = hp.parallel.parallelize(model, data, plan)
        one = ours.parallel.mean(ours().square())
        one.backward(retain_graph=True)
        one.backward()
        (ours.parallel.mean(ours().square()) + ours.parallel.mean(ours().square())).backward()
        asked = torch.autograd.grad(ours.parallel.mean(ours().square()), [*ours.parameters()])
        return [whole(p.grad) for p in ours.parameters()], [whole(g) for g in asked]

    wanted = [p.grad for p in model.parameters()]
    for summed, asked in run_threads(2, case):
        torch.testing.assert_close(summed, [4 * g for g in wanted], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(asked, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("strategy", ["rows, halo", "rows, all-gather", "rows, vertex-cover halo"])
def test_rows_of_given_features_are_sent_once(strategy: str) -> None:
    """Counted in bytes: in the first call under "layout", in later ones not at all."""
    torch.manual_seed(0)
    model = pyg.SAGEConv(FEATURES, CLASSES).double()
    data = graph(nodes=45, edges=220)
    data.x = data.x.double()
    traced = trace(model, data, hag=False)

    def allow(op: Any, c: Any) -> bool:
        return op.kind != "convolution" or (c.strategy == strategy and c.order == "aggregate-first")

    space = space_with(traced, 2, allow)
    chosen = space.cheapest().configs
    plan = planned(space, chosen)
    terms = next(row[k] for row, k in zip(space.terms, chosen, strict=True) if row[k].laid_out)
    once = [int(sum(m.sent[rank] for m in terms.laid_out)) for rank in range(2)]
    expected, doubled = (model(k * data.x, data.edge_index).detach() for k in (1, 2))

    def case(rank: int) -> Any:
        ours, sent = hp.parallel.parallelize(model, data, plan), []
        with torch.inference_mode():  # what is kept here is used in training
            ours()
        for _ in range(2):
            sent.append((ours.parallel.sent["layout"], ours.parallel.sent["forward"]))
            ours.parallel.mean(ours().square()).backward()
        sent.append((ours.parallel.sent["layout"], ours.parallel.sent["forward"]))
        other = ours.parallel.share(data)
        out = ours.parallel.gather(ours(other))
        again = ours.parallel.sent["layout"]
        for x in other.prepared.features[0].values():
            x *= 2
        edited = [ours.parallel.gather(ours(other)) for _ in range(2)]
        return sent, again, out, edited, ours.parallel.sent["layout"]

    for rank, (sent, again, out, edited, last) in enumerate(run_threads(2, case)):
        assert sent == [(once[rank], 0)] * 3
        assert again == 2 * once[rank]  # other data, other rows
        assert last == 3 * once[rank]  # changed in place, and fetched once more
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(edited, [doubled] * 2, rtol=1e-10, atol=1e-10)
    assert all(once)
