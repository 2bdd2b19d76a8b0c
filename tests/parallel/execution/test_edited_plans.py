"""Plan files that people edited: what is possible runs, what is not is refused on every rank.

The error names the layer, and comes before anything is laid out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.planner import planned

from ..equality import space_with
from ..run_ranks import run_threads
from .test_parallelize import CLASSES, FEATURES, data

RANKS = 4
Document = dict[str, Any]


def network() -> nn.Module:
    torch.manual_seed(0)
    return pyg.GraphSAGE(FEATURES, 16, 2, CLASSES, aggr="max").double()


def document(model: nn.Module, given: Any) -> Document:
    """A plan of row strategies, as its file has it."""
    space = space_with(
        trace(model, given, hag=False),
        RANKS,
        lambda op, c: op.kind != "convolution" or c.strategy == "rows, halo",
    )
    return planned(space, list(space.cheapest().configs)).as_dict()


def entry(plan: Document, name: str) -> Document:
    found: Document = next(k for k in plan["layers"] if k["name"] == name)
    return found


def changed(name: str = "convs.1", **values: str) -> Any:
    """An edit of one layer's entry."""
    return lambda plan: entry(plan, name).update(values)


def moved(plan: Document) -> None:
    plan["layers"][1], plan["layers"][2] = plan["layers"][2], plan["layers"][1]


def added(plan: Document) -> None:
    plan["layers"].append(entry(plan, "convs.1") | {"name": "convs.2"})


def doubled(plan: Document) -> None:
    plan["layers"].append(entry(plan, "convs.1"))


GRID3 = {"strategy": "2-D grid", "source": "grid x3", "target": "grid x3"}
GRID4 = {"strategy": "2-D grid", "source": "grid x4", "target": "grid x4"}
TO_COLUMNS = {"strategy": "all-to-all around aggregation", "target": "columns"}
WRONG = {
    "no strategy": (
        changed(strategy="rows, halos"),
        "layer 'convs.1': strategy is 'rows, halos'; expected one of",
    ),
    "of another kind": (
        changed(strategy="heads"),
        r"layer 'convs.1': heads, .* is not possible there; expected one of \['2-D grid'",
    ),
    "refused, and why": (
        changed(strategy="rows, vertex-cover halo"),
        r"layer 'convs.1': .* is not possible there \(partial sums need a sum or mean",
    ),
    "no relations": (
        changed(strategy="relations"),
        "layer 'convs.1': .* 1 relations, fewer than 4 devices",
    ),
    "source": (
        changed(source="columns"),
        "layer 'convs.1': rows, halo, columns to rows, .* is not possible .*rows to rows",
    ),
    "target": (
        changed(**TO_COLUMNS),
        "layer 'convs.1': all-to-all around aggregation, rows to columns, .* is not possible",
    ),
    "layout": (changed(source="diagonal"), "layer 'convs.1': source is 'diagonal'"),
    "grid of columns that do not divide": (
        changed(**GRID3),
        "layer 'convs.1': 2-D grid, grid x3 to grid x3, .* expected one of .*grid x2 to grid x2",
    ),
    "grid of one row": (changed(**GRID4), "layer 'convs.1': .*expected one of .*grid x2"),
    "HAG of the whole in a part": (
        changed(hag="whole"),
        "layer 'convs.1': .*, hag whole is not possible there; expected one of .*hag part",
    ),
    "HAG": (changed(hag="on"), "layer 'convs.1': hag is 'on'; expected one of"),
    "order that a maximum cannot have": (
        changed(order="transform-first"),
        "layer 'convs.1': .*transform-first, .* is not possible there; .*aggregate-first",
    ),
    "no order": (changed(order=""), "layer 'convs.1': rows, halo, rows to rows, hag off is not"),
    "order of what has none": (
        changed("act", order="aggregate-first"),
        "layer 'act': .*aggregate-first.* is not possible there",
    ),
    "layout of what lies where its input lies": (
        changed("act", target="columns"),
        "layer 'act': .* is not possible there; expected one of",
    ),
    "loss": (
        changed("loss", source="columns", target="columns"),
        "layer 'loss': rows, columns to columns, .* is not possible there",
    ),
    "features": (changed("x", strategy="rows"), "layer 'x': rows, .* is not possible there"),
    "kind": (
        changed(kind="linear"),
        "layer 'convs.1' is of kind 'linear' in the plan; expected 'convolution'",
    ),
    "a layer is missing": (
        lambda plan: plan["layers"].remove(entry(plan, "convs.1")),
        r"the plan is for another model: they differ in \['convs.1'\]",
    ),
    "one more layer": (added, r"the plan is for another model: they differ in \['convs.2'\]"),
    "a layer twice": (doubled, "layer 'convs.1' occurs 2 times"),
    "other order of layers": (moved, "the plan is for another model: they differ in their order"),
    "no layers": (lambda plan: plan["layers"].clear(), "they differ in .*'convs.0', 'convs.1'"),
    "ranks": (
        lambda plan: plan.update(world_size=2),
        "the plan is for 2 devices; there are 4 ranks",
    ),
}


def saved(folder: Path, name: str, plan: Document) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(plan))
    return path


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What `parallelize` says to each edit, on each rank."""
    folder, given = tmp_path_factory.mktemp("plans"), data()
    paths = {}
    for name, (edit, _) in WRONG.items():
        plan = document(network(), given)
        edit(plan)
        paths[name] = saved(folder, name, plan)
    paths["cut off"] = folder / "cut off.json"
    paths["cut off"].write_text(json.dumps(document(network(), given))[:-40])

    def case(rank: int) -> dict[str, str]:
        words = {}
        for name, path in paths.items():
            model = network()
            with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared by the tests
                hp.parallel.parallelize(model, data(), path)
            words[name] = str(caught.value)
        return words

    return run_threads(RANKS, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WRONG, "cut off"])
def test_what_is_not_possible_is_named_on_every_rank(name: str, said: list[Any]) -> None:
    words = WRONG[name][1] if name in WRONG else r"cut off\.json is not a JSON file"
    for rank in said:
        assert re.search(words, rank[name], re.DOTALL), rank[name]


def test_an_edit_that_is_possible_runs(tmp_path: Path) -> None:
    model, given = network(), data()
    plan = document(model, given)
    changed("convs.0", strategy="rows, all-gather", hag="part")(plan)
    changed(strategy="all-to-all around aggregation", hag="whole")(plan)
    path = saved(tmp_path, "plan", plan)
    expected = model(given.x, given.edge_index)

    def case(rank: int) -> Any:
        ours = hp.parallel.parallelize(model, given, str(path))
        return ours.parallel.gather(ours())

    for out in run_threads(RANKS, case):
        torch.testing.assert_close(out, expected.detach(), rtol=1e-10, atol=1e-10)


def test_weights_of_edges_leave_a_hag_nothing_to_share(tmp_path: Path) -> None:
    given = data()
    given.edge_weight = torch.rand(given.num_edges, dtype=torch.float64)

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = pyg.GCNConv(FEATURES, CLASSES).double()

        def forward(self, x: Any, edge_index: Any, edge_weight: Any) -> Any:
            return self.conv(x, edge_index, edge_weight)

    plan = document(Weighted(), given)
    changed("conv", hag="part")(plan)
    path = saved(tmp_path, "plan", plan)

    def case(rank: int) -> None:
        with pytest.raises(ValueError, match=r"layer 'conv': .*hag part is not possible"):
            hp.parallel.parallelize(Weighted(), given, path)

    run_threads(RANKS, case)
