"""What the package's torch operators have in common: registration, the way past torch's dispatch,
and the checks at their door.

Operators are registered over the graph's CSR arrays, never over a program; the HAG is found by the
identity of `row_ptr` when one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from hag_plugin.hag import HAG, find
from hag_plugin.kernels import _cpu
from hag_plugin.program import SELF_LOOPS

REVERSED = "reversed "  # before a self-loop mode: of the graph whose reverse the arrays are
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

# Above this size glibc maps an output anew at each call, and its page faults would cost more than
# the aggregation (DESIGN, section 2).
HUGE_OUTPUT = 32 << 20

# What a call may pass --------------------------------------------------------------------------


def check_features(x: Tensor, row_ptr: Tensor) -> None:
    """Whether an operator may be given `x` on the graph that `row_ptr` is of.

    Raises:
        TypeError: it is no dense floating tensor.
        ValueError: it has less than two dimensions, or is on another device.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; expected a torch.Tensor")
    if x.dtype not in DTYPES:
        raise TypeError(f"x has dtype {x.dtype}; expected float32, float64, float16 or bfloat16")
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [*, N_src, F]")
    if x.device != row_ptr.device:
        raise ValueError(f"x is on {x.device} and the HAG on {row_ptr.device}; move one with .to()")
    if x.layout != torch.strided:
        raise TypeError(f"x has layout {x.layout}; expected a dense tensor")
    if type(x) is not Tensor and hasattr(type(x), "__tensor_flatten__"):
        raise TypeError(
            f"x is a {type(x).__name__}, which wraps other tensors; expected a plain torch.Tensor"
        )


def check_vector(tensor: Tensor, name: str, length: int) -> None:
    """Whether `tensor`, called `name`, is a floating vector of this length.

    Raises:
        TypeError: it is no floating tensor.
        ValueError: it is not `[length]`.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; expected a torch.Tensor")
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected a floating dtype")
    if tensor.dim() != 1 or tensor.shape[0] != length:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; expected [{length}]")


def checked_scale(scale: Tensor, name: str, x: Tensor, rows: int) -> Tensor:
    """A scale or weights, in the dtype that sums of `x` accumulate in.

    Raises:
        TypeError: it is no floating tensor.
        ValueError: it is not `[rows]`, or on another device.
    """
    check_vector(scale, name, rows)
    if scale.device != x.device:
        raise ValueError(f"{name} is on {scale.device}; expected {x.device}, as x")
    return scale.to(accumulator(x.dtype))


def check_self_loops(self_loops: Any, hag: HAG) -> str:
    """False, "add" or "fill", as operators take it together with the arrays of a HAG.

    Raises:
        ValueError: it is something else.
    """
    if self_loops not in SELF_LOOPS:
        raise ValueError(f"self_loops is {self_loops!r}; expected one of {SELF_LOOPS}")
    return REVERSED + (self_loops or "") if hag.is_reversed else self_loops or ""


def loop_mode(loops: str) -> Any:
    """The self-loop mode in what `check_self_loops` gave."""
    return loops.removeprefix(REVERSED) or False


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd would record what is made of these."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums of this one accumulate."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Registration and calls ------------------------------------------------------------------------

_library: Any = torch.library.Library("hag_plugin", "DEF")  # type: ignore[no-untyped-call]
_ORDINARY = (Tensor, Parameter)
# name: (what runs, and with its gradient)
_EAGER: dict[str, tuple[Any, Any]] = {}


def register(
    name: str,
    signature: str,
    run: Callable[..., Tensor],
    shape: Callable[..., Tensor],
    backward: Callable[..., Any] | None,
    keep: Callable[..., None] | None,
    *,
    backends: Sequence[str],
) -> None:
    """Makes `torch.ops.hag_plugin.NAME`.

    Args:
        name: of the operator.
        signature: in torch's schema language, from the opening bracket; tensors come first.
        run: computes it.
        shape: an empty tensor like the result, for tracing.
        backward: the gradient, from `(ctx, grad)`; None: it has none.
        keep: what the gradient needs, `(ctx, inputs, output)`.
        backends: torch's keys of the devices on which `run` works.
    """
    _library.define(name + signature)
    for backend in backends:
        _library.impl(name, run, backend)
    torch.library.register_fake(f"hag_plugin::{name}", shape, lib=_library)
    if backward is None:
        return
    _EAGER[name] = run, _function(run, backward, keep)
    torch.library.register_autograd(
        f"hag_plugin::{name}", backward, setup_context=keep, lib=_library
    )


def _function(run: Any, backward: Any, keep: Any) -> Any:
    """An operator with its gradient, for `call`; tracers get the operator that torch knows."""

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            y: Tensor = run(*inputs)
            keep(ctx, inputs, y)
            return y

    Eager.backward = staticmethod(backward)  # type: ignore[method-assign]
    # Without what `Function.apply` does for the transforms that `_is_plain` rules out.
    return super(torch.autograd.Function, Eager).apply


def call(name: str, tensors: tuple[Tensor | None, ...], *others: Any) -> Tensor:
    """The operator `name`, without torch's dispatch where nobody could tell.

    On small graphs the dispatch, in Python, takes longer than the aggregation.
    """
    if not torch.compiler.is_compiling() and _is_plain(*tensors):
        run, with_gradient = _EAGER[name]
        operator = with_gradient if needs_grad(*tensors) else run
    else:
        operator = getattr(torch.ops.hag_plugin, name).default
    y: Tensor = operator(*tensors, *others)
    return y


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary CPU or GPU tensors that no mode, transform or tracer looks at."""
    if (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._get_tracing_state() is not None
    ):
        return False
    for t in tensors:  # faster than all(), and this is run at every call
        if t is not None and not (type(t) in _ORDINARY and (t.is_cpu or t.is_cuda)):
            return False
    return True


# Run time --------------------------------------------------------------------------------------


def found(
    row_ptr: Tensor, col: Tensor, x_rows: int, num_rows: int, loops: str, transposed: bool
) -> HAG:
    """The HAG whose arrays these are, after a check of the number of rows on both sides.

    Its reverse, if that is what `loops` says.
    """
    hag = find(row_ptr)
    is_reversed = loops.startswith(REVERSED)
    if hag is None:
        # The arrays are copied, so that this HAG cannot be found in place of a longer-lived one.
        num_src = num_rows if transposed != is_reversed else x_rows
        hag = HAG.from_csr(row_ptr.clone(), col.clone(), num_src, method="none")
        hag.targets_first = bool(loop_mode(loops))
    if is_reversed:
        hag = hag.transpose()
    check_rows(hag, x_rows, num_rows, transposed)
    return hag


def check_rows(hag: HAG, x_rows: int, num_rows: int, transposed: bool) -> None:
    """Whether features and result have as many rows as the HAG has nodes on their sides.

    Raises:
        ValueError: they have not.
    """
    rows, side = (hag.num_dst, "target") if transposed else (hag.num_src, "source")
    if x_rows != rows:
        raise ValueError(
            f"x has {x_rows} rows in dimension -2, expected {rows} (the HAG's {side} nodes)"
        )
    if num_rows != (hag.num_src if transposed else hag.num_dst):
        raise ValueError(
            f"num_rows is {num_rows}; the HAG has {hag.num_src} sources, {hag.num_dst} targets"
        )


def side_by_side(x: Tensor) -> Tensor:
    """`[*, N, F]` as `[N, F]` or `[B, N, F]` whose features lie side by side, as kernels read them.

    Without a copy if they do, and if leading dimensions can be one.
    """
    if x.dim() > 3:
        x = x.flatten(0, -3)
    return x.contiguous() if x.stride(-1) != 1 and x.shape[-1] > 1 else x


def new_output(x: Tensor, num_rows: int) -> Tensor:
    """An empty tensor like `x`, with so many rows."""
    *batch, _, width = x.shape
    y = x.new_empty((*batch, num_rows, width))
    if y.nbytes >= HUGE_OUTPUT and not y.is_cuda:
        _cpu.advise_huge_pages(y.data_ptr(), y.nbytes)
    return y


def kernel_scale(scale: Tensor | None, rows: int, dtype: torch.dtype) -> Tensor | None:
    """The scale as a kernel takes it.

    Raises:
        ValueError: it has another shape or dtype.
    """
    if scale is None:
        return None
    if scale.shape != (rows,) or scale.dtype != dtype:
        raise ValueError(f"a scale is {scale.dtype} {list(scale.shape)}; expected {dtype} [{rows}]")
    return scale.contiguous()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row by row dot products of two `[*, N, F]`, summed over the leading dimensions: `[N]`."""
    dtype = accumulator(a.dtype)
    product = a.to(dtype) * b.to(dtype)
    return product.sum(dim=[d for d in range(product.dim()) if d != product.dim() - 2])
