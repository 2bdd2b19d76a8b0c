"""Weights as DTensors: each rank has the block that its operations compute with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.nn import Module

from hag_plugin.parallel.layouts import Split, chunk_sizes
from hag_plugin.parallel.model import functions
from hag_plugin.parallel.ranks.comm import Begun, Group
from hag_plugin.parallel.ranks.transfer import sum_gradients, waiting


class Parameters:
    """The parameters and buffers of a model.

    Args:
        model: with plain tensors; they are replaced by `place`.
        group: all ranks.
    """

    def __init__(self, model: Module, group: Group) -> None:
        self.model, self.group = model, group
        self._waiting: dict[str, Tensor] = {}
        self._begun: list[Begun] = []

    def begin(self) -> None:
        """Before a forward pass: sums of gradients may go on until the end of its backward pass."""
        self._waiting, self._begun = {}, []
        if torch.is_grad_enabled():
            named = dict(self.model.named_parameters())  # each once
            found = {n: local(p) for n, p in named.items() if p.requires_grad}
            made = waiting([*found.values()], self._begun)
            self._waiting = dict(zip(found, made, strict=True))

    def __getitem__(self, name: str) -> Tensor:
        owner, _, last = name.rpartition(".")
        tensor: Tensor = getattr(self.model.get_submodule(owner), last)
        return tensor

    def broadcast(self) -> None:
        """Makes all ranks start from the first one's values."""
        state = [*self.model.parameters(), *self.model.buffers()]
        first = self.group.broadcast([t.detach().cpu() for t in state])
        with self.group.together("taking the first rank's weights"), torch.no_grad():
            shapes = [[list(t.shape) for t in tensors] for tensors in (state, first)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the model's weights have shapes {shapes[0]}; expected {shapes[1]}, those of "
                    "the first rank's model"
                )
            for mine, theirs in zip(state, first, strict=True):
                mine.copy_(theirs)

    def place(self, splits: Mapping[str, Split]) -> None:
        """Replaces parameters, and buffers that are split, by DTensors.

        Args:
            splits: by name; parameters that are not in it have a copy on every rank.
        """
        made: dict[int, Tensor] = {}
        grids = {split.columns for split in splits.values() if split.columns}
        columns = grids.pop() if len(grids) == 1 else 1
        for path, module in self.model.named_modules():
            for own in (module._parameters, module._buffers):
                for last, tensor in own.items():
                    name = f"{path}.{last}" if path else last
                    if tensor is None or (own is module._buffers and name not in splits):
                        continue
                    if id(tensor) not in made:
                        made[id(tensor)] = self._placed(tensor, splits.get(name), columns)
                    own[last] = made[id(tensor)]
        for module in self.model.modules():  # LSTMs keep a list of theirs
            for key, value in vars(module).items():
                if isinstance(value, list) and any(id(t) in made for t in value):
                    vars(module)[key] = functions.replaced(value, made)

    def _placed(self, tensor: Tensor, split: Split | None, columns: int) -> Tensor:
        mesh, placements = self._where(tensor, split, columns)
        local = tensor.detach()
        if split is not None:
            parts = split.columns or self.group.size
            ends = np.cumsum(chunk_sizes(tensor.shape[split.dim], parts))
            k = self.group.rank % parts
            first = int(ends[k - 1]) if k else 0
            local = local.narrow(split.dim, first, int(ends[k]) - first).clone()
        placed = DTensor.from_local(
            local, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
        if not isinstance(tensor, torch.nn.Parameter):
            return placed
        return torch.nn.Parameter(placed, requires_grad=tensor.requires_grad)

    def _where(
        self, tensor: Tensor, split: Split | None, columns: int
    ) -> tuple[DeviceMesh, list[Placement]]:
        """One mesh for all, as far as it can say what is wanted: norms are taken over a mesh."""
        if split is None:
            return self.group.mesh(columns), [Replicate()] * (1 if columns == 1 else 2)
        if split.columns:
            return self.group.mesh(split.columns), [Replicate(), Shard(split.dim)]
        if columns > 1 and tensor.shape[split.dim] % self.group.size == 0:
            return self.group.mesh(columns), [Shard(split.dim), Shard(split.dim)]
        return self.group.mesh(), [Shard(split.dim)]

    def locals(self, names: Sequence[str], copies: bool | Group = False) -> list[Tensor]:
        """As `Site.locals`, by names in the model."""
        # Gradients of the first use wait; to those of another they are added when both are there.
        waits = all(n in self._waiting or not self[n].requires_grad for n in names)
        first = self._waiting if waits else {}
        found = [first.pop(n) if n in first else local(self[n]) for n in names]
        group = self.group if copies is True else copies
        if not group or not torch.is_grad_enabled():
            return found
        wanted = [i for i, t in enumerate(found) if t.requires_grad]
        begun = self._begun if waits else None
        summed = sum_gradients([found[i] for i in wanted], group, begun)
        for i, t in zip(wanted, summed, strict=True):
            found[i] = t
        return found


def local(tensor: Tensor) -> Tensor:
    """This rank's block, a plain tensor; gradients become DTensors again."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def swapped(module: Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, a module computes with other tensors in place of its parameters and buffers."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        inner = module.get_submodule(owner)
        own: dict[str, Any] = inner._parameters if last in inner._parameters else inner._buffers
        before.append((own, last, own[last]))
        own[last] = tensor
    try:
        yield
    finally:
        for own, last, tensor in before:
            own[last] = tensor
