"""Layer-wise parallelism: how to split each layer of a model over the devices of a machine.

plan = hp.parallel.plan(model, data, "a100x8")
print(plan)
plan.save("plan.json")
"""

from hag_plugin.parallel.execution.checkpoint import load_checkpoint, save_checkpoint
from hag_plugin.parallel.execution.network import ParallelNetwork
from hag_plugin.parallel.execution.parallel_model import Parallel
from hag_plugin.parallel.execution.parallelize import parallelize
from hag_plugin.parallel.execution.share import Share, by_graph
from hag_plugin.parallel.graphs.partition import Partition, partition
from hag_plugin.parallel.graphs.stats import GraphStats, measure
from hag_plugin.parallel.graphs.store.partitioned_data import PartitionedData
from hag_plugin.parallel.graphs.store.write import write_partitions
from hag_plugin.parallel.machine.probe import probe_ranks
from hag_plugin.parallel.machine.topology import Topology, preset, presets
from hag_plugin.parallel.model.network import Network
from hag_plugin.parallel.model.opgraph import Op, OpGraph
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.elimination import InfeasibleError
from hag_plugin.parallel.search.network import NetworkPlan, OperationPlan
from hag_plugin.parallel.search.plan import LayerPlan, Plan
from hag_plugin.parallel.search.planner import plan, recost, space_of
from hag_plugin.parallel.simulation.mcmc import Budget
from hag_plugin.parallel.simulation.plan_tasks import simulate_plan
from hag_plugin.parallel.simulation.refine import Refined, refine

# isort: split
# What these consist of: pickles name it here, and files may move below. Not in `__all__`.
from hag_plugin.parallel.execution.share import _ByGraph as _ByGraph
from hag_plugin.parallel.graphs.stats import HagCounts as HagCounts
from hag_plugin.parallel.graphs.stats import PartitionStats as PartitionStats
from hag_plugin.parallel.graphs.stats import _AssumedCut as _AssumedCut
from hag_plugin.parallel.graphs.stats import _CutWithoutHags as _CutWithoutHags
from hag_plugin.parallel.graphs.stats import _MeasuredCut as _MeasuredCut
from hag_plugin.parallel.graphs.stats import _UncountedCut as _UncountedCut
from hag_plugin.parallel.graphs.store.manifest import Manifest as Manifest
from hag_plugin.parallel.graphs.store.manifest import Part as Part
from hag_plugin.parallel.graphs.store.part_files import FileRecord as FileRecord
from hag_plugin.parallel.layouts import Layout as Layout
from hag_plugin.parallel.machine.levels import Level as Level
from hag_plugin.parallel.machine.levels import Link as Link
from hag_plugin.parallel.machine.topology import Device as Device
from hag_plugin.parallel.machine.topology import Fit as Fit
from hag_plugin.parallel.model.layers import UnknownLayerError as UnknownLayerError
from hag_plugin.parallel.ranks.comm import Sent as Sent
from hag_plugin.parallel.search.cost import Seconds as Seconds
from hag_plugin.parallel.search.elimination import Choice as Choice
from hag_plugin.parallel.search.plan import Memory as Memory
from hag_plugin.parallel.simulation.mcmc import Search as Search
from hag_plugin.parallel.simulation.simulator import Schedule as Schedule
from hag_plugin.parallel.simulation.tasks import TaskGraph as TaskGraph
from hag_plugin.parallel.strategies.axes import Split as Split
from hag_plugin.parallel.strategies.registry import Config as Config

__all__ = [
    "Budget",
    "GraphStats",
    "InfeasibleError",
    "LayerPlan",
    "Network",
    "NetworkPlan",
    "Op",
    "OpGraph",
    "OperationPlan",
    "Parallel",
    "ParallelNetwork",
    "Partition",
    "PartitionedData",
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
    "write_partitions",
]
