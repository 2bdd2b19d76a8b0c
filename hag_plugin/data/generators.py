"""Generated graphs, deterministic by seed: every random number comes from one NumPy generator.

All functions return edges in both directions, without duplicates and without self-loops, sorted
by source and then by target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Field:
    """How authors of one field publish.

    Attributes:
        papers: mean number of papers an ego has written.
        team_spread: standard deviation of the logarithm of a paper's share of the authors. Large:
            one or two papers hold nearly everybody.
        repeats: further places on papers, as a multiple of the number of authors.
    """

    name: str
    papers: float
    team_spread: float
    repeats: float


FIELDS = (
    Field("large collaborations", papers=6.0, team_spread=1.5, repeats=0.6),
    Field("middle-sized teams", papers=18.0, team_spread=1.0, repeats=0.9),
    Field("small teams", papers=40.0, team_spread=0.6, repeats=1.2),
)
MIN_AUTHORS, MAX_AUTHORS = 30, 150
FIELD_JITTER = 0.20  # egos of one field differ: log-normal factors on all three numbers


def collaboration(
    num_graphs: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ego-networks of authors, made in the likeness of COLLAB; the label is the ego's field.

    An ego-network has one ego and 30 to 150 authors (log-normal, the same for every field). The
    ego has written a number of papers, every other author is on at least one of them, and those
    who are on the same paper are linked: a union of overlapping cliques. A field sets how many
    papers an ego writes, how unequal their teams are, and how many authors come back on other
    papers (`FIELDS`); every ego draws its own factors on these, so that fields overlap.

    Args:
        num_graphs: number of ego-networks.
        seed: of the NumPy generator.

    Returns:
        edge_index int64 `[2, E]`; graph_ptr int64 `[num_graphs + 1]`, the first node of each
        graph, which is its ego; label int64 `[num_graphs]`, the index in `FIELDS`.
    """
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(num_graphs) % len(FIELDS))
    size = np.exp(rng.normal(np.log(64), 0.42, num_graphs)).astype(np.int64)
    size = np.clip(size, MIN_AUTHORS, MAX_AUTHORS)
    graph_ptr = _starts(size)

    def drawn(attribute: str) -> np.ndarray:
        mean = np.array([getattr(field, attribute) for field in FIELDS])[label]
        jittered: np.ndarray = mean * np.exp(rng.normal(0, FIELD_JITTER, num_graphs))
        return jittered

    papers = 1 + rng.poisson(drawn("papers") - 0.5)
    paper_ptr = _starts(papers)
    share = np.exp(rng.normal(0, 1, paper_ptr[-1]) * np.repeat(drawn("team_spread"), papers))
    share_ptr = np.concatenate([np.zeros(1), np.cumsum(share)])

    def draw_papers(graph: np.ndarray) -> np.ndarray:
        """One paper for each entry of `graph`, with probability by the paper's share."""
        low, high = share_ptr[paper_ptr[graph]], share_ptr[paper_ptr[graph + 1]]
        paper = np.searchsorted(share_ptr, rng.uniform(low, high), side="right") - 1
        inside: np.ndarray = np.clip(paper, paper_ptr[graph], paper_ptr[graph + 1] - 1)
        return inside

    graph_of = np.repeat(np.arange(num_graphs), size)
    is_ego = np.zeros(graph_ptr[-1], bool)
    is_ego[graph_ptr[:-1]] = True
    authors = np.flatnonzero(~is_ego)
    returns = rng.poisson(drawn("repeats") * size)
    graph_of_return = np.repeat(np.arange(num_graphs), returns)
    rank = rng.uniform(0, 1, len(graph_of_return)) * (size[graph_of_return] - 1)
    returning = graph_ptr[graph_of_return] + 1 + rank.astype(np.int64)
    graph_of_paper = np.repeat(np.arange(num_graphs), papers)
    team = np.concatenate([authors, returning, graph_ptr[graph_of_paper]])
    paper = np.concatenate(
        [draw_papers(graph_of[authors]), draw_papers(graph_of_return), np.arange(paper_ptr[-1])]
    )
    return _union_of_cliques(paper, team, int(graph_ptr[-1])), graph_ptr, label


def cliques(num_cliques: int = 50, size: int = 20, bridges: int = 1, seed: int = 0) -> np.ndarray:
    """Cliques of `size` nodes in a ring, neighbours joined by `bridges` random edges.

    Returns:
        edge_index int64 `[2, E]` over `num_cliques * size` nodes.
    """
    rng = np.random.default_rng(seed)
    num_nodes = num_cliques * size
    members = _union_of_cliques(np.arange(num_nodes) // size, np.arange(num_nodes), num_nodes)
    first = np.repeat(np.arange(num_cliques), bridges)
    a = first * size + rng.integers(0, size, len(first))
    b = (first + 1) % num_cliques * size + rng.integers(0, size, len(first))
    return undirected(np.concatenate([members, np.stack([a, b])], axis=1), num_nodes)


def erdos_renyi(num_nodes: int = 2000, degree: float = 20.0, seed: int = 0) -> np.ndarray:
    """Node pairs drawn uniformly: nothing is shared but by chance.

    Returns:
        edge_index int64 `[2, E]`, about `degree` neighbours a node.
    """
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, num_nodes, (2, int(num_nodes * degree / 2)))
    return undirected(pairs, num_nodes)


def power_law(
    num_nodes: int = 5000, degree: float = 20.0, exponent: float = 2.5, seed: int = 0
) -> np.ndarray:
    """Both ends of an edge drawn with weight `rank^(-1 / (exponent - 1))` (Chung and Lu).

    Returns:
        edge_index int64 `[2, E]`, at most `degree` neighbours a node on average.
    """
    rng = np.random.default_rng(seed)
    weight = np.arange(1, num_nodes + 1) ** (-1.0 / (exponent - 1.0))
    pairs = rng.choice(num_nodes, (2, int(num_nodes * degree / 2)), p=weight / weight.sum())
    return undirected(pairs, num_nodes)


def communities(
    num_nodes: int = 20_000,
    degree: float = 100.0,
    community: int = 2000,
    inside: float = 0.8,
    exponent: float = 2.5,
    seed: int = 0,
) -> np.ndarray:
    """Communities with heavy-tailed degrees, as in networks of posts (a degree-corrected block
    model, Karrer and Newman 2011).

    One end of an edge is drawn from all nodes with weight `rank^(-1 / (exponent - 1))`, ranks in
    random order; the other end, by the same weights, from the same community with probability
    `inside` and otherwise from all nodes.

    Args:
        num_nodes: number of nodes; communities hold consecutive ones.
        degree: neighbours a node that are drawn; duplicates are dropped.
        community: nodes of a community; the last one may be smaller.
        inside: share of edges inside communities.
        exponent: of the power law of degrees.
        seed: of the NumPy generator.

    Returns:
        edge_index int64 `[2, E]`, at most `degree` neighbours a node on average.
    """
    rng = np.random.default_rng(seed)
    weight = rng.permutation(np.arange(1, num_nodes + 1) ** (-1.0 / (exponent - 1.0)))
    total = np.concatenate([np.zeros(1), np.cumsum(weight)])

    def draw(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """A node of `low..high-1` for each entry, by weight."""
        node = np.searchsorted(total, rng.uniform(total[low], total[high]), side="right") - 1
        clipped: np.ndarray = np.clip(node, low, high - 1)
        return clipped

    num_edges = int(num_nodes * degree / 2)
    source = draw(np.zeros(num_edges, np.int64), np.full(num_edges, num_nodes))
    at_home = rng.random(num_edges) < inside
    first = np.where(at_home, source // community * community, 0)
    last = np.where(at_home, np.minimum(first + community, num_nodes), num_nodes)
    return undirected(np.stack([source, draw(first, last)]), num_nodes)


def undirected(edge_index: np.ndarray, num_nodes: int) -> np.ndarray:
    """Both directions of every edge once, without self-loops, int64 `[2, E']`, sorted."""
    source, target = edge_index.astype(np.int64)
    key = np.concatenate([source * num_nodes + target, target * num_nodes + source])
    key = _unique(key[np.concatenate([source != target] * 2)])
    return np.stack([key // max(num_nodes, 1), key % max(num_nodes, 1)])


def _starts(count: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])


def _unique(key: np.ndarray) -> np.ndarray:
    """The distinct values in order. `np.unique` hashes, which takes a minute on 50 million keys."""
    key = np.sort(key)
    distinct: np.ndarray = np.concatenate([np.ones(min(len(key), 1), bool), key[1:] != key[:-1]])
    return np.compress(distinct, key)


def _union_of_cliques(group: np.ndarray, node: np.ndarray, num_nodes: int) -> np.ndarray:
    """Links all nodes `node` `[M]` of the same `group` `[M]` with each other."""
    key = _unique(group.astype(np.int64) * num_nodes + node)
    group, node = key // num_nodes, key % num_nodes
    size = np.bincount(group)
    first = _starts(size)
    degree = size[group]
    source = np.repeat(node, degree)
    # Position of each pair inside its row of `degree` partners.
    place = np.arange(len(source)) - np.repeat(_starts(degree)[:-1], degree)
    target = node[np.repeat(first[group], degree) + place]
    differs = source != target
    key = _unique(source[differs] * num_nodes + target[differs])
    return np.stack([key // num_nodes, key % num_nodes])
