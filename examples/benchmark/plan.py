"""What a run measures: graphs, widths, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .timing import Budget

Cell = dict[str, Any]

WIDTHS = (16, 32, 64, 128, 256, 512)
REDUCES = ("sum", "max")
DTYPES = ("float32", "bfloat16", "float64")
DIRECTIONS = ("forward", "transposed")
DGL_GRAPHS = ("IMDB-MULTI", "AmazonPhoto", "COLLAB_ego_recon")
ATTENTION_GRAPHS = (
    "AmazonPhoto",
    "CoauthorPhysics",
    "ca-HepPh",
    "IMDB-MULTI",
    "REDDIT-BINARY",
    "PPI_ohmnet_brain",
)
LAYER_GRAPHS = ("IMDB-MULTI", "AmazonPhoto")
BATCH_GRAPHS = ("MUTAG", "NCI1", "IMDB-MULTI", "BZR_MD", "DD")
SAMPLED_GRAPHS = ("AmazonPhoto", "CoauthorPhysics", "REDDIT-BINARY")
EPOCH_GRAPHS = (
    "COLLAB_ego_recon",
    "IMDB-MULTI",
    "BZR_MD",
    "PPI_ohmnet_brain",
    "ogbl-ddi",
    "CoauthorPhysics",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells of one suite, and the settings that its results depend on.

    Attributes:
        graphs: names.
        widths: numbers of features; of hidden features for epochs.
        loops: "A", "A+I".
        reduces: "sum", "max".
        dtypes: names of torch's, for `never-slower`.
        directions: "forward", "transposed", for `never-slower`.
        instruction_sets: that kernels are forced to, for `never-slower`.
        constants: whose cost constants, for `never-slower`: "own" or names of `FOREIGN`.
        seconds: for one form of a cell; None: the suite's own.
        quick: a tiny run, to see that all works; its times mean nothing.
        memory_limit: bytes that the messages of a gather-and-scatter side may take.
        seed: of features, weights and labels.
        crashed: sides that took the process with them in the cell at hand, and how.
    """

    graphs: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    loops: tuple[str, ...] = ()
    reduces: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    instruction_sets: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    seconds: float | None = None
    quick: bool = False
    memory_limit: float = 0.0
    seed: int = 0
    crashed: Mapping[str, str] = field(default_factory=dict)

    def budget(self, seconds: float, least_rounds: int = 3, longer: int = 1) -> Budget:
        """How long a form of a cell is measured, where the suite would take `seconds`.

        Args:
            seconds: for the whole form, where `self.seconds` is None.
            least_rounds: however slow it is.
            longer: how many times as long, and as many rounds.
        """
        if self.quick:
            return Budget(0.02, least_rounds=2, most_rounds=3, least_seconds=1e-4)
        seconds = seconds if self.seconds is None else self.seconds
        return Budget(longer * seconds, longer * least_rounds, most_rounds=longer * 101)

    def settings(self) -> dict[str, Any]:
        """What results depend on beside their cell."""
        kept = ("seconds", "quick", "memory_limit", "seed")
        return {key: value for key, value in asdict(self).items() if key in kept}
