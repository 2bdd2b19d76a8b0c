"""The order of edges, which a HAG does not keep: where results depend on it, a HAG is refused.

A layer without a recipe, or with an aggregation that no HAG serves, is given the edges of a HAG,
by target and then by source. Sums, maxima, attention and most else come out the same in any order.
What does not is found by trying: a copy of the layer runs on the same edges in two orders.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import aggr

from hag_plugin.modes import outside_inference
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.aggregation.statistics import STATISTICS

Run = Callable[[Any, Callable[[Any], Any]], Any]  # from a layer and what to do with each argument
TRIED_EDGES = 20_000
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}

# Aggregations that give the same in any order, beside those that HAGs serve. Others are tried.
FREE = (
    *REDUCERS,
    *STATISTICS,
    aggr.AttentionalAggregation,
    aggr.DeepSetsAggregation,
    aggr.EquilibriumAggregation,
    aggr.GraphMultisetTransformer,
    aggr.MedianAggregation,
    aggr.MulAggregation,
    aggr.QuantileAggregation,
    aggr.Set2Set,
    aggr.SetTransformerAggregation,
)
# What depends on the order of edges apart from its aggregation, or gives a value for each edge.
# By name, as not every version of PyG has all. tests/pyg finds them among all of PyG's.
ORDERED = {
    "MeshCNNConv.forward": "it takes the edges of a node one by one",
    "InnerProductDecoder.forward": "it returns a value for each edge",
    "ARLinkPredictor.forward": "it returns a value for each edge",
    "ARLinkPredictor.decode": "it returns a value for each edge",
    "SignedGCN.discriminate": "it returns a value for each edge",
}
FOUND_FREE = "_hag_free"  # in a layer: the aggregation with which it was found to be


def why_ordered(layer: Any, stock: type, method: str, call: dict[str, Any]) -> str | None:
    """Why a layer depends on the order of edges, as far as this can be seen. None: it may not."""
    name = pyg_method(stock, method)
    if name in ORDERED:
        return ORDERED[name]
    own = layer.__dict__
    if own.get("_explain") is True and own.get("_edge_mask") is not None:
        return "it is being explained, with a mask over edges"
    if own.get("_parameters", {}).get("_edge_mask") is not None:
        return "it is being explained, with a mask over edges"
    if call.get("return_attention_weights") is not None:
        return "it returns a value for each edge (return_attention_weights)"
    if call.get("num_sampled_edges_per_hop") is not None:
        return "it cuts off edges by their place (num_sampled_edges_per_hop)"
    if "edge_label_index" in call and call["edge_label_index"] is None:
        return "it returns a value for each edge (edge_label_index is None)"
    if type(own["_modules"].get("aggr_module")) is aggr.LSTMAggregation:
        return "aggr='lstm'"
    return None


def pyg_method(cls: type, method: str) -> str | None:
    """The name, as in "GAE.test", of the method of PyG's that a class has; None if it is not."""
    for owner in cls.__mro__[:-1]:  # not `object`, whose names torch 2.8 cannot trace
        if method in owner.__dict__:
            break
    else:
        return None
    is_pyg = owner.__module__.startswith("torch_geometric.")
    return f"{owner.__name__}.{method}" if is_pyg else None


def refuse(stock: type, reason: str) -> None:
    """Raises ValueError: a HAG does not do here."""
    lstm = ", or the tree of hag_plugin.sequence.build_sequence" if "lstm" in reason else ""
    raise ValueError(
        f"{stock.__name__} got a HAG, but depends on the order of edges, which a HAG does not "
        f"keep: {reason}. Pass edge_index{lstm}"
    )


def is_free(layer: Any, stock: type) -> bool:
    """Whether a layer is known to give the same in any order of edges."""
    if stock.__module__.startswith("torch_geometric.") and has_free_aggregation(layer):
        return True
    found = layer.__dict__.get(FOUND_FREE)
    return found is not None and found[0] is layer.__dict__["_modules"].get("aggr_module")


def has_free_aggregation(layer: Any) -> bool:
    """Whether a layer's aggregation is none, or one that is free of an order."""
    module = layer.__dict__["_modules"].get("aggr_module")
    return module is None or is_made_of(module, FREE)


def is_made_of(module: Any, kinds: tuple[type, ...]) -> bool:
    """Whether an aggregation is of these classes, or made of such."""
    if type(module) is aggr.DegreeScalerAggregation:
        return is_made_of(module._modules["aggr"], kinds)
    if type(module) is aggr.MultiAggregation:
        return all(is_made_of(each, kinds) for each in module._modules["aggrs"]._modules.values())
    return type(module) in kinds


@torch.compiler.disable  # type: ignore[untyped-decorator]
def check(layer: Any, stock: type, run: Run) -> None:
    """Raises ValueError if a layer depends on the order of the edges it was just given.

    To be asked where it is not known to be free of it; what is found is noted in the layer.

    Args:
        layer: as it is.
        stock: its class.
        run: given a layer and a function, calls the layer with the arguments of this call, each
            run through the function first. Edges come as `Edges`.
    """
    with outside_inference(), torch.no_grad():
        differs, told = _try(layer, stock, run)
    if differs:
        words = "" if has_free_aggregation(layer) else f", with aggr={layer.aggr!r}"
        refuse(stock, f"in another one it gives another result{words}")
    if told:
        layer.__dict__[FOUND_FREE] = (layer.__dict__["_modules"].get("aggr_module"),)


class Edges:
    """Edges in the order of a HAG, and their values, as an argument that `run` is to replace.

    Attributes:
        values: `[2, E]`, or `[E]` for the relations of edges.
        target: `[E]`, by which edges are aggregated.
    """

    def __init__(self, values: Tensor, target: Tensor) -> None:
        self.values = values
        self.target = target


def of(conv: Any, edge_index: Tensor) -> Edges:
    """Edges that a layer was given for those of a HAG."""
    side = 0 if getattr(conv, "flow", None) == "target_to_source" else 1
    return Edges(edge_index, edge_index[side])


def _try(layer: Any, stock: type, run: Run) -> tuple[bool, bool]:
    """Whether the result differs in another order, and whether that could be told."""
    device = next((p.device for p in layer.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.autocast(device.type, enabled=False):
        # The last is what was just run, and cannot fail.
        for dtype, count in (
            (torch.float64, TRIED_EDGES),
            (torch.float64, None),
            (torch.float32, None),
            (None, None),
        ):
            try:
                twin = _twin(layer, stock, dtype)
                first, edges = _run(twin, run, dtype, count, _by_target)
                turned, others = _run(twin, run, dtype, count, _turned)
            except Exception:  # what a layer raises is not ours to know
                continue
            if _differ(first, turned, dtype):
                return True, True
            told = not all(map(torch.equal, edges, others))  # it is not where none has two sources
            try:
                mixed, _ = _run(twin, run, dtype, count, _mixed)
            except Exception:  # edges have to be sorted
                return False, told
            return _differ(first, mixed, dtype), told
    return False, False


def _twin(layer: Any, stock: type, dtype: torch.dtype | None) -> Any:
    """A copy in evaluation mode, with random parameters, that nobody watches."""
    memo: dict[int, Any] = {id(layer.__dict__.get("_hag_session")): None}
    for part in layer.modules():  # results that it keeps cannot be copied with their gradients
        kept = [v for v in part.__dict__.values() if isinstance(v, Tensor) and not v.is_leaf]
        memo |= {id(value): value.detach() for value in kept}
    twin = copy.deepcopy(layer, memo).eval()
    if "_hag_stock" in type(twin).__dict__:
        twin.__class__ = stock
    for part in twin.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    if dtype is not None:
        twin.to(dtype)
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                parameter.normal_(0.0, 0.3)
    return twin


def _run(
    twin: Any, run: Run, dtype: torch.dtype | None, count: int | None, order: Callable[..., Any]
) -> tuple[Any, list[Tensor]]:
    """The result, and the edges in the order that they had."""
    torch.manual_seed(0)
    given: list[Tensor] = []

    def prepared(value: Any) -> Any:
        if isinstance(value, Edges):
            last = len(value.target) if count is None else min(count, len(value.target))
            given.append(value.values[..., :last][..., order(value.target[:last])])
            return given[-1]
        if isinstance(value, dict):
            return {k: prepared(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)([prepared(v) for v in value])
        if dtype is not None and type(value) is Tensor and value.is_floating_point():
            return _random(value.shape, dtype, value.device)
        return value

    return run(twin, prepared), given


def _random(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Some rows are equal in their last column, by which an aggregation may sort."""
    values = torch.randn(shape, dtype=dtype, device=device)
    if values.dim() > 1:
        values[::2, ..., -1] = 0.0
    return values


def _by_target(target: Tensor) -> Tensor:
    return torch.argsort(target, stable=True)


def _turned(target: Tensor) -> Tensor:
    """By target, and for each the other way round."""
    backwards = torch.arange(len(target) - 1, -1, -1, device=target.device)
    return backwards[torch.argsort(target[backwards], stable=True)]


def _mixed(target: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)  # its own: features are drawn meanwhile
    return torch.randperm(len(target), generator=generator).to(target.device)


def _differ(a: Any, b: Any, dtype: torch.dtype | None) -> bool:
    if isinstance(a, dict):
        return any(_differ(a[key], b[key], dtype) for key in a)
    if isinstance(a, (tuple, list)):
        return any(_differ(x, y, dtype) for x, y in zip(a, b, strict=True))
    if not isinstance(a, Tensor) or a.layout != torch.strided:
        return False
    if a.shape != b.shape:
        return True
    if not a.is_floating_point():
        return not torch.equal(a, b)
    tolerance = TOLERANCE.get(dtype or a.dtype, TOLERANCE[torch.float32])
    scale = a.abs().nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1.0) if a.numel() else 1.0
    return not torch.allclose(a, b, rtol=0.0, atol=float(tolerance * scale), equal_nan=True)
