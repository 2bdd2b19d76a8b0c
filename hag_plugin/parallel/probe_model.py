"""`hag-plugin probe --model`: what the blocks of a model take on the machine at hand."""

from __future__ import annotations

import argparse
from typing import Any

from hag_plugin.parallel import command
from hag_plugin.parallel.search.blocks import measure_blocks
from hag_plugin.parallel.search.cost import Measured
from hag_plugin.parallel.search.planner import space_of


def run_probe_model(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the blocks of the model that was asked for."""
    with command.in_words():
        if args.output:
            raise ValueError("--output is for a topology; with --model, blocks go to the cache")
        graph = command.graph_of(args)
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
