"""What a run measures: graphs, widths, and for how long."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .timing import Budget

Cell = dict[str, Any]

WIDTHS = (16, 32, 64, 128, 256, 512)
REDUCES = ("sum", "max")
DGL_GRAPHS = ("IMDB-MULTI", "AmazonPhoto", "COLLAB_ego_recon")
LAYER_GRAPHS = ("IMDB-MULTI", "AmazonPhoto")
EPOCH_GRAPHS = (
    "COLLAB_ego_recon",
    "IMDB-MULTI",
    "BZR_MD",
    "PPI_ohmnet_brain",
    "ogbl-ddi",
    "CoauthorPhysics",
)


@dataclass(frozen=True)
class Plan:
    """The cells of one suite, and the settings that its results depend on.

    Attributes:
        graphs: names.
        widths: numbers of features; of hidden features for epochs.
        loops: "A", "A+I".
        reduces: "sum", "max".
        seconds: for one form of a cell; None: the suite's own.
        quick: a tiny run, to see that all works; its times mean nothing.
        memory_limit: bytes that the messages of a gather-and-scatter side may take.
        seed: of features, weights and labels.
    """

    graphs: tuple[str, ...]
    widths: tuple[int, ...]
    loops: tuple[str, ...]
    reduces: tuple[str, ...]
    seconds: float | None
    quick: bool
    memory_limit: float
    seed: int

    def budget(self, seconds: float, least_rounds: int = 3) -> Budget:
        """How long a form of a cell is measured, where the suite would take `seconds`."""
        if self.quick:
            return Budget(0.02, least_rounds=2, most_rounds=3, least_seconds=1e-4)
        return Budget(seconds if self.seconds is None else self.seconds, least_rounds)

    def settings(self) -> dict[str, Any]:
        """What results depend on beside their cell."""
        kept = ("seconds", "quick", "memory_limit", "seed")
        return {key: value for key, value in asdict(self).items() if key in kept}
