"""What a larger space is worth: any degrees and any devices, beside powers of two on grids."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

from examples.benchmark.results import Record
from examples.benchmark.tables import duration, markdown, times

from . import flexflow
from .flexflow_command import Setting, machine
from .flexflow_evaluate import layer_wise, moved, outcome, sample
from .flexflow_experts import data_parallel, layer_per_device, one_weird_trick
from .flexflow_model import SoapModel
from .hag_run import Setup, Step

NETWORKS = ("AlexNet", "RNNTC", "NMT")
DEVICES, PROPOSALS = 4, 1200


def cells(setup: Setup) -> list[Record]:
    """Four GPUs with so few samples that there is something to gain."""
    return [
        {"network": network, "machine": name, "samples": samples,
         "proposals": 30 if setup.quick else PROPOSALS, "seed": setup.seed}
        for name in ("P100", "K80")
        for network in (NETWORKS[:1] if setup.quick else NETWORKS)
        for samples in (4, 16)
    ]  # fmt: skip


def measure(cell: Record, setup: Setup) -> Record:
    """The best on grids, then as many proposals again in each of the two spaces."""
    name, where = cell["network"], machine(cell["machine"], DEVICES)
    network = flexflow.NETWORKS[name](cell["samples"] * DEVICES)
    grids, every = (SoapModel(network, where, space=space) for space in ("grids", "any"))
    expert = one_weird_trick if name in flexflow.CONVOLUTIONAL else layer_per_device
    singles = {"data parallel": data_parallel(grids), "expert": expert(grids)}
    exact, _ = layer_wise(network, where, grids, singles, False)
    setting = Setting(name, cell["machine"], DEVICES, proposals=cell["proposals"],
                      seed=cell["seed"])  # fmt: skip
    starts = {**singles, "layer-wise": exact.strategy}
    *_, (_, found) = flexflow.searches(grids, starts, setting, False)
    again = sample(grids, found, cell["proposals"], cell["seed"] + 1, False)
    found.strategy = moved(grids, every, found.strategy)
    larger = sample(every, found, cell["proposals"], cell["seed"] + 1, False)
    used = [every.configs[node][config] for node, config in enumerate(larger.strategy)]
    alone = {key: outcome(grids, key, strategy, None) for key, strategy in starts.items()}
    return {
        "people": min(alone[key].simulated for key in singles),
        "layers": alone["layer-wise"].simulated,
        "grids": found.cost, "again": again.cost, "any": larger.cost,
        "configurations": [max(grids.sizes), max(every.sizes)],
        "uneven": sum(any(d & (d - 1) for d in config.degrees) for config in used),
        "partly": sum(config.parts < DEVICES for config in used), "operations": len(used),
    }  # fmt: skip


def section(records: Sequence[Record]) -> str:
    """Markdown."""
    lines = [
        [
            f"{r['cell']['network']}, {r['cell']['machine']}, {r['cell']['samples']} samples a GPU",
            *(duration(r[key]) for key in ("people", "layers", "grids", "again", "any")),
            times(r["people"] / r["any"]), times(r["layers"] / r["any"]),
            times(r["again"] / r["any"]), f"{r['uneven']} of {r['operations']}",
            f"{r['partly']} of {r['operations']}", " and ".join(map(str, r["configurations"])),
        ]
        for r in records
    ]  # fmt: skip
    header = [
        "network", "best of people's, ms", "layer-wise, ms", "grids, ms",
        "grids, as many proposals again, ms", "any, ms", "best of people's / any",
        "layer-wise / any", "grids again / any", "operations with uneven degrees",
        "on fewer than all GPUs",
        "configurations of an operation",
    ]  # fmt: skip
    return markdown(header, lines)


STEP = Step(
    name="flexflow_space",
    title="The space: uneven degrees and any devices",
    published="any degree in each dimension, any devices (FlexFlow, section 4)",
    departures=(
        "On four GPUs, where all degrees and all orders of all subsets of the devices can be "
        "listed; with few samples, so that data parallelism leaves something to gain.",
    ),
    timed=False,
    cells=cells,
    measure=measure,
    section=section,
)

if __name__ == "__main__":
    from .hag_run import main
    from .parallel import PAGE, STEPS

    sys.exit(main(STEPS, ["flexflow_space", *sys.argv[1:]], PAGE))
