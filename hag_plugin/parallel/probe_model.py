"""`hag-plugin probe --model`: what the blocks of a model take on the machine at hand."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from hag_plugin.parallel import command
from hag_plugin.parallel.cost import Analytic, Measured, block_key
from hag_plugin.parallel.planner import space_of
from hag_plugin.parallel.search import Space
from hag_plugin.parallel.strategies.registry import Terms


@dataclass(frozen=True)
class Block:
    """All that one configuration of an operation computes on a device, forward and backward.

    Attributes:
        name: of the first operation that has it.
        config: the first configuration that has it.
        measured: seconds on this machine.
        analytic: seconds by the topology's published figures.
    """

    name: str
    config: str
    measured: float
    analytic: float


def measure_blocks(space: Space, measured: Measured, progress: bool = False) -> list[Block]:
    """Measures each block of a model once; what is in the cache is not run again.

    Args:
        space: the model's configurations on a machine.
        measured: runs blocks, and keeps what they took by device and shape.
        progress: show a bar on stderr.
    """
    itemsize, analytic = space.graph.itemsize, Analytic(space.topology)
    chosen: dict[str, tuple[str, str, Terms]] = {}
    for op, configs, row in zip(space.graph.ops, space.configs, space.terms, strict=True):
        for config, terms in zip(configs, row, strict=True):
            if terms.aggregations or terms.products:
                label = f"{config}, hag {config.hag}"
                chosen.setdefault(block_key(terms, itemsize), (op.name, label, terms))
    bar = tqdm(chosen.values(), desc="blocks", disable=not progress, leave=False, file=sys.stderr)
    return [
        Block(name, label, measured(terms, itemsize), analytic(terms, itemsize))
        for name, label, terms in bar
    ]


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
