"""What notebooks show of what can be printed: the same cells, escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

import hag_plugin as hp
from hag_plugin.notebook import html_table


class Cells(HTMLParser):
    """The cells of a table, row by row, and whether all that was opened was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def cells_of(shown: Any) -> list[list[str]]:
    cells = Cells()
    cells.feed(shown._repr_html_())
    assert not cells.open
    assert len({len(row) for row in cells.rows}) == 1
    return cells.rows


def graph() -> torch.Tensor:
    pairs = torch.combinations(torch.arange(30)).t()
    return torch.cat([pairs, pairs.flip(0)], dim=1)


def test_text_is_escaped() -> None:
    html = html_table([("a<b", "&"), ("<script>", "1")], above="x<y", below=["<i>"])
    assert "<script>" not in html
    assert "<i>" not in html
    cells = Cells()
    cells.feed(html)
    assert cells.rows == [["a<b", "&"], ["<script>", "1"]]


def test_everything_that_notebooks_show_says_it_in_words() -> None:
    """What has HTML of its own has the same as text."""
    shown = {
        value
        for room in (hp, hp.parallel)
        for value in vars(room).values()
        if isinstance(value, type) and hasattr(value, "_repr_html_")
    }
    assert {each.__name__ for each in shown} == {
        "HAG", "Stats", "Explanation", "Plan", "NetworkPlan", "Schedule",
    }  # fmt: skip


def test_a_hag_and_its_stats() -> None:
    hag = hp.build_hag(graph(), num_nodes=30)
    stats = hag.stats(False)
    assert ["edges", "870"] in cells_of(hag)
    (read,) = [row for row in cells_of(stats) if row[0] == "rows read"]
    assert read[1:3] == [f"{stats.rows_read_before:,}", f"{stats.rows_read:,}"]


def test_an_explanation() -> None:
    pyg = pytest.importorskip("torch_geometric.nn", reason="PyG is not installed")
    model = hp.pyg.accelerate(nn.ModuleList([pyg.GCNConv(3, 4), pyg.GATConv(4, 2)]))
    model[0](torch.randn(30, 3), graph())
    shown = hp.pyg.explain(model)
    head, *rows = cells_of(shown)
    assert [row[0] for row in rows] == [row.name for row in shown]
    assert [row[4] for row in rows] == [str(row.calls) or "none" for row in shown]
    for cell in (*head, *(cell for row in rows for cell in row)):
        assert cell in str(shown)


def test_a_plan_of_a_network() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    plan = hp.parallel.plan(model, (torch.randn(12, 8),), "pcie4x4")
    rows = cells_of(plan)
    assert [row[0] for row in rows[1:]] == [op.name for op in plan.operations]
    for row in rows:
        for cell in row:
            assert cell in str(plan)


def test_a_plan_and_a_simulation() -> None:
    pyg = pytest.importorskip("torch_geometric", reason="PyG is not installed")
    parallel = hp.parallel
    data = pyg.data.Data(x=torch.randn(30, 8), edge_index=graph())
    space = parallel.space_of(parallel.trace(pyg.nn.GCN(8, 16, 2, 4), data), "pcie4x4")
    plan = parallel.plan(space.graph, topology=space.topology)
    for row in cells_of(plan):
        for cell in row:
            assert cell in str(plan)
    schedule = parallel.simulate_plan(plan, space)
    assert [row[0] for row in cells_of(schedule)[1:]] == [*schedule.busy()]
