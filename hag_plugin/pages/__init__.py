"""Pages for people who would rather look than read: HTML files that fetch nothing when opened.

`report` writes the page of a model. `sections` makes the parts of pages, `layers` measures what
they show, `bars` draws it. What is heavy is imported when a page is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from hag_plugin.arguments import brief, check_function, check_kind, check_path
from hag_plugin.files import check_output, write_whole
from hag_plugin.notebook import html_page

if TYPE_CHECKING:
    from hag_plugin.parallel.machine.topology import Topology
    from hag_plugin.parallel.search.plan import Plan


def report(
    model: Module,
    data: Any,
    file: str | os.PathLike[str],
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    topology: Topology | str | os.PathLike[str] | None = None,
    call: Callable[[Any, Any], Any] | None = None,
) -> None:
    """Writes a page about a model on its data: what runs on what, and what each layer takes.

    Copies of the model take a few training steps here, as it was and accelerated; then each layer
    is timed alone, forward and backward, on what it gets in the model. Beside that stand the
    seconds that the cost model of plans predicts for this device, and what is shared in the graph;
    with a plan, its table and its simulated timeline.

    Args:
        model: of PyG or DGL layers. Neither it nor its weights are touched.
        data: PyG's `Data` or `HeteroData`, or `(DGLGraph, x)`.
        file: to write, .html.
        plan: of this model and this data, or its file. Its timeline needs matplotlib.
        topology: the plan's machine, where that is not a built-in one.
        call: how the model is called with the data: `lambda m, d: m(d.x, d.edge_index,
            d.edge_weight)`, say. By default with what its forward requires, by name.

    Raises:
        TypeError: an argument is of another kind, or the model has no layer of PyG or DGL.
        ValueError: `file` does not end in .html, or the plan is for something else.
        OSError: `file` can't be written.
    """
    check_kind("model", model, Module)
    check_path("file", file)
    check_output(file, (".html",), "file")
    check_function("call", call)
    if topology is not None and plan is None:
        raise ValueError(f"topology is {brief(topology)}, but there is no plan; expected None")
    from hag_plugin.pages import sections

    found = sections.of_model(model, data, plan=plan, topology=topology, call=call)
    name = type(model).__name__
    parts = [*found.parts, *sections.shared_in(data)]
    write_whole(file, html_page(f"{name}: what runs on what", name, parts).encode())
