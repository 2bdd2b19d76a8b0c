"""Covers of the edges between two parts: they are covers, and the smallest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.parallel.graphs.vertex_cover import minimum_cover


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 40))
def test_covers_are_minimum(seed: int, nodes: int, count: int) -> None:
    networkx = pytest.importorskip("networkx")
    rng = np.random.default_rng(seed)
    source, target = rng.integers(0, nodes, (2, count))
    rows, sums = minimum_cover(source, target)
    assert (np.isin(source, rows) | np.isin(target, sums)).all()
    graph = networkx.Graph(
        [(("s", a), ("t", b)) for a, b in zip(source.tolist(), target.tolist(), strict=True)]
    )
    top = {n for n in graph if n[0] == "s"}
    assert len(rows) + len(sums) == len(networkx.bipartite.maximum_matching(graph, top)) // 2
