"""Counting what the operators ran, each in each way that one can be run; limits for a while."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import hag_plugin as hp
from hag_plugin.limits import Limits
from hag_plugin.limits import limits as in_force
from hag_plugin.observers import observers
from hag_plugin.ops.weights import weighted_aggregate
from hag_plugin.sequence import build_sequence, child_sum, lstm_aggregate
from hag_plugin.testing import Ran, count_programs, limits

Call = Callable[[Tensor, hp.HAG], Tensor]

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU"))]  # fmt: skip

# What is called; the operator and the reduce; whether the gradient runs the operator again.
CALLS: dict[str, tuple[Call, tuple[str, str], bool]] = {
    "sum": (lambda x, hag: hp.aggregate(x, hag), ("aggregate", "sum"), True),
    "mean": (lambda x, hag: hp.aggregate(x, hag, "mean"), ("aggregate", "mean"), True),
    "max": (lambda x, hag: hp.aggregate(x, hag, "max"), ("extremum", "max"), False),
    "min, first": (
        lambda x, hag: hp.aggregate(x, hag, "min", ties="first"),
        ("winners", "min"),
        False,
    ),
    "weighted": (
        lambda x, hag: weighted_aggregate(x, hag, torch.ones(hag.num_edges, device=x.device)),
        ("weighted_sum", "sum"),
        True,
    ),
}


def clique() -> Tensor:
    one = torch.combinations(torch.arange(12)).T
    return torch.cat([one, one.flip(0)], 1)


def eager(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return run(x)


def compiled(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y: Tensor = torch.compile(run, backend="aot_eager", fullgraph=True)(x)
    return y


def checkpointed(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    # What is checkpointed keeps nothing of a sum, and would not compute it again.
    y: Tensor = checkpoint(lambda x: run(x).sin(), x, use_reentrant=False)
    return y


def vmapped(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y: Tensor = torch.vmap(run)(x.expand(3, *x.shape))
    return y


def told(ran: Ran) -> list[tuple[str, str, str]]:
    return [(run.operator, run.reduce, run.direction) for run in ran.programs]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["auto", "none"])
@pytest.mark.parametrize("way", [eager, compiled, checkpointed, vmapped])
@pytest.mark.parametrize("name", CALLS)
def test_every_run_is_counted(name: str, way: Any, method: Any, device: str) -> None:
    torch._dynamo.reset()
    call, operator, again = CALLS[name]
    hag = hp.build_hag(clique().to(device), num_nodes=12, method=method)
    x = torch.randn(12, 5, device=device, requires_grad=True)
    with count_programs() as ran:
        y = way(lambda x: call(x, hag), x)
        assert told(ran) == [(*operator, "forward")]
        y.sum().backward()
    backward = (way is checkpointed) + again
    assert told(ran)[1:] == [(*operator, "backward")] * backward
    shared = method == "auto" and name != "weighted"
    assert (ran.hag, ran.plain) == ((1 + backward, 0) if shared else (0, 1 + backward))
    assert not ran.trees
    call(x, hag)
    assert len(ran.programs) == 1 + backward  # the block is closed
    assert not observers


def test_programs_are_those_of_the_graph_and_its_transpose() -> None:
    hag = hp.build_hag(torch.tensor([[0, 1, 2], [1, 2, 3]]), num_nodes=4)
    x = torch.randn(4, 2, requires_grad=True)
    with count_programs() as ran:
        hp.aggregate(x, hag, self_loops="add").sum().backward()
    assert [run.program for run in ran.programs] == [
        hag.program("add"),
        hag.transpose().program("add"),
    ]


def test_blocks_are_nested_and_closed_by_errors() -> None:
    hag = hp.build_hag(clique(), num_nodes=12)
    x = torch.randn(12, 5)
    with count_programs() as outer:
        hp.aggregate(x, hag)
        with count_programs() as inner:
            hp.aggregate(x, hag, out=torch.empty(12, 5))
            with pytest.raises(ValueError, match="rows"), count_programs() as failed:
                hp.aggregate(x[1:], hag)
        hp.aggregate(x, hag)
    assert (outer.hag, inner.hag, failed.hag) == (3, 1, 0)
    assert not observers


def test_other_threads_are_seen() -> None:
    hag = hp.build_hag(clique(), num_nodes=12)
    x = torch.randn(12, 5)
    with count_programs() as ran:
        threads = [Thread(target=hp.aggregate, args=(x, hag)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ran.hag == 4


def test_tracing_runs_nothing() -> None:
    hag = hp.build_hag(clique(), num_nodes=12)
    x = torch.randn(12, 5)
    with count_programs() as ran:
        program = torch.export.export(Summed(hag), (x,))
        assert not ran.programs
        program.module()(x)
    assert ran.hag == 1


class Summed(torch.nn.Module):
    def __init__(self, hag: hp.HAG) -> None:
        super().__init__()
        self.hag = hag

    def forward(self, x: Tensor) -> Tensor:
        return hp.aggregate(x, self.hag)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's compiler
@pytest.mark.parametrize("is_compiled", [False, True])
def test_walks_over_trees(is_compiled: bool) -> None:
    torch._dynamo.reset()
    edges = clique()
    tree = build_sequence(edges, num_nodes=12)
    x = torch.randn(12, 4, requires_grad=True)
    lstm, weight = torch.nn.LSTM(4, 5), torch.randn(11, 3, 4)

    def run(x: Tensor) -> Tensor:
        return lstm_aggregate(x, tree, lstm).sum() + child_sum(x, tree, weight).sum()

    run = torch.compile(run, backend="aot_eager") if is_compiled else run
    run(x)
    with count_programs() as ran:
        run(x).backward()
    assert ran.trees == [tree, tree]
    assert told(ran) == [("lstm_aggregate", "lstm", "forward"), ("child_sum", "sum", "forward")]
    assert (ran.hag, ran.plain) == (0, 0)
    run(x)
    assert len(ran.trees) == 2


def test_searches_are_counted_and_run_nothing() -> None:
    hag = hp.build_hag(clique(), num_nodes=12)
    with count_programs() as ran:
        before = hag.program("add")
        assert hag.program("add") is before
        assert (ran.searches, ran.programs) == (1, [])
        pickle.loads(pickle.dumps(hag)).program("add")
        assert ran.searches == 1


# Limits -----------------------------------------------------------------------------------------


def test_limits_are_set_for_a_while() -> None:
    with limits(few_messages=0, op_sources=3):
        assert (in_force.few_messages, in_force.op_sources) == (0, 3)
        with suppress(KeyError), limits(few_messages=7, tree_gain=2.0):
            assert (in_force.few_messages, in_force.tree_gain) == (7, 2.0)
            raise KeyError
        assert (in_force.few_messages, in_force.op_sources) == (0, 3)
    assert in_force == Limits()


def test_unknown_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="'few' is no limit; expected"), limits(few=0):
        raise AssertionError
    assert in_force == Limits()


def test_every_limit_is_told_and_read() -> None:
    names = [each.name for each in fields(Limits)]
    told = [line.split(":")[0].strip() for line in str(Limits.__doc__).splitlines() if ":" in line]
    assert [name for name in told if name in names] == names
    source = Path(__file__).parents[1] / "hag_plugin"
    if source.is_dir():
        text = "".join(path.read_text() for path in source.rglob("*.py"))
        assert [name for name in names if f"limits.{name}" not in text] == []
