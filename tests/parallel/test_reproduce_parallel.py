"""The scripts that reproduce OptCNN and FlexFlow: their networks, their searches, their output."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hag_plugin.parallel.machine.topology import preset
from hag_plugin.parallel.simulation.mcmc import Budget, random_strategies, search
from hag_plugin.parallel.simulation.strategy_model import SimulatedStrategy, simulate_strategy
from hag_plugin.parallel.simulation.tasks import KINDS

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "examples" / "reproduce"

if not (SCRIPTS / "flexflow.py").is_file():
    pytest.skip("the scripts are part of the repository, not of the wheel", allow_module_level=True)

from examples.reproduce import (  # noqa: E402  # no part of the wheel
    flexflow_additive,
    flexflow_evaluate,
    flexflow_experts,
    flexflow_model,
    flexflow_networks,
    flexflow_rnns,
    flexflow_soap,
)

SoapModel = flexflow_model.SoapModel
SMALL = {
    "AlexNet": lambda batch: flexflow_networks.alexnet(batch),
    "Inception-v3": lambda batch: flexflow_networks.inception_v3(batch, (1, 1, 1)),
    "RNNTC": lambda batch: flexflow_rnns.rnntc(batch),
    "NMT": lambda batch: flexflow_rnns.nmt(batch),
}


def machine(name: str, devices: int) -> Any:
    return preset(name).resized(devices)


# The networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "millions", "gigaflops"),
    [
        # Parameters and multiply-adds as torchvision documents them (BatchNorm's are left out).
        (flexflow_networks.alexnet, 61.1, 2 * 0.714),
        (flexflow_networks.vgg16, 138.4, 2 * 15.47),
        (flexflow_networks.resnet101, 44.5, 2 * 7.80),
        (flexflow_networks.inception_v3, 23.8, 2 * 5.71),
    ],
)
def test_networks_have_their_true_sizes(make: Any, millions: float, gigaflops: float) -> None:
    network = make(1)
    assert network.parameters / 1e6 == pytest.approx(millions, rel=0.01)
    assert network.flops / 1e9 == pytest.approx(gigaflops, rel=0.01)
    assert network.operations[-1].shape == (1, 1000, 1, 1)


def test_nmt_sends_what_was_published() -> None:
    """On 64 GPUs 65.8 GB an iteration, the expert's strategy 24.2 GB (FlexFlow, figure 8b)."""
    model = SoapModel(flexflow_rnns.nmt(64 * 64), preset("k80x64"))
    for expert, published in (
        (flexflow_experts.data_parallel, 65.8),
        (flexflow_experts.layer_per_device, 24.2),
    ):
        sent = model.transferred_bytes(expert(model))
        assert sent / 1e9 == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize("name", SMALL)
def test_parts_get_all_that_they_read(name: str) -> None:
    """What passes to a part is the whole region it reads, from whichever parts hold it."""
    network, choose = SMALL[name](32), random.Random(0)
    reads = [(u, v, r) for v, op in enumerate(network.operations) for u, r in op.inputs]
    reads = [(u, v, read) for u, v, read in reads if not read.weights]
    for u, v, read in choose.sample(reads, min(12, len(reads))):
        source, target = network.operations[u], network.operations[v]
        for _ in range(5):
            a, b = (
                choose.choice(flexflow_soap.configs(op, 8, "unplaced")) for op in (source, target)
            )
            needed = flexflow_soap.reads(target, read, source, b.degrees)
            whole = [
                math.prod(max(high - low, 0) for low, high in box)
                for box in itertools.product(*needed)
            ]
            got = [0] * b.parts
            for _, part, elements in flexflow_soap.overlaps(
                source, target, read, a.degrees, b.degrees
            ):
                got[part] += elements
            assert got == whole


@pytest.mark.parametrize("devices", [1, 2, 4, 16])
@pytest.mark.parametrize("name", SMALL)
def test_configurations(name: str, devices: int) -> None:
    """Each part has a device of its own; OptCNN's space is a part of FlexFlow's."""
    for operation in SMALL[name](32).operations:
        placed = flexflow_soap.configs(operation, devices, "grids")
        assert len(set(placed)) == len(placed)
        for config in placed:
            assert math.prod(config.degrees) == config.parts == len(set(config.devices))
            assert set(config.devices) <= set(range(devices))
        assert set(flexflow_soap.configs(operation, devices, "unplaced")) <= set(placed)
        if devices <= 4:
            every = flexflow_soap.configs(operation, devices, "any")
            assert set(placed) <= set(every)
            assert len(every) == sum(
                math.perm(devices, math.prod(degrees))
                for degrees in itertools.product(range(1, devices + 1), repeat=4)
                if math.prod(degrees) <= devices
                and all(
                    degree == 1 or (name in operation.splits and degree <= size)
                    for name, size, degree in zip("nchw", operation.shape, degrees, strict=True)
                )
            )
        singles = {config.devices for config in placed if config.parts == 1}
        assert singles == {(device,) for device in range(devices)}


@pytest.mark.parametrize("name", ["RNNTC", "NMT"])
def test_weights_travel_between_blocks_of_a_layer(name: str) -> None:
    """Each part ends up with all it needs; only what its device does not hold is sent."""
    network, choose = SMALL[name](32), random.Random(3)
    model = SoapModel(network, machine("p100x16", 8))
    edges = [edge for edge, (_, _, read) in enumerate(model.reads) if read.weights]
    for edge in choose.sample(edges, 5):
        u, v = model.edges[edge]
        operation = network.operations[u]
        channels, weights = operation.shape[1], operation.weights * flexflow_model.BYTES
        for _ in range(20):
            a, b = (choose.choice(model.configs[node]) for node in (u, v))
            got, sent = [0.0] * b.parts, [0.0] * b.parts
            for i, j, nbytes in model.messages(edge, a, b):
                got[j] += nbytes
                sent[j] += nbytes * (a.devices[i] != b.devices[j])
            for j, device in enumerate(b.devices):
                shard = flexflow_soap.intervals(channels, b.degrees[1])[j % b.degrees[1]]
                needed = set(range(*shard))
                assert got[j] == pytest.approx(weights * len(needed) / channels)
                for i, holder in enumerate(a.devices):
                    if holder == device:
                        own = flexflow_soap.intervals(channels, a.degrees[1])[i % a.degrees[1]]
                        needed -= set(range(*own))
                assert sent[j] == pytest.approx(weights * len(needed) / channels)


@pytest.mark.parametrize("summed", flexflow_model.SUMMED)
def test_a_layer_of_one_configuration_sums_its_gradients_once(summed: str) -> None:
    model = SoapModel(flexflow_rnns.rnntc(64), machine("p100x16", 8), summed=summed)
    choose, layers = random.Random(5), model.network.layers
    for _ in range(5):
        chosen = [choose.randrange(model.num_configs(layer[0])) for layer in layers]
        schedule = simulate_strategy(model, [chosen[layer] for layer in model.layer_of])
        schedule.check()
        graph = schedule.graph
        kinds = [KINDS[graph.kind[task]] for task in graph.tasks()]
        copies = [
            model.shards(layer[0], model.configs[layer[0]][config])
            for layer, config in zip(layers, chosen, strict=True)
        ]
        shards = [len(parts) for layer in copies for parts in layer]
        if summed == "ring":
            expected = sum(size > 1 for size in shards)
        else:
            expected = 2 * sum(size - 1 for size in shards)
        assert kinds.count("synchronise") == expected


@pytest.mark.parametrize(("topology", "devices"), [("p100x16", 8), ("k80x64", 4)])
@pytest.mark.parametrize("name", SMALL)
def test_tables_equal_single_costs(name: str, topology: str, devices: int) -> None:
    model = SoapModel(SMALL[name](32), machine(topology, devices), space="unplaced")
    choose = random.Random(1)
    edges = [edge for edge, (_, _, read) in enumerate(model.reads) if not read.weights]
    for edge in choose.sample(edges, 3):
        table = flexflow_additive.transfer_table(model, edge)
        u, v = model.edges[edge]
        for _ in range(20):
            i, j = (choose.randrange(model.num_configs(node)) for node in (u, v))
            slow = flexflow_additive.transfer_seconds(
                model, edge, model.configs[u][i], model.configs[v][j]
            )
            assert table[i, j] == pytest.approx(slow, rel=1e-9, abs=1e-15)


# The searches -----------------------------------------------------------------------------------


@pytest.mark.mostly_slow("AlexNet-*", "NMT-*")
@pytest.mark.parametrize("summed", flexflow_model.SUMMED)
@pytest.mark.parametrize(("topology", "devices"), [("p100x16", 4), ("p100x16", 8), ("k80x64", 4)])
@pytest.mark.parametrize("name", SMALL)
def test_layer_wise_beats_every_single_strategy(
    name: str, topology: str, devices: int, summed: str
) -> None:
    network, where = SMALL[name](32 * devices), machine(topology, devices)
    model = SoapModel(network, where, space="unplaced", summed=summed)
    singles = {
        make.__name__: make(model)
        for make in (
            flexflow_experts.data_parallel,
            flexflow_experts.model_parallel,
            flexflow_experts.one_weird_trick,
        )
    }
    exact, costs = flexflow_evaluate.layer_wise(network, where, model, singles, False)
    assert costs.keys() == singles.keys()
    assert exact.additive <= min(costs.values())
    simulate_strategy(model, exact.strategy).check()


@pytest.mark.parametrize("name", SMALL)
def test_delta_equals_full_on_their_networks(name: str) -> None:
    model = SoapModel(SMALL[name](256), machine("p100x16", 8))
    start = flexflow_experts.data_parallel(model)
    speed = flexflow_evaluate.delta_speed(model, start, 60, seed=2)  # asserts that they are equal
    assert speed.proposals == 60
    assert speed.scheduled_share <= 1.0


@pytest.mark.parametrize("name", SMALL)
def test_sampling_is_at_least_as_good_as_every_start(name: str) -> None:
    where = machine("p100x16", 4)
    network = SMALL[name](256)
    model = SoapModel(network, where)
    starts = {
        "data parallel": flexflow_experts.data_parallel(model),
        "expert": flexflow_experts.layer_per_device(model),
    }
    exact, _ = flexflow_evaluate.layer_wise(network, where, model, starts, False)
    starts["layer-wise"] = exact.strategy
    layers = flexflow_evaluate.sample_layers(model, starts, 40, 1, 0, False)
    assert layers.start_costs.keys() == {*starts, "random 1"}
    assert layers.cost <= min(layers.start_costs.values())
    assert layers.cost == simulate_strategy(model, layers.strategy).makespan
    found = flexflow_evaluate.sample(model, layers, 40, 0, False)
    assert found.cost <= layers.cost
    assert found.cost == simulate_strategy(model, found.strategy).makespan


@pytest.mark.parametrize("name", ["RNNTC", "NMT"])
def test_layers_change_at_once(name: str) -> None:
    """The chain over layers has the cost of the strategy that it stands for, to the last bit."""
    model = SoapModel(SMALL[name](256), machine("p100x16", 4))
    layers, choose = model.network.layers, random.Random(7)
    sizes = [model.num_configs(layer[0]) for layer in layers]
    chain = flexflow_evaluate.LayerChain(model, [choose.randrange(size) for size in sizes])
    for _ in range(40):
        layer = choose.randrange(len(layers))
        changed = list(chain.strategy)
        changed[layer] = choose.randrange(sizes[layer])
        full = simulate_strategy(model, [changed[layer] for layer in model.layer_of]).makespan
        assert chain.propose(layer, changed[layer]) == full
        if choose.random() < 0.5:
            chain.accept()
            assert (chain.cost, chain.strategy) == (full, changed)
        else:
            chain.reject()


def test_sampling_reaches_the_best_of_all_simulated() -> None:
    """As in FlexFlow, section 8.4: on a small network the search finds the global optimum."""
    net = flexflow_networks.Layers("small", 64, 32)
    net.softmax(net.linear(net.conv(None, 64, 3, 2), 4096))
    model = SoapModel(net.network, machine("p100x16", 2))
    best = min(
        simulate_strategy(model, strategy).makespan
        for strategy in itertools.product(*map(range, model.sizes))
    )
    for seed in range(3):
        found = search(
            lambda strategy: SimulatedStrategy(model, strategy),
            model.sizes,
            random_strategies(model.sizes, 2, seed),
            Budget(proposals=500),
            seed=seed,
        )
        assert found.cost == best


def test_unlike_devices_are_told_apart() -> None:
    """The best of all strategies leaves a slow device out; work there takes as long as it takes."""
    fast = machine("p100x16", 2)
    slow = replace(fast.device, flops=fast.device.flops / 50, bandwidth=fast.device.bandwidth / 50)
    mixed = replace(fast, devices=(slow, fast.device))
    net = flexflow_networks.Layers("small", 64, 32)
    net.softmax(net.linear(net.conv(None, 64, 3, 2), 512))
    model, alike = (SoapModel(net.network, where) for where in (mixed, fast))
    best = min(
        itertools.product(*map(range, model.sizes)),
        key=lambda strategy: simulate_strategy(model, strategy).makespan,
    )
    assert all(model.configs[node][c].devices == (1,) for node, c in enumerate(best))
    assert simulate_strategy(model, best).makespan == simulate_strategy(alike, best).makespan
    moved = [model.place[n][replace(model.configs[n][c], devices=(0,))] for n, c in enumerate(best)]
    assert simulate_strategy(model, moved).makespan > 10 * simulate_strategy(model, best).makespan


def test_experts_place_a_layer_on_a_device() -> None:
    model = SoapModel(flexflow_rnns.rnntc(1024), preset("p100x16"))
    chosen = flexflow_experts.layer_per_device(model)
    devices = [model.configs[node][config].devices for node, config in enumerate(chosen)]
    for layer, operations in enumerate(model.network.layers):
        expected = tuple(layer % 4 + 4 * i for i in range(4))
        assert all(devices[node] == expected for node in operations)


def test_wrong_models_are_refused() -> None:
    with pytest.raises(ValueError, match="'guess'"):
        SoapModel(flexflow_rnns.rnntc(64), preset("p100x16"), summed="guess")
    with pytest.raises(ValueError, match="'everything'"):
        SoapModel(flexflow_rnns.rnntc(64), preset("p100x16"), space="everything")


# The scripts ------------------------------------------------------------------------------------


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), "--quick", "--quiet", *words],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("script", "last", "words"),
    [
        ("optcnn.py", "layer-wise", ["--network", "AlexNet", "--network", "VGG-16"]),
        ("flexflow.py", "MCMC", ["--network", "NMT", "--machine", "K80", "--proposals", "40"]),
    ],
)
def test_scripts(script: str, last: str, words: list[str]) -> None:
    done = run(script, *words, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert "simulated" in document["labels"]
    for evaluation in document["evaluations"]:
        rows = {row["name"]: row for row in evaluation["rows"]}
        assert list(rows)[-1] == last
        assert rows["data parallel"]["simulated"] >= rows[last]["simulated"]
        assert evaluation["failures"] == []
    assert all(figure["where"] for figure in document["published"])


def test_a_script_in_words() -> None:
    done = run("optcnn.py", "--network", "AlexNet", "--summed", "ring")
    assert done.returncode == 0, done.stderr
    assert "(simulated)" in done.stdout
    assert "Published, not measured here" in done.stdout
    assert run("flexflow.py", "--network", "LeNet").returncode == 2


def test_the_page(tmp_path: Path) -> None:
    """All steps leave a record and a section; a second run measures nothing again."""
    command = [sys.executable, "-m", "examples.reproduce.parallel", "--quick", "--quiet",
               "--threads", "1", "--out", str(tmp_path)]  # fmt: skip
    for _ in range(2):
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "9 of 9 cells are measured" in done.stderr
    page = (tmp_path / "parallel.md").read_text()
    for words in ("No GPU was run", "computing alone", "uneven degrees", "executing / simulating"):
        assert words in page
    lines = (tmp_path / "parallel.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert sum(record["kind"] == "cell" for record in records) == 9
