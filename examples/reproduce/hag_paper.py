"""What the HAG paper publishes (arXiv 1906.03707, KDD 2020), and where it needs a reading guide."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "[arXiv 1906.03707](https://arxiv.org/abs/1906.03707)"


@dataclass(frozen=True)
class DataSet:
    """A row of the paper's table of data sets.

    Attributes:
        name: in the paper.
        real_name: of the published data set with exactly these numbers.
        nodes: as printed.
        edges: as printed.
        directions: how often an edge between two nodes counts in `edges`: 1 or 2.
        note: what a reader must know.
    """

    name: str
    real_name: str
    nodes: int
    edges: int
    directions: int
    note: str


DATA_SETS = (
    DataSet(
        "BZR", "BZR_MD (TU)", 6_519, 137_734, 2,
        "The paper's BZR is the collection's BZR_MD, whose graphs are complete graphs of atoms; "
        "the collection's own BZR (14,479 nodes, 31,070 directed edges) shares next to nothing.",
    ),
    DataSet("PPI", "PPI of GraphSAGE", 56_944, 1_612_348, 2, "24 graphs of proteins."),
    DataSet(
        "REDDIT", "Reddit of GraphSAGE", 232_965, 57_307_946, 1,
        "Counted once; aggregation reads twice as many.",
    ),
    DataSet(
        "IMDB", "IMDB-MULTI (TU)", 19_502, 197_806, 2, "The collection has an IMDB-BINARY, too."
    ),
    DataSet(
        "COLLAB", "COLLAB (TU)", 372_474, 12_288_900, 1,
        "Counted once, while BZR and IMDB are counted in both directions.",
    ),
)  # fmt: skip

END_TO_END = "up to 2.8x over the same engine without HAGs"
ENGINE = "3.7x to 5.5x over TensorFlow 1.12 and DGL; 4.6x to 15.3x with HAGs"
AGGREGATIONS = {"set": "1.5x to 6.3x fewer (COLLAB 3.3x)", "sequential": "up to 1.8x fewer"}
TRANSFERS = {"set": "1.3x to 5.6x fewer (COLLAB 2.2x)", "sequential": "up to 1.9x fewer"}
CAPACITY = "more is better, up to about 150,000 aggregation nodes on COLLAB"
ACCURACY = "unchanged: the same outputs and gradients, so the same training curves"
MACHINE = "a V100 GPU, the authors' own engine; baselines TensorFlow 1.12 and DGL"
