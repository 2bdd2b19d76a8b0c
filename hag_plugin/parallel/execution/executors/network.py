"""What a rank computes of an operation of a plain torch model, from the boxes that it reads.

Most operations are called as they stand, on boxes in place of whole tensors. Those in `RUNS` are
not: they pad, count or sum over what other ranks have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hag_plugin.parallel.execution.dropout import keep
from hag_plugin.parallel.model.network import RECURRENT
from hag_plugin.parallel.ranks.boxes import Exchange, Move, fetch, tie
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.parallel.strategies.axes import (
    CLASSES,
    GATES,
    MEAN,
    reduction_of,
    rule_of,
    spread,
    window_of,
)
from hag_plugin.parallel.strategies.placement import Task, collected, states, sums, together


@dataclass
class Work:
    """One operation on this rank, which may have no part in it.

    Attributes:
        task: how the operation is split.
        group: all ranks.
        training: whether the model trains.
        key: what the masks of dropout depend on.
        buffers: tensors that the operation updates, by the place among its inputs.
        tokens: of what was fetched.
        exchanges: that were made while it runs.
        like: a value of the type and device of floating tensors.
    """

    task: Task
    group: Group
    training: bool
    key: tuple[int, ...]
    buffers: dict[int, Tensor]
    like: Tensor
    tokens: list[Tensor] = field(default_factory=list)
    exchanges: dict[Move, Exchange] = field(default_factory=dict)

    @property
    def part(self) -> list[tuple[int, int]] | None:
        """This rank's interval of each axis."""
        return self.task.parts.part[self.group.rank]

    @property
    def split(self) -> bool:
        """Whether the operation has several parts."""
        return len(self.task.split.ranks) > 1

    @property
    def sizes(self) -> list[int]:
        """Of the box of the first output that this rank makes, without partial sums."""
        box = self.task.parts.writes[0][self.group.rank]
        assert box is not None
        return [end - first for first, end in (box[1:] if self.task.parts.partial else box)]

    def leads(self) -> bool:
        """Whether this rank's part is the first along axes that are summed over."""
        box = self.task.parts.writes[0][self.group.rank]
        return not self.task.parts.partial or (box is not None and box[0][0] == 0)

    def sum_over(self, mine: Tensor | None, axis: int) -> Tensor:
        """Sums of what parts have, over all axes but one: `[b - a]` of that axis' interval.

        Every rank calls it; those without a part with None, and get nothing.
        """
        block = None if mine is None else mine.unsqueeze(0)
        return self.gather(block, sums(self.task.parts, axis)).sum(dim=0)

    def collect(self, mine: Tensor | None, axis: int, size: int) -> Tensor:
        """`[size]` of an axis, on every rank, without gradients."""
        with torch.no_grad():
            block = None if mine is None else mine.unsqueeze(0)
            return self.gather(block, collected(self.task.parts, axis, size))[0]

    def gather(self, mine: Tensor | None, move: Move) -> Tensor:
        """What this rank reads of what parts have; every rank calls it."""
        owns = mine is not None and move.owned[self.group.rank] is not None
        block = mine if mine is not None and owns else self.like.new_empty([0] * move.dims)
        [block] = tie([block], self.tokens)
        exchange = self.exchanges.get(move)
        if exchange is None:
            exchange = Exchange([move], self.group, ("forward", "backward"))
            self.exchanges[move] = exchange
        token, [found] = fetch(exchange, [block])
        self.tokens = [token] if torch.is_grad_enabled() else self.tokens
        return found


Run = Callable[[Work, Sequence[Tensor]], "Tensor | Sequence[Tensor] | None"]
RUNS: dict[str, Run] = {}
ALWAYS = {"batch_norm", "lstm", "dropout", "select", "slice", "narrow"}  # also where they are whole


def run(work: Work, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What this rank makes of what it reads; of a rank without a part, tensors without values."""
    operation, parts = work.task.operation, work.task.parts
    kind = operation.kind
    if work.part is None and not together(operation, work.task.split):
        made: Any = None
    elif kind in RUNS and (work.split or kind in ALWAYS):
        made = RUNS[kind](work, inputs)
    else:
        made = stock(work, inputs)
    if work.part is None:
        values = operation.node.meta["val"]
        values = [values] if isinstance(values, Tensor) else list(values)
        dims = [1 if parts.partial else 0] * len(values)
        found = [
            torch.empty([0] * (v.dim() + d), dtype=v.dtype, device=work.like.device)
            for v, d in zip(values, dims, strict=True)
        ]
    else:
        found = [made] if isinstance(made, Tensor) else list(made)
        found = [t.unsqueeze(0) for t in found] if parts.partial else found
    if kind == "detach":  # on no rank does the backward pass come here
        return [t.detach() for t in found]
    return tie(found, work.tokens)


def arguments(work: Work, inputs: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Of the call, with these tensors in their places."""
    node, left = work.task.operation.node, iter(inputs)
    given: Any = fx.node.map_arg((node.args, node.kwargs), lambda _: next(left))
    args, kwargs = given
    if "device" in kwargs:
        kwargs = {**kwargs, "device": work.like.device}
    args = tuple(work.like.device if isinstance(a, torch.device) else a for a in args)
    return args, kwargs


def stock(work: Work, inputs: Sequence[Tensor]) -> Any:
    """The operation as torch has it."""
    args, kwargs = arguments(work, inputs)
    if work.task.operation.kind in RECURRENT:
        args = (*args[:6], work.training and args[6], *args[7:])
    return work.task.operation.function(*args, **kwargs)


def _runs(*kinds: str) -> Callable[[Run], Run]:
    def register(made: Run) -> Run:
        RUNS.update(dict.fromkeys(kinds, made))
        return made

    return register


@_runs("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "select",
       "narrow")  # fmt: skip
def _reshape(work: Work, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].reshape(work.sizes)


@_runs("expand")
def _expand(work: Work, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].expand(work.sizes)


@_runs("slice")
def _slice(work: Work, inputs: Sequence[Tensor]) -> Tensor:
    operation = work.task.operation
    dim, step = operation.argument(1, "dim", 0), operation.argument(4, "step", 1)
    steps = [slice(None)] * inputs[0].dim()
    steps[dim] = slice(None, None, step)
    return inputs[0][tuple(steps)]


@_runs("linear")
def _linear(work: Work, inputs: Sequence[Tensor]) -> Tensor:
    x, weight, *bias = inputs
    return F.linear(x, weight, bias[0] if bias and work.leads() else None)


def padding(work: Work) -> list[tuple[int, int]]:
    """Rows outside of the tensor that this rank reads at both ends, in each dimension of space."""
    operation, part = work.task.operation, work.part
    assert part is not None
    dims, shape = rule_of(operation).reads[0], operation.shapes[0]
    found = []
    for dim, size in list(zip(dims, shape, strict=True))[2:]:
        first, end = dim.reach(part, size)
        found.append((max(-first, 0), max(end - size, 0)))
    return found


def padded(x: Tensor, ends: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """With values outside."""
    if not any(map(any, ends)):
        return x
    return F.pad(x, [n for each in reversed(ends) for n in each], value=value)


@_runs("conv1d", "conv2d", "conv3d")
def _convolution(work: Work, inputs: Sequence[Tensor]) -> Tensor:
    operation, (x, weight, *bias) = work.task.operation, inputs
    groups, dims = operation.argument(6, "groups", 1), weight.dim() - 2
    if groups > 1:  # those of this rank
        groups = x.shape[1] // weight.shape[1]
    return operation.function(  # type: ignore[no-any-return]
        padded(x, padding(work)), weight, bias[0] if bias and work.leads() else None,
        spread(operation.argument(3, "stride", 1), dims), [0] * dims,
        spread(operation.argument(5, "dilation", 1), dims), groups,
    )  # fmt: skip


@_runs("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
def _pooling(work: Work, inputs: Sequence[Tensor]) -> Tensor:
    operation, [x] = work.task.operation, inputs
    rule, window = rule_of(operation), window_of(operation)
    if len(rule.axes) == 2:  # planes are whole
        return stock(work, inputs)  # type: ignore[no-any-return]
    none = [0] * len(window.kernel)
    if operation.kind.startswith("max"):
        x = padded(x, padding(work), -math.inf)
        return operation.function(x, window.kernel, window.stride, none, window.dilation)  # type: ignore[no-any-return]
    x, rest = padded(x, padding(work)), operation.node.args[6:]
    return operation.function(x, window.kernel, window.stride, none, False, True, *rest)  # type: ignore[no-any-return]


@_runs("dropout")
def _dropout(work: Work, inputs: Sequence[Tensor]) -> Tensor:
    [x], operation = inputs, work.task.operation
    p = float(operation.argument(1, "p", 0.5))
    if not (work.training and operation.argument(2, "train", True)) or p == 0:
        return x
    if p >= 1:
        return x * 0
    box = work.task.parts.writes[0][work.group.rank]
    return x * kept_values(work.key, box, operation.outputs[0], p, x)


def kept_values(
    key: tuple[int, ...], box: Any, shape: Sequence[int], p: float, x: Tensor
) -> Tensor:
    """`1 / (1 - p)` or 0 for each value of a box: what its place in the whole tensor says."""
    places = torch.zeros([1] * max(len(shape) - 1, 1), dtype=torch.int64, device=x.device)
    for dim in range(1, len(shape)):
        own = torch.arange(*box[dim], device=x.device)
        own = own.view([-1 if d == dim else 1 for d in range(1, len(shape))])
        places = places * shape[dim] + own
    rows = torch.arange(*(box[0] if box else (0, 1)), device=x.device)
    mask = keep(key, rows, places.reshape(-1), p).view(x.shape)
    return mask.to(x.dtype) / (1 - p)


@_runs("batch_norm")
def _batch_norm(work: Work, inputs: Sequence[Tensor]) -> Tensor | None:
    operation = work.task.operation
    node = operation.node
    affine, running = node.args[1] is not None, node.args[3] is not None
    training: Any = node.args[5]
    momentum: Any = node.args[6]
    eps: Any = node.args[7]
    if not (training and (work.training or not running)):
        if work.part is None:
            return None
        args = list(arguments(work, inputs)[0])
        args[5] = False
        return operation.function(*args)  # type: ignore[no-any-return]
    shape, x, mine = operation.shapes[0], inputs[0], work.part is not None
    over = [d for d in range(len(shape)) if d != 1]
    count = math.prod(shape) // shape[1]
    columns = [-1 if d == 1 else 1 for d in range(len(shape))]
    mean = work.sum_over(x.sum(over) if mine else None, 1) / count
    centred = x - mean.view(columns) if mine else x
    variance = work.sum_over(centred.square().sum(over) if mine else None, 1) / count
    if running:
        rate, first = float(momentum), 2 * affine + 1
        for i, statistic in enumerate((mean, variance * (count / (count - 1)))):
            whole = work.collect(statistic.detach() if mine else None, 1, shape[1])
            work.buffers[first + i].mul_(1 - rate).add_(whole, alpha=rate)
    if not mine:
        return None
    out: Tensor = centred * (variance + eps).rsqrt().view(columns)
    if affine:
        out = out * inputs[1].view(columns) + inputs[2].view(columns)
    return out


@_runs("lstm")
def _lstm(work: Work, inputs: Sequence[Tensor]) -> Sequence[Tensor] | None:
    rule, operation = rule_of(work.task.operation), work.task.operation
    count = len(operation.inputs) - 3
    x, h, c, *weights = inputs[: 3 + count]
    if rule.again and work.part is not None:  # rows of each gate
        rest = iter(inputs[3 + count :])
        weights = [torch.cat([w, *(next(rest) for _ in range(GATES - 1))]) for w in weights]
    if not together(operation, work.task.split):
        return stock(work, [x, h, c, *weights])  # type: ignore[no-any-return]
    return _steps(work, x, h, c, weights)


def _steps(
    work: Work, x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor]
) -> Sequence[Tensor] | None:
    """An LSTM with this rank's channels: each step needs the whole state of the one before."""
    operation, mine = work.task.operation, work.part is not None
    node: Any = operation.node
    layers, batch_first = node.args[4], node.args[8]
    steps = operation.shapes[0][1 if batch_first else 0]
    move = states(work.task.parts, operation.shapes[1][-1])
    if not mine:
        for _ in range(steps * layers):
            work.gather(None, move)
        return None
    assert work.part is not None
    own = slice(*work.part[1])
    sequence = (x.transpose(0, 1) if batch_first else x).unbind(0)
    last: list[tuple[Tensor, Tensor]] = []
    each = len(weights) // layers
    outs: list[Tensor] = []
    for layer in range(layers):
        w_x, w_h, *biases = weights[layer * each : (layer + 1) * each]
        state, cell, outs, wholes = h[layer], c[layer][:, own], [], []
        bias = biases[0] + biases[1] if biases else None
        for value in sequence:
            gates = F.linear(value, w_x, bias) + F.linear(state, w_h)
            i, f, g, o = gates.chunk(GATES, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            outs.append(o.sigmoid() * cell.tanh())
            state = work.gather(outs[-1], move)
            wholes.append(state)
        sequence = tuple(wholes)
        last.append((outs[-1], cell))
    out = torch.stack(outs, 1 if batch_first else 0)
    return out, torch.stack([s for s, _ in last]), torch.stack([s for _, s in last])


# Reductions


@_runs("mean")
def _mean(work: Work, inputs: Sequence[Tensor]) -> Tensor:
    operation, (args, kwargs) = work.task.operation, arguments(work, inputs)
    if not work.task.parts.partial:
        return operation.function(*args, **kwargs)  # type: ignore[no-any-return]
    found = operation.function(*args, **kwargs)
    made = math.prod(operation.outputs[0])
    whole = math.prod(operation.shapes[0]) / made
    return found * (inputs[0].numel() / found.numel() / whole)  # type: ignore[no-any-return]


@_runs(*CLASSES)
def _classes(work: Work, inputs: Sequence[Tensor]) -> Tensor:
    operation = work.task.operation
    *given, everything = inputs
    (x, target, *rest), kwargs = arguments(work, given)
    names = ("weight", "reduction", "ignore_index", "label_smoothing")
    options = dict(zip(names, rest, strict=False)) | kwargs
    mean = reduction_of(operation) == MEAN
    total: Tensor = operation.function(
        x, target, **(options | {"reduction": 2} if mean else options)
    )
    if not mean:
        return total
    counted = everything != options.get("ignore_index", -100)
    weight = options.get("weight")
    number: Tensor = counted.sum() if weight is None else weight[everything[counted]].sum()
    return total / number


@_runs("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
def _differences(work: Work, inputs: Sequence[Tensor]) -> Tensor:
    operation, (args, kwargs) = work.task.operation, arguments(work, inputs)
    found = operation.function(*args, **kwargs)
    if int(operation.argument(2, "reduction", MEAN)) != MEAN:
        return found  # type: ignore[no-any-return]
    return found * (inputs[0].numel() / math.prod(operation.shapes[0]))  # type: ignore[no-any-return]
