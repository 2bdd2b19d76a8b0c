"""`hag-plugin plan`, `explain-plan` and `probe`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hag_plugin import datasets
from hag_plugin.files import check_output, write_whole
from hag_plugin.graph_arguments import add_ids
from hag_plugin.graph_data import DatasetError
from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.machine import topology as topologies
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.blocks import measure_blocks
from hag_plugin.parallel.search.cost import MODES, Measured
from hag_plugin.parallel.search.elimination import InfeasibleError
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import alternatives, plan, recost, space_of
from hag_plugin.units import milliseconds

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MODELS = ("gcn", "sage", "gin", "gat")
MODEL_HELP = (
    f"{', '.join(MODELS)} (see --hidden, --layers), or FILE.py:NAME, a module or a function "
    "without arguments that makes one"
)
PLAN_EXAMPLES = [
    "gcn cora.npz --topology a100x8 -o plan.json",
    "train.py:model graph.npz --topology 4x8hdr --memory 70GiB",
    "sage --nodes 2400000 --edges 120000000 --halo-ratio 2 --features 100 --topology a100x8",
]
EXPLAIN_EXAMPLES = ["plan.json", "plan.json gcn cora.npz --topology a100x8"]
PROBE_EXAMPLES = [
    "-o machine.json",
    "--world-sizes 2 4 -o machine.json",
    "--backend nccl --json",
    "--model gcn --graph cora.npz --devices 4",
]


def add_plan(command: Any, commands: Any) -> None:
    """Adds `plan` to the subcommands; `command` makes one."""
    parser = command(
        commands,
        "plan",
        run_plan,
        "Choose how to split each layer of a model over the devices of a machine. The plan is "
        "optimal under an additive cost; all its figures are predicted.",
        PLAN_EXAMPLES,
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("graph", nargs="?", help="as for stats; or --nodes and --edges")
    add_graph(parser)
    parser.add_argument("--memory", type=size, metavar="BYTES", help="of each device, 70GiB, say; "
                        "by default what the topology says")  # fmt: skip
    parser.add_argument("--require", nargs="*", default=[], metavar="LAYER=STRATEGY",
                        help="the strategy of some layers")  # fmt: skip
    parser.add_argument("--hag", choices=("auto", "off"), default="auto",
                        help="auto: the search decides (default)")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE.json", help="plan to write")
    parser.add_argument("--json", action="store_true", help="the plan as JSON on stdout")


def add_explain(command: Any, commands: Any) -> None:
    """Adds `explain-plan` to the subcommands."""
    parser = command(
        commands,
        "explain-plan",
        run_explain,
        "Print a plan as a table. With the model and the graph it is checked and priced anew, and "
        "every layer's other strategies are listed with what they would cost, or why they are "
        "refused.",
        EXPLAIN_EXAMPLES,
    )
    parser.add_argument("plan", help="plan file")
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    parser.add_argument("graph", nargs="?", help="as for plan")
    add_graph(parser)
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")


def add_probe(command: Any, commands: Any) -> None:
    """Adds `probe` to the subcommands."""
    parser = command(
        commands,
        "probe",
        run_probe,
        "Measure this machine: products and sums of a device while all work, and a line of "
        "seconds over bytes for every collective and world size. Writes a topology for plan. With "
        "--model, the blocks of a model instead, each once; plan and simulate use them with "
        "--costs measured.",
        PROBE_EXAMPLES,
    )
    parser.add_argument("--world-sizes", nargs="+", type=int, default=[2], metavar="N",
                        help="numbers of processes (default 2)")  # fmt: skip
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="default gloo")
    parser.add_argument("--largest", type=size, default=1 << 24, metavar="BYTES",
                        help="largest message (default 16MiB)")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE.json", help="topology to write")
    parser.add_argument("--model", help=f"measure its blocks: {MODEL_HELP}")
    parser.add_argument("--graph", help="with --model, as for plan")
    add_graph(parser)
    parser.add_argument("--json", action="store_true", help="the topology as JSON on stdout")


def add_graph(parser: Any) -> None:
    """Adds what says which graph, model size and machine a plan is for."""
    parser.add_argument("--root", metavar="DIR", help="folder of TU, Planetoid or .npz datasets")
    add_ids(parser)
    parser.add_argument("--nodes", type=int, help="of a graph that is known by its size only")
    parser.add_argument("--edges", type=int, help="likewise")
    parser.add_argument("--halo-ratio", type=float, default=1.0, metavar="R",
                        help="rows a part reads from others, over its own (default 1)")  # fmt: skip
    parser.add_argument("--features", type=int, metavar="F", help="width of the input, where the "
                        "graph has no features (default 128)")  # fmt: skip
    parser.add_argument("--hidden", type=int, default=256, help="of a named model (default 256)")
    parser.add_argument("--layers", type=int, default=3, help="of a named model (default 3)")
    parser.add_argument(
        "--classes", type=int, help="of a named model (default: the graph's, or 16)"
    )
    parser.add_argument("--topology", default="a100x8", metavar="NAME", help="a file, or one of "
                        f"{', '.join(topologies.presets())} (default a100x8)")  # fmt: skip
    parser.add_argument("--devices", type=int, metavar="P", help="use so many of its devices")
    parser.add_argument("--costs", choices=MODES, default="analytic", help="default analytic; the "
                        "others run blocks of the model on this machine")  # fmt: skip


def size(text: str) -> int:
    """Bytes: a number with a unit, 70GiB or 512M; units are binary."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}; expected bytes, such as 70GiB or 512M")
    return int(float(match[1]) * UNITS[match[2].upper()])


# Running --------------------------------------------------------------------------------------


@contextmanager
def in_words() -> Iterator[None]:
    """Turns what a library call raises into what the command line reports."""
    try:
        yield
    except InfeasibleError as e:
        raise RuntimeError(str(e)) from e
    except (ValueError, TypeError) as e:
        raise DatasetError(str(e)) from e


def run_plan(args: argparse.Namespace) -> dict[str, Any]:
    """Plans, and writes the plan if asked to."""
    with in_words():
        required = dict(_pair(text) for text in args.require)
        if args.output:
            check_output(args.output, (".json",), "file")
        graph = graph_of(args)
        found = plan(
            graph,
            topology=args.topology,
            world_size=args.devices,
            hag=args.hag,
            memory=args.memory,
            costs=args.costs,
            require=required,
        )
        if args.output:
            found.save(args.output)
    words = f"\n\nwritten to {args.output}" if args.output else ""
    return {"result": {"plan": found.as_dict()}, "text": f"{found}{words}"}


def run_explain(args: argparse.Namespace) -> dict[str, Any]:
    """Prints a plan; with a model, checks it and lists what else there is."""
    with in_words():
        found = Plan.load(args.plan)
        if args.model is None:
            return {"result": {"plan": found.as_dict()}, "text": str(found)}
        graph = graph_of(args)
        found = recost(found, graph, args.topology, args.costs)
        others = alternatives(found, graph, args.topology, args.costs)
    lines = [str(found), "", "each layer's other strategies (predicted for the whole step, the "
             "rest of the plan adapted):"]  # fmt: skip
    for layer, entries in others.items():
        lines.append(f"  {layer}")
        for name, seconds in sorted(entries.items(), key=lambda e: (isinstance(e[1], str), e[0])):
            told = seconds if isinstance(seconds, str) else f"{milliseconds(seconds)} ms"
            lines.append(f"    {name}: {told}")
    result = {"plan": found.as_dict(), "alternatives": others}
    return {"result": result, "text": "\n".join(lines)}


def run_probe(args: argparse.Namespace) -> dict[str, Any]:
    """Measures this machine, and writes its topology if asked to."""
    if args.model is not None:
        return run_probe_model(args)
    from hag_plugin.parallel.machine.probe import SIZES, probe  # torch.distributed, only for this

    with in_words():
        if args.output:
            check_output(args.output, (".json",), "file")
        sizes = [s for s in SIZES if s <= args.largest] or [args.largest]
        with tqdm(total=1.0, disable=args.quiet, leave=False, file=sys.stderr,
                  bar_format="{desc:<16} {percentage:3.0f}% |{bar}| {elapsed}") as bar:  # fmt: skip

            def report(words: str, share: float) -> None:
                bar.set_description_str(words, refresh=False)
                bar.update(share - bar.n)

            found = probe(args.world_sizes, backend=args.backend, sizes=sizes, report=report)
        if args.output:
            write_whole(args.output, (json.dumps(found.as_dict(), indent=2) + "\n").encode())
    device = found.device
    lines = [
        f"{device.name}, measured while all {found.num_devices} processes work:",
        f"  products {device.flops / 1e9:.4g} GFLOP/s, sums over neighbours "
        f"{device.bandwidth / 1e9:.4g} GB/s, {device.overhead * 1e6:.3g} us an operation",
        f"{'collective':<16}{'processes':>10}{'latency, us':>14}{'GB/s sent':>12}{'worst fit':>11}",
    ]
    for line in found.fits:
        rate = f"{1e-9 / line.beta:.3g}" if line.beta else "-"
        lines.append(
            f"{line.collective:<16}{line.world_size:>10}{line.alpha * 1e6:>14.3g}{rate:>12}"
            f"{line.error:>10.0%}"
        )
    if args.output:
        lines.append(f"written to {args.output}")
    fits = [asdict(line) for line in found.fits]
    return {"result": {"topology": found.as_dict(), "fits": fits}, "text": "\n".join(lines)}


def run_probe_model(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the blocks of the model that was asked for."""
    with in_words():
        if args.output:
            raise ValueError("--output is for a topology; with --model, blocks go to the cache")
        graph = graph_of(args)
        space = space_of(graph, args.topology, args.devices)
        measured = Measured()
        blocks = measure_blocks(space, measured, not args.quiet)
    lines = [
        f"{graph.model} on {space.topology.num_devices} devices, measured on one of this machine, "
        f"forward and backward; analytic: {space.topology.name}, predicted",
        f"{'layer':<16}{'measured, ms':>14}{'analytic, ms':>14}  configuration",
    ]
    for block in blocks:
        times = f"{block.measured * 1e3:>14.4g}{block.analytic * 1e3:>14.4g}"
        lines.append(f"{block.name:<16}{times}  {block.config}")
    lines.append(f"kept in {measured.path}; plan and simulate use them with --costs measured")
    result = {
        "topology": space.topology.name,
        "devices": space.topology.num_devices,
        "cache": str(measured.path),
        "blocks": [vars(block) for block in blocks],
    }
    return {"result": result, "text": "\n".join(lines)}


def _pair(text: str) -> tuple[str, str]:
    layer, equals, strategy = text.partition("=")
    if not (layer and equals and strategy):
        raise ValueError(f"--require {text!r}; expected LAYER=STRATEGY")
    return layer, strategy


# Models and graphs ----------------------------------------------------------------------------


def graph_of(args: argparse.Namespace) -> OpGraph:
    """The operations of the model that was asked for, on the graph that was."""
    hag = getattr(args, "hag", "auto") == "auto"
    data: Any
    if args.graph is None:
        if args.nodes is None or args.edges is None:
            raise ValueError("no graph is given; expected one, or --nodes and --edges")
        data = GraphStats.assumed(args.nodes, args.edges, halo_ratio=args.halo_ratio)
        features, classes = args.features or 128, args.classes or 16
    else:
        data = datasets.load(
            args.graph, args.root, relabel=args.relabel, undirected=args.undirected
        )
        print(f"{data.name}: {data.source}", file=sys.stderr)
        features = data.x.shape[1] if data.x is not None else args.features or 128
        classes = args.classes or (data.num_classes if data.y is not None else 16)
    model = _model(args.model, features, args.hidden, args.layers, classes)
    return trace(model, data, features=features, hag=hag)


def _model(name: str, features: int, hidden: int, layers: int, classes: int) -> Any:
    path, colon, attribute = name.rpartition(":")
    if colon:
        return _from_file(path, attribute)
    if name not in MODELS:
        raise ValueError(f"model is {name!r}; expected one of {MODELS}, or FILE.py:NAME")
    from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

    make: Callable[..., Any] = dict(zip(MODELS, (GCN, GraphSAGE, GIN, GAT), strict=True))[name]
    more = {"heads": 4} if name == "gat" else {}
    return make(features, hidden, layers, classes, **more)


def _from_file(path: str, attribute: str) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path!r}")
    spec = importlib.util.spec_from_file_location("hag_plugin_user_model", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        raise ValueError(f"{path} has no {attribute!r}")
    found = getattr(module, attribute)
    return found if isinstance(found, torch.nn.Module) else found()
