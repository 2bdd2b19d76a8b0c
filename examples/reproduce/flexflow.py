"""FlexFlow (arXiv 1807.05358) on its own terms, simulated: SOAP search against people's strategies.

    python examples/reproduce/flexflow.py --quick
    python examples/reproduce/flexflow.py --network NMT --devices 16 --proposals 5000 --json

Six networks on P100 (NVLink and 100 Gb/s InfiniBand) or K80 GPUs (PCIe and 56 Gb/s), 64 samples
each, 256 for AlexNet. Everything printed as ours is predicted from published peaks and links: no
GPU is run. Fails where the sampled strategy is slower than one it started from, or where delta and
full simulation differ in a bit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its folder is a package of the folder above
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "reproduce"

from .flexflow_command import Evaluation, arguments, finish, machine
from .flexflow_evaluate import delta_speed, layer_wise, outcome, sample
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


def evaluate(name: str, devices: int, args: Any) -> Evaluation:
    """All strategies of one network on a machine."""
    topology = machine("k80x64" if args.machine == "K80" else "p100x16", devices)
    batch = SAMPLES.get(name, 64) * devices
    network = NETWORKS[name](batch)
    model = SoapModel(network, topology, summed=args.summed)
    expert = one_weird_trick if name in CONVOLUTIONAL else layer_per_device
    singles = {"data parallel": data_parallel(model), "expert": expert(model)}
    exact, costs = layer_wise(network, topology, model, singles, not args.quiet)
    rows = [outcome(model, key, strategy, costs.get(key)) for key, strategy in singles.items()]
    rows.append(outcome(model, "layer-wise", exact.strategy, exact.additive))
    starts = {**singles, "layer-wise": exact.strategy}
    found = sample(model, starts, args.proposals, int(devices <= 4), args.seed, not args.quiet)
    rows.append(outcome(model, "MCMC", found.strategy, None))
    speed = delta_speed(model, exact.strategy, TIMED, args.seed)
    result = Evaluation(name, topology.name, batch, args.summed, rows)
    result.facts = {
        "table_seconds": exact.table_seconds, "search_seconds": exact.search_seconds,
        "mcmc_seconds": found.seconds, "proposals": found.proposals, "accepted": found.accepted,
        "best_start": found.best_start, "configurations": max(model.sizes),
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
    slowest = [row.name for row in rows[:-1] if rows[-1].simulated > row.simulated]
    result.failures += [f"MCMC is slower than {row}, where it started" for row in slowest]
    if rows[-1].simulated != found.cost:
        result.failures.append("delta and full simulation of the found strategy differ")
    return result


def main(words: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    args = arguments(__doc__, NETWORKS, words, devices=[4, 16], sampled=True)
    evaluations = [
        evaluate(name, devices, args) for name in args.network for devices in args.devices
    ]
    return finish(evaluations, FLEXFLOW, args)


if __name__ == "__main__":
    sys.exit(main())
