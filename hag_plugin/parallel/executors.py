"""What runs an operation as its configuration says: one registry entry for each strategy.

Every executor takes shards that lie as `config.source` says and gives a shard that lies as
`config.target` says. What it sends, forward, backward and for weight gradients, is what the
strategy's `terms` count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.layouts import Layout, chunk_sizes
from hag_plugin.parallel.opgraph import Op
from hag_plugin.parallel.strategies import Config

if TYPE_CHECKING:
    from hag_plugin.parallel.comm import Group
    from hag_plugin.parallel.parameters import Parameters


@dataclass(frozen=True)
class Split:
    """A parameter of which each device has a block, as `torch.chunk` cuts.

    Attributes:
        dim: the dimension that is cut.
        columns: 0: into a block for each device; k > 0: into a block for each column of a grid
            with k columns, the same in all its rows.
    """

    dim: int
    columns: int = 0


@dataclass(frozen=True, eq=False)
class Edges:
    """The edges of one key of `OpGraph.graphs`, whole, as the layers were given them.

    Attributes:
        edge_index: int64 `[2, E]`, on the CPU; row 0 sources, row 1 targets.
        self_loops: those the layers add: False, "add" or "fill".
        edge_type: int64 `[E]` of relational layers, else None.
    """

    edge_index: Tensor
    self_loops: SelfLoops = False
    edge_type: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer, or of a function between layers.

    Attributes:
        name: of the function; the layer's class.
        args: as it was called, with tensors in them.
        kwargs: likewise.
        function: what was called.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    function: Callable[..., Any] | None = None


@dataclass(eq=False)
class World:
    """What all executors of a model share while it runs on one set of nodes.

    Attributes:
        group: all ranks.
        nodes: int64 `[P]`, nodes of each part.
        edges: the graphs the model aggregates over, whole, by key of `OpGraph.graphs`.
        parameters: of the model.
        device: where the shards are.
        dtype: of the features.
        graphs: what executors keep of `edges`, so that layers on the same graph share it.
        step: forward passes in training so far.
        seed: of dropout, the same on every rank.
    """

    group: Group
    nodes: np.ndarray
    edges: dict[str, Edges]
    parameters: Parameters
    device: torch.device
    dtype: torch.dtype
    graphs: dict[Any, Any] = field(default_factory=dict)
    step: int = 0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Site:
    """Where an executor works: an operation of a model, and how it is to be run.

    Attributes:
        op: the operation.
        index: of the operation in the model.
        config: how it is split.
        world: where.
        module: the layer, if the operation is (part of) a layer of the table.
        names: of the parameters and buffers that belong to the operation: what they are called in
            the layer or in the function's signature, and in the model.
        call: as the layer or function was called when the model was traced: tensors that are
            given (edge weights, say) are whole, features and weights have no storage.
    """

    op: Op
    index: int
    config: Config
    world: World
    module: torch.nn.Module | None
    names: Mapping[str, str]
    call: Call

    @property
    def group(self) -> Group:
        """All ranks."""
        return self.world.group

    @property
    def rows(self) -> np.ndarray:
        """Rows of each part, int64 `[P]`: nodes, or pooled graphs."""
        if self.op.rows is None:
            return self.world.nodes
        return chunk_sizes(self.op.rows, len(self.world.nodes))

    def columns(self, width: int) -> slice:
        """This rank's block of `width` features where they are split over all ranks."""
        return shares(Layout("columns"), self.rows, width, self.group.rank)[1]

    def local(self, name: str, copies: bool | Group = False) -> Tensor:
        """What this rank has of a parameter or buffer, as a plain tensor; see `locals`."""
        return self.locals([name], copies)[0]

    def locals(self, names: Sequence[str], copies: bool | Group = False) -> list[Tensor]:
        """What this rank has of parameters or buffers, as plain tensors to compute with.

        Args:
            names: as in `names`.
            copies: whose gradients are summed, in one all-reduce: those of all ranks (True), of
                a group, or of none (False): they are whole already, or of a block of its own.
        """
        return self.world.parameters.locals([self.names[n] for n in names], copies)


def shares(layout: Layout, rows: np.ndarray, width: int, rank: int) -> tuple[slice, slice]:
    """The rows and the columns of a tensor `[N, width]` that a rank has.

    Example:
        >>> shares(Layout("grid", 2), np.array([3, 3, 2, 2]), 5, rank=3)
        (slice(6, 10, None), slice(3, 5, None))
    """
    parts = len(rows)
    columns = {"columns": parts, "grid": layout.columns}.get(layout.kind, 1)
    strips = {"rows": parts, "grid": parts // layout.columns}.get(layout.kind, 1)
    ends = np.cumsum(rows.reshape(strips, -1).sum(axis=1))
    blocks = np.cumsum(chunk_sizes(width, columns))
    i = rank // columns if strips > 1 else 0
    j = rank % columns
    first_row, first_column = (int(e[k - 1]) if k else 0 for e, k in ((ends, i), (blocks, j)))
    return slice(first_row, int(ends[i])), slice(first_column, int(blocks[j]))


class OperationExecutor(ABC):
    """Runs one operation on this rank.

    Args:
        site: the operation, and where it is run.
    """

    def __init__(self, site: Site) -> None:
        self.site = site

    def placements(self) -> dict[str, Split]:
        """The parameters of `site.names` that are split; all others have a copy on each rank."""
        return {}

    @abstractmethod
    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        """The output's shard.

        Args:
            call: the layer's or function's, with the tensors that the model gave.
            inputs: shards of what the operation takes, in the order of `op.inputs`.
        """


class Executor(OperationExecutor):
    """Runs a layer, of which only the features change from call to call."""

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        return self(*inputs)

    @abstractmethod
    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output's shard, from shards of what the operation takes."""


EXECUTORS: dict[tuple[str, str], type[OperationExecutor]] = {}
"""By kind of operation and name of the strategy."""


def executes(
    strategy: str, *kinds: str
) -> Callable[[type[OperationExecutor]], type[OperationExecutor]]:
    """Registers a class as the executor of a strategy for kinds of operations.

    Raises:
        ValueError: there is one already.
    """

    def add(cls: type[OperationExecutor]) -> type[OperationExecutor]:
        for kind in kinds:
            if (kind, strategy) in EXECUTORS:
                raise ValueError(f"{kind} {strategy!r} has an executor already")
            EXECUTORS[kind, strategy] = cls
        return cls

    return add


def executor_of(site: Site) -> OperationExecutor:
    """The executor of an operation.

    Raises:
        NotImplementedError: its strategy cannot be run; names both.
    """
    cls = EXECUTORS.get((site.op.kind, site.config.strategy))
    if cls is None:
        known = [name for kind, name in EXECUTORS if kind == site.op.kind]
        raise NotImplementedError(
            f"layer {site.op.name!r} ({site.op.kind}) has strategy {site.config.strategy!r}, "
            f"which cannot be run; expected one of {known}"
        )
    return cls(site)
