"""One table: what the layers of PyG and DGL are, as operations. Neither is imported here.

An entry is found by the qualified name of a layer's class or of one it is derived from. It is
given the recorder, the layer and the arguments of its call, records operations, and returns the
tensor that stands for the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from hag_plugin.parallel.trace_model import Recorder

Entry = Callable[["Recorder", Any, tuple[Any, ...], dict[str, Any]], Tensor]
LINEAR_REDUCERS = {"sum", "add", "mean"}


class UnknownLayerError(TypeError):
    """A layer is used in a way that the table does not cover."""


def _arguments(names: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(names.split(), args, strict=False)) | kwargs


def _one(recorder: Recorder, x: Any) -> Tensor:
    """The features, where a layer also takes a pair."""
    if isinstance(x, tuple | list):
        if len(x) != 2 or x[0] is not x[1]:
            raise UnknownLayerError(
                f"layer {recorder.path!r} takes different features for sources and targets; "
                "expected one set of nodes"
            )
        x = x[0]
    if not isinstance(x, Tensor):
        raise UnknownLayerError(f"layer {recorder.path!r} takes {type(x).__name__} as features; "
                                "expected a tensor")  # fmt: skip
    return x


def _reducers(aggr: Any) -> tuple[str, ...]:
    found = []
    for one in aggr if isinstance(aggr, list | tuple) else [aggr]:
        name = one if isinstance(one, str) else type(one).__name__.removesuffix("Aggregation")
        found.append("sum" if name.lower() == "add" else name.lower())
    return tuple(found)


def _commutes(reduce: tuple[str, ...]) -> bool:
    return len(reduce) == 1 and reduce[0] in LINEAR_REDUCERS


# PyG ------------------------------------------------------------------------------------------


def _gcn(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("x edge_index edge_weight", args, kwargs)
    x, loops = _one(recorder, call["x"]), bool(conv.normalize and conv.add_self_loops)
    return recorder.add(
        "convolution",
        [x],
        conv.out_channels,
        input_width=conv.in_channels,
        graph=recorder.graph(call["edge_index"], "fill" if loops else False),
        transform=True,
        commutes=True,
        bias=conv.bias is not None,
        weighted=call.get("edge_weight") is not None,
    )


def _sage(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("x edge_index size", args, kwargs)
    x = _one(recorder, call["x"])
    reduce = _reducers(conv.aggr)
    if conv.project and hasattr(conv, "lin"):
        raise UnknownLayerError(f"layer {recorder.path!r}: project=True is not in the table")
    width = conv.in_channels if isinstance(conv.in_channels, int) else conv.in_channels[0]
    out = recorder.add(
        "convolution",
        [x],
        conv.out_channels,
        input_width=width,
        graph=recorder.graph(call["edge_index"]),
        transform=True,
        commutes=_commutes(reduce),
        root=bool(conv.root_weight),
        bias=conv.lin_l.bias is not None,
        reduce=reduce,
    )
    if conv.normalize:
        out = recorder.add("normalisation", [out], conv.out_channels, over="features",
                           suffix="normalize")  # fmt: skip
    return out


def _graph_conv(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("x edge_index edge_weight size", args, kwargs)
    reduce = _reducers(conv.aggr)
    width = conv.in_channels if isinstance(conv.in_channels, int) else conv.in_channels[0]
    return recorder.add(
        "convolution",
        [_one(recorder, call["x"])],
        conv.out_channels,
        input_width=width,
        graph=recorder.graph(call["edge_index"]),
        transform=True,
        commutes=_commutes(reduce),
        root=True,
        bias=conv.lin_rel.bias is not None,
        reduce=reduce,
        weighted=call.get("edge_weight") is not None,
    )


def _gin(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("x edge_index size", args, kwargs)
    x, reduce = _one(recorder, call["x"]), _reducers(conv.aggr)
    width = x.shape[-1]
    out = recorder.add(
        "convolution", [x], width, input_width=width,
        graph=recorder.graph(call["edge_index"]), reduce=reduce,
    )  # fmt: skip
    out = recorder.add("sum", [out, x], width, suffix="self")
    result: Tensor = conv.nn(out)
    return result


def _simple(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("x edge_index edge_weight size", args, kwargs)
    x, root = _one(recorder, call["x"]), conv.combine_root
    out = recorder.add(
        "convolution", [x], x.shape[-1], input_width=x.shape[-1],
        graph=recorder.graph(call["edge_index"], "add" if root == "self_loop" else False),
        reduce=_reducers(conv.aggr), weighted=call.get("edge_weight") is not None,
    )  # fmt: skip
    if root == "sum":
        return recorder.add("sum", [out, x], x.shape[-1], suffix="self")
    if root == "cat":
        return recorder.add("concatenation", [x, out], 2 * x.shape[-1], suffix="self")
    return out


def _gat(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("x edge_index edge_attr size return_attention_weights", args, kwargs)
    x = _one(recorder, call["x"])
    if call.get("edge_attr") is not None or call.get("return_attention_weights"):
        raise UnknownLayerError(f"layer {recorder.path!r}: edge_attr and "
                                "return_attention_weights are not in the table")  # fmt: skip
    width = conv.out_channels * (conv.heads if conv.concat else 1)
    out = recorder.add(
        "attention",
        [x],
        width,
        input_width=conv.in_channels,
        graph=recorder.graph(call["edge_index"], "fill" if conv.add_self_loops else False),
        heads=conv.heads,
        concatenated=bool(conv.concat),
        bias=conv.bias is not None,
    )
    if getattr(conv, "residual", False):
        own = recorder.add("linear", [x], width, input_width=conv.in_channels, suffix="residual")
        out = recorder.add("sum", [out, own], width, suffix="residual_sum")
    return out


def _rgcn(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("x edge_index edge_type", args, kwargs)
    if conv.num_blocks is not None:
        raise UnknownLayerError(f"layer {recorder.path!r}: num_blocks is not in the table")
    return recorder.add(
        "convolution",
        [_one(recorder, call["x"])],
        conv.out_channels,
        input_width=conv.in_channels_l,
        graph=recorder.graph(call["edge_index"], edge_type=call.get("edge_type")),
        transform=True,
        commutes=True,
        root=conv.root is not None,
        bias=conv.bias is not None,
        reduce=_reducers(conv.aggr),
        relations=conv.num_relations,
    )


def _pna(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("x edge_index edge_attr", args, kwargs)
    if call.get("edge_attr") is not None:
        raise UnknownLayerError(f"layer {recorder.path!r}: edge_attr is not in the table")
    x = _one(recorder, call["x"])
    pre = [(m.in_features, m.out_features) for m in _linears(conv.pre_nns)]
    post = [(m.in_features, m.out_features) for m in _linears(conv.post_nns)]
    lin = (conv.lin.in_channels, conv.lin.out_channels)
    return recorder.add(
        "convolution",
        [x],
        conv.out_channels,
        input_width=conv.in_channels,
        graph=recorder.graph(call["edge_index"]),
        bias=True,
        reduce=_reducers(list(conv.aggr_module.aggr.aggrs)),
        edge_products=tuple(pre),
        node_products=(*post, lin),
        message_width=conv.towers * conv.F_in,
        values=sum(n for _, n in (*pre, *post)),  # their biases
    )


def _linears(modules: Any) -> list[Any]:
    """The linear layers inside, PyG's or torch's, with torch's names for their sizes."""
    found = []
    for module in modules.modules():
        if hasattr(module, "in_channels"):
            module.in_features, module.out_features = module.in_channels, module.out_channels
        if hasattr(module, "in_features"):
            found.append(module)
    return found


def _jumping(recorder: Recorder, module: Any, args: Any, kwargs: Any) -> Tensor:
    xs = _arguments("xs", args, kwargs)["xs"]
    width = xs[0].shape[-1]
    if module.mode == "cat":
        return recorder.add("concatenation", list(xs), sum(x.shape[-1] for x in xs))
    if module.mode == "max":
        return recorder.add("sum", list(xs), width)
    values = sum(p.numel() for p in module.parameters())
    return recorder.add("opaque", list(xs), width, values=values)


def _graph_norm(recorder: Recorder, module: Any, args: Any, kwargs: Any) -> Tensor:
    x = _arguments("x", args, kwargs)["x"]
    affine = getattr(module, "weight", None) is not None
    return recorder.add("normalisation", [x], x.shape[-1], over="nodes", affine=affine)


def _layer_norm(recorder: Recorder, module: Any, args: Any, kwargs: Any) -> Tensor:
    x = _arguments("x batch", args, kwargs)["x"]
    over = "features" if module.mode == "node" else "everything"
    affine = module.weight is not None
    return recorder.add("normalisation", [x], x.shape[-1], over=over, affine=affine)


# DGL ------------------------------------------------------------------------------------------


def _dgl_gcn(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("graph feat weight edge_weight", args, kwargs)
    if call.get("weight") is not None or conv._norm not in ("both", "none", "right", "left"):
        raise UnknownLayerError(f"layer {recorder.path!r}: a weight from outside is not in the "
                                "table")  # fmt: skip
    out = recorder.add(
        "convolution",
        [_one(recorder, call["feat"])],
        conv._out_feats,
        input_width=conv._in_feats,
        graph=recorder.graph(call["graph"]),
        transform=conv.weight is not None,
        commutes=conv.weight is not None,
        bias=conv.bias is not None,
        weighted=call.get("edge_weight") is not None,
    )
    return _activated(recorder, conv, out)


def _dgl_sage(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("graph feat edge_weight", args, kwargs)
    if conv._aggre_type not in ("mean", "gcn"):
        raise UnknownLayerError(f"layer {recorder.path!r}: aggregator_type="
                                f"{conv._aggre_type!r} is not in the table")  # fmt: skip
    gcn = conv._aggre_type == "gcn"  # the mean over neighbours and the node itself
    out = recorder.add(
        "convolution",
        [_one(recorder, call["feat"])],
        conv._out_feats,
        input_width=conv._in_src_feats,
        graph=recorder.graph(call["graph"], "add" if gcn else False),
        transform=True,
        commutes=True,
        root=not gcn,
        bias=conv.fc_neigh.bias is not None or not gcn,
        reduce=("mean",),
        weighted=call.get("edge_weight") is not None,
    )
    return _activated(recorder, conv, out)


def _dgl_gin(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = _arguments("graph feat edge_weight", args, kwargs)
    x = _one(recorder, call["feat"])
    reduce = ({"sum": "sum", "mean": "mean", "max": "max"}[conv._aggregator_type],)
    out = recorder.add(
        "convolution", [x], x.shape[-1], input_width=x.shape[-1],
        graph=recorder.graph(call["graph"]), reduce=reduce,
        weighted=call.get("edge_weight") is not None,
    )  # fmt: skip
    out = recorder.add("sum", [out, x], x.shape[-1], suffix="self")
    if conv.apply_func is not None:
        out = conv.apply_func(out)
    return _activated(recorder, conv, out)


def _activated(recorder: Recorder, conv: Any, out: Tensor) -> Tensor:
    activation = getattr(conv, "_activation", None) or getattr(conv, "activation", None)
    return out if activation is None else activation(out)


PYG, DGL = "torch_geometric.nn.", "dgl.nn.pytorch.conv."
TABLE: dict[str, Entry] = {
    f"{PYG}conv.gcn_conv.GCNConv": _gcn,
    f"{PYG}conv.sage_conv.SAGEConv": _sage,
    f"{PYG}conv.gin_conv.GINConv": _gin,
    f"{PYG}conv.graph_conv.GraphConv": _graph_conv,
    f"{PYG}conv.simple_conv.SimpleConv": _simple,
    f"{PYG}conv.gat_conv.GATConv": _gat,
    f"{PYG}conv.rgcn_conv.RGCNConv": _rgcn,
    f"{PYG}conv.pna_conv.PNAConv": _pna,
    f"{PYG}models.jumping_knowledge.JumpingKnowledge": _jumping,
    f"{PYG}norm.graph_norm.GraphNorm": _graph_norm,
    f"{PYG}norm.layer_norm.LayerNorm": _layer_norm,
    f"{DGL}graphconv.GraphConv": _dgl_gcn,
    f"{DGL}sageconv.SAGEConv": _dgl_sage,
    f"{DGL}ginconv.GINConv": _dgl_gin,
}


def entry_of(cls: type) -> Entry | None:
    """The entry of a class, or of the first of its bases that has one."""
    for base in cls.__mro__:
        entry = TABLE.get(f"{base.__module__}.{base.__qualname__}")
        if entry is not None:
            return entry
    return None
