"""Plans of networks without a graph: the cheapest, their files, and what is refused in words."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hag_plugin as hp
from hag_plugin.parallel import InfeasibleError, NetworkPlan, UnknownLayerError
from hag_plugin.parallel.machine.topology import preset
from hag_plugin.parallel.model.network import followed
from hag_plugin.parallel.search.exact import brute_force
from hag_plugin.parallel.search.network import NetworkSpace
from hag_plugin.parallel.search.planner import alternatives
from hag_plugin.parallel.strategies.axes import Split

from ..networks import any_plan
from ..run_ranks import run_threads

if not (Path(__file__).parents[3] / "examples" / "reproduce" / "small_networks.py").is_file():
    pytest.skip("the examples are not here", allow_module_level=True)

from examples.reproduce.small_networks import NETWORKS, network


def plan(name: str, **options: Any) -> NetworkPlan:
    return hp.parallel.plan(*network(name), "a100x8", world_size=4, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_costs_what_it_says_and_no_more_than_plans_that_treat_all_alike(name: str) -> None:
    found = plan(name)
    space = NetworkSpace(followed(*network(name)), preset("a100x8").resized(4))
    cost = space.graph().cost(space.numbers_of(found.splits))
    assert found.seconds == pytest.approx(cost, rel=1e-12)
    assert set(found.baselines) == {"all by samples", "all by channels", "all on one device"}
    assert all(found.seconds <= seconds * (1 + 1e-12) for seconds in found.baselines.values())


def test_the_plan_is_the_cheapest_of_all() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 4))
    inputs = (torch.randn(8, 64),)
    found = hp.parallel.plan(model, inputs, "a100x8", world_size=2)
    space = NetworkSpace(followed(model, inputs), preset("a100x8").resized(2))
    assert found.seconds == pytest.approx(brute_force(space.graph()).cost, rel=1e-12)


def test_each_of_the_dimensions_is_chosen_where_it_pays() -> None:
    """Large planes with few weights by samples, large weights with few samples by channels."""
    torch.manual_seed(0)
    space = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
    by_sample = hp.parallel.plan(space, torch.randn(4, 3, 256, 256), "a100x8", world_size=4)
    dense = nn.Sequential(nn.Linear(8192, 8192), nn.ReLU(), nn.Linear(8192, 16))
    by_channel = hp.parallel.plan(dense, torch.randn(4, 8192), "a100x8", world_size=4)
    assert dict(by_sample.splits["1.conv2d"].parts).keys() <= {"sample", "height", "width"}
    assert dict(by_channel.splits["0.linear"].parts).keys() <= {"channel", "sum"}
    assert by_channel.splits["0.linear"].parts


def test_files_hold_all_of_a_plan(tmp_path: Path) -> None:
    found = plan("NMT")
    found.save(tmp_path / "plan.json")
    assert NetworkPlan.load(tmp_path / "plan.json") == found
    assert "encoder.lstm" in str(found)
    (tmp_path / "other.json").write_text('{"format": "hag_plugin.plan"}')
    with pytest.raises(ValueError, match=r"other.json is no plan of a plain model"):
        NetworkPlan.load(tmp_path / "other.json")


def test_what_trace_gives_is_planned_as_the_model_is() -> None:
    found = plan("VGG")
    traced = hp.parallel.trace(*network("VGG"))
    assert hp.parallel.plan(traced, topology="a100x8", world_size=4) == found
    assert hp.parallel.recost(found, traced, "a100x8") == found
    slower = hp.parallel.recost(found, traced, "pcie4x4")
    assert slower.splits == found.splits
    assert slower.seconds > found.seconds
    assert slower.baselines == hp.parallel.plan(traced, topology="pcie4x4").baselines


@pytest.mark.parametrize("name", NETWORKS)
def test_any_plan_is_priced_anew_as_it_was(name: str) -> None:
    """Also where it has splits that the planner does not try."""
    traced = hp.parallel.trace(*network(name))
    found = any_plan(traced, 4, 0)
    again = hp.parallel.recost(found, traced, "a100x8")
    assert again.operations == found.operations
    assert again.baselines.keys() == {"all by samples", "all by channels", "all on one device"}


@pytest.mark.parametrize(
    "options", [{"features": 3}, {"hag": False}, {"itemsize": 4}, {"part": lambda parts: None}]
)
def test_trace_refuses_what_is_of_graphs(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is of a model on a graph"):
        hp.parallel.trace(*network("VGG"), **options)


def test_what_else_an_operation_could_have_is_priced_as_the_cheapest_plan_that_has_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 4))
    traced, machine = hp.parallel.trace(model, torch.randn(8, 64)), preset("a100x8").resized(2)
    found = hp.parallel.plan(traced, topology=machine)
    listed = alternatives(found, traced, machine)
    space = NetworkSpace(traced, machine)
    graph, expected = space.graph(), {op.name: {} for op in traced.operations}
    for choice in itertools.product(*(range(len(mine)) for mine in space.choices)):
        seconds = graph.cost(choice)
        for op, mine, k in zip(traced.operations, space.choices, choice, strict=True):
            axes = " x ".join(axis for axis, _ in mine[k].parts) or "whole"
            entries: dict[str, float] = expected[op.name]
            entries[axes] = min(seconds, entries.get(axes, seconds))
    assert listed.keys() == expected.keys()
    for name, entries in expected.items():
        assert listed[name] == pytest.approx(entries, rel=1e-12)
        assert min(entries.values()) == pytest.approx(found.seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["sample 2", "sample on 0 1", "sample two on 0 1", "", "whole on x"]
)
def test_splits_are_read_in_one_form(text: str) -> None:
    with pytest.raises(ValueError, match="expected the like of"):
        Split.parse(text)


IMPOSSIBLE = {
    "depth 2 on 0 1": "has no axis 'depth'",
    "sample 7 on 0 1 2 3 4 5 6": "sample has 6",
    "channel 2 x sample 2 on 0 1 2 3": "axes are given as",
    "sample 2 on 0": "2 parts need as many ranks",
    "sample 2 on 0 0": "2 parts need as many ranks",
    "sample 2 on 0 4": "ranks are 0 to 3",
}


@pytest.mark.parametrize("text", IMPOSSIBLE)
def test_a_split_that_cannot_be_is_refused_with_one_that_can(text: str) -> None:
    with pytest.raises(ValueError, match=IMPOSSIBLE[text]) as refused:
        plan("VGG", require={"features.0.conv2d": text})
    words = str(refused.value)
    assert "'features.0.conv2d'" in words
    nearest = words.rpartition(": ")[2].removesuffix(", say")
    plan("VGG", require={"features.0.conv2d": nearest})


def test_required_splits_are_kept_and_unknown_names_refused() -> None:
    text = "channel 2 x height 2 on 3 1 0 2"
    assert str(plan("VGG", require={"features.0.conv2d": text}).splits["features.0.conv2d"]) == text
    with pytest.raises(ValueError, match=r"require names \['conv'\]; expected some of"):
        plan("VGG", require={"conv": text})


def test_plans_fit_in_memory_or_are_refused() -> None:
    cheapest = plan("RNNLM")
    with pytest.raises(InfeasibleError, match="the least that a plan takes is") as refused:
        plan("RNNLM", memory=10.0)
    assert refused.value.nearest is not None
    least = refused.value.nearest.memory
    assert least is not None
    assert plan("RNNLM", memory=least).memory <= least <= cheapest.memory


@pytest.mark.parametrize(
    "options", [{"part": lambda parts: None}, {"call": lambda m, d: m(d)}, {"costs": "measured"}]
)
def test_what_is_of_graphs_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is of a model on a graph"):
        plan("VGG", **options)


class Model(nn.Module):
    """Whose forward is a function of a dense layer and its input."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(4))
        self.heads = nn.MultiheadAttention(4, 2, dropout=0.5)
        self.lstm = nn.LSTM(4, 4, 2, dropout=0.5)
        self.norm = nn.InstanceNorm1d(4, track_running_stats=True)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _view_in_place(model: Any, x: Tensor) -> Tensor:
    h = model.dense(x)
    h[0].zero_()
    return h


def _remembers(model: Any, x: Tensor) -> Tensor:
    model.seen.add_(model.dense(x).detach().sum(0))
    return x + model.seen


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "attention": (lambda m, x: m.heads(x, x, x, need_weights=False)[0], "in heads draws random"),
    "LSTM": (lambda m, x: m.lstm(x)[0], "lstm in lstm draws random numbers"),
    "noise": (lambda m, x: m.dense(x) + torch.randn(4), "randn in the model draws random"),
    "noise of a value": (lambda m, x: torch.bernoulli(m.dense(x).sigmoid()), "bernoulli in the"),
    "part of a tensor": (_view_in_place, "changes a tensor that others see"),
    "buffer": (_remembers, "changes a tensor that others see"),
    "statistics": (lambda m, x: m.norm(x[None] * m.dense(x)), "keeps running statistics"),
    "condition": (lambda m, x: x if m.dense(x).sum() > 0 else -x, "cannot be followed by torch"),
    "scalar": (lambda m, x: m.dense(x) * m.scale, "parameter 'scale' has no dimension"),
    "parameter": (
        lambda m, x: (m.dense(x), m.dense.weight),
        "returns its parameter 'dense.weight'",
    ),
    "nothing": (lambda m, x: x.relu(), "has no operation on parameters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_same_on_all_ranks_is_refused_in_words(name: str) -> None:
    forward, words = REFUSED[name]
    with pytest.raises((UnknownLayerError, ValueError), match=words):
        hp.parallel.plan(Model(forward), torch.randn(4, 4), "a100x8", world_size=2)


def test_inputs_with_gradients_are_refused() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    with pytest.raises(ValueError, match="an input requires a gradient"):
        hp.parallel.plan(nn.Linear(4, 4), x, "a100x8", world_size=2)


def test_a_model_in_eval_is_planned_as_it_trains_and_left_in_eval() -> None:
    model, inputs = network("VGG")
    model.features[0].eval()
    found = hp.parallel.plan(model.eval(), inputs, "a100x8", world_size=4)
    assert not any(module.training for module in model.modules())
    assert found == plan("VGG")


def test_parallelize_refuses_what_the_plan_is_not_of(tmp_path: Path) -> None:
    found = hp.parallel.plan(*network("VGG"), "a100x8", world_size=2)
    bad = Split((("depth", 2),), (0, 1))
    first, *rest = found.operations
    edited = replace(found, operations=(replace(first, split=bad), *rest))
    x = torch.randn(4, 4)
    cases: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (*network("ResNet"), found, ValueError, "the plan is for another model"),
        (*network("VGG"), edited, ValueError, "has no axis 'depth'"),
        (*network("VGG"), plan("VGG"), ValueError, "is for 4 devices; there are 2"),
        (nn.Linear(4, 4), x, "auto", ValueError, "needs topology="),
        (nn.Linear(4, 4), x, tmp_path / "none.json", OSError, "none.json"),
    ]  # fmt: skip

    def case(rank: int) -> None:
        for model, inputs, given, kind, words in cases:
            with pytest.raises(kind, match=words):
                hp.parallel.parallelize(model, inputs, given)
        mine = hp.parallel.parallelize(nn.Linear(4, 4), x, "auto", topology="a100x8")
        with pytest.raises(RuntimeError, match="autocast is on"), torch.autocast("cpu"):
            mine(x)
        other = torch.randn(4, 4) if rank else x
        with pytest.raises(ValueError, match="has other data"):
            hp.parallel.parallelize(nn.Linear(4, 4), other, "auto", topology="a100x8")

    run_threads(2, case)
