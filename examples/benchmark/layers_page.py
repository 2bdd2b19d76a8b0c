"""Writes `docs/layers.md`, the page of PyG's layers, from the table of recipes.

python -m examples.benchmark.layers_page
"""

from __future__ import annotations

from pathlib import Path

from hag_plugin.files import write_whole
from hag_plugin.limits import limits
from hag_plugin.pyg import layers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layers.md"


def page() -> str:
    """The page as Markdown."""
    few = f"{limits.few_messages:,}"
    return f"""# PyG's layers over a HAG

Written by `python -m examples.benchmark.layers_page` from the table that decides it.

`accelerate` lets these layers of `torch_geometric.nn` run over a HAG, with the same results, where
their aggregation is sum, mean, max, min, or follows from these: var, std, softmax, powermean,
variance-preserving, several at once, degree scalers. Where a condition does not hold, the layer
runs its stock code, also where it is handed a HAG; `hp.explain(model)` says so, and counts for each
layer what its calls ran on: a HAG, the plain graph in the same kernels, or stock code.

{layers()}

HeteroConv, DirGNNConv, GPSConv, AntiSymmetricConv and models from `to_hetero` run as the layers
inside them do. Every other layer runs its stock code.

In training, a call whose messages hold fewer than {few} numbers in all (edges times features)
runs stock code, which is mostly faster there; but for layers that normalise their edge index at
each call.
"""


def main() -> None:
    """Writes the page."""
    PAGE.parent.mkdir(exist_ok=True)
    write_whole(PAGE, page().encode())


if __name__ == "__main__":
    main()
