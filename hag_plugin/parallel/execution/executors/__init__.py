"""Executors: what runs one operation as its strategy says, with what the strategy counts as sent.

This file fills `registry.EXECUTORS`. A new executor is a class under `registry.executes`, which
names the strategy and the kinds of operations; a new file is imported here. The numbers of a layer
that is split, and the names of its weights, `forms` takes from its record in `hag_plugin.layers`.
Operations of models without a graph are run in `network`, which `execution.network` imports.
"""

from hag_plugin.parallel.execution.executors import (
    attention,
    convolution,
    dense,
    normalisation,
    relations,
    rows,
)

__all__ = ["attention", "convolution", "dense", "normalisation", "relations", "rows"]
