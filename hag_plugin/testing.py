"""For tests of models: what the operators ran while a block was open, and at which limits.

with hag_plugin.testing.limits(few_messages=0), hag_plugin.testing.count_programs() as ran:
    model(x, edge_index).sum().backward()
assert ran.hag and not ran.plain
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import Program
from hag_plugin.limits import limits as in_force
from hag_plugin.observers import SEARCH, observers
from hag_plugin.sequence.prefix_tree import SequentialHAG

__all__ = ["Ran", "Run", "count_programs", "limits"]


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
        operator: "aggregate", "extremum", "winners", "weighted_sum", "head_sum", "attend" or
            "attend_backward", as in `torch.ops.hag_plugin`; "lstm_aggregate" or "child_sum" for a
            walk over a tree.
        reduce: "sum", "mean", "max" or "min"; "lstm"; of attention how it was normalised:
            "softmax", "tanh" or "none".
        program: what ran. Sums with edge weights, and attention, share nothing and have no program:
            the HAG whose edges were summed stands for it.
        direction: "backward" while a backward pass ran, what a checkpoint computes again included.
    """

    operator: str
    reduce: str
    program: Program | HAG | SequentialHAG
    direction: Literal["forward", "backward"]

    @property
    def is_tree(self) -> bool:
        """Whether it was a walk over a prefix tree."""
        return isinstance(self.program, SequentialHAG)

    @property
    def is_plain(self) -> bool:
        """Whether it shared nothing."""
        if isinstance(self.program, Program):
            return self.program.is_plain
        return not self.is_tree


@dataclass(eq=False)
class Ran:
    """What ran while `count_programs` was open.

    Attributes:
        programs: the runs in the order in which they ended. They hold what ran.
        trees: the prefix trees of those that walked one.
        searches: how many programs were made of graphs, those of method "none" included.
    """

    programs: list[Run] = field(default_factory=list)
    trees: list[SequentialHAG] = field(default_factory=list)
    searches: int = 0

    @property
    def forward(self) -> list[Run]:
        """The runs of forward passes."""
        return [run for run in self.programs if run.direction == "forward"]

    @property
    def hag(self) -> int:
        """Runs of programs with shared sums: with intermediates."""
        return sum(not run.is_plain and not run.is_tree for run in self.programs)

    @property
    def plain(self) -> int:
        """Runs of programs without, sums with edge weights, and attention."""
        return sum(run.is_plain for run in self.programs)


@contextmanager
def count_programs() -> Iterator[Ran]:
    """Counts what the torch operators run, on any device, in all threads of this process.

    In compiled code, in backward passes and in checkpoints, too; not while code is traced, where
    nothing runs. Blocks may be nested: each counts for itself.

    Yields:
        The counts, which go up as programs run and stay when the block is left.

    Example:
        >>> import torch
        >>> import hag_plugin as hp
        >>> clique = torch.combinations(torch.arange(12)).T
        >>> hag = hp.build_hag(torch.cat([clique, clique.flip(0)], 1), num_nodes=12)
        >>> x = torch.ones(12, 4, requires_grad=True)
        >>> with count_programs() as ran:
        ...     hp.aggregate(x, hag).sum().backward()
        >>> ran.hag, ran.plain, [run.direction for run in ran.programs]
        (2, 0, ['forward', 'backward'])
    """
    ran = Ran()

    def observe(operator: str, reduce: str, program: Program | HAG | SequentialHAG) -> None:
        if operator == SEARCH:
            ran.searches += 1
            return
        backward = torch._C._current_graph_task_id() != -1
        ran.programs.append(Run(operator, reduce, program, "backward" if backward else "forward"))
        if isinstance(program, SequentialHAG):
            ran.trees.append(program)

    observers.append(observe)
    try:
        yield ran
    finally:
        observers.remove(observe)


@contextmanager
def limits(**values: Any) -> Iterator[None]:
    """Sets some of `hag_plugin.limits.Limits`, in all threads of this process, while it is open.

    What was decided before stays: a HAG keeps the programs that it has.

    Args:
        **values: by name.

    Raises:
        ValueError: there is no limit of that name.

    Example:
        >>> from hag_plugin.limits import limits as in_force
        >>> with limits(few_messages=0):
        ...     in_force.few_messages
        0
        >>> in_force.few_messages
        4096
    """
    known = {each.name for each in fields(in_force)}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no limit; expected one of {', '.join(sorted(known))}")
    before = {name: getattr(in_force, name) for name in values}
    try:
        for name, value in values.items():
            setattr(in_force, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(in_force, name, value)
