"""Plans: their files, which people edit, what they are for, and their table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hag_plugin.parallel import GraphStats, InfeasibleError, Plan, plan, recost, trace
from hag_plugin.parallel.machine.topology import load
from hag_plugin.units import size

from ..models import MODELS, deep


def test_files_come_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    stats = GraphStats.assumed(
        400_000, 8_000_000, halo_ratio=1.5, imbalance=1.2, hag=0.6, hag_parts=0.8, relations=4
    )
    for name, make in MODELS.items():
        found = plan(trace(make(), stats, features=16), topology="4x8hdr")
        found.save(path)
        assert Plan.load(path) == found, name
    document = json.loads(path.read_text())
    assert "predicted" in document["note"]
    assert set(document["layers"][0]["predicted"]) >= {"compute", "communication", "sent_bytes"}
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_may_be_edited(tmp_path: Path) -> None:
    model = deep(2, 64, GraphStats.assumed(100_000, 5_000_000, hag=0.5, hag_parts=0.6))
    found = plan(model, topology="pcie4x4", require={"conv0": "rows, halo", "conv1": "rows, halo"})
    document = found.as_dict()
    entry = next(k for k in document["layers"] if k["name"] == "conv1")
    entry |= {"strategy": "rows, all-gather", "hag": "off"}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    edited = recost(Plan.load(path), model, "pcie4x4")
    assert edited.layer("conv1").config.strategy == "rows, all-gather"
    assert edited.seconds > found.seconds
    assert edited.layer("conv1").sent > found.layer("conv1").sent


def test_a_thousand_devices_from_statistics_alone() -> None:
    """Nothing of the size of the graph is made; the plan says which memory it counts."""
    stats = GraphStats.assumed(100_000_000, 1_000_000_000, halo_ratio=2.0)
    model = deep(3, 256, stats)
    found = plan(model, topology=load("4x8hdr").resized(1024))
    text = str(found)
    assert found.world_size == 1024
    assert found.memory.total < load("4x8hdr").device.memory
    kept, passing, graph = (
        size(n) for n in (found.memory.retained, found.memory.transient, found.memory.graph)
    )
    assert f"({kept} kept, {passing} passing, {graph} graph)" in text
    for words in ("kept: weights with gradients and two moments of Adam, features",
                  "what the backward pass needs", "passing: inputs, outputs and buffers",
                  "Not counted: torch and its allocator's reserve"):  # fmt: skip
        assert words in text
    with pytest.raises(InfeasibleError, match="the smallest that was found needs"):
        plan(model, topology=load("4x8hdr").resized(32), memory=2**30)


def edit(document: dict[str, Any], layer: str, **changes: Any) -> dict[str, Any]:
    document = json.loads(json.dumps(document))
    entry = next(k for k in document["layers"] if k["name"] == layer)
    for key, value in changes.items():
        if value is None:
            del entry[key]
        else:
            entry[key] = value
    return document


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "rows, halos"}, "layer 'conv1': strategy is 'rows, halos'; expected one of"),
        ({"source": "diagonal"}, "layer 'conv1': source is 'diagonal'; expected replicated"),
        ({"target": "grid x1"}, "layer 'conv1': target is 'grid x1'"),
        ({"order": "any"}, "layer 'conv1': order is 'any'"),
        ({"hag": "yes"}, "layer 'conv1': hag is 'yes'; expected one of"),
        ({"hag": True}, "layer 'conv1': hag is True; expected a value of type str"),
        ({"hag": None}, "layer 'conv1' has no 'hag'"),
        ({"predicted": {}}, "layer 'conv1' has no 'compute'"),
        ({"name": "conv0"}, "layer 'conv0' occurs 2 times"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    found = plan(deep(2, 64, GraphStats.assumed(1000, 10_000)))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(edit(found.as_dict(), "conv1", **changes)))
    with pytest.raises(ValueError, match=words) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)


def test_an_illegal_edit_is_named(tmp_path: Path) -> None:
    model = deep(2, 64, GraphStats.assumed(1000, 10_000))
    found = plan(model)
    path = tmp_path / "plan.json"
    wrong = edit(found.as_dict(), "conv1", strategy="rows, halo", source="columns", target="rows")
    path.write_text(json.dumps(wrong))
    with pytest.raises(
        ValueError, match=r"layer 'conv1': rows, halo, columns to rows.*expected one"
    ):
        recost(Plan.load(path), model, "a100x8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "else"}, "no plan"),
        ({"world_size": 0}, "world_size is 0"),
        ({"costs": "guessed"}, "costs is 'guessed'"),
        ({"layers": {}}, "layers is {}"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, change: dict, words: str) -> None:
    document = plan(deep(1, 64, GraphStats.assumed(1000, 10_000))).as_dict() | change
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=words):
        Plan.load(path)


def test_a_plan_is_for_one_model_graph_and_world() -> None:
    stats = GraphStats.assumed(1000, 10_000)
    model = deep(2, 64, stats)
    found = plan(model)
    found.check(model, 8)
    for other, devices, words in (
        (model, 4, "for 8 devices; there are 4"),
        (deep(2, 64, GraphStats.assumed(1001, 10_000)), 8, "for 1000 nodes; the graph has 1001"),
        (deep(2, 64, GraphStats.assumed(1000, 10_001)), 8, "plan again for this graph"),
        (deep(3, 64, stats), 8, r"another model: they differ in \['conv2', 'relu2'\]"),
        (deep(2, 32, stats), 8, "sizes or settings of a layer differ"),
    ):
        with pytest.raises(ValueError, match=words):
            found.check(other, devices)
    with pytest.raises(KeyError, match="no layer 'conv7'"):
        found.layer("conv7")


def test_the_table_labels_everything_predicted() -> None:
    found = plan(deep(2, 64, GraphStats.assumed(100_000, 5_000_000, hag=0.5)))
    lines = str(found).splitlines()
    assert "All figures are predicted" in lines[0]
    for name in ("all-gather", "halo", "data parallel"):
        assert any(line.startswith(f"predicted, {name}: ") for line in lines)
    assert [w for w in lines[2].split() if w in ("layer", "strategy", "HAG", "memory")] == [
        "layer", "strategy", "HAG", "memory",
    ]  # fmt: skip
    assert any(line.startswith("conv1 ") for line in lines)
