"""Messages in blocks of edges: computed, aggregated and forgotten, a block at a time.

What a message is made of is gathered for the edges of one block, which fit a cache; so nothing is
ever made that has a row for each edge. For gradients the messages of a block are computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hag_plugin.hag.edge_blocks import Block, EdgeBlocks
from hag_plugin.ops.registration import accumulator

Rows = Sequence[Tensor]

FEWEST_EDGES = 64  # of a block, however wide


@dataclass(frozen=True, eq=False)
class Messages:
    """What is computed for each edge, and how it is aggregated.

    Attributes:
        targets: tensors with a row for each target, of which `message` gets those of each edge.
        sources: the same of sources.
        edges: tensors with a row for each edge, as these were given.
        whole: tensors that `message` or `finish` gets as they are.
        module: what holds parameters that `message`, `aggregate` or `finish` use; None: nothing.
        names: those parameters, as `named_parameters` names them.
        message: from a copy of the module that holds the parameters to use, and the four kinds of
            tensors, `[B, ...]` for `B` edges.
        reduce: "sum" or "mean"; None: as `aggregate` does.
        aggregate: from the module's copy, messages, the row of each, which never decreases, and the
            number of rows: what the rows become. Each row depends on its own messages alone.
        finish: from the module's copy, the sums or means of some targets and `whole`: what the
            result is for these targets.
        width: numbers that are held for an edge in the widest step of `message`.
    """

    targets: tuple[Tensor, ...]
    sources: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]
    message: Callable[[Any, Rows, Rows, Rows, Rows], Tensor]
    whole: tuple[Tensor, ...] = ()
    module: Any = None
    names: tuple[str, ...] = ()
    reduce: Literal["sum", "mean"] | None = None
    aggregate: Callable[[Any, Tensor, Tensor, int], Tensor] | None = None
    finish: Callable[[Any, Tensor, Rows], Tensor] | None = None
    width: int = 1

    def tensors(self) -> list[Tensor]:
        """All that the result depends on."""
        parameters = [parameter_of(self.module, name) for name in self.names]
        return [*self.targets, *self.sources, *self.edges, *self.whole, *parameters]


def aggregate_in_blocks(messages: Messages, graph: EdgeBlocks, block_bytes: int) -> Tensor:
    """The aggregate of messages for each target of a graph.

    Args:
        messages: what they are.
        graph: its edges.
        block_bytes: of a block's messages.

    Returns:
        `[num_dst, ...]`. Gradients flow to all tensors; second derivatives are those of messages
        that are computed all at once.
    """
    given = messages.tensors()
    unique = list({id(tensor): tensor for tensor in given}.values())
    position = {id(tensor): n for n, tensor in enumerate(unique)}
    run = _Run(messages, graph, tuple(position[id(tensor)] for tensor in given), block_bytes)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in unique):
        out: Tensor = _InBlocks.apply(run, *unique)  # type: ignore[no-untyped-call]
        return out
    return run.forward(unique)


class _Run:
    """Messages over a graph, of tensors that are handed over with each call.

    Args:
        places: where each of the messages' tensors is among those that are handed over.
    """

    def __init__(
        self, messages: Messages, graph: EdgeBlocks, places: tuple[int, ...], block_bytes: int
    ) -> None:
        # What autograd may free is not held here a second time.
        self.messages = replace(messages, targets=(), sources=(), edges=(), whole=())
        self.graph, self.places, self.num_whole = graph, places, len(messages.whole)
        lifted = (*messages.targets, *messages.sources, *messages.edges)
        self._counts = [len(messages.targets), len(messages.sources), len(messages.edges)]
        row_bytes = messages.width * max(tensor.element_size() for tensor in lifted)
        self.is_plain_sum = messages.reduce is not None and messages.finish is None
        most = max(block_bytes // max(row_bytes, 1), FEWEST_EDGES)
        self.blocks = graph.cut(most, whole=not self.is_plain_sum)

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """The result."""
        of = _Block(self, tensors)
        if not self.is_plain_sum:
            rows = [of.result(block, of.gathered(block)) for block in self.blocks]
            return rows[0] if len(rows) == 1 else torch.cat(rows)
        out: Tensor | None = None
        for block in self.blocks:
            made = of.made(of.gathered(block))
            if out is None:
                out = made.new_zeros(self.graph.num_dst, *made.shape[1:])
            out[block.first_row : block.last_row].index_add_(0, of.rows(block), made)
        assert out is not None
        return out.div_(self.degrees(out)) if self.messages.reduce == "mean" else out

    def at_once(self, tensors: Sequence[Tensor]) -> Tensor:
        """The same in one block: torch differentiates it, however often."""
        whole = Block(0, self.graph.num_edges, 0, self.graph.num_dst)
        of = _Block(self, tensors)
        return of.result(whole, of.gathered(whole))

    def backward(
        self, tensors: Sequence[Tensor], needs: Sequence[bool], grad: Tensor
    ) -> list[Tensor | None]:
        """The gradients of those tensors that need one, and None for the others."""
        leaves = [t.detach().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
        of, sums = _Block(self, leaves), _Sums(leaves)
        if self.is_plain_sum and self.messages.reduce == "mean":
            grad = grad / self.degrees(grad)
        lifted = sum(self._counts)
        whole = [n for n in dict.fromkeys(self.places[lifted:]) if needs[n]]
        for block in self.blocks:
            with torch.no_grad():
                gathered = of.gathered(block)
            asked = [n for n in range(lifted) if needs[self.places[n]]]
            for n in asked:
                gathered[n] = gathered[n].detach().requires_grad_()
            if self.is_plain_sum:
                with torch.enable_grad():
                    result = of.made(gathered)
                of_result = grad[block.first_row : block.last_row].index_select(0, of.rows(block))
            else:
                with torch.enable_grad():
                    result = of.result(block, gathered)
                of_result = grad[block.first_row : block.last_row]
            if not result.requires_grad:
                continue
            wanted = [*(gathered[n] for n in asked), *(leaves[n] for n in whole)]
            found = torch.autograd.grad(result, wanted, of_result, allow_unused=True)
            for n, part in zip(asked, found, strict=False):
                if part is not None:
                    self._add(sums, n, block, of, part)
            for n, part in zip(whole, found[len(asked) :], strict=True):
                if part is not None:
                    sums.of_whole(n).add_(part)
        return sums.found()

    def _add(self, sums: _Sums, n: int, block: Block, of: _Block, part: Tensor) -> None:
        """Adds what the rows that were gathered for a block got."""
        into = sums.of_rows(self.places[n])
        if n < self._counts[0]:
            into[block.first_row : block.last_row].index_add_(0, of.rows(block), part)
        elif n < self._counts[0] + self._counts[1]:
            into.index_add_(0, self.graph.source[block.first_edge : block.last_edge], part)
        elif self.graph.order is None:
            into[block.first_edge : block.last_edge] += part
        else:
            into.index_add_(0, self.graph.order[block.first_edge : block.last_edge], part)

    def split(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Targets, sources, edges, and what is taken whole: parameters are the last of these."""
        given, kinds = [tensors[place] for place in self.places], []
        for count in (*self._counts, len(given)):
            kinds.append(given[:count])
            given = given[count:]
        return kinds

    def degrees(self, like: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """What sums of rows are divided by for means, of the shape of a column."""
        counts = self.graph.degrees()[first:last].clamp(min=1).to(like.dtype)
        return counts.view(-1, *[1] * (like.dim() - 1))


class _Block:
    """What is done with a block's edges, given the tensors that messages are made of."""

    def __init__(self, run: _Run, tensors: Sequence[Tensor]) -> None:
        self._run, self._how, self._graph = run, run.messages, run.graph
        self._targets, self._sources, self._edges, whole = run.split(tensors)
        count = run.num_whole
        self._whole, parameters = whole[:count], whole[count:]
        self._module = self._how.module
        if parameters:
            values = dict(zip(self._how.names, parameters, strict=True))
            self._module = with_parameters(self._module, values)

    def rows(self, block: Block) -> Tensor:
        """The row of each edge, from the first row of the block."""
        return self._graph.target[block.first_edge : block.last_edge] - block.first_row

    def gathered(self, block: Block) -> list[Tensor]:
        """What the edges of a block need of targets, sources and edges."""
        first, last = block.first_edge, block.last_edge
        target, source = self._graph.target[first:last], self._graph.source[first:last]
        order = self._graph.order
        found = [rows.index_select(0, target) for rows in self._targets]
        found += [rows.index_select(0, source) for rows in self._sources]
        if order is None:
            return found + [rows[first:last] for rows in self._edges]
        return found + [rows.index_select(0, order[first:last]) for rows in self._edges]

    def made(self, gathered: list[Tensor]) -> Tensor:
        """The messages."""
        i, j = len(self._targets), len(self._targets) + len(self._sources)
        rows = gathered[:i], gathered[i:j], gathered[j:]
        return self._how.message(self._module, *rows, self._whole)

    def result(self, block: Block, gathered: list[Tensor]) -> Tensor:
        """What the rows of a block become, all of whose edges are in the block."""
        how, made, rows = self._how, self.made(gathered), self.rows(block)
        num_rows = block.last_row - block.first_row
        if how.reduce is None:
            assert how.aggregate is not None
            return how.aggregate(self._module, made, rows, num_rows)
        out = made.new_zeros(num_rows, *made.shape[1:]).index_add(0, rows, made)
        if how.reduce == "mean":
            out = out / self._run.degrees(out, block.first_row, block.last_row)
        return out if how.finish is None else how.finish(self._module, out, self._whole)


class _Sums:
    """The gradients of tensors, as they grow block by block."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._sums: list[Tensor | None] = [None] * len(tensors)

    def of_rows(self, n: int) -> Tensor:
        """That of the n-th tensor, whose rows are gathered."""
        return self._of(n, self._tensors[n].dtype)

    def of_whole(self, n: int) -> Tensor:
        """That of the n-th tensor, which gets something of every block: half types would round."""
        return self._of(n, accumulator(self._tensors[n].dtype))

    def _of(self, n: int, dtype: torch.dtype) -> Tensor:
        found = self._sums[n]
        if found is None:
            found = torch.zeros_like(
                self._tensors[n], dtype=dtype, memory_format=torch.contiguous_format
            )
            self._sums[n] = found
        return found

    def found(self) -> list[Tensor | None]:
        """All of them; None for tensors that got nothing."""
        pairs = zip(self._sums, self._tensors, strict=True)
        return [None if found is None else found.to(t.dtype) for found, t in pairs]


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, *tensors: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(*tensors)
        return run.forward(tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            return None, *ctx.run.backward(tensors, needs, grad)
        # Somebody differentiates the gradients.
        apart = [t.view_as(t) if n else t for t, n in zip(tensors, needs, strict=True)]
        result = ctx.run.at_once(apart)
        wanted = [t for t, n in zip(apart, needs, strict=True) if n]
        found = iter(
            torch.autograd.grad(result, wanted, grad, create_graph=True, allow_unused=True)
        )
        return None, *(next(found) if n else None for n in needs)


def parameter_of(module: Any, name: str) -> Tensor:
    """The parameter of that name, or the tensor that somebody put in its place."""
    *parts, last = name.split(".")
    for part in parts:
        module = module._modules[part]
    found: Tensor = module._parameters[last]
    return found


def with_parameters(module: Any, values: dict[str, Tensor], prefix: str = "") -> Any:
    """A shallow copy of a module that holds other tensors in place of parameters.

    Args:
        module: it is not changed, and may be in use elsewhere at the same time.
        values: by the names of the parameters that they replace.
        prefix: of the names of this module's own.
    """
    copy: Any = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    copy.__dict__["_parameters"] = {
        name: values.get(prefix + name, p) for name, p in module._parameters.items()
    }
    copy.__dict__["_modules"] = {
        name: with_parameters(part, values, f"{prefix}{name}.")
        if any(key.startswith(f"{prefix}{name}.") for key in values)
        else part
        for name, part in module._modules.items()
    }
    return copy
