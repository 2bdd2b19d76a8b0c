"""Every function, method and transform of DGL takes a graph with HAGs as it takes a plain one."""

from __future__ import annotations

import inspect
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402
from dgl import distributed, geometry  # noqa: E402
from dgl.heterograph import DGLBlock  # noqa: E402

import hag_plugin.dgl as hag_dgl  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # DGL's own
NODES, EDGES, WIDTH = 20, 60, 4
Call = Callable[..., Any]

# Graphs ------------------------------------------------------------------------------------------


def _with_data(graph: Any) -> Any:
    torch.manual_seed(3)
    for ntype in graph.ntypes:
        count = graph.num_nodes(ntype)
        graph.nodes[ntype].data["x"] = torch.randn(count, WIDTH)
        graph.nodes[ntype].data["y"] = torch.arange(count) % 3
    for etype in graph.canonical_etypes:
        count = graph.num_edges(etype)
        graph.edges[etype].data["w"] = torch.rand(count) + 0.1
        graph.edges[etype].data["e"] = torch.randn(count, WIDTH)
    return graph


def simple() -> Any:
    """No edge twice, edges in a random order."""
    torch.manual_seed(2)
    pairs = torch.randperm(NODES * NODES)[:EDGES]
    return _with_data(dgl.graph((pairs % NODES, pairs // NODES), num_nodes=NODES))


def bidirected() -> Any:
    graph = dgl.to_bidirected(simple().cpu())
    order = torch.randperm(graph.num_edges(), generator=torch.Generator().manual_seed(5))
    source, target = graph.edges()
    return _with_data(dgl.graph((source[order], target[order]), num_nodes=NODES))


def loop_free() -> Any:
    return _with_data(dgl.remove_self_loop(bidirected()))


def acyclic() -> Any:
    source, target = simple().edges()
    kept = source < target
    return _with_data(dgl.graph((source[kept], target[kept]), num_nodes=NODES))


def batched() -> Any:
    return dgl.batch([simple(), acyclic()])


def hetero() -> Any:
    def edges(sources: int, targets: int, count: int) -> Any:
        generator = torch.Generator().manual_seed(count)
        pairs = torch.randperm(sources * targets, generator=generator)[:count]
        return pairs % sources, pairs // sources

    return _with_data(
        dgl.heterograph(
            {
                ("user", "follows", "user"): edges(12, 12, 50),
                ("user", "plays", "game"): edges(12, 7, 30),
                ("game", "liked-by", "user"): edges(7, 12, 20),
            },
            {"user": 14, "game": 8},
        )
    )


def block() -> Any:
    return dgl.to_block(dgl.in_subgraph(simple(), range(0, NODES, 2)), range(0, NODES, 2))


def same(graph: Any) -> Any:
    return graph


# What must be the same ---------------------------------------------------------------------------


def told(value: Any) -> Any:
    """A result in numbers, names and lists, so that two of them can be compared."""
    if isinstance(value, dgl.DGLGraph):
        return {
            "types": (value.srctypes, value.dsttypes, value.canonical_etypes),
            "ids": value.idtype,
            "block": value.is_block,
            "nodes": [value.num_src_nodes(t) for t in value.srctypes],
            "targets": [value.num_dst_nodes(t) for t in value.dsttypes],
            "edges": [told(value.edges("all", "eid", etype=t)) for t in value.canonical_etypes],
            "frames": [told(dict(f)) for f in (*value._node_frames, *value._edge_frames)],
        }
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: told(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [told(v) for v in value]
    if hasattr(value, "toarray"):  # scipy
        return torch.from_numpy(value.toarray())
    if hasattr(value, "adj"):  # networkx
        return sorted(map(repr, value.edges(data=True)))
    if inspect.isgenerator(value):
        return [told(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool | torch.dtype | torch.device):
        return value
    return type(value).__name__


def outcome(call: Call, graph: Any, *more: Any) -> Any:
    """What a call gives, or the kind of error; and the graph it was called on afterwards."""
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    dgl.seed(7)
    try:
        result = told(call(graph, *more))
    except Exception as error:
        said = re.sub(r"\[\d\d:\d\d:\d\d\]", "", str(error))  # when DGL said so
        result = ("raised", type(error).__name__, said.replace("Hag", ""))
    return result, told(graph)


def assert_alike(ours: Any, stock: Any) -> None:
    """Equal, where numbers may differ by rounding: a HAG adds them in another order."""
    assert type(ours) is type(stock)
    if isinstance(stock, Tensor):
        torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
    elif isinstance(stock, dict):
        assert list(ours) == list(stock)
        for key, value in stock.items():
            assert_alike(ours[key], value)
    elif isinstance(stock, list | tuple):
        assert len(ours) == len(stock)
        for one, other in zip(ours, stock, strict=True):
            assert_alike(one, other)
    else:
        assert ours == stock


def assert_same(call: Call, make: Callable[[], Any], may_raise: bool = False) -> None:
    """A graph from `ToHAG` gives what the plain one gives, and is afterwards as that is."""
    expected = outcome(call, make())
    raised = isinstance(expected[0], tuple) and expected[0][0] == "raised"
    assert not raised or may_raise, expected[0]
    assert_alike(outcome(call, hag_dgl.ToHAG()(make())), expected)


# Functions ---------------------------------------------------------------------------------------

COPY = (fn.copy_u("x", "m"), fn.sum("m", "x"))
NODE_ORDER = [torch.tensor([1, 2]), torch.tensor([0, 5])]

# The function's name: how it is called, on which graph if not `simple`.
FUNCTIONS: dict[str, Call | tuple[Call, Callable[[], Any]]] = {
    "dgl.add_edges": lambda g: dgl.add_edges(g, [0, 1], [2, 2]),
    "dgl.add_nodes": lambda g: dgl.add_nodes(g, 2),
    "dgl.add_reverse_edges": lambda g: dgl.add_reverse_edges(g, copy_edata=True),
    "dgl.add_self_loop": dgl.add_self_loop,
    "dgl.adj_product_graph": lambda g: dgl.adj_product_graph(g, g, "w"),
    "dgl.adj_sum_graph": lambda g: dgl.adj_sum_graph([g, g], "w"),
    "dgl.batch": lambda g: dgl.batch([g, g]),
    "dgl.bfs_edges_generator": lambda g: dgl.bfs_edges_generator(g, 0),
    "dgl.bfs_nodes_generator": lambda g: dgl.bfs_nodes_generator(g, 0),
    "dgl.block_to_graph": (dgl.block_to_graph, block),
    "dgl.broadcast_edges": lambda g: dgl.broadcast_edges(g, torch.ones(1, 2)),
    "dgl.broadcast_nodes": lambda g: dgl.broadcast_nodes(g, torch.ones(1, 2)),
    "dgl.compact_graphs": lambda g: dgl.compact_graphs([g, g], copy_ndata=False, copy_edata=False),
    "dgl.copy_u": lambda g: dgl.copy_u(g, g.ndata["x"]),
    "dgl.copy_v": lambda g: dgl.copy_v(g, g.ndata["x"]),
    "dgl.u_add_v": lambda g: dgl.u_add_v(g, g.ndata["x"], g.ndata["x"]),
    "dgl.u_div_v": lambda g: dgl.u_div_v(g, g.ndata["x"], g.ndata["x"]),
    "dgl.u_dot_v": lambda g: dgl.u_dot_v(g, g.ndata["x"], g.ndata["x"]),
    "dgl.u_mul_v": lambda g: dgl.u_mul_v(g, g.ndata["x"], g.ndata["x"]),
    "dgl.u_sub_v": lambda g: dgl.u_sub_v(g, g.ndata["x"], g.ndata["x"]),
    "dgl.dfs_edges_generator": lambda g: dgl.dfs_edges_generator(g, 0),
    "dgl.dfs_labeled_edges_generator": lambda g: dgl.dfs_labeled_edges_generator(g, 0),
    "dgl.double_radius_node_labeling": lambda g: dgl.double_radius_node_labeling(g, 0, 1),
    "dgl.edge_homophily": lambda g: dgl.edge_homophily(g, g.ndata["y"]),
    "dgl.linkx_homophily": lambda g: dgl.linkx_homophily(g, g.ndata["y"]),
    "dgl.node_homophily": lambda g: dgl.node_homophily(g, g.ndata["y"]),
    "dgl.edge_subgraph": lambda g: dgl.edge_subgraph(g, [3, 1, 7]),
    "dgl.edge_type_subgraph": (lambda g: dgl.edge_type_subgraph(g, ["plays"]), hetero),
    "dgl.node_type_subgraph": (lambda g: dgl.node_type_subgraph(g, ["user"]), hetero),
    "dgl.in_subgraph": lambda g: dgl.in_subgraph(g, [3, 1, 7]),
    "dgl.out_subgraph": lambda g: dgl.out_subgraph(g, [3, 1, 7]),
    "dgl.node_subgraph": lambda g: dgl.node_subgraph(g, [3, 1, 7]),
    "dgl.khop_in_subgraph": lambda g: dgl.khop_in_subgraph(g, [3], 2),
    "dgl.khop_out_subgraph": lambda g: dgl.khop_out_subgraph(g, [3], 2),
    "dgl.khop_adj": lambda g: dgl.khop_adj(g, 2),
    "dgl.khop_graph": lambda g: dgl.khop_graph(g, 2),
    "dgl.lap_pe": (lambda g: dgl.lap_pe(g, 2).abs().round(decimals=3), loop_free),
    "dgl.laplacian_pe": (lambda g: dgl.laplacian_pe(g, 2).abs().round(decimals=3), loop_free),
    "dgl.laplacian_lambda_max": lambda g: np.round(dgl.laplacian_lambda_max(g), 4),
    "dgl.line_graph": dgl.line_graph,
    "dgl.max_edges": lambda g: dgl.max_edges(g, "e"),
    "dgl.max_nodes": lambda g: dgl.max_nodes(g, "x"),
    "dgl.mean_edges": lambda g: dgl.mean_edges(g, "e"),
    "dgl.mean_nodes": lambda g: dgl.mean_nodes(g, "x"),
    "dgl.sum_edges": lambda g: dgl.sum_edges(g, "e"),
    "dgl.sum_nodes": lambda g: dgl.sum_nodes(g, "x"),
    "dgl.softmax_edges": lambda g: dgl.softmax_edges(g, "e"),
    "dgl.softmax_nodes": lambda g: dgl.softmax_nodes(g, "x"),
    "dgl.readout_edges": lambda g: dgl.readout_edges(g, "e", op="sum"),
    "dgl.readout_nodes": lambda g: dgl.readout_nodes(g, "x", op="mean"),
    "dgl.topk_edges": lambda g: dgl.topk_edges(g, "e", 3),
    "dgl.topk_nodes": lambda g: dgl.topk_nodes(g, "x", 3),
    "dgl.merge": lambda g: dgl.merge([g, simple()]),
    "dgl.metapath_reachable_graph": (
        lambda g: dgl.metapath_reachable_graph(g, ["plays", "liked-by"]),
        hetero,
    ),
    # METIS draws numbers of its own: its parts differ from call to call.
    "dgl.metis_partition": (lambda g: sorted(dgl.metis_partition(g, 2)), bidirected),
    "dgl.metis_partition_assignment": (
        lambda g: len(dgl.metis_partition_assignment(g, 2)),
        bidirected,
    ),
    "dgl.norm_by_dst": dgl.norm_by_dst,
    "dgl.partition_graph_with_halo": lambda g: dgl.partition_graph_with_halo(
        g, torch.arange(NODES) % 2, 1
    ),
    "dgl.prop_edges": lambda g: dgl.prop_edges(
        g, [(g.edges()[0][i : i + 9], g.edges()[1][i : i + 9]) for i in (0, 9)], *COPY
    ),
    "dgl.prop_edges_dfs": lambda g: dgl.prop_edges_dfs(g, 0, *COPY),
    "dgl.prop_nodes": lambda g: dgl.prop_nodes(g, NODE_ORDER, *COPY),
    "dgl.prop_nodes_bfs": lambda g: dgl.prop_nodes_bfs(g, 0, *COPY),
    "dgl.prop_nodes_topo": (lambda g: dgl.prop_nodes_topo(g, *COPY), acyclic),
    "dgl.topological_nodes_generator": (dgl.topological_nodes_generator, acyclic),
    "dgl.random_walk_pe": lambda g: dgl.random_walk_pe(g, 2),
    "dgl.remove_edges": lambda g: dgl.remove_edges(g, [1, 3]),
    "dgl.remove_nodes": lambda g: dgl.remove_nodes(g, [1, 3]),
    "dgl.remove_self_loop": dgl.remove_self_loop,
    "dgl.reorder_graph": lambda g: dgl.reorder_graph(g, "rcmk", "dst"),
    "dgl.reverse": lambda g: dgl.reverse(g, copy_edata=True),
    "dgl.set_dst_lazy_features": lambda g: dgl.set_dst_lazy_features(g, ["z"]),
    "dgl.set_src_lazy_features": lambda g: dgl.set_src_lazy_features(g, ["z"]),
    "dgl.set_node_lazy_features": lambda g: dgl.set_node_lazy_features(g, ["z"]),
    "dgl.set_edge_lazy_features": lambda g: dgl.set_edge_lazy_features(g, ["z"]),
    "dgl.shortest_dist": lambda g: dgl.shortest_dist(g, root=0),
    "dgl.slice_batch": (lambda g: dgl.slice_batch(g, 1), batched),
    "dgl.unbatch": (dgl.unbatch, batched),
    "dgl.sort_csc_by_tag": lambda g: dgl.sort_csc_by_tag(g, g.ndata["y"]),
    "dgl.sort_csr_by_tag": lambda g: dgl.sort_csr_by_tag(g, g.ndata["y"]),
    "dgl.svd_pe": lambda g: dgl.svd_pe(g, 2).abs().round(decimals=3),
    "dgl.to_bfloat16": lambda g: dgl.to_bfloat16(g).ndata["x"].float(),
    "dgl.to_half": dgl.to_half,
    "dgl.to_float": dgl.to_float,
    "dgl.to_double": dgl.to_double,
    "dgl.to_bidirected": dgl.to_bidirected,
    "dgl.to_block": dgl.to_block,
    "dgl.to_heterogeneous": lambda g: dgl.to_heterogeneous(_typed(g), ["a", "b"], ["r", "s"]),
    "dgl.to_homogeneous": (dgl.to_homogeneous, hetero),
    "dgl.to_networkx": lambda g: dgl.to_networkx(g, ["x"], ["w"]),
    "dgl.to_simple": lambda g: dgl.to_simple(g, copy_ndata=True),
    "dgl.to_simple_graph": dgl.to_simple_graph,
    "dgl.sampling.global_uniform_negative_sampling": lambda g: (
        dgl.sampling.global_uniform_negative_sampling(g, 9)
    ),
    "dgl.sampling.node2vec_random_walk": lambda g: dgl.sampling.node2vec_random_walk(
        g, [0, 1], 1.0, 1.0, 3
    ),
    "dgl.sampling.random_walk": lambda g: dgl.sampling.random_walk(g, [0, 1], length=3),
    "dgl.sampling.sample_etype_neighbors": lambda g: dgl.sampling.sample_etype_neighbors(
        g, torch.tensor([0, 1]), [0, g.num_edges()], torch.tensor([2])
    ),
    "dgl.sampling.sample_labors": lambda g: dgl.sampling.sample_labors(g, [0, 1], 2)[0],
    "dgl.sampling.sample_neighbors": lambda g: dgl.sampling.sample_neighbors(g, [0, 1], 2),
    "dgl.sampling.sample_neighbors_biased": lambda g: dgl.sampling.sample_neighbors_biased(
        dgl.sort_csc_by_tag(g, g.ndata["y"]), [0, 1], 2, [1.0, 2.0, 1.0]
    ),
    "dgl.sampling.sample_neighbors_fused": lambda g: dgl.sampling.sample_neighbors_fused(
        g, torch.tensor([0, 1]), 2
    ),
    "dgl.sampling.select_topk": lambda g: dgl.sampling.select_topk(g, 2, "w"),
    "dgl.geometry.neighbor_matching": geometry.neighbor_matching,
    "dgl.dataloading.find_exclude_eids": lambda g: dgl.dataloading.find_exclude_eids(
        g, torch.tensor([1, 2]), "self"
    ),
    "dgl.ops.edge_softmax": lambda g: dgl.ops.edge_softmax(g, g.edata["e"]),
    "dgl.ops.gspmm": lambda g: dgl.ops.gspmm(g, "mul", "sum", g.ndata["x"], g.edata["e"]),
    "dgl.ops.gsddmm": lambda g: dgl.ops.gsddmm(g, "dot", g.ndata["x"], g.ndata["x"]),
    "dgl.ops.copy_e": lambda g: dgl.ops.copy_e(g, g.edata["e"]),
    "dgl.ops.copy_u": lambda g: dgl.ops.copy_u(g, g.ndata["x"]),
    "dgl.ops.copy_v": lambda g: dgl.ops.copy_v(g, g.ndata["x"]),
}
WRITTEN = {
    "dgl.save_graphs": "test_save_and_load",
    "dgl.data.save_graphs": "test_save_and_load",
}
NOT_TRIED = {
    "dgl.to_cugraph": "needs cugraph",
    "dgl.dataloading.restore_parent_storage_columns": "of samplers, which are tried below",
    "dgl.dataloading.remove_parent_storage_columns": "of samplers, which are tried below",
}


def _typed(graph: Any) -> Any:
    graph.ndata[dgl.NTYPE] = torch.arange(NODES) % 2
    graph.edata[dgl.ETYPE] = (graph.edges()[0] + graph.edges()[1]) % 2
    return graph


def _arguments(name: str) -> Call:
    """A call of `dgl.ops.u_mul_e_sum` and the like, by the letters of its name."""
    parts = name.split("_")
    sides = [p for p in parts if p in ("u", "v", "e")]

    def call(graph: Any) -> Any:
        data = {"u": graph.ndata["x"], "v": graph.ndata["x"], "e": graph.edata["e"]}
        return getattr(dgl.ops, name)(graph, *(data[side] for side in sides))

    return call


GRAPHS = ("g", "graph", "graphs", "hg", "G", "g_list", "A", "block", "glist")
for _name in dir(dgl.ops):
    if "_" in _name and _name.split("_")[0] in ("u", "v", "e", "copy"):
        FUNCTIONS.setdefault(f"dgl.ops.{_name}", _arguments(_name))


def takes_graph(function: Any) -> bool:
    return any(name in GRAPHS for name in list(inspect.signature(function).parameters)[:2])


def public_functions() -> set[str]:
    """Functions that take a graph, in the modules that DGL documents."""
    found = set()
    modules = (dgl, dgl.ops, dgl.sampling, geometry, dgl.dataloading, dgl.data)
    known: dict[Any, str] = {}
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("_") or not str(function.__module__).startswith("dgl"):
                continue
            full = f"{module.__name__}.{name}"
            if takes_graph(function) and known.setdefault(function, full) == full:
                found.add(full)
    return found


def test_every_function_is_tried() -> None:
    assert public_functions() - {*FUNCTIONS, *WRITTEN, *NOT_TRIED} == set()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    entry = FUNCTIONS[name]
    call, make = entry if isinstance(entry, tuple) else (entry, simple)
    assert_same(call, make, name in RAISE)


# Methods -----------------------------------------------------------------------------------------

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "add_edges": ([0, 1], [2, 2]),
    "add_nodes": (2,),
    "adj_tensors": ("csr",),
    "apply_edges": (fn.u_dot_v("x", "x", "s"),),
    "apply_nodes": (lambda nodes: {"z": nodes.data["x"] * 2},),
    "astype": (torch.int32,),
    "edge_ids": ([], []),
    "edge_subgraph": ([3, 1, 7],),
    "edge_type_subgraph": (["_E"],),
    "filter_edges": (lambda edges: edges.src["x"][:, 0] > 0,),
    "filter_nodes": (lambda nodes: nodes.data["x"][:, 0] > 0,),
    "find_edges": ([0, 3],),
    "get_edge_storage": ("e",),
    "get_node_storage": ("x",),
    "get_etype_id": ("_E",),
    "get_ntype_id": ("_N",),
    "get_ntype_id_from_dst": ("_N",),
    "get_ntype_id_from_src": ("_N",),
    "global_uniform_negative_sampling": (9,),
    "has_edges_between": ([0, 1], [2, 3]),
    "has_nodes": ([0, 99],),
    "in_edges": ([0, 3],),
    "in_subgraph": ([0, 3],),
    "inc": ("in",),
    "incidence_matrix": ("in",),
    "khop_in_subgraph": ([0], 2),
    "khop_out_subgraph": ([0], 2),
    "multi_update_all": ({"_E": (fn.u_mul_e("x", "w", "m"), fn.max("m", "z"))}, "sum"),
    "node_type_subgraph": (["_N"],),
    "out_edges": ([0, 3],),
    "out_subgraph": ([0, 3],),
    "predecessors": (3,),
    "prop_edges": ([torch.tensor([1, 2]), torch.tensor([0, 5])], *COPY),
    "prop_nodes": (NODE_ORDER, *COPY),
    "pull": ([0, 3], *COPY),
    "push": ([0, 3], *COPY),
    "remove_edges": ([1, 3],),
    "remove_nodes": ([1, 3],),
    "reorder_graph": ("rcmk", "src"),
    "sample_etype_neighbors": (torch.tensor([0, 1]), [0, EDGES], torch.tensor([2])),
    "sample_labors": ([0, 1], 2),
    "sample_neighbors": ([0, 1], 2),
    "sample_neighbors_biased": ([0, 1], 2, [1.0]),
    "sample_neighbors_fused": (torch.tensor([0, 1]), 2),
    "select_topk": (2, "w"),
    "send_and_recv": ([1, 2, 3], *COPY),
    "set_batch_num_edges": (torch.tensor([20, 40]),),
    "set_batch_num_nodes": (torch.tensor([5, 15]),),
    "set_e_initializer": (dgl.init.zero_initializer,),
    "set_n_initializer": (dgl.init.zero_initializer,),
    "subgraph": ([3, 1, 7],),
    "successors": (3,),
    "to": ("cpu",),
    "to_canonical_etype": ("_E",),
    "update_all": (lambda edges: {"m": edges.src["x"] * edges.data["w"].unsqueeze(1)}, COPY[1]),
}
RAISE = {  # here on plain graphs too; some with other versions of torch, or without a GPU
    *("dgl.prop_edges", "dgl.prop_nodes", "sample_neighbors_biased", "to_cugraph"),
    *("adj", "adjacency_matrix", "adj_external", "inc", "incidence_matrix"),
    *("pin_memory_", "record_stream"),
}
METHODS = [
    name
    for name, member in inspect.getmembers(dgl.DGLGraph)
    if not name.startswith("_") and inspect.isfunction(member)
]
PROPERTIES = [
    name
    for name, member in inspect.getmembers(dgl.DGLGraph)
    if not name.startswith("_") and isinstance(member, property)
]


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    arguments = ARGUMENTS.get(name, ())
    if name == "shared_memory":  # as long as the first is there, its name is taken
        arguments = iter(f"hag_plugin_{os.getpid()}_{i}" for i in range(2))
        assert_same(lambda g: g.shared_memory(next(arguments)), simple)
        return
    assert_same(lambda g: getattr(g, name)(*arguments), simple, name in RAISE)


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name: str) -> None:
    assert_same(lambda g: re.sub("0x[0-9a-f]+", "", repr(getattr(g, name))), simple)


@pytest.mark.parametrize("make", [simple, hetero, block, batched])
def test_shown(make: Callable[[], Any]) -> None:
    assert repr(hag_dgl.ToHAG()(make())) == repr(make())


# Transforms, samplers ----------------------------------------------------------------------------

TRANSFORMS: dict[str, tuple[Any, ...]] = {
    "AddEdge": (0.3,),
    "AddMetaPaths": ({"again": [("_N", "_E", "_N"), ("_N", "_E", "_N")]},),
    "Compose": ([dgl.AddSelfLoop(), dgl.AddReverse()],),
    "GDC": ([0.5, 0.3],),
    "FeatMask": (0.5, ["x"], ["e"]),
    "GCNNorm": (),
    "KHopGraph": (2,),
    "LapPE": (2, "pe"),
    "LaplacianPE": (2, "pe"),
    "RandomWalkPE": (2, "pe"),
    "SIGNDiffusion": (2, "x"),
    "SVDPE": (2, "pe"),
}
GRAPHS_OF = {"LapPE": loop_free, "LaplacianPE": loop_free, "ToLevi": simple}
SIGNS = ("LapPE", "LaplacianPE", "SVDPE")  # of eigenvectors, which are free


@pytest.mark.parametrize(
    "name",
    [n for n, _ in inspect.getmembers(dgl.transforms, inspect.isclass) if n != "BaseTransform"],
)
def test_transform(name: str) -> None:
    transform = getattr(dgl.transforms, name)(*TRANSFORMS.get(name, ()))

    def call(graph: Any) -> Any:
        made = transform(graph)
        if name in SIGNS:
            made.ndata["pe"] = made.ndata["pe"].abs().round(decimals=3)
        return made

    assert_same(call, GRAPHS_OF.get(name, simple))


SAMPLERS: dict[str, Callable[[], Any]] = {
    "NeighborSampler": lambda: dgl.dataloading.NeighborSampler([2, 2]),
    "MultiLayerNeighborSampler": lambda: dgl.dataloading.MultiLayerNeighborSampler([2]),
    "MultiLayerFullNeighborSampler": lambda: dgl.dataloading.MultiLayerFullNeighborSampler(2),
    "LaborSampler": lambda: dgl.dataloading.LaborSampler([2, 2]),
    "ShaDowKHopSampler": lambda: dgl.dataloading.ShaDowKHopSampler([2, 2]),
    "SAINTSampler": lambda: dgl.dataloading.SAINTSampler("node", 6),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler(name: str) -> None:
    how = {"use_uva": False, "shuffle": False, "batch_size": 7, "num_workers": 0}

    def call(graph: Any) -> Any:
        sampler = SAMPLERS[name]()
        return list(dgl.dataloading.DataLoader(graph, torch.arange(NODES), sampler, **how))

    assert_same(call, simple)


def test_edge_sampler() -> None:
    sampler = dgl.dataloading.as_edge_prediction_sampler(
        dgl.dataloading.NeighborSampler([2]),
        negative_sampler=dgl.dataloading.negative_sampler.Uniform(2),
    )

    def call(graph: Any) -> Any:
        return list(dgl.dataloading.DataLoader(graph, torch.arange(9), sampler, batch_size=5))

    assert_same(call, simple)


# Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [simple, hetero, batched])
def test_save_and_load(make: Callable[[], Any], tmp_path: Path) -> None:
    """A file holds the plain graphs, whatever they were in between; `ToHAG` makes HAGs again."""
    plain, path = make(), str(tmp_path / "graphs.bin")
    handed = hag_dgl.ToHAG()(plain)
    labels = {"y": torch.arange(3)}
    for saved in (handed, [handed], [handed, plain], [plain, handed], hag_dgl.to_plain(handed)):
        for save in (dgl.save_graphs, dgl.data.save_graphs, dgl.data.utils.save_graphs):
            save(path, saved, labels)
            loaded, found = dgl.load_graphs(path)
            assert torch.equal(found["y"], labels["y"])
            for graph in loaded:
                assert type(graph) is dgl.DGLGraph
                assert_alike(told(graph), told(plain))
                again = hag_dgl.ToHAG()(graph)
                for etype in again.canonical_etypes:
                    assert again[etype].hag is not None
    dgl.data.utils.save_info(str(tmp_path / "info.pkl"), {"graph": handed})
    assert_alike(told(dgl.data.utils.load_info(str(tmp_path / "info.pkl"))["graph"]), told(plain))


def test_blocks_are_refused_as_before(tmp_path: Path) -> None:
    for graph in (block(), hag_dgl.ToHAG()(block())):
        with pytest.raises(dgl.DGLError, match="Must be a DGLGraph"):
            dgl.save_graphs(str(tmp_path / "block.bin"), graph)


class Cached(dgl.data.DGLDataset):
    """A data set that keeps what its transform made in a file."""

    made = 0

    def __init__(self, folder: str) -> None:
        super().__init__("cached", save_dir=folder, raw_dir=folder)

    def process(self) -> None:
        type(self).made += 1
        self.graphs = [hag_dgl.ToHAG()(simple()), hag_dgl.ToHAG()(acyclic())]

    @property
    def file(self) -> str:
        return str(Path(self.save_path).parent / "cached.bin")

    def save(self) -> None:
        dgl.save_graphs(self.file, self.graphs)

    def load(self) -> None:
        self.graphs = dgl.load_graphs(self.file)[0]

    def has_cache(self) -> bool:
        return Path(self.file).exists()

    def __getitem__(self, index: int) -> Any:
        return self.graphs[index]

    def __len__(self) -> int:
        return len(self.graphs)


def test_dataset_with_a_cache(tmp_path: Path) -> None:
    first, second = Cached(str(tmp_path)), Cached(str(tmp_path))
    assert Cached.made == 1
    for ours, loaded in zip(first, second, strict=True):
        assert_alike(told(ours), told(loaded))


def test_partition(tmp_path: Path) -> None:
    def call(graph: Any) -> Any:
        distributed.partition_graph(
            graph, "name", 2, str(tmp_path), part_method="random", num_hops=1
        )
        part = distributed.load_partition(str(tmp_path / "name.json"), 1)
        return part[:3]

    assert_same(call, simple)


# The class ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [simple, hetero, batched, block])
def test_to_plain(make: Callable[[], Any]) -> None:
    plain = make()
    graph = hag_dgl.ToHAG()(plain)
    back = hag_dgl.to_plain(graph)
    assert type(back) is type(plain)
    assert not any(name.startswith("_hag") for name in vars(back))
    assert_alike(told(back), told(plain))
    assert back._graph is graph._graph
    assert isinstance(graph, hag_dgl.HagGraph | hag_dgl.HagBlock)  # it stays as it is
    assert hag_dgl.to_plain(plain) is plain
    assert type(pickle.loads(pickle.dumps(back))) is type(plain)
    with pytest.raises(TypeError, match="to_plain takes a DGLGraph, got a list"):
        hag_dgl.to_plain([graph])


def test_classes_that_stand_for_each_other() -> None:
    """DGL asks `type(g) == DGLGraph`; a class is still itself."""
    for ours, stock in ((hag_dgl.HagGraph, dgl.DGLGraph), (hag_dgl.HagBlock, DGLBlock)):
        assert ours == stock
        assert stock == ours
        assert ours == ours
        assert hash(ours) == hash(stock)
        assert ours is not stock
        assert {stock: 1}[ours] == 1
    assert hag_dgl.HagGraph != hag_dgl.HagBlock
    assert hag_dgl.HagGraph != DGLBlock
    assert type(pickle.loads(pickle.dumps(hag_dgl.ToHAG()(simple())))) is hag_dgl.HagGraph
