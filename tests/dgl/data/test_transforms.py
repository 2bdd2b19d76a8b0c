"""ToHAG's options are looked at when it is made."""

from __future__ import annotations

from typing import Any

import dgl
import pytest
import torch

from hag_plugin.dgl import ToHAG

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"bogus": 1}, TypeError, "no option 'bogus'"),
    ({"edge_index": 1}, TypeError, "edge_index is taken from the graph"),
    ({"num_nodes": 3}, TypeError, "num_nodes is taken from the graph"),
    ({"size": (3, 3)}, TypeError, "size is taken from the graph"),
    ({"targets_first": True}, TypeError, "targets_first is taken from the graph"),
    ({"self_loops": "add"}, TypeError, "self_loops is taken from the graph"),
    ({"ptr": [0]}, TypeError, "ptr is taken from the graph"),
    ({"device": "cpu"}, TypeError, "device is taken from the graph"),
    ({"method": "best"}, ValueError, "method is 'best'"),
    ({"method": "greedy", "capacity": -1}, ValueError, "capacity is -1"),
    ({"method": "greedy", "capacity": 2.0}, TypeError, r"capacity is 2\.0"),
    ({"width": "a"}, TypeError, "width is 'a'"),
    ({"dtype": torch.int64}, ValueError, "dtype is torch.int64"),
    ({"allow_subtraction": 1}, TypeError, "allow_subtraction is 1"),
    ({"progress": "yes"}, TypeError, "progress is 'yes'"),
]


@pytest.mark.parametrize(("options", "error", "words"), WRONG)
def test_wrong_options_are_refused_at_once(options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        ToHAG(**options)


@pytest.mark.parametrize(
    "options", [{}, {"width": 8, "progress": False}, {"method": "greedy", "capacity": 0}]
)
def test_right_options_are_taken(options: Any) -> None:
    graph = ToHAG(**options)(dgl.graph(([0, 1, 2], [1, 0, 0])))
    assert graph.num_edges() == 3
