"""Graphs by name: built in, generated, and PyG's datasets; or by file (`graph_files`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hag_plugin.data import generators
from hag_plugin.data.graph_data import GraphData
from hag_plugin.data.graph_files import load_file
from hag_plugin.data.source import KINDS, STDIN
from hag_plugin.extras import needed_by
from hag_plugin.files import DatasetError

PLANETOID = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
DIGITS_NEIGHBOURS = 10


# By name ----------------------------------------------------------------------------------------


def collaboration(num_graphs: int = 1000, seed: int = 0) -> GraphData:
    """Generated ego-networks of authors in three fields (see `generators.collaboration`)."""
    if num_graphs < 1:
        raise DatasetError(f"collaboration: {num_graphs} graphs; expected at least 1")
    edge_index, graph_ptr, label = generators.collaboration(num_graphs, seed)
    return GraphData(
        "collaboration",
        f"generated: {num_graphs} ego-networks of authors, papers as cliques, seed {seed}; the "
        "label is the field (large collaborations, middle-sized teams, small teams)",
        torch.from_numpy(edge_index),
        int(graph_ptr[-1]),
        y=torch.from_numpy(label),
        graph_ptr=torch.from_numpy(graph_ptr),
    )


def digits(num_graphs: int | None = None, seed: int = 0) -> GraphData:
    """scikit-learn's 1,797 handwritten digits, each linked with its ten nearest neighbours."""
    with needed_by("digits"):
        from sklearn.datasets import load_digits
        from sklearn.neighbors import kneighbors_graph
    table = load_digits()
    near = kneighbors_graph(table.data, DIGITS_NEIGHBOURS).tocoo()
    edges = generators.undirected(np.stack([near.row, near.col]), len(table.target))
    return GraphData(
        "digits",
        f"scikit-learn's handwritten digits, {DIGITS_NEIGHBOURS} nearest neighbours of each image, "
        "both directions; the label is the digit",
        torch.from_numpy(edges),
        len(table.target),
        x=torch.from_numpy(table.data / 16.0).float(),
        y=torch.from_numpy(table.target).long(),
    )


def karate(num_graphs: int | None = None, seed: int = 0) -> GraphData:
    """Zachary's karate club, 34 members in two factions, from networkx."""
    import networkx as nx  # torch brings it

    graph = nx.karate_club_graph()
    edges = generators.undirected(np.array(list(graph.edges())).T, len(graph))
    faction = [int(graph.nodes[node]["club"] != "Mr. Hi") for node in graph]
    source = "Zachary's karate club, from networkx; the label is the faction"
    return GraphData("karate", source, torch.from_numpy(edges), len(graph), y=torch.tensor(faction))


def _generated(name: str, make: Callable[..., np.ndarray], words: str) -> Callable[..., GraphData]:
    def load_generated(num_graphs: int | None = None, seed: int = 0) -> GraphData:
        edges = torch.from_numpy(make(seed=seed))
        num_nodes = int(edges.max()) + 1 if edges.numel() else 0
        return GraphData(name, f"generated: {words}, seed {seed}", edges, num_nodes)

    return load_generated


BUILT_IN: dict[str, Callable[..., GraphData]] = {
    "collaboration": collaboration,
    "digits": digits,
    "karate": karate,
    "cliques": _generated("cliques", generators.cliques, "50 cliques of 20 nodes in a ring"),
    "erdos-renyi": _generated("erdos-renyi", generators.erdos_renyi, "2,000 nodes, random pairs"),
    "power-law": _generated("power-law", generators.power_law, "5,000 nodes, power-law degrees"),
}


def load(
    name_or_path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    num_graphs: int | None = None,
    seed: int = 0,
    features: bool = True,
    relabel: bool = False,
    undirected: bool = False,
) -> GraphData:
    """A graph by name or from a file.

    Args:
        name_or_path: a built-in name (`BUILT_IN`); a file of any name, or `-`, the standard input,
            that holds what `source.KINDS` lists; with `root`, a Planetoid or TU name, or the
            name of an `.npz` in `root`.
        root: folder of PyG's datasets.
        num_graphs: how many graphs to generate ("collaboration").
        seed: of what is generated.
        features: read x as well.
        relabel: of a file's edges, number the ids that occur 0..n-1, in increasing order; ids may
            then be any texts. Otherwise ids are kept, and ids that do not occur are isolated nodes.
        undirected: of a file's edges, take every edge in both directions, once.

    Raises:
        DatasetError: there is no such graph, or it is not valid.

    Example:
        >>> load("cliques").num_nodes
        1000
    """
    path, name = Path(name_or_path), os.fspath(name_or_path)
    if num_graphs is not None and name != "collaboration":
        raise DatasetError(f'{name}: a number of graphs (--graphs) is for "collaboration" only')
    beside = None if root is None or path.name != name else Path(root) / f"{name}.npz"
    known = name in BUILT_IN and not (path.is_file() and path.suffix)
    if not known and (name == STDIN or path.is_file() or _means_a_file(path, name, root)):
        return load_file(name, features=features, relabel=relabel, undirected=undirected)
    if not known and beside is not None and beside.is_file():
        return load_file(beside, features=features, relabel=relabel, undirected=undirected)
    if relabel or undirected:
        raise DatasetError(f"{name}: --relabel and --undirected are for edge lists only")
    if known:
        make = BUILT_IN[name]
        return make(seed=seed) if num_graphs is None else make(num_graphs=num_graphs, seed=seed)
    if root is None or beside is None:
        raise DatasetError(
            f"{name!r} is neither a file nor a built-in graph ({', '.join(BUILT_IN)}); a file may "
            f"be {KINDS}; a TU or Planetoid name (MUTAG, Cora, ...) needs --root, the folder to "
            "keep it in"
        )
    return _load_pyg(name, Path(root))


def _means_a_file(path: Path, name: str, root: str | os.PathLike[str] | None) -> bool:
    """Whether what is no file was meant to be one; a folder of that name may be a dataset's."""
    if path.exists():
        return root is None or not path.is_dir()
    return path.name != name or bool(path.suffix)


def _kept_name(name: str, root: Path) -> str:
    """A dataset's name as its folder writes it, in whatever case it is given."""
    kept = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return next((each for each in kept if each.lower() == name.lower()), name)


def _load_pyg(name: str, root: Path) -> GraphData:
    """A Planetoid or TU dataset, through PyG's own classes, which download what is missing."""
    with needed_by(name):
        from torch_geometric.datasets import Planetoid, TUDataset
    planetoid = PLANETOID.get(name.lower())
    try:
        if planetoid:
            data = Planetoid(str(root), planetoid)[0]
        else:
            name = _kept_name(name, root)
            dataset = TUDataset(str(root), name, use_node_attr=True)
    except Exception as e:  # PyG raises what its downloader, its reader or torch raised
        folder = root / (planetoid or name) / "raw"
        files = (
            [f"ind.{name.lower()}.{part}" for part in ("x", "tx", "allx", "y", "ty", "ally")]
            + [f"ind.{name.lower()}.graph", f"ind.{name.lower()}.test.index"]
            if planetoid
            else [f"{name}_{part}.txt" for part in ("A", "graph_indicator", "graph_labels")]
        )
        raise DatasetError(
            f"{name} is not in {root} and PyG could not download or prepare it "
            f"({type(e).__name__}: {str(e)[:200]}); expected a writable {folder} with "
            f"{', '.join(files)}"
        ) from e
    if planetoid:
        masks = {k: data[k] for k in ("train_mask", "val_mask", "test_mask")}
        return GraphData(planetoid, "PyG's Planetoid", data.edge_index, data.num_nodes,
                         x=data.x, y=data.y, **masks)  # fmt: skip
    offsets = torch.tensor([0] + [graph.num_nodes for graph in dataset]).cumsum(0)
    edges = [g.edge_index + first for g, first in zip(dataset, offsets, strict=False)]
    x = None if dataset[0].x is None else torch.cat([graph.x for graph in dataset])
    y = torch.cat([graph.y.view(-1)[:1].long() for graph in dataset])
    return GraphData(
        name, "PyG's TUDataset", torch.cat(edges, 1), int(offsets[-1]), x=x, y=y, graph_ptr=offsets
    )


def with_features(data: GraphData) -> GraphData:
    """`data` itself if it has features, otherwise with the degree of each node as one.

    A node's in-degree falls into a bucket, two for each doubling, one-hot: float32 `[N, B]`.
    """
    if data.x is not None:
        return data
    degree = torch.bincount(data.edge_index[1], minlength=data.num_nodes)
    bucket = (2 * torch.log2(degree + 1.0)).long()
    return replace(data, x=torch.nn.functional.one_hot(bucket).float())
