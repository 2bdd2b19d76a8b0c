"""FlexFlow (arXiv 1807.05358) on its own terms, simulated: SOAP search against people's strategies.

    python examples/reproduce/flexflow.py --quick
    python examples/reproduce/flexflow.py --network NMT --devices 16 --proposals 5000 --json

Six networks on P100 (NVLink and 100 Gb/s InfiniBand) or K80 GPUs (PCIe and 56 Gb/s), 64 samples
each, 256 for AlexNet. The search runs in three spaces, each a part of the next: without the
operation dimension, with a configuration for each layer, with one for each operation. Everything
printed as ours is predicted from published peaks and links: no GPU is run. Fails where the sampled
strategy is slower than one it started from, or where delta and full simulation differ in a bit.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

from .flexflow_command import Evaluation, Setting, arguments, finish, settings
from .flexflow_evaluate import (
    delta_speed,
    layer_wise,
    moved,
    outcome,
    sample,
    sample_layers,
)
from .flexflow_experts import data_parallel, layer_per_device, one_weird_trick
from .flexflow_model import SoapModel
from .flexflow_networks import alexnet, inception_v3, resnet101
from .flexflow_published import FLEXFLOW
from .flexflow_rnns import nmt, rnnlm, rnntc

NETWORKS = {
    "AlexNet": alexnet, "Inception-v3": inception_v3, "ResNet-101": resnet101, "RNNTC": rnntc,
    "RNNLM": rnnlm, "NMT": nmt,
}  # fmt: skip
CONVOLUTIONAL = ("AlexNet", "Inception-v3", "ResNet-101")
SAMPLES = {"AlexNet": 256}  # of a GPU; 64 for the others
TIMED = 40  # proposals on which delta and full simulation are compared


def evaluate(setting: Setting, progress: bool = False) -> Evaluation:
    """All strategies of one network on a machine."""
    name, topology, devices = setting.network, setting.topology, setting.devices
    batch = SAMPLES.get(name, 64) * devices
    network = NETWORKS[name](batch)
    model = SoapModel(network, topology, summed=setting.summed)
    expert = one_weird_trick if name in CONVOLUTIONAL else layer_per_device
    singles = {"data parallel": data_parallel(model), "expert": expert(model)}
    exact, costs = layer_wise(network, topology, model, singles, progress)
    rows = [outcome(model, key, strategy, costs.get(key)) for key, strategy in singles.items()]
    rows.append(outcome(model, "layer-wise", exact.strategy, exact.additive))
    starts = {**singles, "layer-wise": exact.strategy}
    budget, seed = setting.proposals, setting.seed
    unplaced = SoapModel(network, topology, placed=False, summed=setting.summed)
    first = {key: moved(model, unplaced, starts[key]) for key in ("data parallel", "layer-wise")}
    kept = sample_layers(unplaced, first, budget // 2, 0, seed, progress)
    rows.append(outcome(unplaced, "MCMC, no placement", kept.strategy, None))
    coarse = sample_layers(model, starts, budget // 2, int(devices <= 4), seed, progress)
    rows.append(outcome(model, "MCMC, by layer", coarse.strategy, None))
    found = sample(model, coarse, budget - budget // 2, seed, progress)
    rows.append(outcome(model, "MCMC", found.strategy, None))
    speed = delta_speed(model, exact.strategy, TIMED, seed)
    result = Evaluation(name, topology.name, batch, setting.summed, rows)
    result.facts = {
        "table_seconds": exact.table_seconds, "search_seconds": exact.search_seconds,
        "mcmc_seconds": found.seconds, "proposals": found.proposals, "accepted": found.accepted,
        "best_start": found.best_start,
        "history": [(tried, cost) for tried, _, cost in found.history],
        "full_seconds": speed.full_seconds / TIMED, "delta_seconds": speed.delta_seconds / TIMED,
        "configurations": max(model.sizes),
        "operations": len(model.names), "tasks": speed.tasks,
        "delta_times_faster_than_full": speed.full_seconds / speed.delta_seconds,
        "delta_scheduled_share": speed.scheduled_share,
        "strategy": {
            operation: str(own[config])
            for operation, own, config in zip(
                model.names, model.configs, found.strategy, strict=True
            )
        },
    }  # fmt: skip
    faster = [row for row in rows[:-1] if rows[-1].simulated > row.simulated]
    result.failures += [
        f"MCMC is slower than {row.name}, where it started"
        for row in faster
        if row.name != "MCMC, no placement"
    ]
    if rows[-1].simulated != found.cost:
        result.failures.append("delta and full simulation of the found strategy differ")
    return result


def main(words: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    args = arguments(__doc__, NETWORKS, words, devices=[4, 16], sampled=True)
    evaluations = [evaluate(setting, not args.quiet) for setting in settings(args)]
    return finish(evaluations, FLEXFLOW, args)


if __name__ == "__main__":
    sys.exit(main())
