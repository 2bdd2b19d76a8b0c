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
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

from hag_plugin.parallel.simulation.mcmc import Search

from .flexflow_command import Evaluation, Setting, arguments, finish, settings
from .flexflow_evaluate import (
    computing_seconds,
    delta_speed,
    followed,
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
    found = None
    for key, search in searches(model, {**singles, "layer-wise": exact.strategy}, setting,
                                progress):  # fmt: skip
        found = search if found is None else followed(found, search)
        rows.append(outcome(model, key, search.strategy, None))
    assert found is not None
    seed = setting.seed
    speed = delta_speed(model, exact.strategy, TIMED, seed)
    result = Evaluation(name, topology.name, batch, setting.summed, rows)
    result.facts = {
        "table_seconds": exact.table_seconds, "search_seconds": exact.search_seconds,
        "mcmc_seconds": found.seconds, "proposals": found.proposals, "accepted": found.accepted,
        "best_start": found.best_start,
        "history": [(tried, cost) for tried, _, cost in found.history],
        "full_seconds": speed.full_seconds / TIMED, "delta_seconds": speed.delta_seconds / TIMED,
        "computing_seconds": computing_seconds(model, singles["data parallel"]),
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
    slowest = [row.name for row in rows[:-1] if rows[-1].simulated > row.simulated]
    result.failures += [f"MCMC is slower than {row}, where it started" for row in slowest]
    if rows[-1].simulated != found.cost:
        result.failures.append("delta and full simulation of the found strategy differ")
    return result


def searches(
    model: SoapModel, starts: dict[str, list[int]], setting: Setting, progress: bool
) -> Iterator[tuple[str, Search]]:
    """FlexFlow's search in three spaces, from the best of each into the next, larger one.

    Each has a third of the proposals: all of them in the largest space find less.
    """
    unplaced = SoapModel(model.network, model.topology, space="unplaced", summed=model.summed)
    first = {
        name: moved(model, unplaced, strategy)
        for name, strategy in starts.items()
        if name == "layer-wise" or name == "data parallel"
    }
    share = setting.proposals // 3
    found = sample_layers(unplaced, first, share, 0, setting.seed, progress)
    found.strategy = moved(unplaced, model, found.strategy)
    yield "MCMC, no placement", found
    starts = {"expert": starts["expert"], found.best_start: found.strategy}
    randoms = int(setting.devices <= 4)
    found = sample_layers(model, starts, share, randoms, setting.seed, progress)
    yield "MCMC, by layer", found
    share = setting.proposals - 2 * share
    yield "MCMC", sample(model, found, share, setting.seed, progress)


def main(words: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    args = arguments(__doc__, NETWORKS, words, devices=[4, 16], sampled=True)
    evaluations = [evaluate(setting, not args.quiet) for setting in settings(args)]
    return finish(evaluations, FLEXFLOW, args)


if __name__ == "__main__":
    sys.exit(main())
