"""What the demo says of two runs, in words and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hag_plugin.data import datasets
from hag_plugin.data.graph_data import GraphData
from hag_plugin.demo import compare
from hag_plugin.demo.side import Settings
from hag_plugin.files import DatasetError

from ..cases import random_graph


def a_comparison(
    stock: float, ours: float, search: float, read: int, apart: float = 0.0, ran: float = 1.0
) -> Any:
    stats = dict.fromkeys(("aggregations", "rows_read", "bytes"), 100.0)
    stats |= {f"{name}_before": 200.0 for name in stats} | {"rows_read": float(read)}
    run = {"losses": [1.0, 0.5], "accuracy": 0.9}
    return compare.Comparison(
        datasets.load("karate"),
        Settings(epochs=2),
        compare.Run([9.0, stock], [0.1, 0.1], peak_bytes=2**20, **run),
        compare.Run([9.0, ours], [0.2, 0.2], peak_bytes=None, hag_share=ran, **run),
        stats,
        search,
        dict.fromkeys(compare.DIFFERENCES, apart),
    )


@pytest.mark.parametrize(
    ("numbers", "words", "earned"),
    [
        ((1.0, 0.5, 0.1, 100), "An epoch is 2.0x faster, 2.0x fewer rows", 0.2),
        ((1.0, 0.5, 9.0, 100), "earned back only after 18 epochs", 18.0),
        ((1.0, 0.5, 1.15, 100), "earned back only after 3 epochs, and this run had 2.", 2.3),
        ((1.0, 0.5, 0.1, 199), "shares next to nothing (1.01x fewer rows read)", 0.2),
        ((0.5, 1.0, 0.1, 100), "does not pay", None),
        ((1.0, 0.5, 0.1, 100, 0.0, 0.0), "at width 64 the plain graph is faster and runs", 0.2),
        ((1.0, 0.5, 0.1, 100, 0.1), "DIFFER by 1.0e-01", 0.2),
    ],
)
def test_the_conclusion_is_honest(numbers: Any, words: str, earned: float | None) -> None:
    result = a_comparison(*numbers)
    assert words in compare.conclusion(result)
    assert result.epochs_to_earn_back == pytest.approx(earned) if earned else not result.profits
    text = compare.table(result)
    for row in ("search, seconds", "aggregations", "rows read", "bytes, CSR and program",
                "seconds an epoch", "runs the HAG", "epochs that earn", "peak memory", "final loss",
                "test accuracy", "outputs differ"):  # fmt: skip
        assert row in text
    assert "never" in text or earned
    json.dumps(result.as_dict(), allow_nan=False)


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "p.png"
    compare.check_plot(str(path))
    compare.plot(a_comparison(1.0, 0.5, 0.1, 100), str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("num_nodes", [10, 23, 400])
def test_edges_alone_get_communities_to_learn(num_nodes: int) -> None:
    edges = random_graph(num_nodes, num_nodes, 4 * num_nodes)
    data = compare.prepare(GraphData("g", "made", edges, num_nodes), seed=0)
    assert data.y is not None
    sizes = torch.bincount(data.y)
    assert len(sizes) == data.num_classes == min(8, num_nodes // 5)
    assert sizes.min() > 0
    assert sizes.max() <= 1.03 * num_nodes / len(sizes) + 1
    assert "no labels: classes are" in data.source
    masks = data.train_mask, data.val_mask, data.test_mask
    assert sum(int(mask.sum()) for mask in masks if mask is not None) == num_nodes


def test_too_few_nodes_for_communities_are_refused() -> None:
    with pytest.raises(DatasetError, match="no labels of two classes"):
        compare.prepare(GraphData("g", "made", torch.zeros(2, 1, dtype=torch.long), 9), seed=0)
