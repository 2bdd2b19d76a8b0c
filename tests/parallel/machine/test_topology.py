"""Machines: presets, routes, collectives, files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from hag_plugin.parallel.layouts import sent_bytes
from hag_plugin.parallel.machine.collectives import COLLECTIVES
from hag_plugin.parallel.machine.levels import Level
from hag_plugin.parallel.machine.topology import (
    Fit,
    Topology,
    load,
    preset,
    presets,
)

GB = 1e9


@pytest.mark.parametrize("name", presets())
def test_presets_hold_together(name: str) -> None:
    machine = preset(name)
    assert machine.name == name
    assert machine.source, "published figures name their source"
    assert machine.num_devices == math.prod(level.size for level in machine.levels)
    assert Topology.from_dict(json.loads(json.dumps(machine.as_dict()))) == machine
    for a, b in ((0, 1), (0, machine.num_devices - 1)):
        assert machine.route(a, b)
        assert set(machine.route(a, b)) <= set(machine.links)
        assert machine.message_seconds(a, b, 1e6) > machine.message_seconds(a, b, 1e3) > 0
    for collective in COLLECTIVES:
        small, large = (machine.seconds(collective, sent) for sent in (1e3, 1e8))
        assert 0 < small < large < 10


def test_presets_asked_for_are_there() -> None:
    wanted = {"v100x4-nvlink", "a100x8", "h100x8", "pcie4x4", "4x8hdr", "cpu2", "p100x4", "k80x4"}
    assert wanted <= set(presets())


def test_routes_use_ports_pairs_and_group_ports() -> None:
    two_nodes = preset("p100x16")
    assert [k.name for k in two_nodes.route(0, 1)] == ["0>1 (NVLink 1)"]
    out, into = two_nodes.route(1, 7)
    assert (out.name, into.name) == ("group 1 0>EDR InfiniBand", "EDR InfiniBand>group 1 1")
    assert two_nodes.route(3, 3) == ()
    assert two_nodes.route(0, 5)[0] == two_nodes.route(2, 9)[0]  # one adapter a node
    hdr = preset("4x8hdr")
    assert hdr.route(0, 9)[0] != hdr.route(2, 9)[0]  # one adapter a GPU


def test_a_ring_takes_the_textbook_time() -> None:
    machine = preset("a100x8")
    level = machine.levels[0]
    rate = level.bandwidth * level.efficiency
    whole = GB
    sent = sent_bytes("all_gather", int(whole / 8), 8)
    assert machine.seconds("all_gather", sent, algorithm="ring") == pytest.approx(
        7 * level.latency + 7 / 8 * whole / rate
    )
    sent = sent_bytes("all_reduce", int(whole), 8)
    assert machine.seconds("all_reduce", sent, algorithm="ring") == pytest.approx(
        14 * level.latency + 14 / 8 * whole / rate
    )


def test_trees_win_for_short_messages() -> None:
    machine = preset("a100x8")
    for sent, best in ((1e3, "tree"), (1e9, "ring")):
        others = {a: machine.seconds("all_reduce", sent, algorithm=a) for a in ("ring", "tree")}
        assert min(others, key=lambda a: others[a]) == best
        assert machine.seconds("all_reduce", sent) == others[best]


def test_gloo_reduce_scatter_is_an_all_reduce_per_rank() -> None:
    gloo = preset("cpu2")
    sent = 1e7
    assert gloo.seconds("reduce_scatter", sent) > 1.9 * gloo.seconds("all_gather", sent)
    nccl = replace(gloo, backend="nccl")
    assert nccl.seconds("reduce_scatter", sent) == nccl.seconds("all_gather", sent)


def test_a_shared_port_is_slower_and_inner_groups_are_faster() -> None:
    own = preset("4x8hdr")
    shared = replace(own, levels=(own.levels[0], replace(own.levels[1], of_devices=False)))
    assert shared.seconds("all_to_all", GB) > 4 * own.seconds("all_to_all", GB)
    assert own.seconds("all_to_all", GB, range(8)) < own.seconds("all_to_all", GB)
    one, eight = (shared.seconds("all_gather", GB, range(0, 32, 8), at_once=k) for k in (1, 8))
    assert eight > 7 * one


def test_a_fit_goes_before_the_model() -> None:
    machine = replace(preset("cpu2"), fits=(Fit("all_to_all", 2, 1e-3, 1e-9),))
    assert machine.seconds("all_to_all", 1e6) == pytest.approx(2e-3)
    assert machine.seconds("all_gather", 1e6) == preset("cpu2").seconds("all_gather", 1e6)


def test_resizing() -> None:
    machine = preset("4x8hdr")
    assert machine.resized(64).num_devices == 64
    assert [level.size for level in machine.resized(4).levels] == [4]
    assert machine.resized(32) is machine
    with pytest.raises(ValueError, match="cannot have 12 devices"):
        machine.resized(12)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(preset("cpu2").as_dict()))
    assert load(path) == preset("cpu2")
    assert load("cpu2") == preset("cpu2")
    document = preset("cpu2").as_dict()
    for change, words in (
        ({"version": 9}, "version 9"),
        ({"format": "x"}, "no topology"),
        ({"colour": 1}, "unknown fields"),
        ({"device": {"name": "x"}}, "device"),
        ({"levels": [{"name": "x", "size": "two", "bandwidth": 1, "latency": 1}]}, "'two'"),
    ):
        path.write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=words) as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_wrong_values_are_named() -> None:
    machine = preset("cpu2")
    with pytest.raises(ValueError, match="expected a file, or the name of one of"):
        load("a1000x8")
    with pytest.raises(ValueError, match="bandwidth is 0"):
        replace(machine, levels=(Level("wire", 2, 0, 1e-6),))
    with pytest.raises(ValueError, match="shape 'star'"):
        replace(machine, levels=(Level("wire", 2, 1e9, 1e-6, "star"),))
    with pytest.raises(ValueError, match="collective is 'gossip'"):
        machine.seconds("gossip", 1.0)
    with pytest.raises(ValueError, match="algorithm is 'tree'"):
        machine.seconds("all_gather", 1.0, algorithm="tree")
