"""`hag-plugin probe`: what this machine can do, or what the blocks of a model take on it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from hag_plugin import devices
from hag_plugin.cli.models import MODEL_HELP, add_graph, graph_of, in_words
from hag_plugin.cli.options import add_command, positive, size
from hag_plugin.cli.output import print_result
from hag_plugin.files import check_output, write_whole
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.search.cost import Measured
from hag_plugin.parallel.search.planner import space_of
from hag_plugin.progress import shares

EXAMPLES = [
    "-o machine.json",
    "--world-sizes 2 4 -o machine.json",
    "--backend nccl --json",
    "--model gcn --graph cora.npz --devices 4",
]


def add(commands: Any) -> None:
    """Adds `probe` to the commands."""
    parser = add_command(
        commands,
        "probe",
        run,
        "Measure this machine: products and sums of a device while all work, and a line of "
        "seconds over bytes for every collective and world size. Writes a topology for plan. With "
        "--model, the blocks of a model instead, each once; plan and simulate use them with "
        "--costs measured.",
        EXAMPLES,
    )
    parser.add_argument("--world-sizes", nargs="+", type=positive, default=[2], metavar="N",
                        help="numbers of processes (default 2)")  # fmt: skip
    parser.add_argument(
        "--backend", choices=devices.backends(), default="gloo", help="default gloo"
    )
    parser.add_argument("--largest", type=size, default=1 << 24, metavar="BYTES",
                        help="largest message (default 16MiB)")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE.json", help="topology to write")
    parser.add_argument("--model", help=f"measure its blocks: {MODEL_HELP}")
    parser.add_argument("--graph", help="with --model, as for plan")
    add_graph(parser)


def run(args: argparse.Namespace) -> None:
    """Measures this machine, or the blocks of the model that was asked for."""
    if args.model is None:
        _probe_machine(args)
    else:
        _probe_model(args)


def _probe_machine(args: argparse.Namespace) -> None:
    """Writes the topology if asked to."""
    from hag_plugin.parallel.machine.probe import SIZES, probe  # torch.distributed, only for this

    with in_words():
        if args.output:
            check_output(args.output, (".json",), "file")
        sizes = [s for s in SIZES if s <= args.largest] or [args.largest]
        with shares("probing", not args.quiet) as report:
            found = probe(
                args.world_sizes,
                backend=args.backend,
                sizes=sizes,
                report=lambda words, share: report(share, words),
            )
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
    print_result(args, {"topology": found.as_dict(), "fits": fits}, "\n".join(lines))


def _probe_model(args: argparse.Namespace) -> None:
    from hag_plugin.parallel.search.blocks import measure_blocks  # only for this

    with in_words():
        if args.output:
            raise ValueError("--output is for a topology; with --model, blocks go to the cache")
        graph = graph_of(args)
        assert isinstance(graph, OpGraph)
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
    print_result(args, result, "\n".join(lines))
