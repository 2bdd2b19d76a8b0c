"""Executors of operations without edges: products, elementwise work, pooling, whole layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hag_plugin.devices import forked_random_state
from hag_plugin.parallel.execution import dropout
from hag_plugin.parallel.execution.executors.registry import OperationExecutor, executes
from hag_plugin.parallel.execution.parameters import swapped
from hag_plugin.parallel.layouts import REPLICATED, ROWS, shares
from hag_plugin.parallel.model import functions
from hag_plugin.parallel.model.calls import Call
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.parallel.ranks.transfer import (
    fan_out,
    gather_rows,
    scatter_columns,
    scatter_rows,
    sum_parts,
    sum_statistics,
)


@executes("replicate", "elementwise", "sum", "concatenation", "linear", "normalisation", "pooling")
@executes("local", "elementwise", "sum")
@executes("rows", "linear", "concatenation")
class Local(OperationExecutor):
    """The function as it is, on the shard. Gradients of weights are summed where it is split."""

    @property
    def copies(self) -> bool | Group:
        """Which ranks' gradients of the weights are summed."""
        return self.site.config.source != REPLICATED

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        site = self.site
        mine = zip(site.names, site.locals(list(site.names), self.copies), strict=True)
        by = {id(site.world.parameters[site.names[role]]): tensor for role, tensor in mine}
        args, kwargs = functions.replaced([*call.args], by), functions.replaced(call.kwargs, by)
        if call.name == "dropout":
            return self._dropout(functions.bound("dropout", tuple(args), kwargs, None))
        assert call.function is not None  # operations of this kind are functions
        if call.name == "__setitem__":
            changed: Tensor = args[0].clone()
            call.function(changed, *args[1:])
            return changed
        out: Tensor = call.function(*args, **kwargs)
        return out

    def _dropout(self, args: dict[str, object]) -> Tensor:
        x, p = args["input"], args.get("p", 0.5)
        assert isinstance(x, Tensor)
        assert isinstance(p, (float, int))
        if not args.get("training", True) or p == 0:
            return x
        site = self.site
        rows, columns = shares(site.config.source, site.rows, site.op.width, site.group.rank)
        key = (site.world.seed, site.world.step, site.index)
        flat = x if x.dim() == 2 else x.reshape(len(x), -1)
        return dropout.dropout(flat, p, key, rows.start, columns.start).view(x.shape)


class _Product(OperationExecutor):
    """`x W + b`; W is `[in, out]` to matmul and `[out, in]` to linear."""

    @property
    def transposed(self) -> bool:
        """Whether W is `[out, in]`."""
        return self.site.call.name == "linear"

    def product(self, x: Tensor) -> Tensor:
        """With this rank's block of the weights."""
        weight = self.site.local("weight")
        return F.linear(x, weight if self.transposed else weight.t())

    def biased(self, out: Tensor, copies: bool) -> Tensor:
        """With this rank's part of the bias, in the product's precision as linear has it."""
        if "bias" not in self.site.names:
            return out
        return out + self.site.local("bias", copies).to(out.dtype)


@executes("columns, row-split weights", "linear")
class RowSplitWeights(_Product):
    """Partial outputs of blocks of features are summed."""

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        site, [x] = self.site, inputs
        to_rows = site.config.target == ROWS
        partial = self.product(x)
        if to_rows:
            out = scatter_rows(partial, site.rows, site.group)
        else:
            out = scatter_columns(partial, site.group)
        return self.biased(out, to_rows)


@executes("column-split weights", "linear")
class ColumnSplitWeights(_Product):
    """The whole input, a block of the output."""

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        site, [x] = self.site, inputs
        whole = site.config.source == REPLICATED
        x = fan_out(x, site.group) if whole else gather_rows(x, site.rows, site.group)
        return self.biased(self.product(x), copies=False)


@executes("replicate", "embedding")
@executes("rows", "embedding")
@executes("columns", "embedding")
class Table(OperationExecutor):
    """What a rank has of a table is what it has of the output."""

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        return self.site.local("weight")


@executes("rows, summed", "pooling")
class Pool(OperationExecutor):
    """Each rank pools its own nodes; the sums of the graphs are added up."""

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        site, [x] = self.site, inputs
        args = functions.bound(call.name, call.args, call.kwargs, call.function)
        nodes = site.world.nodes[site.op.of]
        if "index" not in args:
            out = sum_parts(x.sum(dim=0, keepdim=True), site.group)
            return out / int(nodes.sum()) if functions.base_name(call.name) == "mean" else out
        own, _ = shares(ROWS, nodes, x.shape[1], site.group.rank)
        into: Tensor = args["into"]
        index: Tensor = args["index"][own]
        add = torch.index_add if index.dim() == 1 else torch.scatter_add
        return into + sum_parts(add(torch.zeros_like(into), 0, index, x), site.group)


@executes("rows", "opaque")
class ByRow(Local):
    """A function each of whose rows is made of the same row alone, on the own rows."""

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        rows, rank = self.site.rows, self.site.group.rank
        own, nodes = shares(ROWS, rows, 1, rank)[0], int(rows.sum())
        weights = {id(self.site.world.parameters[name]) for name in self.site.names.values()}
        given = functions.tensors([*call.args, dict(call.kwargs)])
        by = {id(t): t[own] for t in given
              if t.dim() and len(t) == nodes and id(t) not in weights}  # fmt: skip
        args = functions.with_rows(functions.replaced(tuple(call.args), by), nodes, len(inputs[0]))
        kwargs = {key: functions.with_rows(value, nodes, len(inputs[0]))
                  for key, value in functions.replaced(dict(call.kwargs), by).items()}  # fmt: skip
        return super().run(Call(call.name, args, kwargs, call.function), *inputs)


@executes("rows, means summed", "opaque")
class Means(Local):
    """A function of the own rows, and of means over all nodes, which it is told how to take."""

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        group, count = self.site.group, int(self.site.rows.sum())

        def mean(x: Tensor) -> Tensor:
            return sum_statistics(x.sum(dim=1), group) / count

        kwargs = {**call.kwargs, "mean": mean}
        return super().run(Call(call.name, call.args, kwargs, call.function), *inputs)


@executes("replicate", "opaque")
class Whole(Local):
    """A layer or function that runs on every rank, with the same random numbers on each."""

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        site = self.site
        key = hash((site.world.seed, site.world.step, site.index)) % 2**63
        with forked_random_state(site.world.device):
            torch.manual_seed(key)
            if site.module is None:
                if site.op.drops:
                    mask = site.edge_mask(torch.arange(call.args[1].shape[1]))
                    call = Call(call.name, call.args, {**call.kwargs, "mask": mask}, call.function)
                return super().run(call, *inputs)
            own = dict(zip(site.names, site.locals(list(site.names)), strict=True))
            moved = {
                id(t): t.to(site.world.device)
                for t in functions.tensors([*call.args, dict(call.kwargs)])
                if t.device != site.world.device
            }
            assert call.function is not None
            with swapped(site.module, own):
                out: Tensor = call.function(
                    *functions.replaced([*call.args], moved),
                    **functions.replaced(dict(call.kwargs), moved),
                )
            return out
