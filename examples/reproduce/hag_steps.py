"""The figures and tables of the HAG paper, in the order of the page."""

from __future__ import annotations

from collections.abc import Sequence

from . import hag_accuracy, hag_aggregations, hag_capacity, hag_datasets, hag_training
from .hag_run import main

STEPS = (
    hag_datasets.STEP,
    hag_aggregations.STEP,
    hag_training.STEP,
    hag_capacity.STEP,
    hag_accuracy.STEP,
)


def run(arguments: Sequence[str] | None = None) -> int:
    """The command over all steps, see `hag_run.main`."""
    return main(STEPS, arguments)
