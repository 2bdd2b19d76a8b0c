"""`inference`: a model over all nodes of a large graph, layer by layer, in bounded memory.

The model's own forward runs once over the whole graph. A layer that a HAG serves makes no message
an edge, and runs as it is. Each other layer runs in blocks of targets: on the edges into these,
their sources behind them, as a loader with all neighbours gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing, aggr

from hag_plugin import devices
from hag_plugin.arguments import brief, check_kind, check_optional_flag, whole
from hag_plugin.hag.build import build_hag
from hag_plugin.hag.graph import check_edge_index
from hag_plugin.hag.hag import HAG
from hag_plugin.progress import SHARE, bar
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.aggregation.statistics import STATISTICS
from hag_plugin.pyg.model import edge_order
from hag_plugin.pyg.model.facts import PARAMETERS, graph_size, plain_edges
from hag_plugin.pyg.model.session import built_before
from hag_plugin.pyg.model.settle import settle
from hag_plugin.pyg.recipes.recipe import Call, Recipe, stock_class
from hag_plugin.pyg.recipes.table import recipe_of

# Layers of PyG's whose rows are made of the edges into a node and the features on both sides of
# these alone: not of degrees of sources, nor of nodes further away.
ONE_HOP = {
    *("AGNNConv", "CFConv", "CGConv", "EdgeConv", "FeaStConv", "GATConv", "GATEConv"),
    *("GATv2Conv", "GINEConv", "GMMConv", "HEATConv", "NNConv", "PPFConv"),
    *("PointGNNConv", "PointNetConv", "PointTransformerConv", "RGATConv", "ResGatedGraphConv"),
    *("SuperGATConv", "TransformerConv"),
    *("FiLMConv", "GENConv", "GINConv", "GeneralConv", "GraphConv", "LEConv"),
    *("PNAConv", "RGCNConv", "SAGEConv", "WLConvContinuous"),
}
# Aggregations of the messages of a node alone. PyG's LSTM and others pad these to the most that any
# node has, and their results depend on that.
ROW_BY_ROW = (
    *REDUCERS,
    *STATISTICS,
    aggr.AttentionalAggregation,
    aggr.DeepSetsAggregation,
    aggr.MedianAggregation,
    aggr.MulAggregation,
    aggr.QuantileAggregation,
)
COPIES = 4  # of a message, that a layer holds at once: of both ends, and what is made of these


def inference(
    model: Module,
    x: Tensor | Data,
    edge_index: Tensor | HAG | None = None,
    *arguments: Any,
    memory: int = 1 << 30,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    **named: Any,
) -> Any:
    """What an accelerated model gives for all nodes of a graph, as in evaluation without gradients.

    The same as `model.eval()(x, edge_index)`, with no tensor of messages above `memory`. It takes
    the place of a loop over layers and a NeighborLoader with all neighbours. Beside features of all
    nodes, a few at a time, nothing of the graph's size is held but the graph itself.

    Args:
        model: after `accelerate`; its `forward` takes features and edges first.
        x: features `[N, F]`; or a `Data` that holds them and `edge_index`, or a `hag`.
        edge_index: `[2, E]`, or a HAG; not with a `Data`.
        *arguments: further ones of `forward`.
        memory: bytes that the messages of a layer may take.
        device: where to compute, to which the model is moved; by default that of its parameters.
            Results stay there.
        progress: show a bar; by default if it takes more than two seconds.
        **named: further arguments of `forward`, by name.

    Returns:
        What `forward` returns.

    Raises:
        TypeError: `model` is not accelerated, or `x` or `edge_index` is something else.
        ValueError: a layer needs more memory and cannot run in blocks, or `edge_index` is of
            another shape.

    Example:
        >>> import torch
        >>> from torch_geometric.nn import GAT
        >>> from hag_plugin.pyg import accelerate
        >>> model = accelerate(GAT(4, 8, num_layers=2, out_channels=3))
        >>> inference(model, torch.ones(3, 4), torch.tensor([[0, 1, 2], [1, 0, 0]])).shape
        torch.Size([3, 3])
    """
    check_kind("model", model, Module)
    memory = whole("memory", memory, 1, 2**63 - 1)
    check_optional_flag("progress", progress)
    layers = [part for part in _layers(model) if "_hag_session" in part.__dict__]
    if not layers:
        raise TypeError(f"{type(model).__name__} is not accelerated: call accelerate(model) first")
    if isinstance(x, Data):
        if edge_index is not None:
            raise TypeError("edge_index is given twice: x is a Data, which has edges")
        hag = x.get("hag") if "hag" in x else None
        x, edge_index = x.x, x.edge_index if hag is None else hag
    if not isinstance(x, Tensor) or not isinstance(edge_index, (HAG, Tensor)):
        raise TypeError(f"x is {brief(x)} and edge_index {brief(edge_index)}; expected features "
                        "and edges, or a Data")  # fmt: skip
    if x.is_nested or x.dim() < 1:
        raise ValueError(f"x is {brief(x)}; expected a row for each node")
    if isinstance(edge_index, Tensor):
        check_edge_index(edge_index)
    if device is None:
        device = next((p.device for p in model.parameters()), x.device)
    elif devices.checked(device).type == "meta":
        raise ValueError("device is 'meta'; expected one that holds numbers")
    moved = [_moved(value, torch.device(device)) for value in (x, edge_index, *arguments)]
    named = {name: _moved(value, torch.device(device)) for name, value in named.items()}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_evaluating(model.to(device)))
        words = f"{len(layers)} layers over {len(x):,} nodes"
        shown = stack.enter_context(bar(progress, total=len(layers), desc=words, bar_format=SHARE))
        graphs = _Graphs(memory)
        for layer in layers:
            stack.enter_context(_bounded(layer, graphs, shown))
        return model(*moved, **named)


def _layers(module: Module) -> Iterator[Any]:
    """The message passing layers that are not inside of others."""
    if isinstance(module, MessagePassing):
        yield module
        return
    for part in module.children():
        yield from _layers(part)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, (Tensor, HAG)) else value


@contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    trained = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in trained:
            part.training = True


@contextmanager
def _bounded(layer: Any, graphs: _Graphs, shown: Any) -> Iterator[None]:
    """Calls of a layer inside of the model's forward run with bounded memory."""
    names: tuple[str, ...] = getattr(type(layer), PARAMETERS, ())
    own = layer.__dict__
    if not names or "forward" in own:  # a user's own, or with something put in its place
        yield
        return
    forward = type(layer).forward

    def bounded(*args: Any, **kwargs: Any) -> Any:
        begun = shown.n
        call = dict(zip(names, args, strict=False))
        if len(args) > len(names) or call.keys() & kwargs.keys():
            return forward(layer, *args, **kwargs)  # which says what is wrong
        call |= kwargs
        y = _run(layer, forward, call, graphs, lambda share: shown.update(begun + share - shown.n))
        shown.update(begun + 1 - shown.n)
        return y

    own["forward"] = bounded
    try:
        yield
    finally:
        del own["forward"]


def _run(
    layer: Any, forward: Any, call: dict[str, Any], graphs: _Graphs, report: Callable[[float], Any]
) -> Any:
    """One call of a layer, by the way that holds no more than `graphs.memory` of messages."""
    stock, recipe = stock_class(layer), recipe_of(stock_class(layer))
    _check_ids(call.get("edge_index"), call.get("x"))
    served = None if recipe is None else _served(layer, recipe, call, graphs)
    if served is not None:
        return forward(layer, **served)
    name = "edge_index" if recipe is None else recipe.record.graphs[0]
    edges, x = call.get(name), call.get("x")
    if isinstance(edges, HAG):
        edges = plain_edges(edges)
    if not isinstance(edges, Tensor) or edges.layout != torch.strided or edges.dim() != 2:
        return forward(layer, **call)
    size = _message_bytes(layer, x)
    needed = edges.shape[1] * size
    if needed <= graphs.memory:
        return forward(layer, **call)
    reason = _why_whole(layer, stock, call)
    if reason is not None:
        raise ValueError(
            f"{stock.__name__} makes messages of about {needed:,} bytes, more than memory="
            f"{graphs.memory:,}, and cannot run in blocks: {reason}. Pass a larger memory"
        )
    return _in_blocks(layer, forward, {**call, name: edges.long()}, name, graphs, report)


def _check_ids(edges: Any, x: Any) -> None:
    """Raises ValueError if an id is none of a node's: one below 0 would be counted from the end."""
    if not (isinstance(edges, Tensor) and isinstance(x, Tensor) and edges.numel()):
        return
    if edges.layout != torch.strided or edges.dim() != 2:
        return
    least, most = (int(value) for value in edges.aminmax())
    if least < 0 or most >= len(x):
        raise ValueError(f"edge_index holds id {least if least < 0 else most}; expected 0 to "
                         f"{len(x) - 1}, for x with {len(x)} rows")  # fmt: skip


def _served(
    layer: Any, recipe: Recipe, call: dict[str, Any], graphs: _Graphs
) -> dict[str, Any] | None:
    """Arguments with which a layer makes no message an edge; None: there are none."""
    if getattr(layer, "cached", False):  # it runs the graph of its first call
        return None
    record, given = recipe.record, dict(call)
    has_values = any(call.get(name) is not None for name in record.edge_values)
    is_typed = record.relations is not None and record.relations(layer) is not None
    try:
        if has_values or is_typed:
            # What this graph is to every layer, it is worth what one that came back is worth.
            if settle(layer, recipe, call).kind == "stock":
                layer.__dict__["_hag_session"].occasions.turn()
        else:
            for name in record.graphs:
                if isinstance(call.get(name), Tensor):
                    given[name] = graphs.hag_of(call[name], graph_size(recipe, layer, call))
        return None if settle(layer, recipe, given).kind == "stock" else given
    except ValueError:  # it depends on the order of edges, or stock finds fault with them itself
        return None


def _message_bytes(layer: Any, x: Any) -> int:
    """About what a layer holds for each edge."""
    x = x[0] if isinstance(x, (tuple, list)) else x
    widths = [x.shape[-1] if isinstance(x, Tensor) and x.dim() > 1 else 1]
    out = getattr(layer, "out_channels", None)
    if isinstance(out, int):
        heads = getattr(layer, "heads", 1)
        widths.append(out * (heads if isinstance(heads, int) else 1))
    size = x.element_size() if isinstance(x, Tensor) and x.is_floating_point() else 4
    return int(COPIES * max(widths) * size)


def _why_whole(layer: Any, stock: type, call: Call) -> str | None:
    """Why a layer cannot run in blocks of targets. None: it can."""
    is_pyg = stock.__module__.startswith("torch_geometric.")
    if not is_pyg or stock.__name__ not in ONE_HOP:
        return "its rows may be made of more than the edges into a node and their two ends"
    if not edge_order.is_made_of(layer.aggr_module, ROW_BY_ROW):
        return f"aggr={layer.aggr!r} may depend on the neighbours of other nodes"
    if layer.flow != "source_to_target":
        return f"flow={layer.flow!r}"
    if not isinstance(call.get("x"), Tensor) or call.get("size") is not None:
        return "its features are not one tensor with a row for each node"
    if call.get("return_attention_weights") is not None:
        return "it returns a value for each edge"
    return None


# Blocks of targets ------------------------------------------------------------------------------


class _Graphs:
    """What the layers of one inference share of their graphs.

    Args:
        memory: bytes for the messages of a layer.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._kept: dict[Any, tuple[Tensor, Any]] = {}  # with the tensor, whose id stays its own

    def hag_of(self, edge_index: Tensor, size: tuple[int, int]) -> HAG:
        """The HAG that there is, or the plain graph, which takes no search."""

        def make() -> HAG:
            found = built_before(edge_index, size)
            return build_hag(edge_index, size=size, method="none") if found is None else found

        hag: HAG = self._once(edge_index, size, make)
        return hag

    def by_target(self, edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
        """Places of the edges into each node, `[E]`, and where those of a node begin, `[N + 1]`."""

        def make() -> tuple[Tensor, Tensor]:
            target = edge_index[1]
            begin = target.new_zeros(num_nodes + 1)
            begin[1:] = torch.bincount(target, minlength=num_nodes).cumsum(0)
            return torch.argsort(target, stable=True), begin

        order: tuple[Tensor, Tensor] = self._once(edge_index, num_nodes, make)
        return order

    def _once(self, edge_index: Tensor, purpose: Any, make: Callable[[], Any]) -> Any:
        key = id(edge_index), purpose
        if key not in self._kept:
            self._kept[key] = edge_index, make()
        return self._kept[key][1]


def _in_blocks(
    layer: Any,
    forward: Any,
    call: dict[str, Any],
    name: str,
    graphs: _Graphs,
    report: Callable[[float], Any],
) -> Tensor:
    """A layer's rows, from the edges into a few nodes at a time and the nodes where these begin."""
    edges, num_nodes = call[name], len(call["x"])
    order, begin = graphs.by_target(edges, num_nodes)
    place = order.new_empty(num_nodes)
    is_behind = torch.zeros(num_nodes, dtype=torch.bool, device=edges.device)
    most = max(graphs.memory // _message_bytes(layer, call["x"]), 1)
    out: Tensor | None = None
    for start, stop in _cuts(begin, most):
        chosen = order[begin[start] : begin[stop]]
        source, target = edges[:, chosen]
        is_behind[source] = True
        is_behind[start:stop] = False
        behind = is_behind.nonzero().view(-1)
        is_behind[behind] = False
        nodes = torch.cat([torch.arange(start, stop, device=edges.device), behind])
        place[nodes] = torch.arange(len(nodes), device=edges.device)
        part = {
            key: _part(key, value, (edges.shape[1], chosen), (num_nodes, nodes))
            for key, value in call.items()
        }
        y = forward(layer, **{**part, name: torch.stack([place[source], target - start])})
        if out is None:
            out = y.new_empty(num_nodes, *y.shape[1:])
        out[start:stop] = y[: stop - start]
        report(stop / num_nodes)
    assert out is not None  # there are messages, and with them nodes
    return out


def _cuts(begin: Tensor, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of targets with at most so many edges and targets; one target at least."""
    filled = begin + torch.arange(len(begin), device=begin.device)
    start, last = 0, len(begin) - 1
    while start < last:
        within = torch.searchsorted(filled, filled[start] + most, right=True)
        stop = min(max(int(within) - 1, start + 1), last)
        yield start, stop
        start = stop


def _part(name: str, value: Any, edges: tuple[int, Tensor], nodes: tuple[int, Tensor]) -> Any:
    """What an argument is to a block, if it has a value for each edge or each node."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    count, chosen = edges if name.startswith("edge_") else nodes
    return value[chosen] if len(value) == count else value
