"""The model, the graph or inputs, the machine and the plan that plan, explain-plan, probe and
simulate are about.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hag_plugin.adapters import frameworks
from hag_plugin.arguments import brief
from hag_plugin.cli.options import add_ids, amount, natural, positive
from hag_plugin.data import datasets
from hag_plugin.data.graph_data import GraphData
from hag_plugin.files import DatasetError, read_json
from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.graphs.store.partitioned_data import PartitionedData
from hag_plugin.parallel.machine import topology as topologies
from hag_plugin.parallel.model.network import Network
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.cost import MODES
from hag_plugin.parallel.search.elimination import InfeasibleError
from hag_plugin.parallel.search.network import FORMAT, NetworkPlan
from hag_plugin.parallel.search.plan import Plan

MODELS = ("gcn", "sage", "gin", "gat")
MODEL_HELP = (
    f"{', '.join(MODELS)} (see --hidden, --layers), or FILE.py:NAME, a module or a function "
    "without arguments that makes one"
)


def add_graph(parser: Any, topology: str | None = "a100x8") -> None:
    """Adds what says which graph, model size and machine a plan is for.

    Args:
        parser: of the command.
        topology: the machine by default; None: that of the plan that the command is given.
    """
    parser.add_argument("--root", metavar="DIR", help="folder of TU, Planetoid or .npz datasets")
    add_ids(parser)
    parser.add_argument("--partitions", metavar="DIR", help="in place of a graph: a store, as "
                        "partition makes; --devices are its parts")  # fmt: skip
    parser.add_argument("--nodes", type=positive, help="of a graph that is known by its size only")
    parser.add_argument("--edges", type=natural, help="likewise")
    parser.add_argument("--halo-ratio", type=amount, default=1.0, metavar="R",
                        help="rows a part reads from others, over its own (default 1)")  # fmt: skip
    add_sizes(parser)
    default = topology or "the plan's"
    parser.add_argument("--topology", default=topology, metavar="NAME", help="a file, or one of "
                        f"{', '.join(topologies.presets())} (default {default})")  # fmt: skip
    parser.add_argument("--devices", type=positive, metavar="P", help="use so many of its devices")
    parser.add_argument("--costs", choices=MODES, default="analytic", help="default analytic; the "
                        "others run blocks of the model on this machine")  # fmt: skip


def add_inputs(parser: Any) -> None:
    """Adds what a model without a graph is called with."""
    parser.add_argument(
        "--inputs",
        nargs="+",
        type=shape,
        metavar="SHAPE",
        help="in place of a graph, of a model without one: the shape of each tensor that it is "
        "called with, and its type where that is not float32: 64x3x32x32 64:int64",
    )


def shape(text: str) -> tuple[list[int], torch.dtype]:
    """A tensor's shape and type: 64x3x32x32, or 64x20:int64."""
    sizes, _, name = text.partition(":")
    dtype = getattr(torch, name or "float32", None)
    numbers = [int(n) if n.isdecimal() else 0 for n in sizes.split("x")]
    if not (isinstance(dtype, torch.dtype) and all(numbers)):
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected a shape, such as 64x3x32x32, or one with a type, 64x20:int64"
        )
    return numbers, dtype


def add_sizes(parser: Any) -> None:
    """Adds the options that say how wide and deep a named model is."""
    parser.add_argument("--features", type=positive, metavar="F", help="width of the input, where "
                        "the graph has no features (default 128)")  # fmt: skip
    parser.add_argument("--hidden", type=positive, default=256,
                        help="of a named model (default 256)")  # fmt: skip
    parser.add_argument("--layers", type=positive, default=3,
                        help="of a named model (default 3)")  # fmt: skip
    parser.add_argument(
        "--classes", type=positive, help="of a named model (default: the graph's, or 16)"
    )


@contextmanager
def in_words() -> Iterator[None]:
    """Turns what a library call raises into what the command line reports."""
    try:
        yield
    except InfeasibleError as e:
        raise RuntimeError(str(e)) from e
    except (ValueError, TypeError) as e:
        raise DatasetError(str(e)) from e


def graph_of(args: argparse.Namespace) -> OpGraph | Network:
    """The operations of the model that was asked for, on the graph or the inputs that were."""
    hag = getattr(args, "hag", "auto") == "auto"
    data: Any
    if getattr(args, "inputs", None):
        return trace(_without_graph(args), _inputs(args), hag=hag)
    if args.partitions is not None:
        if args.graph is not None:
            raise ValueError(f"a graph, {args.graph}, and --partitions are given; expected one")
        data = PartitionedData(args.partitions)
        args.devices = args.devices or data.ranks
        features, classes = _width(data) or args.features or 128, args.classes or 16
    elif args.graph is None:
        if args.nodes is None or args.edges is None:
            raise ValueError("no graph is given; expected one, --partitions, or --nodes and "
                             "--edges; of a model without a graph --inputs")  # fmt: skip
        data = GraphStats.assumed(args.nodes, args.edges, halo_ratio=args.halo_ratio)
        features, classes = args.features or 128, args.classes or 16
    else:
        data = datasets.load(
            args.graph, args.root, relabel=args.relabel, undirected=args.undirected
        )
        print(f"{data.name}: {data.source}", file=sys.stderr)
        features, classes = widths_of(args, data)
    model = model_of(args, features, classes)
    if "dgl" not in frameworks(model):
        return trace(model, data, features=features, hag=hag)
    if not isinstance(data, GraphData):
        raise ValueError(f"model {args.model} is of DGL's layers; expected a graph to plan it for, "
                         "not --partitions or --nodes")  # fmt: skip
    return _trace_dgl(model, data, features, hag)


def _trace_dgl(model: Any, data: GraphData, features: int, hag: bool) -> OpGraph:
    """Of a model that takes a DGL graph; features that it has not are left without values."""
    import dgl

    x = torch.empty(data.num_nodes, features) if data.x is None else data.x
    graph = dgl.graph(tuple(data.edge_index), num_nodes=data.num_nodes)
    return trace(model, (graph, x), hag=hag)


def _without_graph(args: argparse.Namespace) -> Any:
    """The model that was asked for with inputs."""
    others = ("graph", "partitions", "nodes", "edges")
    given = [name for name in others if getattr(args, name) is not None]
    if given:
        raise ValueError(f"{' and '.join([*given, 'inputs'])} are given; expected a graph, or the "
                         "inputs of a model without one")  # fmt: skip
    if args.model in MODELS:
        raise ValueError(f"model is {args.model!r}, which takes a graph; expected one, or FILE.py:"
                         "NAME of a model without")  # fmt: skip
    return model_of(args, 0, 0)


def _inputs(args: argparse.Namespace) -> tuple[torch.Tensor, ...]:
    """Tensors of the shapes that were asked for; their values do not matter."""
    return tuple(torch.empty(sizes, dtype=dtype) for sizes, dtype in args.inputs)


def plan_in(path: str) -> Plan | NetworkPlan:
    """The plan in a file, of a model on a graph or of one without.

    Raises:
        OSError: the file can't be opened or read.
        ValueError: it is no plan.
    """
    document = read_json(path)
    without = isinstance(document, dict) and document.get("format") == FORMAT
    return NetworkPlan.load(path) if without else Plan.load(path)


def check_plan(found: Plan | NetworkPlan, graph: OpGraph | Network) -> None:
    """Raises ValueError where a plan is of a model on a graph and this one is not, or the like."""
    without = isinstance(found, NetworkPlan)
    if without != isinstance(graph, Network):
        words = "without a graph; expected its --inputs" if without else (
            "on a graph; expected that, not --inputs")  # fmt: skip
        raise ValueError(f"the plan is for a model {words}")


def widths_of(args: argparse.Namespace, data: GraphData) -> tuple[int, int]:
    """Features and classes: those of a graph, or else those that were asked for."""
    features = data.x.shape[1] if data.x is not None else args.features or 128
    return features, args.classes or (data.num_classes if data.y is not None else 16)


def _width(data: PartitionedData) -> int | None:
    x = data.manifest.parts[0].files.get("x")
    return x.shape[1] if x is not None and len(x.shape) > 1 else None


def model_of(args: argparse.Namespace, features: int, classes: int) -> Any:
    """The model that was asked for."""
    name = args.model
    path, colon, attribute = name.rpartition(":")
    if colon:
        return _from_file(path, attribute)
    if name not in MODELS:
        raise ValueError(f"model is {name!r}; expected one of {MODELS}, or FILE.py:NAME")
    from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

    make: Callable[..., Any] = dict(zip(MODELS, (GCN, GraphSAGE, GIN, GAT), strict=True))[name]
    more = {"heads": 4} if name == "gat" else {}
    return make(features, args.hidden, args.layers, classes, **more)


def _from_file(path: str, attribute: str) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path!r}")
    spec = importlib.util.spec_from_file_location("hag_plugin_user_model", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    _of_user(path, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    if not hasattr(module, attribute):
        raise ValueError(f"{path} has no {attribute!r}")
    found = getattr(module, attribute)
    if not isinstance(found, torch.nn.Module):
        if not callable(found):
            raise ValueError(f"{attribute} in {path} is {brief(found)}; expected a module, or a "
                             "function that makes one")  # fmt: skip
        found = _of_user(f"{path}:{attribute}", found)
    if not isinstance(found, torch.nn.Module):
        raise ValueError(f"{attribute} in {path} makes {brief(found)}; expected a module")
    return found


def _of_user(what: str, run: Callable[[], Any]) -> Any:
    """What a user's own code gives; what it raises is told in a line, with its place."""
    try:
        return run()
    except Exception as e:
        places = traceback.extract_tb(e.__traceback__)
        last = f", line {places[-1].lineno} of {places[-1].filename}" if len(places) > 1 else ""
        raise ValueError(f"{what} can't be run: {type(e).__name__}: {e}{last}") from e
