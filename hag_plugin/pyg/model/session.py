"""Plain edge indices in an accelerated model: a graph that comes back gets its HAG, any other is
summed as it is."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG
from hag_plugin.limits import limits
from hag_plugin.modes import outside_inference, top_hooks
from hag_plugin.occasions import Occasions
from hag_plugin.ops.edge_list import EdgeList
from hag_plugin.recall import Passing, Recall, decide, is_run_again
from hag_plugin.saved import set_module

CACHED = "cached"  # what is kept of an edge index whose graph a layer keeps


@set_module("hag_plugin.pyg")
class Session:
    """What the root of an accelerated model knows about the edge indices it was called with.

    The root's forward pre-hook (the session itself) counts forwards. Met in a first forward, the
    rows of a tensor's graph are summed as they are, where that pays; only when it comes back in a
    later forward its HAG is built, so that sampled batches are never searched. For layers that are
    called by other ways `occasions` says what a coming back is. Decisions go by counts, never by
    time: ranks of a distributed job decide alike. Copies and pickles start anew.

    Attributes:
        occasions: of calls, so far.
        graphs: what was built of edge indices.
        verdicts: what layers found out about edge indices.
    """

    def __init__(self, root: Module | None = None) -> None:
        self.occasions = Occasions(root)
        self.graphs = Recall(limits.pyg_graphs)
        self.verdicts = Recall(limits.pyg_graphs)
        self._caches: weakref.WeakKeyDictionary[Any, object] = weakref.WeakKeyDictionary()

    def __call__(self, module: Any, inputs: Any) -> None:
        """The forward pre-hook of the root module."""
        if torch.compiler.is_compiling():
            return
        is_bare = top_hooks(True) is None and torch._C._current_graph_task_id() < 0
        self.occasions.begin(counts=is_bare or not is_run_again())

    def __reduce__(self) -> tuple[type[Session], tuple[()]]:
        return Session, ()

    def hag_of(
        self,
        edge_index: Tensor,
        size: tuple[int, int],
        conv: Any,
        features: Any,
        passing: Callable[[], Any] | None = None,
    ) -> HAG | Passing | None:
        """The HAG of a tensor that came back; what serves it before; None where there is neither.

        Args:
            edge_index: the tensor.
            size: the numbers of sources and targets.
            conv: the layer that meets it.
            features: that the layer is given.
            passing: as for `built_of`.
        """
        built: HAG | Passing | None = self.built_of(
            (edge_index,),
            size,
            lambda: hag_once(edge_index, size),
            conv,
            features,
            lambda: built_before(edge_index, size) is not None,
            passing,
        )
        return built

    def built_of(
        self,
        tensors: tuple[Tensor, ...],
        key: tuple[Any, ...],
        make: Callable[[], Any],
        conv: Any,
        features: Any,
        is_there: Callable[[], bool] = lambda: False,
        passing: Callable[[], Any] | None = None,
    ) -> Any:
        """What `make` makes of tensors, of which the first is an edge index, once they came back.

        Before, what `passing` makes of them, as `Passing`. None where there is neither: they
        cannot be known again, or nothing is to be built.

        Args:
            tensors: of the edges.
            key: what else it depends on.
            make: makes it.
            conv: the layer that meets them.
            features: that the layer is given.
            is_there: whether it was made before, for another session.
            passing: makes what serves them before they come back; None where that does not pay.
        """
        num_edges = tensors[0].shape[1]
        built = lambda: build(num_edges, make)  # noqa: E731
        return self.made_of(tensors, key, built, conv, features, is_there, passing)

    def made_of(
        self,
        tensors: tuple[Tensor, ...],
        key: tuple[Any, ...],
        make: Callable[[], Any],
        conv: Any,
        features: Any,
        is_there: Callable[[], bool] = lambda: False,
        passing: Callable[[], Any] | None = None,
    ) -> Any:
        """The same of graphs of any size, if `make` says nothing against it."""
        reader, occasion = self.occasions.of(conv, features, is_there)
        return self.graphs.value(
            tensors, key, make, reader=reader, occasion=occasion, passing=passing
        )

    def forget(self) -> None:
        """Forgets all graphs; counts go on."""
        self.graphs.clear()
        self.verdicts.clear()
        self._caches.clear()

    @property
    def num_hags(self) -> int:
        """Number of graphs that run on a HAG now."""
        left = (type(None), Passing, str, EdgeList)
        return sum(not isinstance(built, left) for built in self.graphs.values())

    # Layers with cached=True run the graph of their first call for ever -------------------------

    def fills_cache(self, conv: Any, edge_index: Tensor, size: tuple[int, int]) -> None:
        """Notes that a layer with `cached=True` is about to keep this tensor's graph."""
        if is_run_again():
            return
        things, about = (edge_index,), (CACHED, size)
        graph = self.verdicts.get(things, about)
        if graph is None:  # any object does, to tell this graph from others
            graph = object()
            self.verdicts.put(things, about, graph)
        self._caches[conv] = graph

    def is_cached(self, conv: Any, edge_index: Tensor, size: tuple[int, int]) -> bool:
        """Whether the graph that a layer with `cached=True` keeps is this tensor's."""
        about = (CACHED, size)

        def take() -> bool:
            graph = self.verdicts.get((edge_index,), about)
            return graph is not None and graph is self._caches.get(conv)

        return decide(about, take)


def build(num_edges: int, make: Callable[[], Any]) -> Any:
    """What `make` gives, on behalf of `num_edges` edges; None where these are too many, or no
    edges of such a graph."""
    most = limits.searched_edges
    if num_edges > most:
        warnings.warn(
            f"an edge_index with {num_edges:,} edges came back; from {most:,} edges "
            "on, its HAG is not built during training: call hag_plugin.build_hag once and pass "
            "the HAG where edge_index stands",
            stacklevel=2,
        )
        return None
    return made(make)


def made(make: Callable[[], Any]) -> Any:
    """What `make` gives, of plain tensors; None where there are no edges of such a graph."""
    try:
        with outside_inference(), torch.no_grad():
            return make()
    except ValueError:  # ids out of range: the stock layer says so in its own words
        return None


# HAGs of tensors, as long as a session keeps them: models that meet the same tensor share its HAG,
# as do the layers of one that was made heterogeneous, each of which has a session of its own.
_BUILT = Recall()


def built_before(edge_index: Tensor, size: tuple[int, int]) -> HAG | None:
    """The HAG of a tensor, if a session has it."""
    found = _BUILT.get((edge_index,), size)
    return None if found is None else found()


def hag_once(edge_index: Tensor, size: tuple[int, int]) -> HAG:
    """The HAG of a tensor, built unless a session has it."""
    hag = built_before(edge_index, size)
    if hag is None:
        hag = build_hag(edge_index, size=size)
        _BUILT.put((edge_index,), size, weakref.ref(hag))
    return hag
