"""Layer-wise parallelism: how to split each layer of a model over the devices of a machine.

plan = hp.parallel.plan(model, data, "a100x8")
print(plan)
plan.save("plan.json")
"""

from hag_plugin.parallel.exact import InfeasibleError
from hag_plugin.parallel.opgraph import Op, OpGraph
from hag_plugin.parallel.partition_stats import GraphStats, measure
from hag_plugin.parallel.planner import LayerPlan, Plan, plan, recost
from hag_plugin.parallel.topology import Topology, preset, presets
from hag_plugin.parallel.trace_model import trace

__all__ = [
    "GraphStats",
    "InfeasibleError",
    "LayerPlan",
    "Op",
    "OpGraph",
    "Plan",
    "Topology",
    "measure",
    "plan",
    "preset",
    "presets",
    "recost",
    "trace",
]
