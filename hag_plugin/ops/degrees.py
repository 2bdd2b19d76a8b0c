"""Powers of degrees, kept with the graph; one operator, so that torch.compile can call for them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from hag_plugin.hag.graph import Arrays
from hag_plugin.hag.hag import HAG, of_arrays
from hag_plugin.hag.program import SelfLoops
from hag_plugin.ops.registration import REVERSED, check_self_loops, loop_mode

Of = Literal["targets", "sources", "linked"]


def degree_scale(
    hag: HAG,
    exponent: float,
    self_loops: SelfLoops,
    dtype: torch.dtype,
    of: Of = "targets",
) -> Tensor:
    """Degrees to the power of `exponent`, 0 where the degree is 0.

    Args:
        hag: the graph.
        exponent: 1 gives the degree, 0 tells whether there is an edge.
        self_loops: the loops that are counted, as in `aggregate`.
        dtype: of the features. The result has the dtype that sums of these accumulate in.
        of: "targets": in-degrees `[N_dst]`. "sources": out-degrees without any self-loops
            `[N_src]`. "linked": 1 for every node up to the last that has an edge, 0 beyond
            `[N_src]`, whatever the exponent: the nodes that PyG counts where it is told no number.
    """
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    if torch.compiler.is_compiling():
        # Of the graph whose arrays these are; `loops` says whether its reverse is meant.
        num_src = hag.num_dst if hag.is_reversed else hag.num_src
        loops = check_self_loops(self_loops, hag)
        scale: Tensor = torch.ops.hag_plugin_pyg.degree_scale.default(
            hag.arrays.row_ptr,
            hag.arrays.col,
            num_src,
            exponent,
            loops,
            dtype,
            of,
            hag.arrays.token,
        )
        return scale
    return _scale(hag, exponent, self_loops, dtype, of)


def _scale(hag: HAG, exponent: float, self_loops: SelfLoops, dtype: torch.dtype, of: Of) -> Tensor:
    if of == "targets":
        return hag.kept_scale(exponent, self_loops, dtype)
    make = _sources if of == "sources" else _linked
    return hag.kept(("degrees", of, exponent, dtype), lambda: make(hag, exponent, dtype))


def _sources(hag: HAG, exponent: float, dtype: torch.dtype) -> Tensor:
    degree = (hag.transpose().degree("fill") - 1).to(dtype)
    return degree.pow(exponent).masked_fill(degree == 0, 0.0)


def _linked(hag: HAG, exponent: float, dtype: torch.dtype) -> Tensor:
    count = int(hag.make_edge_index().max()) + 1 if hag.num_edges else 0
    return (torch.arange(hag.num_src, device=hag.device) < count).to(dtype)


# In compiled code -------------------------------------------------------------------------------


def _run(
    row_ptr: Tensor,
    col: Tensor,
    num_src: int,
    exponent: float,
    self_loops: str,
    dtype: torch.dtype,
    of: Any,
    token: Tensor | None = None,
) -> Tensor:
    hag = of_arrays(Arrays(row_ptr, col, token), num_src)
    if self_loops.startswith(REVERSED):
        hag = hag.transpose()
    mode = loop_mode(self_loops)
    return _scale(hag, exponent, mode, dtype, of).clone()  # compiled code may write into it


def _shape(
    row_ptr: Tensor,
    col: Tensor,
    num_src: int,
    exponent: float,
    self_loops: str,
    dtype: torch.dtype,
    of: str,
    token: Tensor | None = None,
) -> Tensor:
    of_targets = (of == "targets") != self_loops.startswith(REVERSED)
    rows = row_ptr.shape[0] - 1 if of_targets else num_src
    return row_ptr.new_empty(rows, dtype=dtype)


_library: Any = torch.library.Library("hag_plugin_pyg", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "degree_scale(Tensor row_ptr, Tensor col, SymInt num_src, float exponent, str self_loops,"
    " ScalarType dtype, str of, Tensor? token=None) -> Tensor"
)
_library.impl("degree_scale", _run, "CompositeExplicitAutograd")
torch.library.register_fake("hag_plugin_pyg::degree_scale", _shape, lib=_library)
