"""What runs an operation as its configuration says: one registry entry for each strategy.

Every executor takes shards that lie as `config.source` says and gives a shard that lies as
`config.target` says. What it sends, forward, backward and for weight gradients, is what the
strategy's `terms` count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.layouts import Split
from hag_plugin.parallel.model.calls import Call
from hag_plugin.parallel.strategies.registry import splits_of


class OperationExecutor(ABC):
    """Runs one operation on this rank.

    Args:
        site: the operation, and where it is run.
    """

    def __init__(self, site: Site) -> None:
        self.site = site

    def placements(self) -> dict[str, Split]:
        """The parameters of `site.names` that are split; all others have a copy on each rank."""
        found = splits_of(self.site.op, self.site.config)
        return {role: split for role, split in found.items() if split is not None}

    @abstractmethod
    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        """The output's shard.

        Args:
            call: the layer's or function's, with the tensors that the model gave.
            inputs: shards of what the operation takes, in the order of `op.inputs`.
        """


class Executor(OperationExecutor):
    """Runs a layer, of which only the features change from call to call."""

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        return self(*inputs)

    @abstractmethod
    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output's shard, from shards of what the operation takes."""


EXECUTORS: dict[tuple[str, str], type[OperationExecutor]] = {}
"""By kind of operation and name of the strategy."""


def executes(
    strategy: str, *kinds: str
) -> Callable[[type[OperationExecutor]], type[OperationExecutor]]:
    """Registers a class as the executor of a strategy for kinds of operations.

    Raises:
        ValueError: there is one already.
    """

    def add(cls: type[OperationExecutor]) -> type[OperationExecutor]:
        for kind in kinds:
            if (kind, strategy) in EXECUTORS:
                raise ValueError(f"{kind} {strategy!r} has an executor already")
            EXECUTORS[kind, strategy] = cls
        return cls

    return add


def executor_of(site: Site) -> OperationExecutor:
    """The executor of an operation.

    Raises:
        NotImplementedError: its strategy cannot be run; names both.
    """
    cls = EXECUTORS.get((site.op.kind, site.config.strategy))
    if cls is None:
        known = [name for kind, name in EXECUTORS if kind == site.op.kind]
        raise NotImplementedError(
            f"layer {site.op.name!r} ({site.op.kind}) has strategy {site.config.strategy!r}, "
            f"which cannot be run; expected one of {known}"
        )
    return cls(site)
