"""Layer-wise parallelism: how to split each layer of a model over the devices of a machine.

plan = hp.parallel.plan(model, data, "a100x8")
print(plan)
plan.save("plan.json")
"""

from hag_plugin.parallel.execution.checkpoint import load_checkpoint, save_checkpoint
from hag_plugin.parallel.execution.parallel_model import Parallel
from hag_plugin.parallel.execution.parallelize import parallelize
from hag_plugin.parallel.execution.share import Share, by_graph
from hag_plugin.parallel.graphs.partition import Partition, partition
from hag_plugin.parallel.graphs.stats import GraphStats, measure
from hag_plugin.parallel.machine.probe import probe_ranks
from hag_plugin.parallel.machine.topology import Topology, preset, presets
from hag_plugin.parallel.model.opgraph import Op, OpGraph
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.elimination import InfeasibleError
from hag_plugin.parallel.search.plan import LayerPlan, Plan
from hag_plugin.parallel.search.planner import plan, recost, space_of
from hag_plugin.parallel.simulation.mcmc import Budget
from hag_plugin.parallel.simulation.plan_tasks import simulate_plan
from hag_plugin.parallel.simulation.refine import Refined, refine

__all__ = [
    "Budget",
    "GraphStats",
    "InfeasibleError",
    "LayerPlan",
    "Op",
    "OpGraph",
    "Parallel",
    "Partition",
    "Plan",
    "Refined",
    "Share",
    "Topology",
    "by_graph",
    "load_checkpoint",
    "measure",
    "parallelize",
    "partition",
    "plan",
    "preset",
    "presets",
    "probe_ranks",
    "recost",
    "refine",
    "save_checkpoint",
    "simulate_plan",
    "space_of",
    "trace",
]
