"""What the package's torch operators have in common: registration, the way past torch's dispatch,
and the checks at their door.

Operators are registered over the graph's CSR arrays, never over a program. Where one runs outside
of traced code, it is handed the HAG itself; in traced code the HAG's token finds it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    get_single_level_autograd_function_allowed,
    set_single_level_autograd_function_allowed,
)
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.nn import Parameter

from hag_plugin.arguments import brief, check_memory
from hag_plugin.devices import KINDS
from hag_plugin.hag.graph import Arrays
from hag_plugin.hag.hag import HAG, find, looped_of_arrays, of_arrays
from hag_plugin.hag.program import SELF_LOOPS
from hag_plugin.kernels import _cpu
from hag_plugin.limits import limits

REVERSED = "reversed "  # before a self-loop mode: of the graph whose reverse the arrays are
LOOPED = "looped"  # in place of one: of the graph that a `LoopedHAG` with these arrays stands for
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

# Above this size glibc maps an output anew at each call, and its page faults would cost more than
# the aggregation (DESIGN, section 2).
HUGE_OUTPUT = 32 << 20

# What a call may pass --------------------------------------------------------------------------


def check_features(x: Tensor, hag: HAG) -> None:
    """Whether an operator may be given `x` on this graph.

    Raises:
        TypeError: it is no dense floating tensor.
        ValueError: it has less than two dimensions, or is on another device.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; expected a torch.Tensor")
    if x.is_nested:
        raise TypeError("x is a nested tensor; expected a dense one")
    if x.dtype not in DTYPES:
        raise TypeError(f"x has dtype {x.dtype}; expected float32, float64, float16 or bfloat16")
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [*, N_src, F]")
    device = hag.device
    if x.device != device:
        raise ValueError(f"x is on {x.device} and the HAG on {device}; move one with .to()")
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
    if tensor.is_nested:
        raise TypeError(f"{name} is a nested tensor; expected a dense one")
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
    return widened(scale, name, accumulator(x.dtype))


def widened(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor in the dtype that sums accumulate in, after `check_memory` where that reads it."""
    if tensor.dtype == dtype:
        return tensor
    check_memory(name, tensor)
    return tensor.to(dtype)


def check_self_loops(self_loops: Any, hag: HAG) -> str:
    """False, "add" or "fill", as operators take it together with the arrays of a HAG.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(self_loops, (str, bool)) or self_loops not in SELF_LOOPS:
        raise ValueError(f"self_loops is {brief(self_loops)}; expected one of {SELF_LOOPS}")
    if hag.is_looped and not self_loops:
        return LOOPED
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


Graph = HAG | Arrays
Inputs = tuple[Any, ...]  # of an operator, without the graph: tensors, then other values
Gradients = tuple[Tensor | None, ...]  # by each of the tensors among the inputs


@dataclass(frozen=True)
class Operator:
    """A torch operator and its derivatives, which are made of operators again.

    So they have derivatives of any order, too, and go into and out of each of torch's transforms.

    Attributes:
        signature: in torch's schema language, from the opening bracket. Tensors come first; among
            them are `row_ptr` and `col`, which the functions below get as one graph.
        run: `(graph, *inputs)`; computes it.
        shape: `(graph, *inputs)`; an empty tensor like the result, for tracing.
        keep: `(ctx, needs, inputs, output)`; the tensors that `backward` needs.
        backward: `(ctx, graph, needs, kept, *grads)`; the gradients. `needs` says by which.
        tangent: `(graph, inputs, output, tangents)`; that of the (first) output. A tangent that is
            0 is None; one at least is not.
        folded: `(graph, size, batched, inputs)`; the result where the inputs that are `batched`
            have one more dimension in front, of this size; None: it is to be computed one by one.
    """

    signature: str
    run: Callable[..., Any]
    shape: Callable[..., Any]
    keep: Callable[..., Gradients]
    backward: Callable[..., Gradients]
    tangent: Callable[..., Tensor]
    folded: Callable[..., Any] = lambda *_: None


_library: Any = torch.library.Library("hag_plugin", "DEF")  # type: ignore[no-untyped-call]
_ORDINARY = (Tensor, Parameter)
# name: (what runs, and with its gradient, and what its tensors are called)
_EAGER: dict[str, tuple[Any, Any, list[str]]] = {}
_GRAPH_AT: dict[str, int] = {}  # how many tensors come before the graph


def register(name: str, operator: Operator) -> None:
    """Makes `torch.ops.hag_plugin.NAME`.

    A last argument is added, the HAG's token. Without one the plain graph is run.

    Args:
        name: of the operator.
        operator: what it does.
    """
    signature, results = operator.signature.split(" -> ")
    arguments = signature.strip("()").split(", ")
    at = _GRAPH_AT[name] = arguments.index("Tensor row_ptr")
    num_tensors = sum(a.startswith("Tensor") for a in arguments) - 2
    declared = [a.split()[1] for a in arguments if a.startswith("Tensor")]
    named = [a for a in declared if a not in Arrays._fields]
    _library.define(f"{name}({', '.join(arguments)}, Tensor? token=None) -> {results}")

    def split(args: tuple[Any, ...]) -> tuple[Arrays, Inputs]:
        """The graph and the other inputs; torch leaves out a token that is None."""
        token = args[len(arguments)] if len(args) > len(arguments) else None
        graph = Arrays(args[at], args[at + 1], token)
        return graph, (*args[:at], *args[at + 2 : len(arguments)])

    def kernel(*args: Any) -> Any:
        check_memories(declared, args[: len(declared)])
        graph, inputs = split(args)
        return operator.run(graph, *inputs)

    def shape(*args: Any) -> Any:
        graph, inputs = split(args)
        return operator.shape(graph, *inputs)

    for kind in KINDS.values():
        _library.impl(name, kernel, kind.dispatch_key)
    torch.library.register_fake(f"hag_plugin::{name}", shape, lib=_library)
    overload = getattr(torch.ops.hag_plugin, name).default
    _EAGER[name] = operator.run, _eager_function(operator, num_tensors), named
    derived = _derived_kernel(operator, overload, num_tensors, split)
    _library.impl(name, derived, "Autograd", with_keyset=True)
    batched = _batching_rule(name, operator, num_tensors, split)
    torch.library.register_vmap(f"hag_plugin::{name}", batched, lib=_library)


def _eager_function(operator: Operator, num_tensors: int) -> Any:
    """An operator on a HAG with its gradient, for `call`."""
    keep, backward, run = operator.keep, operator.backward, operator.run
    last = num_tensors + 1

    # Without what `Function.apply` does for the transforms that `_is_plain` rules out.
    class Eager(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, hag: HAG, *inputs: Any) -> Any:
            y = run(hag, *inputs)
            ctx.hag = hag
            ctx.save_for_backward(*keep(ctx, ctx.needs_input_grad[1:last], inputs, y))
            return y

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            needs = ctx.needs_input_grad
            found = backward(ctx, ctx.hag, needs[1:last], ctx.saved_tensors, *grads)
            return None, *found, *(None,) * (len(needs) - last)

    return Eager.apply  # type: ignore[attr-defined]


def _derived_kernel(
    operator: Operator,
    overload: Any,
    num_tensors: int,
    split: Callable[[tuple[Any, ...]], tuple[Arrays, Inputs]],
) -> Any:
    """What torch's dispatch runs for autograd and forward-mode AD, at any level of transforms."""

    def below(keyset: Any, args: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    def needs_of(ctx: Any) -> tuple[bool, ...]:
        _, needs = split(ctx.needs_input_grad[1:])
        return needs[:num_tensors]

    class Derived(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, how: tuple[Any, bool, bool], *args: Any) -> Any:
            keyset, grad_mode, tangent_mode = how
            # autograd has turned both off, for the transforms further out as well
            modes = torch.set_grad_enabled(grad_mode)
            with modes, forward_ad._set_fwd_grad_enabled(tangent_mode):
                y = below(keyset, args)
            graph, inputs = split(args)
            kept = operator.keep(ctx, needs_of(ctx), inputs, y)
            ctx.save_for_backward(*graph, *kept)
            if _may_have_tangents():
                ctx.others = inputs[num_tensors:]
                first = y[0] if isinstance(y, tuple) else y
                last = y[-1] if isinstance(y, tuple) else y
                ctx.save_for_forward(*graph, *inputs[:num_tensors], first, last)
                ctx.set_materialize_grads(False)
            return y

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            found: Gradients = (None,) * num_tensors
            if grads[0] is not None:
                row_ptr, col, token, *kept = ctx.saved_tensors
                graph = Arrays(row_ptr, col, token)
                found = operator.backward(ctx, graph, needs_of(ctx), kept, *grads)
            return None, *_in_schema_order(found, len(ctx.needs_input_grad) - 1)

        @staticmethod
        def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
            row_ptr, col, token, *saved, first, last = ctx.saved_tensors
            single = first is last
            # The tangent is derived by other levels in its turn, from what has none on this one.
            with forward_ad._set_fwd_grad_enabled(True):
                *tensors, first, last = (
                    None if t is None else _unpacked(t, 0).primal for t in (*saved, first, last)
                )
                output = first if single else (first, last)
                _, of_inputs = split(tangents)
                inputs = (*tensors, *ctx.others)
                y = operator.tangent(
                    Arrays(row_ptr, col, token), inputs, output, of_inputs[:num_tensors]
                )
            return y if single else (y, None)

    at = _GRAPH_AT[overload._opname]

    def _in_schema_order(found: Gradients, count: int) -> tuple[Tensor | None, ...]:
        rest = (None,) * (count - num_tensors - 2)
        return (*found[:at], None, None, *found[at:], *rest)

    def derived(keyset: Any, *args: Any) -> Any:
        recorded, tangents = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
        if (tangents and _may_have_tangents()) or (recorded and torch._C._any_requires_grad(*args)):
            how = keyset, recorded, tangents
            # Here, below the transforms' own dispatch, one level is all there is.
            allowed = get_single_level_autograd_function_allowed()
            set_single_level_autograd_function_allowed(True)
            try:
                return Derived.apply(how, *args)  # type: ignore[attr-defined]
            finally:
                set_single_level_autograd_function_allowed(allowed)
        return below(keyset, args)

    return derived


def _batching_rule(
    name: str,
    operator: Operator,
    num_tensors: int,
    split: Callable[[tuple[Any, ...]], tuple[Arrays, Inputs]],
) -> Any:
    """What `torch.vmap` runs."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        graph, inputs = split(args)
        graph_dims, dims = split(in_dims)
        if any(dim is not None for dim in graph_dims):
            raise ValueError(
                f"{name} got a batch of graphs from vmap; expected one graph for all, and "
                "hag_plugin.batch for several"
            )
        batched = [dim is not None for dim in dims[:num_tensors]]
        inputs = tuple(
            t if dim is None else t.movedim(dim, 0) for t, dim in zip(inputs, dims, strict=True)
        )
        y = operator.folded(graph, info.batch_size, batched, inputs)
        if y is None:
            tensors, others = inputs[:num_tensors], inputs[num_tensors:]
            ys = [
                call(
                    name,
                    graph,
                    tuple(t[i] if b else t for t, b in zip(tensors, batched, strict=True)),
                    *others,
                )
                for i in range(info.batch_size)
            ]
            y = torch.stack(ys)
        return y, (0,) * len(y) if isinstance(y, tuple) else 0

    return rule


def expanded(
    size: int, batched: Sequence[bool], tensors: Sequence[Tensor | None]
) -> tuple[Any, ...]:
    """Tensors of which some have a batch in front, each with the batch in front."""
    pairs = zip(tensors, batched, strict=True)
    return tuple(t if t is None or b else t.expand(size, *t.shape) for t, b in pairs)


def folded_scales(
    run: Callable[[Tensor, Tensor | None, Tensor | None], Tensor],
    size: int,
    batched: Sequence[bool],
    x: Tensor,
    s: Tensor | None,
    t: Tensor | None,
) -> Tensor:
    """`run(x, s, t)`, a sum scaled by `s` and `t`, where some of the three are batches."""
    dtype = x.dtype
    (x,) = expanded(size, batched[:1], (x,))
    scales = [s, t]

    def scaled(rows: Tensor, side: int) -> Tensor:
        scale = scales[side]
        assert scale is not None
        between = [1] * (rows.dim() - 3)
        return rows * scale.view(size, *between, -1, 1)  # in the dtype that sums accumulate in

    if batched[1]:
        x, s = scaled(x, 0), None
    y = run(x.to(accumulator(dtype)) if batched[2] else x, s, None if batched[2] else t)
    return (scaled(y, 1) if batched[2] else y).to(dtype)


def linear_tangent(
    name: str,
    graph: Graph,
    inputs: Inputs,
    factors: Sequence[int],
    tangents: Sequence[Tensor | None],
) -> Tensor:
    """The tangent of an operator that is linear in each of its `factors`, the first tensors."""
    terms = []
    num_tensors = len(tangents)
    for at in factors:
        if tangents[at] is not None:
            tensors = (*inputs[:at], tangents[at], *inputs[at + 1 : num_tensors])
            terms.append(call(name, graph, tensors, *inputs[num_tensors:]))
    total: Tensor = sum(terms[1:], terms[0])
    return total


def call(name: str, graph: Graph, tensors: tuple[Tensor | None, ...], *others: Any) -> Any:
    """The operator `name`, without torch's dispatch where nobody could tell.

    On small graphs the dispatch, in Python, takes longer than the aggregation.
    """
    if not torch.compiler.is_compiling() and isinstance(graph, HAG) and _is_plain(tensors):
        run, with_gradient, named = _EAGER[name]
        try:
            for t in tensors:
                if t is not None and (  # what most tensors pass in `check_memory`, without the call
                    t.untyped_storage().nbytes() != t.nbytes
                    or t.storage_offset()
                    or not t.is_contiguous()
                ):
                    check_memories(named, tensors)
                    break
            if needs_grad(*tensors):
                return with_gradient(graph, *tensors, *others)
            return run(graph, *tensors, *others)
        except RuntimeError:
            if all(map(has_memory, tensors)):
                raise
    at = _GRAPH_AT[name]
    arrays = graph.arrays if isinstance(graph, HAG) else graph
    operator = getattr(torch.ops.hag_plugin, name).default
    return operator(*tensors[:at], arrays[0], arrays[1], *tensors[at:], *others, arrays[2])


def check_memories(named: Sequence[str], tensors: Sequence[Tensor | None]) -> None:
    """`check_memory` of each of these."""
    for name, tensor in zip(named, tensors, strict=True):
        if tensor is not None:
            check_memory(name, tensor)


def _is_plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether these are ordinary CPU or GPU tensors that no mode, transform or tracer looks at.

    What it lets through for the sake of speed has no memory, and shows when that is asked for.
    """
    if (
        torch._C._len_torch_dispatch_stack() > 0
        or is_transformed()
        or torch._C._get_tracing_state() is not None
    ):
        return limits.unseen_dispatch
    for t in tensors:  # faster than all(), and this is run at every call
        if t is not None and not (
            type(t) in _ORDINARY and (t.is_cpu or t.device.type in KINDS) and not t.is_neg()
        ):
            return limits.unseen_dispatch
    return True


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode AD is at work."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def _may_have_tangents() -> bool:
    # What a compiler has traced enters levels without a word to `forward_ad`.
    return is_transformed() or torch._C._len_torch_dispatch_stack() > 0


def is_fixed(tensor: Tensor) -> bool:
    """Whether no derivative goes through a tensor, and its numbers can be read."""
    if torch.is_grad_enabled() and tensor.requires_grad:
        return False
    if torch._C._len_torch_dispatch_stack() > 0 and _is_traced(tensor):
        return False
    if not is_transformed():
        return True
    if forward_ad._current_level >= 0 and _unpacked(tensor).tangent is not None:
        return False
    return has_memory(tensor)


def _is_traced(tensor: Tensor) -> bool:
    """Whether `make_fx` traces what is made of a tensor."""
    mode = get_proxy_mode()
    return mode is not None and get_proxy_slot(tensor, mode.tracer, None) is not None


def _unpacked(tensor: Tensor, level: int | None = None) -> Any:
    """The `primal` and the `tangent` of a tensor; by default of the innermost level."""
    return forward_ad.unpack_dual(tensor, level=level)  # type: ignore[no-untyped-call]


def has_memory(tensor: Tensor | None) -> bool:
    """Whether there is memory behind it: not where it stands for a batch, or for a tracer's."""
    if tensor is None:
        return True
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def is_ordinary(*tensors: Tensor | None) -> bool:
    """Whether nothing but their numbers is to be known of tensors, so that these may be kept.

    No transform, mode or tracer is at work on them, none of its wrappers is left around them, and
    they have no tangent.
    """
    if torch.compiler.is_compiling() or not _is_plain(tensors):
        return False
    try:
        for t in tensors:
            if t is not None:
                t.data_ptr()
    except RuntimeError:  # as `has_memory` tells it of one
        return False
    return True


def number(tensor: Tensor) -> Any:
    """The one value of a tensor; None where it has many, as in a batch of `torch.vmap`, or where
    a tracer would not let it go."""
    try:
        return tensor.item()
    except RuntimeError:
        if has_memory(tensor) and torch._C._len_torch_dispatch_stack() == 0:
            raise
        return None


# Run time --------------------------------------------------------------------------------------


def found(graph: Graph, x_rows: int, num_rows: int, loops: str, transposed: bool) -> HAG:
    """The HAG of a graph, after a check of the number of rows on both sides.

    Its reverse, if that is what `loops` says.
    """
    if isinstance(graph, HAG):
        hag = graph._made()
    elif loops == LOOPED:
        hag = looped_of_arrays(graph, num_rows if transposed else x_rows)
    else:
        is_reversed = loops.startswith(REVERSED)
        maybe = find(*graph)
        if maybe is None:
            maybe = of_arrays(graph, num_rows if transposed != is_reversed else x_rows)
            maybe.targets_first = bool(loop_mode(loops))
        hag = maybe.transpose() if is_reversed else maybe
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
    if x.is_contiguous():  # asked first: it is the common case
        return x
    return x.contiguous() if x.stride(-1) != 1 and x.shape[-1] > 1 else x


def new_output(x: Tensor, num_rows: int) -> Tensor:
    """An empty tensor like `x`, with so many rows."""
    if x.shape[-2] == num_rows and x.is_contiguous():  # as most are, and this is the faster way
        return in_large_pages(torch.empty_like(x))
    *batch, _, width = x.shape
    return in_large_pages(x.new_empty((*batch, num_rows, width)))


def in_large_pages(y: Tensor) -> Tensor:
    """A new tensor; if it is large, and in main memory, that comes in large pages."""
    if y.nbytes >= HUGE_OUTPUT and y.is_cpu:
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
