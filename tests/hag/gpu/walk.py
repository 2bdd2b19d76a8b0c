"""What a schedule computes, op by op."""

from __future__ import annotations

import torch
from torch import Tensor

from hag_plugin.hag.gpu.schedule import Schedule


def run(s: Schedule, x: Tensor, unread: int | None = None) -> Tensor:
    """Walks a schedule level by level, op by op; NaN is what a level may not read.

    `unread`: the row of scratch to which ops without sources go.
    """
    y = torch.full((s.num_dst, x.shape[1]), torch.nan, dtype=x.dtype)
    scratch = torch.full((s.scratch_rows, x.shape[1]), torch.nan, dtype=x.dtype)
    op_ptr, target = s.op_ptr.tolist(), s.target.tolist()
    for first, last in s.levels:
        before = scratch.clone()
        for op in range(first, last):
            rows = [x[j] if j >= 0 else before[~j] for j in s.source[op_ptr[op] : op_ptr[op + 1]]]
            total = torch.stack(rows).sum(0) if rows else torch.zeros(x.shape[1], dtype=x.dtype)
            if target[op] < 0 and ~target[op] == unread:
                assert not rows, "a sum goes to the row that nobody reads"
            elif target[op] < 0:
                assert scratch[~target[op]].isnan().all(), "a row of scratch is written twice"
                scratch[~target[op]] = total
            else:
                assert y[target[op]].isnan().all(), "a row of y is written twice"
                y[target[op]] = total + s.diagonal * x[target[op]] if s.diagonal else total
    return y
