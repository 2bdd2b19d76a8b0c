"""Plans that treat all layers alike: what a plan is compared with."""

from __future__ import annotations

from hag_plugin.parallel.layouts import even
from hag_plugin.parallel.machine.topology import Topology
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.search.cost import ComputeCost, message_seconds
from hag_plugin.parallel.search.elimination import Choice, InfeasibleError
from hag_plugin.parallel.search.space import Space
from hag_plugin.parallel.strategies.convolution import AGGREGATE
from hag_plugin.parallel.strategies.registry import Config

UNIFORM = ("convolution", "attention")  # kinds that a uniform strategy is about


def baselines(graph: OpGraph, topology: Topology, compute: ComputeCost) -> dict[str, float]:
    """Predicted seconds of plans that treat all layers alike, memory left out of account.

    "all-gather": nodes split, all rows sent to all, aggregate-first (1-D of CAGNET, arXiv
    2005.03300). "halo": nodes split, rows sent to those who read them. "data parallel": every
    device has the whole graph, and gradients are summed, as DistributedDataParallel does.
    """
    found: dict[str, float] = {}
    for name, strategy in (("all-gather", "rows, all-gather"), ("halo", "rows, halo")):
        choice = uniform(graph, topology, compute, strategy, name == "all-gather")
        if choice is not None:
            found[name] = choice.cost
    whole = uniform(graph, topology, compute, "replicate", everywhere=True)
    if whole is not None:
        values = sum(op.weights + op.biases for op in graph.ops) * graph.itemsize
        gradients = even("all_reduce", values, topology.num_devices, "update")
        found["data parallel"] = whole.cost + message_seconds(topology, gradients)
    return found


def uniform(
    graph: OpGraph,
    topology: Topology,
    compute: ComputeCost,
    strategy: str,
    aggregate_first: bool = False,
    everywhere: bool = False,
) -> Choice | None:
    """The cheapest plan that gives all convolutions one strategy; None where one cannot have it.

    Args:
        graph: the model.
        topology: the machine.
        compute: what computation costs.
        strategy: of all convolutions and attention; everything else is chosen around it.
        aggregate_first: do not transform first.
        everywhere: of all other operations, too; without HAGs.
    """

    def allow(i: int, config: Config) -> bool:
        op = graph.ops[i]
        if op.kind == "input":
            return True
        if aggregate_first and config.order not in ("", AGGREGATE):
            return False
        if config.hag != "off":
            return False
        return config.strategy == strategy or not (everywhere or op.kind in UNIFORM)

    try:
        return Space(graph, topology, compute, allow).cheapest()
    except InfeasibleError:
        return None
