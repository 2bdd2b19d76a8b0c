"""All figures and tables: `python -m examples.reproduce --root DIR`, from the repository's root."""

from __future__ import annotations

import sys

from . import hag_accuracy, hag_aggregations, hag_capacity, hag_datasets, hag_training
from .hag_run import main

STEPS = [
    hag_datasets.STEP,
    hag_aggregations.STEP,
    hag_training.STEP,
    hag_capacity.STEP,
    hag_accuracy.STEP,
]

if __name__ == "__main__":
    sys.exit(main(STEPS))
