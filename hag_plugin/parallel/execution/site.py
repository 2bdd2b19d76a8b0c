"""Where executors work: an operation of a model, the ranks, and what all executors share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin.parallel.execution import dropout
from hag_plugin.parallel.execution.parameters import Parameters
from hag_plugin.parallel.layouts import COLUMNS, chunk_sizes, shares
from hag_plugin.parallel.model.calls import Call, Edges
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.parallel.strategies.registry import Config


@dataclass(eq=False)
class World:
    """What all executors of a model share while it runs on one set of nodes.

    Attributes:
        group: all ranks.
        nodes: by type of node, as `Op.of` names it, int64 `[P]`, nodes of each part.
        edges: the graphs the model aggregates over, whole, by key of `OpGraph.graphs`.
        parameters: of the model.
        device: where the shards are.
        dtype: of the features.
        graphs: what executors keep of `edges`, so that layers on the same graph share it.
        mapped: whether the features stay in a file, of which not all fits into memory.
        step: forward passes in training so far.
        seed: of dropout, the same on every rank.
    """

    group: Group
    nodes: Mapping[str, np.ndarray]
    edges: dict[str, Edges]
    parameters: Parameters
    device: torch.device
    dtype: torch.dtype
    graphs: dict[Any, Any] = field(default_factory=dict)
    mapped: bool = False
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
        fixed: whether it takes the features as they are given, the same in every call.
    """

    op: Op
    index: int
    config: Config
    world: World
    module: torch.nn.Module | None
    names: Mapping[str, str]
    call: Call
    fixed: bool = False

    @property
    def group(self) -> Group:
        """All ranks."""
        return self.world.group

    @property
    def rows(self) -> np.ndarray:
        """Rows of each part, int64 `[P]`: nodes, or pooled graphs."""
        if self.op.rows is None:
            return self.world.nodes[self.op.of]
        return chunk_sizes(self.op.rows, self.group.size)

    @property
    def source_rows(self) -> np.ndarray:
        """Rows of each part that its edges come from, int64 `[P]`."""
        return self.world.nodes[self.world.edges[self.op.graph].types[0]]

    def edge_mask(
        self, numbers: Tensor, step: int | None = None
    ) -> Callable[[Tensor, float], Tensor]:
        """Dropout's mask, of scores `[E, H]` and a probability, for edges of these numbers in the
        whole graph; of this step, by default the world's.
        """
        key = (self.world.seed, self.world.step if step is None else step, self.index)

        def mask(scores: Tensor, p: float) -> Tensor:
            heads = torch.arange(scores.shape[1], device=scores.device)
            return dropout.edge_mask(key, numbers.to(scores.device), heads, p, scores.dtype)

        return mask

    def columns(self, width: int) -> slice:
        """This rank's block of `width` features where they are split over all ranks."""
        return shares(COLUMNS, self.rows, width, self.group.rank)[1]

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
