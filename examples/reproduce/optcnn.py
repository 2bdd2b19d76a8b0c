"""OptCNN (arXiv 1802.04924) on its own terms, simulated: layer-wise against single strategies.

    python examples/reproduce/optcnn.py --quick
    python examples/reproduce/optcnn.py --network VGG-16 --summed ring --json

AlexNet, VGG-16, Inception-v3 and ResNet-101 with their true shapes on P100 GPUs, 32 samples each.
Everything printed as ours is predicted from published peaks and links: no GPU is run. Fails where
the exact layer-wise optimum costs more than a single strategy.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

from .flexflow_command import Evaluation, Setting, arguments, finish, settings
from .flexflow_evaluate import layer_wise, outcome
from .flexflow_experts import data_parallel, model_parallel, one_weird_trick
from .flexflow_model import SoapModel
from .flexflow_networks import alexnet, inception_v3, resnet101, vgg16
from .flexflow_published import OPTCNN

NETWORKS = {
    "AlexNet": alexnet, "VGG-16": vgg16, "Inception-v3": inception_v3, "ResNet-101": resnet101,
}  # fmt: skip
SAMPLES = 32  # of a GPU


def evaluate(setting: Setting, progress: bool = False) -> Evaluation:
    """All strategies of one network on a machine."""
    topology, batch = setting.topology, SAMPLES * setting.devices
    network = NETWORKS[setting.network](batch)
    model = SoapModel(network, topology, space="unplaced", summed=setting.summed)
    singles = {
        "data parallel": data_parallel(model),
        "model parallel": model_parallel(model),
        "one weird trick": one_weird_trick(model),
    }
    exact, costs = layer_wise(network, topology, model, singles, progress)
    rows = [outcome(model, key, strategy, costs[key]) for key, strategy in singles.items()]
    rows.append(outcome(model, "layer-wise", exact.strategy, exact.additive))
    result = Evaluation(setting.network, topology.name, batch, setting.summed, rows)
    result.facts = {
        "table_seconds": exact.table_seconds, "search_seconds": exact.search_seconds,
        "elimination_width": exact.width, "configurations": max(model.sizes),
        "operations": len(model.names),
    }  # fmt: skip
    best = min(costs.values())
    if not exact.additive <= best:
        result.failures.append(f"layer-wise costs {exact.additive} s, a single strategy {best} s")
    return result


def main(words: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    args = arguments(__doc__, NETWORKS, words, devices=[4, 16])
    evaluations = [evaluate(setting, not args.quiet) for setting in settings(args)]
    return finish(evaluations, OPTCNN, args)


if __name__ == "__main__":
    sys.exit(main())
