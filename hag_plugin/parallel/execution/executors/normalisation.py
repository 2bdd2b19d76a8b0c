"""Executors of normalisation: statistics are summed over the ranks where they are split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hag_plugin.parallel.execution.executors.dense import Local
from hag_plugin.parallel.execution.executors.registry import executes
from hag_plugin.parallel.model import functions
from hag_plugin.parallel.model.calls import Call
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.parallel.ranks.transfer import sum_statistics


class _Standardise(torch.autograd.Function):
    """`(x - mean) / deviation`. What is kept for the backward pass is the output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dims: tuple[int, ...], count: int, group: Group | None, eps: float,
        outside: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        mean = _sum(x, dims, group, "forward") / count
        out = x - mean
        variance = _sum(out.square(), dims, group, "forward") / count
        scale = 1 / (variance.sqrt() + eps) if outside else (variance + eps).rsqrt()
        out = out.mul_(scale)
        ctx.save_for_backward(out, scale, variance)
        ctx.dims, ctx.count, ctx.group, ctx.outside = dims, count, group, outside
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        out, scale, variance = ctx.saved_tensors
        mean = _sum(grad, ctx.dims, ctx.group, "backward") / ctx.count
        along = _sum(grad * out, ctx.dims, ctx.group, "backward") / ctx.count
        if ctx.outside:
            along = along / (variance.sqrt() * scale)
        return (grad - mean).sub_(out * along).mul_(scale), None, None, None, None, None


def _sum(x: Tensor, dims: tuple[int, ...], group: Group | None, phase: str) -> Tensor:
    total = x.sum(dim=dims, keepdim=True)
    return total if group is None else group.all_reduce(total, phase)


def standardise(
    x: Tensor, dims: tuple[int, ...], count: int, group: Group | None, eps: float,
    outside: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`(x - mean) / sqrt(variance + eps)`, the mean and the variance.

    Args:
        x: `[n, w]`, a shard.
        dims: that are normalised over.
        count: how many values that are, on all ranks.
        group: the ranks over which they are split; None for one.
        eps: added to the variance.
        outside: add it to the standard deviation instead.
    """
    found: tuple[Tensor, Tensor, Tensor] = _Standardise.apply(  # type: ignore[no-untyped-call]
        x, dims, count, group, eps, outside
    )
    return found


@executes("local statistics, summed", "normalisation")
class Normalise(Local):
    """A shard of rows, of columns or of a grid; the function as it is where nothing is summed."""

    @property
    def columns(self) -> int:
        """Into how many blocks features are split."""
        layout = self.site.config.target
        return {"rows": 1, "columns": self.site.group.size}.get(layout.kind, layout.columns)

    @property
    def group(self) -> Group | None:
        """The ranks over which what is normalised over is split."""
        columns, over, world = self.columns, self.site.op.over, self.site.group
        if over == "nodes":
            return None if columns == world.size else self._strided()
        if over == "features":
            return None if columns == 1 else self._neighbours()
        return world

    def _strided(self) -> Group:
        return self.site.group if self.columns == 1 else self.site.group.strided(self.columns)

    def _neighbours(self) -> Group:
        world = self.site.group
        return world if self.columns == world.size else world.neighbours(self.columns)

    @property
    def copies(self) -> bool | Group:
        return self._strided() if self.columns < self.site.group.size else False

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        if self.group is None:
            return super().run(call, *inputs)
        args = functions.bound(call.name, call.args, call.kwargs, call.function)
        weights = [n for n in self.site.names if not n.startswith("running")]
        args |= dict(zip(weights, self.site.locals(weights, self.copies), strict=True))
        running = [n for n in self.site.names if n not in weights]
        args |= dict(zip(running, self.site.locals(running), strict=True))
        return FUNCTIONS[functions.base_name(call.name)](self, inputs[0], args)

    # Functions -------------------------------------------------------------------------------

    def batch_norm(self, x: Tensor, args: dict[str, Any]) -> Tensor:
        """Over nodes; running statistics are those of all nodes."""
        eps, running = args.get("eps", 1e-5), (args["running_mean"], args["running_var"])
        if not args.get("training", False):
            return _affine((x - running[0]) * (running[1] + eps).rsqrt(), args)
        count = int(self.site.rows.sum())
        out, mean, variance = standardise(x, (0,), count, self.group, eps)
        if running[0] is not None:
            momentum = args.get("momentum", 0.1)
            with torch.no_grad():
                running[0].lerp_(mean[0].to(running[0].dtype), momentum)
                unbiased = variance[0] * (count / max(count - 1, 1))
                running[1].lerp_(unbiased.to(running[1].dtype), momentum)
        return _affine(out, args)

    def layer_norm(self, x: Tensor, args: dict[str, Any]) -> Tensor:
        """Over features."""
        eps = args.get("eps", 1e-5)
        return _affine(standardise(x, (1,), self.site.op.width, self.group, eps)[0], args)

    def graph_layer_norm(self, x: Tensor, args: dict[str, Any]) -> Tensor:
        """Over everything."""
        count = int(self.site.rows.sum()) * self.site.op.width
        return _affine(standardise(x, (0, 1), count, self.group, args["eps"], True)[0], args)

    def graph_norm(self, x: Tensor, args: dict[str, Any]) -> Tensor:
        """Over nodes; a learned share of the mean is taken away."""
        count = int(self.site.rows.sum())
        out = x - self._total(x, 0) / count * args["mean_scale"]
        return _affine(out / (self._total(out.square(), 0) / count + args["eps"]).sqrt(), args)

    def normalize(self, x: Tensor, args: dict[str, Any]) -> Tensor:
        """Over features: divided by the p-norm."""
        p = args.get("p", 2.0)
        total = self._total(x.abs().pow(p), 1)
        norm = torch.where(total > 0, total, 1).pow(1 / p) * (total > 0)  # no gradient at 0
        return x / norm.clamp_min(args.get("eps", 1e-12))

    def softmax(self, x: Tensor, args: dict[str, Any]) -> Tensor:
        """Over features."""
        exponentials = (x - self._largest(x)).exp()
        return exponentials / self._total(exponentials, 1)

    def log_softmax(self, x: Tensor, args: dict[str, Any]) -> Tensor:
        """Over features."""
        shifted = x - self._largest(x)
        return shifted - self._total(shifted.exp(), 1).log()

    def _largest(self, x: Tensor) -> Tensor:
        largest = x.detach().amax(dim=1, keepdim=True)
        return largest if self.group is None else self.group.all_reduce(largest, "forward", "max")

    def _total(self, x: Tensor, dim: int) -> Tensor:
        total = x.sum(dim=dim, keepdim=True)
        return total if self.group is None else sum_statistics(total, self.group)


def _affine(x: Tensor, args: dict[str, Any]) -> Tensor:
    if args.get("weight") is not None:
        x = x * args["weight"]
    return x if args.get("bias") is None else x + args["bias"]


FUNCTIONS: dict[str, Callable[[Normalise, Tensor, dict[str, Any]], Tensor]] = {
    "batch_norm": Normalise.batch_norm,
    "layer_norm": Normalise.layer_norm,
    "graph_layer_norm": Normalise.graph_layer_norm,
    "graph_norm": Normalise.graph_norm,
    "normalize": Normalise.normalize,
    "softmax": Normalise.softmax,
    "log_softmax": Normalise.log_softmax,
}
