from numpy import int32, int64
from numpy.typing import NDArray

class Program:
    num_tiles: int
    num_ops: int
    num_partials: int
    scratch_rows: int
    num_src: int
    num_dst: int
    diagonal: int
    def __init__(
        self,
        tile_ptr: NDArray[int64],
        op_ptr: NDArray[int64],
        source: NDArray[int32],
        target: NDArray[int32],
        hub_row: NDArray[int32],
        hub_ptr: NDArray[int64],
        num_src: int,
        num_dst: int,
        diagonal: int,
    ) -> None: ...
    def run(
        self,
        x: int,
        y: int,
        batch: int,
        width: int,
        x_row_stride: int,
        x_batch_stride: int,
        x_rows: int,
        y_rows: int,
        dtype: int,
        reduce: int,
        source_scale: int,
        target_scale: int,
        threads: int,
    ) -> None: ...

def masked_sum(
    v: int,
    key_source: int,
    key_target: int,
    out: int,
    row_ptr: int,
    col: int,
    num_rows: int,
    num_cols: int,
    batch: int,
    width: int,
    loops: int,
    dtype: int,
    threads: int,
) -> None: ...
def arg_first(
    x: int,
    y: int,
    out: int,
    row_ptr: int,
    col: int,
    num_rows: int,
    num_cols: int,
    batch: int,
    width: int,
    loops: int,
    dtype: int,
    threads: int,
) -> None: ...
def advise_huge_pages(data: int, bytes: int) -> None: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
