"""`layers`: the PyG layers that are accelerated, how, and under which conditions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hag_plugin.pyg.recipes.recipe import Recipe
from hag_plugin.pyg.recipes.table import RECIPES
from hag_plugin.saved import set_module

HAGS, ONE_PASS = "over a HAG", "in one pass over edges"


@set_module("hag_plugin.pyg")
@dataclass(frozen=True)
class Layer:
    """One layer class of the recipe table.

    Attributes:
        name: of the class, in `torch_geometric.nn`.
        runs: what it runs on: a HAG, or, where it attends, one pass over the edges.
        eligible_when: what it and its calls must be like; "always" where there is no condition.
    """

    name: str
    runs: str
    eligible_when: str


@set_module("hag_plugin.pyg")
@dataclass(frozen=True)
class Layers:
    """All rows; prints as a Markdown table."""

    rows: tuple[Layer, ...]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        lines = ["| layer | runs | eligible when |", "|---|---|---|"]
        rows = [f"| {r.name} | {r.runs} | {r.eligible_when} |" for r in self.rows]
        return "\n".join(lines + rows)


def layers() -> Layers:
    """The layers of `torch_geometric.nn` that `accelerate` lets run over a HAG, or in one pass.

    Beside what is listed, a layer runs stock code where its aggregation is no sum, mean, max, min
    or function of these, while `explain=True`, with `decomposed_layers`, and while hooks of the
    user watch its messages; `explain` says so.

    Example:
        >>> next(row for row in layers() if row.name == "PNAConv").eligible_when
        'edge_dim=None; pre_layers=1; no edge_attr'
    """
    rows = [
        Layer(cls.__name__, _runs(recipe), _eligible_when(recipe))
        for cls, recipe in RECIPES.items()
    ]
    return Layers(tuple(sorted(rows, key=lambda row: row.name)))


def _runs(recipe: Recipe) -> str:
    if recipe.attention is None:
        return HAGS
    return ONE_PASS if recipe.message is None else f"{HAGS}; attention {ONE_PASS}"


def _eligible_when(recipe: Recipe) -> str:
    needs = [condition.needs for condition in recipe.conditions if condition.needs]
    if recipe.attention is None and not recipe.fuses_weights:
        needs += [f"no {name}" for name in recipe.record.edge_values]
    return "; ".join(needs) or "always"
