"""What `explain` says of a choice among programs is what ran."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg

import hag_plugin as hp
from hag_plugin.hag.candidates import CHOOSE, NAMES, ROW_BYTES
from hag_plugin.hag.rates import ARITHMETICS
from hag_plugin.testing import count_programs, limits

EDGES = torch.combinations(torch.arange(40)).T
EDGES = torch.cat([EDGES, EDGES.flip(0)], 1)
LAYERS = {
    "SAGE": lambda width: pyg.SAGEConv(width, width),
    "SAGE-max": lambda width: pyg.SAGEConv(width, width, aggr="max"),
    "GCN": lambda width: pyg.GCNConv(width, width),
    "GIN": lambda width: pyg.GINConv(torch.nn.Linear(width, width)),
    "turned": lambda width: pyg.SAGEConv(width, width, flow="target_to_source"),
}


def told(name: str) -> hp.HAG:
    """A HAG of which one candidate is the fastest by its tables."""
    modes = (False, "add", "fill")
    hag = hp.build_hag(EDGES, num_nodes=40, self_loops=modes, choose="model")
    hag.program(idempotent=True)
    state = hag._state()
    for entry in state["programs"]:
        table = entry["table"]
        of_each = np.full((len(table["names"]), len(ARITHMETICS), len(ROW_BYTES)), 0.5)
        of_each[table["names"].index(name)] = 0.25
        table["seconds"] = of_each.tolist()
    return hp.rebuild_hag(state)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "plain, reordered"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("width", [4, 64])
def test_explain_tells_the_candidate_and_the_seconds(name: str, layer: str, width: int) -> None:
    model = hp.accelerate(LAYERS[layer](width)).eval()
    with count_programs() as ran, torch.no_grad():
        model(torch.randn(40, width), told(name))
    kind = "HAG" if name == "hag" else "plain"
    assert (ran.hag, ran.plain) == ((1, 0) if kind == "HAG" else (0, 1))
    calls = hp.explain(model)[0].calls
    assert calls.counts == {kind: 1}
    assert f"{name} by model: {name} 250 ms, " in calls.reasons[kind]  # type: ignore[index]
    assert f"{name} by model" in str(hp.explain(model))


@pytest.mark.parametrize("choose", CHOOSE)
@pytest.mark.parametrize("layer", LAYERS)
def test_counts_agree_with_what_ran(
    choose: str, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that comes back chooses as the environment says, however it was met."""
    monkeypatch.setenv("HAG_PLUGIN_CHOOSE", choose)
    model = hp.accelerate(LAYERS[layer](16)).eval()
    x = torch.randn(40, 16)
    with (
        limits(few_messages=0, timed_seconds=1.0, timed_share=math.inf),
        torch.no_grad(),
        count_programs() as ran,
    ):
        model(x, EDGES)
        assert (ran.hag, ran.plain) == (0, 1)  # met first: there is nothing to choose
        for _ in range(2):
            model(x, EDGES)
    counts = hp.explain(model)[0].calls.counts
    assert counts.get("HAG", 0) == ran.hag
    assert counts.get("plain", 0) == ran.plain
    assert ran.hag + ran.plain == 3
    if choose in ("hag", "plain"):
        assert (ran.hag == 2) == (choose == "hag")
