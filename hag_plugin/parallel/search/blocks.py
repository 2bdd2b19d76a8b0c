"""The blocks of a model: all that one configuration of an operation computes, measured here."""

from __future__ import annotations

from dataclasses import dataclass

from hag_plugin.parallel.search.cost import Analytic, Measured, block_key
from hag_plugin.parallel.search.space import Space
from hag_plugin.parallel.strategies.registry import Terms
from hag_plugin.progress import bar


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
    return [
        Block(name, label, measured(terms, itemsize), analytic(terms, itemsize))
        for name, label, terms in bar(progress, iterable=chosen.values(), desc="blocks")
    ]
