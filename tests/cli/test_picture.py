"""What is drawn is the graph and its program."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.cli import picture
from hag_plugin.data import datasets, generators
from hag_plugin.data.graph_data import GraphData
from hag_plugin.hag.program import SelfLoops

pytest.importorskip("matplotlib")


def sums_of(drawing: picture.Drawing, node: picture.Node) -> Counter[int]:
    """The rows of x that a drawn node sums, following its arrows."""
    if node[0] == "x":
        return Counter([node[1]])
    total: Counter[int] = Counter()
    for start, end in drawing.arrows:
        if end == node:
            total += sums_of(drawing, start)
    return total


def neighbours(edges: Tensor, target: int) -> Counter[int]:
    return Counter(edges[0, edges[1] == target].tolist())


@pytest.mark.parametrize("method", ["auto", "greedy", "none"])
@pytest.mark.parametrize("self_loops", [False, "add"])
def test_arrows_sum_to_each_targets_neighbours(method: str, self_loops: SelfLoops) -> None:
    data = datasets.karate()
    hag = hp.build_hag(data.edge_index, num_nodes=34, method=method)
    program = hag.program(self_loops)
    drawing = picture.arrange(program)
    for target in range(34):
        expected = neighbours(data.edge_index, target)
        if self_loops:
            expected[target] += 1
        assert sums_of(drawing, ("y", target)) == expected
    assert len(drawing.shared) == hag.stats(self_loops).intermediates
    assert bool(drawing.shared) or method != "greedy"


def test_every_arrow_goes_up_and_no_two_nodes_are_in_one_place() -> None:
    data = datasets.karate()
    drawing = picture.arrange(hp.build_hag(data.edge_index, method="greedy", capacity=34).program())
    assert all(drawing.position[a][1] < drawing.position[b][1] for a, b in drawing.arrows)
    assert len(set(drawing.position.values())) == len(drawing.position)


def test_uses_are_counted_over_tiles() -> None:
    data = datasets.load("cliques")
    program = hp.build_hag(data.edge_index, num_nodes=data.num_nodes).program("add")
    uses = picture.uses_of_sums(program)
    assert len(uses) == int((program.target < 0).sum()) > 0
    assert uses.sum() == int((program.source < 0).sum())
    assert uses.min() >= 1


def test_a_small_graph_is_drawn_whole_and_a_large_one_in_part() -> None:
    karate = datasets.karate()
    assert picture.small_part(karate) is karate
    large = datasets.load("power-law")
    part = picture.small_part(large)
    assert part.num_nodes == picture.MOST_DRAWN
    assert "neighbours" in part.name
    assert part.num_edges >= 2 * (picture.MOST_DRAWN - 1)  # the centre with all others


def test_of_many_graphs_the_densest_small_one_that_is_not_complete() -> None:
    complete = generators.cliques(1, 10, bridges=0)
    path = generators.undirected(np.array([[0, 1, 2], [1, 2, 3]]), 4)
    star = generators.undirected(np.array([[0, 0, 0, 0, 1], [1, 2, 3, 4, 2]]), 5)
    edges = np.concatenate([complete, path + 10, star + 14], axis=1)
    data = GraphData(
        "three", "a test", torch.from_numpy(edges), 19, graph_ptr=torch.tensor([0, 10, 14, 19])
    )
    alone = replace(data, graph_ptr=None)
    assert picture.small_part(alone) is alone
    many = torch.cat([data.edge_index, data.edge_index + 19], 1)
    twice = GraphData(
        "six", "a test", many, 38, graph_ptr=torch.tensor([0, 10, 14, 19, 29, 33, 38])
    )
    part = picture.small_part(twice)
    assert part.name == "graph 2 of six"
    assert {tuple(e) for e in part.edge_index.t().tolist()} == {tuple(e) for e in star.T.tolist()}


def test_nothing_shared_and_nothing_there(tmp_path: Path) -> None:
    for edges, nodes in (([[0, 1], [1, 0]], 2), ([[], []], 3), ([[], []], 0)):
        data = GraphData("tiny", "a test", torch.tensor(edges, dtype=torch.int64), nodes)
        hag = hp.build_hag(data.edge_index, num_nodes=nodes)
        drawn = picture.draw(data, hag, str(tmp_path / "tiny.svg"))
        assert drawn["shared_sums"] == 0
