"""What torch functions between the layers of a model are, as operations: told by their names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

ALIASES = {"contiguous", "view", "reshape", "to", "float", "clone", "type_as", "requires_grad_"}
# Only their first argument's values matter; of the others the shape or type does.
OF_FIRST = {"expand_as", "view_as", "reshape_as", "type_as"}
# What they return depends on no value of their arguments.
CONSTANT = {
    "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty",
    "new_full", "new_tensor",
}  # fmt: skip
PRODUCTS = {"linear", "matmul", "mm", "__matmul__", "addmm"}
# By name, the sums over features that it takes, forward and backward.
OVER_FEATURES = {
    "layer_norm": (2, 2), "softmax": (2, 1), "log_softmax": (2, 1), "normalize": (1, 1),
}  # fmt: skip
ELEMENTWISE = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid",
    "logsigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign",
    "tanhshrink", "threshold", "prelu", "dropout", "abs", "neg", "exp", "expm1", "log", "log1p",
    "sqrt", "rsqrt", "square", "pow", "sin", "cos", "reciprocal", "sign", "clamp", "clip",
    "nan_to_num", "detach", "half", "double", "bfloat16", "positive",
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "multiply", "subtract",
    "div", "truediv", "rtruediv", "itruediv", "true_divide", "divide", "maximum", "minimum",
    "fmax", "fmin", "lerp", "hypot",
}  # fmt: skip
# What autograd keeps of functions; of others, their input.
KEEP_OUTPUT = {"relu", "sigmoid", "tanh", "exp", "expm1", "sqrt", "rsqrt", "reciprocal", "softmax",
               "log_softmax"}  # fmt: skip
KEEP_NOTHING = {
    "add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "neg", "positive", "detach", "sign",
    "half", "double", "bfloat16", "cat", "concat", "concatenate",
}  # fmt: skip
KEEP_THE_OTHER = {"mul", "rmul", "imul", "multiply", "div", "truediv", "itruediv", "divide",
                  "true_divide"}  # fmt: skip
# Their masks and noise would differ from rank to rank.
RANDOM = {
    "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d",
    "rrelu", "rand_like", "randn_like", "randint_like", "bernoulli", "normal", "uniform",
    "exponential", "cauchy", "gumbel_softmax", "multinomial", "poisson",
}  # fmt: skip
# In training over rows, whatever they do in evaluation.
OVER_ROWS = {"batch_norm", "instance_norm"}
# Of tensors that come from no operation; numbers that are drawn in a forward.
DRAWN = RANDOM | {"rand", "randn", "randint", "randperm", "dropout", "dropout3d"}
POOLING = {"scatter_add": "sum", "index_add": "sum", "sum": "sum", "mean": "mean",
           "scatter_reduce": "", "amax": "max", "amin": "min"}  # fmt: skip
SIGNATURES = {
    "linear": ("input", "weight", "bias"),
    "matmul": ("input", "weight"),
    "mm": ("input", "weight"),
    "__matmul__": ("input", "weight"),
    "addmm": ("bias", "input", "weight"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training",
                   "momentum", "eps"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "softmax": ("input", "dim"),
    "log_softmax": ("input", "dim"),
    "normalize": ("input", "p", "dim", "eps"),
    "dropout": ("input", "p", "training", "inplace"),
    "scatter_add": ("into", "dim", "index", "src"),
    "index_add": ("into", "dim", "index", "src"),
    "scatter_reduce": ("into", "dim", "index", "src", "reduce", "include_self"),
    "sum": ("input", "dim", "keepdim"),
    "mean": ("input", "dim", "keepdim"),
}  # fmt: skip


def name_of(function: Any) -> str:
    """What a function is called; of a property, what that is called."""
    name = getattr(function, "__name__", str(function))
    if name == "__get__":
        return str(getattr(function.__self__, "__name__", name))
    return name


def base_name(name: str) -> str:
    """A function's name without the marks of an operator or of work in place.

    Example:
        >>> base_name("relu_"), base_name("__add__")
        ('relu', 'add')
    """
    return name.strip("_") or name


def bound(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], function: Any) -> dict[
    str, Any
]:  # fmt: skip
    """Arguments by name, or by position where a function does not tell their names.

    Example:
        >>> bound("linear", ("x", "w"), {"bias": None}, None)
        {'input': 'x', 'weight': 'w', 'bias': None}
    """
    names = SIGNATURES.get(name) or SIGNATURES.get(base_name(name))
    if names is None:
        try:
            names = tuple(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            names = ()
    names = (*names, *(str(i) for i in range(len(names), len(args))))
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in an argument, also in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def replaced(value: Any, by: Mapping[int, Any]) -> Any:
    """An argument with other tensors in it, given by the `id` of those they replace."""
    if isinstance(value, Tensor):
        return by.get(id(value), value)
    if isinstance(value, (list, tuple)):
        items = [replaced(item, by) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: replaced(item, by) for key, item in value.items()}
    return value


def with_rows(value: Any, before: int, after: int) -> Any:
    """An argument in which a number of rows is another one.

    Example:
        >>> with_rows(([9, 4], -1, 9), 9, 3)
        ([3, 4], -1, 3)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return after if value == before else value
    if isinstance(value, (list, tuple)):
        items = [with_rows(item, before, after) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def drops(name: str) -> bool:
    """Whether a function is dropout, whose masks go by place."""
    return base_name(name) == "dropout"


def in_place(call: Any) -> bool:
    """Whether a call changes its first argument."""
    name: str = call.name
    if name == "__setitem__":
        return True
    return bool(call.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def looks_up_all(call: Any) -> bool:
    """Whether a call looks up all rows of a table, in their order: what it gives is the table."""
    if call.name != "embedding":
        return False
    args = bound(call.name, call.args, call.kwargs, call.function)
    rows, table = args["input"], args["weight"]
    if rows.is_meta or rows.dim() != 1 or len(rows) != len(table):
        return False
    if args.get("padding_idx") is not None or args.get("max_norm") is not None:
        return False
    return bool((rows == torch.arange(len(table), device=rows.device)).all())


def classify(
    name: str, args: dict[str, Any], known: list[Tensor], out: Tensor, parameters: set[int]
) -> tuple[str, dict[str, Any]]:
    """The kind of operation that a function is, and attributes of the operation.

    Args:
        name: of the function.
        args: as `bound` gives them.
        known: arguments that other operations made.
        out: the result.
        parameters: ids of the model's parameters and buffers.
    """
    base, features = base_name(name), out.dim() - 1
    if base in POOLING and _pools(base, args, known, out):
        return "pooling", {"reduce": (POOLING[base] or str(args["reduce"]).removeprefix("a"),)}
    same = all(t.shape == out.shape for t in known)
    others = [t for t in tensors(args) if all(t is not k for k in known)]
    if name in PRODUCTS and len(known) == 1 and known[0] is args.get("input"):
        weight = args.get("weight")
        if weight is not None and weight.dim() == 2 and all(id(t) in parameters for t in others):
            bias = args.get("bias")
            plain = args.get("alpha", 1) == 1 and args.get("beta", 1) == 1
            if plain and (bias is None or bias.dim() == 1) and known[0].dim() == 2:
                return "linear", {
                    "input_width": int(known[0].shape[-1]), "bias": bias is not None,
                }  # fmt: skip
        return "opaque", {}
    if base == "batch_norm" and out.dim() == 2:
        return "normalisation", {"over": "nodes", "affine": args.get("weight") is not None}
    if base in OVER_FEATURES and same and args.get("dim", 1) in (-1, features):
        affine = args.get("weight") is not None
        settings = {"over": "features", "affine": affine, "statistics": OVER_FEATURES[base]}
        return "normalisation", settings
    if base in ("cat", "concat", "concatenate"):
        dim = args.get("dim", args.get("1", 0))
        joined = sum(t.shape[-1] for t in known) == out.shape[-1]
        return ("concatenation", {}) if joined and dim in (-1, features) else ("opaque", {})
    if same and base in ELEMENTWISE and all(t.numel() == 1 for t in others):
        values = sum(t.numel() for t in others if id(t) in parameters and t.requires_grad)
        kind = "elementwise" if len({id(t) for t in known}) == 1 else "sum"
        return kind, {"values": values}
    return "opaque", {}


def kept(name: str, args: Mapping[str, Any], inputs: int, values: int) -> str:
    """What autograd keeps of a function, other than a product.

    Args:
        name: of the function.
        args: as `bound` gives them.
        inputs: how many outputs of operations it takes.
        values: how many trainable values.

    Returns:
        "input", "output" or "" (nothing); "mask": which values dropout keeps; "largest": which of
        its inputs was; "centred": two tensors of its own; "all": its input and these; "scaled":
        its inputs if it learns a factor; "same": the output is the input.

    Example:
        >>> kept("dropout", {"p": 0.5}, 1, 0), kept("relu_", {}, 1, 0), kept("add", {}, 2, 0)
        ('mask', 'output', '')
    """
    base = base_name(name)
    if base == "dropout":
        p = args.get("p", 0.5)
        return "same" if p == 0 else "mask" if p < 1 else ""
    if base in KEEP_OUTPUT:
        return "output"
    if base == "combined" and args["aggr"] in ("sum", "mean"):
        return ""
    own = {
        "largest": "largest",
        "combined": "largest" if args.get("aggr") in ("max", "min") else "input",
        "add_scaled": "scaled",
        "graph_norm": "centred",
        "graph_layer_norm": "all",
    }
    if base in own:
        return "input" if base == "add_scaled" and values else own[base]
    nothing = base in KEEP_NOTHING or (base in KEEP_THE_OTHER and inputs == 1)
    return "" if nothing and not values else "input"


def _pools(base: str, args: dict[str, Any], known: list[Tensor], out: Tensor) -> bool:
    """Whether a function makes one row of several nodes' rows."""
    source = args.get("src", args.get("input"))
    if len(known) != 1 or known[0] is not source or source.dim() != 2 or out.dim() != 2:
        return False
    return args.get("dim") in (0, -2, [0], [-2], (0,), (-2,)) and args.get("alpha", 1) == 1
