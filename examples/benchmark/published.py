"""Figures that others published. They were not measured here, and not on this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        what: what was compared.
        value: as published.
        where: the graph or setting it is for.
    """

    what: str
    value: str
    where: str


CBM_SOURCE = (
    "Published, not measured here: Alves et al., CBM (IPDPS 2025), best values. CBM writes each "
    "row of the matrix as another row plus and minus a few."
)
CBM = (
    Figure("sparse-dense product, CBM over MKL's CSR", "about 5x", "best graph"),
    Figure("GCN inference, CBM over MKL's CSR", "3x", "coPapersCiteseer"),
)
