"""Strategies: how one operation may be split, and what every device then computes, sends and holds.

This file fills `registry.REGISTRY`. A new strategy is a class in the file of its kind of operation,
handed to `registry.register` there; a new file is imported here. What runs it has the same name in
`execution.executors`. The operations of models without a graph have `axes`, by a rule for each kind
there, and their tensors a `placement`; what a rule splits and torch cannot run as it stands has an
entry in `execution.executors.network`. Nothing here knows of seconds: those are the search's.
"""

from hag_plugin.parallel.strategies import attention, convolution, dense, grid

__all__ = ["attention", "convolution", "dense", "grid"]
