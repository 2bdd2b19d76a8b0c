"""Plans of graph networks in the simulator, what is drawn of them, and `hag-plugin simulate`."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.cli import main
from hag_plugin.cli.main import _parser
from hag_plugin.parallel import Budget, GraphStats, plan, refine, simulate_plan, space_of
from hag_plugin.parallel.chrome_trace import chrome_trace, write_chrome_trace
from hag_plugin.parallel.opgraph import Op, OpGraph, gcn
from hag_plugin.parallel.plan_tasks import PlanModel
from hag_plugin.parallel.search import Space
from hag_plugin.parallel.simulate import critical_path
from hag_plugin.parallel.strategy_model import SimulatedStrategy, simulate_strategy
from hag_plugin.parallel.timeline_plot import plot_timeline

MACHINES = ("a100x8", "pcie4x4", "4x8hdr", "k80x4")


def skipping(nodes: int = 1_000_000, edges: int = 50_000_000, halo: float = 4.0) -> OpGraph:
    """Four layers, one of them skipped: two branches may overlap."""
    ops = [
        Op("x", "input", width=602),
        gcn("conv1", 0, 602, 256, input_grad=False),
        gcn("conv2", 1, 256, 256),
        gcn("conv3", 2, 256, 256),
        Op("sum", "sum", (2, 3), 256),
        gcn("conv4", 4, 256, 41),
        Op("loss", "loss", (5,), 41),
    ]
    return OpGraph.of(ops, {"A": GraphStats.assumed(nodes, edges, halo_ratio=halo)})


@pytest.fixture(scope="module", params=MACHINES)
def space(request: pytest.FixtureRequest) -> Space:
    return space_of(skipping(), request.param)


def test_overlap_only_saves(space: Space) -> None:
    """A simulated plan is never slower than priced, nor faster than its longest chain."""
    found = plan(space.graph, topology=space.topology)
    schedule = simulate_plan(found, space)
    schedule.check()
    assert critical_path(schedule.graph) <= schedule.makespan <= found.seconds + 1e-6
    assert schedule.makespan < found.seconds  # weights are summed beside the backward pass
    busy = sum(schedule.seconds_by_kind().values())
    assert busy == pytest.approx(found.seconds, abs=1e-6)  # all that is priced is simulated


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_plan_is_simulated_as_it_is_priced(data: st.DataObject) -> None:
    space = space_of(skipping(), data.draw(st.sampled_from(MACHINES)))
    model = PlanModel(space)
    strategy = [data.draw(st.integers(0, size - 1)) for size in model.sizes]
    schedule = simulate_strategy(model, strategy)
    schedule.check()
    priced = space.cost_graph.cost(strategy)
    assert schedule.makespan <= priced + 1e-6
    assert sum(schedule.seconds_by_kind().values()) == pytest.approx(priced, abs=1e-6)


def test_delta_equals_full_on_plans(space: Space) -> None:
    model, choose = PlanModel(space), random.Random(0)
    chain = SimulatedStrategy(model, [0] * len(model.names))
    for _ in range(200):
        node = choose.randrange(len(model.names))
        config = choose.randrange(model.num_configs(node))
        changed = [*chain.strategy[:node], config, *chain.strategy[node + 1 :]]
        assert chain.propose(node, config) == simulate_strategy(model, changed).makespan
        if choose.random() < 0.4:
            chain.accept()
        else:
            chain.reject()


def test_sampling_never_loses(space: Space) -> None:
    found = plan(space.graph, topology=space.topology)
    refined = refine(found, space, Budget(proposals=150), seed=1)
    assert refined.sampled <= refined.simulated <= refined.additive + 1e-6
    assert refined.simulated == simulate_plan(found, space).makespan
    assert refined.sampled == simulate_plan(refined.plan, space).makespan
    assert "predicted" in str(refined)
    assert refine(found, space, Budget(proposals=150), seed=1).sampled == refined.sampled


def test_sampling_gains_where_branches_overlap() -> None:
    space = space_of(skipping(), "pcie4x4")
    found = plan(space.graph, topology=space.topology)
    refined = refine(found, space, Budget(proposals=1200), seed=0)
    assert refined.sampled < 0.97 * refined.simulated
    assert refined.plan.seconds > found.seconds  # which the additive cost cannot see


def test_sampling_stays_within_memory() -> None:
    space = space_of(skipping(), "pcie4x4")
    free = plan(space.graph, topology=space.topology)
    limit = 0.8 * free.memory.total
    tight = plan(space.graph, topology=space.topology, memory=limit)
    refined = refine(tight, space, Budget(proposals=300), limit=limit)
    assert refined.plan.memory.total <= limit


def test_other_models_are_refused() -> None:
    space = space_of(skipping(), "pcie4x4")
    other = plan(skipping(nodes=999_999), topology="pcie4x4")
    with pytest.raises(ValueError, match="999999 nodes"):
        simulate_plan(other, space)


# Traces and pictures ----------------------------------------------------------------------------


def test_the_trace_says_what_the_schedule_says(tmp_path: Path) -> None:
    space = space_of(skipping(), "pcie4x4")
    schedule = simulate_plan(plan(space.graph, topology="pcie4x4"), space)
    write_chrome_trace(schedule, tmp_path / "trace.json", "a title")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace == chrome_trace(schedule, "a title")
    bars = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    rows = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert list(rows.values()) == schedule.graph.resources
    for row in rows:
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in bars if e["tid"] == row)
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert start >= end - 1e-6
    assert max(e["ts"] + e["dur"] for e in bars) == pytest.approx(schedule.makespan * 1e6)
    assert list(tmp_path.iterdir()) == [tmp_path / "trace.json"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures(tmp_path: Path, suffix: str) -> None:
    space = space_of(skipping(), "k80x4")
    schedule = simulate_plan(plan(space.graph, topology="k80x4"), space)
    plot_timeline(schedule, tmp_path / f"timeline.{suffix}", "a title")
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert (tmp_path / f"timeline.{suffix}").read_bytes().startswith(magic)
    with pytest.raises(ValueError, match="gif"):
        plot_timeline(schedule, tmp_path / "timeline.gif", "a title")


# The command ------------------------------------------------------------------------------------

SIZES = ["--nodes", "2400000", "--edges", "120000000", "--features", "100", "--quiet"]


def simulate(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["simulate", *words, *SIZES, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("trace.json", "timeline.svg", "plan.json")]
    first = simulate(capsys, "sage", "--topology", "pcie4x4", "--proposals", "60",
                     "--trace", names[0], "--plot", names[1], "-o", names[2])  # fmt: skip
    assert first["written"] == names
    assert first["mcmc"]["sampled_seconds"] == first["simulated_seconds"]
    assert first["mcmc"]["sampled_seconds"] <= first["mcmc"]["simulated_seconds"]
    assert first["critical_path_seconds"] <= first["simulated_seconds"]
    second = simulate(capsys, "sage", "--topology", "pcie4x4", "--plan", names[2])
    assert second["simulated_seconds"] == first["simulated_seconds"]
    assert second["mcmc"] is None


def test_command_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "gcn", "--topology", "a100x8", "--seconds", "0.2", *SIZES]) == 0
    text = capsys.readouterr().out
    assert "additive optimum" in text
    assert "(predicted)" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--plot", "timeline.gif"], ".png"),
        (["--trace", "trace.txt"], ".json"),
        (["--trace", "nowhere/trace.json"], "folder"),
        (["--proposals", "-1"], "-1 proposals"),
        (["--plan", "missing.json"], "missing.json"),
    ],
)
def test_command_refuses(
    capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(["simulate", "gcn", *SIZES, *words]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""


def test_measured_blocks_feed_the_simulator(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAG_PLUGIN_CACHE", str(tmp_path))
    words = ["--topology", "cpu2", "--nodes", "500", "--edges", "3000", "--features", "8",
             "--hidden", "8", "--layers", "2", "--quiet", "--json"]  # fmt: skip
    assert main(["probe", "--model", "gcn", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["blocks"]
    assert all(block["measured"] > 0 and block["analytic"] > 0 for block in found["blocks"])
    kept = Path(found["cache"]).read_text()
    assert main(["probe", "--model", "gcn", *words]) == 0  # from the cache, to the last bit
    assert json.loads(capsys.readouterr().out)["blocks"] == found["blocks"]
    assert main(["simulate", "gcn", *words, "--costs", "measured"]) == 0
    simulated = json.loads(capsys.readouterr().out)
    assert simulated["plan"]["costs"] == "measured"
    known, before = json.loads(Path(found["cache"]).read_text()), json.loads(kept)
    assert {key: known[key] for key in before} == before
    assert main(["probe", "--model", "gcn", "-o", "machine.json", *words]) == 2


def test_examples_in_help_parse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--help"]) == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2].split("\n")
    lines = [line.split()[1:] for line in examples if line]
    assert [_parser().parse_args(words).command for words in lines] == ["simulate"] * 3
