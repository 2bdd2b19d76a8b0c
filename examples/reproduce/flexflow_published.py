"""Figures that the papers published. They were not measured here.

FlexFlow's are from its evaluation (arXiv 1807.05358; MLSys 2019), by section, figure or table, as
independent summaries of the paper give them. DeePa is OptCNN's first version (OpenReview
SJCPLLpaW).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        what: what was compared.
        value: as published.
        where: on what, and where in the paper.
    """

    what: str
    value: str
    where: str


OPTCNN = (
    Figure("throughput, layer-wise over the frameworks of the time", "up to 6.5x",
           "DeePa, abstract"),
    Figure("bytes transferred, others over layer-wise", "up to 23x", "DeePa, abstract"),
    Figure("layer-wise over data, model parallelism and one weird trick", "faster on all networks",
           "OptCNN, abstract: AlexNet, VGG-16, Inception-v3; 16 P100"),
)  # fmt: skip
FLEXFLOW = (
    Figure("throughput over data parallelism and experts", "1.3x to 3.3x",
           "figure 7: AlexNet, Inception-v3, RNNTC, RNNLM, NMT"),
    Figure("the same, ResNet-101", "about 1x", "section 8.2.1"),
    Figure("time of an iteration, others over FlexFlow", "1.7x to 2.4x",
           "figure 8a: NMT, 64 K80"),
    Figure("bytes an iteration: data parallel, expert, FlexFlow", "65.8, 24.2 and 12.1 GB",
           "figure 8b: NMT, 64 K80"),
    Figure("throughput over OptCNN", "1.2x to 1.6x",
           "figure 10b: Inception-v3, RNNTC, RNNLM, NMT; 16 P100"),
    Figure("the same, AlexNet and ResNet-101", "about 1x", "figure 10b"),
    Figure("iteration of Inception-v3 against data parallelism", "12 % shorter",
           "section 8.5: 4 P100"),
    Figure("search with delta simulation over full", "2.2x to 6.9x faster",
           "table 4: 4 to 64 GPUs"),
)  # fmt: skip
