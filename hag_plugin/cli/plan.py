"""`hag-plugin plan`: how to split each layer of a model over devices."""

from __future__ import annotations

import argparse
from typing import Any

from hag_plugin.cli.models import MODEL_HELP, add_graph, add_inputs, graph_of, in_words
from hag_plugin.cli.options import add_command, size
from hag_plugin.cli.output import print_result
from hag_plugin.files import check_output
from hag_plugin.parallel.search.planner import plan

EXAMPLES = [
    "gcn cora.npz --topology a100x8 -o plan.json",
    "train.py:model graph.npz --topology 4x8hdr --memory 70GiB",
    "sage --nodes 2400000 --edges 120000000 --halo-ratio 2 --features 100 --topology a100x8",
    "train.py:model --inputs 64x3x224x224 64:int64 --topology pcie4x4 -o plan.json",
    "gcn --partitions parts --topology pcie4x4 -o plan.json",
]


def add(commands: Any) -> None:
    """Adds `plan` to the commands."""
    parser = add_command(
        commands,
        "plan",
        run,
        "Choose how to split each layer of a model over the devices of a machine. The plan is "
        "optimal under an additive cost; all its figures are predicted.",
        EXAMPLES,
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("graph", nargs="?", help="as for stats; or --partitions; or --nodes and "
                        "--edges; or --inputs of a model without a graph")  # fmt: skip
    add_graph(parser)
    add_inputs(parser)
    parser.add_argument("--memory", type=size, metavar="BYTES", help="of each device, 70GiB, say; "
                        "by default what the topology says")  # fmt: skip
    parser.add_argument("--require", nargs="*", default=[], metavar="LAYER=STRATEGY",
                        help="the strategy of some layers; of a model without a graph the split of "
                        "some operations, 'conv.conv2d=sample 4 on 0 1 2 3'")  # fmt: skip
    parser.add_argument("--hag", choices=("auto", "off"), default="auto",
                        help="auto: the search decides (default)")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE.json", help="plan to write")


def run(args: argparse.Namespace) -> None:
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
    print_result(args, {"plan": found.as_dict()}, f"{found}{words}")


def _pair(text: str) -> tuple[str, str]:
    layer, equals, strategy = text.partition("=")
    if not (layer and equals and strategy):
        raise ValueError(f"--require {text!r}; expected LAYER=STRATEGY")
    return layer, strategy
