from collections.abc import Callable
from typing import Any

from numpy import float64, int32, int64, uint8
from numpy.typing import NDArray

PLAIN_TILE_ROWS: int
PLAIN_TILE_WORK: int

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
        is_plain: bool = False,
        is_passing: bool = False,
        tile_scratch: NDArray[int32] | None = None,
    ) -> None: ...
    def count_reads(self) -> tuple[int, int]: ...
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
    def winners(
        self,
        x: int,
        y: int,
        winner: int,
        batch: int,
        width: int,
        x_rows: int,
        y_rows: int,
        dtype: int,
        largest: bool,
        last: bool,
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
def add_to_winners(
    grad: int,
    winner: int,
    out: int,
    batch: int,
    num_winners: int,
    num_rows: int,
    width: int,
    dtype: int,
    threads: int,
) -> None: ...
def factorise(
    source: NDArray[int64],
    target: NDArray[int64],
    weight: NDArray[float64],
    num_src: int,
    num_dst: int,
) -> tuple[NDArray[float64], NDArray[float64]]: ...
def edge_slots(
    source: NDArray[int64],
    target: NDArray[int64],
    row_ptr: NDArray[int64],
    col: NDArray[int32],
    num_src: int,
) -> NDArray[int64]: ...
def weighted_sum(
    x: int,
    y: int,
    weight: int,
    loop_weight: int,
    row_ptr: int,
    col: int,
    source_scale: int,
    target_scale: int,
    num_rows: int,
    num_loops: int,
    batch: int,
    width: int,
    x_row_stride: int,
    x_batch_stride: int,
    skip_loops: bool,
    dtype: int,
    threads: int,
) -> None: ...
def edge_dot(
    a: int,
    b: int,
    out: int,
    row_ptr: int,
    col: int,
    source_scale: int,
    target_scale: int,
    num_rows: int,
    num_cols: int,
    num_loops: int,
    batch: int,
    width: int,
    skip_loops: bool,
    dtype: int,
    threads: int,
) -> None: ...
def concatenate(programs: list[Program]) -> _Arrays: ...
def advise_huge_pages(data: int, bytes: int) -> None: ...
def second_cache_bytes() -> int: ...
def last_cache_bytes() -> int: ...
def reducers() -> list[str]: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...

_Ids = NDArray[Any]  # int32 or int64
_Arrays = tuple[
    NDArray[int64], NDArray[int64], NDArray[int32], NDArray[int32], NDArray[int32], NDArray[int64]
]
_Progress = Callable[[float], None] | None

def build_csr(
    source: _Ids,
    target: _Ids,
    num_src: int,
    num_dst: int,
    both: bool = False,
    threads: int = 1,
    loops: int = 0,
) -> list[NDArray[Any]]: ...
def transpose_csr(
    row_ptr: NDArray[int64], col: NDArray[int32], num_src: int, threads: int = 1
) -> tuple[NDArray[int64], NDArray[int32]]: ...
def reversed_order(
    row_ptr: NDArray[int64], col: NDArray[int32], num_src: int, threads: int = 1
) -> NDArray[int32]: ...
def checksum(data: int, rows: int, row_bytes: int, row_stride: int, threads: int) -> int: ...
def rows_alike(
    data: int, first: NDArray[int32], row_bytes: int, row_stride: int, step: int, threads: int
) -> bool: ...
def edge_hash(source: _Ids, target: _Ids) -> tuple[int, int]: ...
def csr_hash(row_ptr: NDArray[int64], col: NDArray[int32], num_src: int) -> tuple[int, int]: ...
def is_in_order(
    source: _Ids, target: _Ids, row_ptr: NDArray[int64], col: NDArray[int32]
) -> bool: ...
def write_edges(row_ptr: NDArray[int64], col: NDArray[int32], source: int, target: int) -> None: ...
def add_to_stretches(
    data: int, rows: int, wide: bool, ends: NDArray[int64], added: NDArray[int64]
) -> None: ...
def is_symmetric(row_ptr: NDArray[int64], col: NDArray[int32]) -> bool: ...
def has_duplicates(row_ptr: NDArray[int64], col: NDArray[int32]) -> bool: ...
def count_self_loops(row_ptr: NDArray[int64], col: NDArray[int32]) -> NDArray[int64] | None: ...
def check_csr(row_ptr: NDArray[int64], col: NDArray[int32], num_src: int) -> None: ...
def plain_program(
    row_ptr: NDArray[int64],
    col: NDArray[int32],
    num_src: int,
    self_loops: str,
    idempotent: bool,
    rows: NDArray[int32] | None = None,
) -> _Arrays: ...
def search_program(
    row_ptr: NDArray[int64],
    col: NDArray[int32],
    num_src: int,
    self_loops: str,
    idempotent: bool,
    leave_one_out: bool,
    intermediate: float,
    work_per_edge: int,
    worth_it: float,
    reorder: float,
    pack_rows: int,
    cut_rows: int,
    threads: int,
    progress: _Progress = None,
) -> tuple[_Arrays | None, NDArray[int32] | None]: ...
def greedy_program(
    row_ptr: NDArray[int64],
    col: NDArray[int32],
    num_src: int,
    self_loops: str,
    idempotent: bool,
    capacity: int,
    threads: int,
    progress: _Progress = None,
) -> _Arrays: ...
def check_program(
    program: Program,
    row_ptr: NDArray[int64],
    col: NDArray[int32],
    self_loops: str,
    idempotent: bool,
    threads: int,
) -> None: ...

_Numbers = tuple[int, int]
_Side = tuple[int, int, int, int]
_Sizes = tuple[int, int, int, int, int, int, int]

def attend(
    graph: _Side,
    sizes: _Sizes,
    tensors: list[_Numbers],
    y: _Numbers,
    kept: _Numbers,
    score: int,
    normalise: int,
    slope: float,
    dtype: int,
    threads: int,
) -> None: ...
def attend_backward(
    graph: _Side,
    reverse: _Side,
    sizes: _Sizes,
    tensors: list[_Numbers],
    kept: _Numbers,
    grad_value: _Numbers,
    grad_edges: _Numbers,
    out: list[_Numbers],
    score: int,
    normalise: int,
    slope: float,
    dtype: int,
    threads: int,
) -> None: ...
def head_dot(
    graph: _Side,
    sizes: _Sizes,
    a: _Numbers,
    b: _Numbers,
    out: _Numbers,
    dtype: int,
    threads: int,
) -> None: ...

class GraphSet:
    num_graphs: int
    facts: NDArray[uint8]
    node_ptr: NDArray[int64]
    edge_ptr: NDArray[int64]
    row_ptr: NDArray[int64]
    col: NDArray[int32]
    def __init__(
        self,
        source: _Ids,
        target: _Ids,
        edge_ptr: NDArray[int64],
        num_nodes: NDArray[int64],
        threads: int,
    ) -> None: ...
    @staticmethod
    def of_csr(
        num_nodes: NDArray[int64], row_ptr: NDArray[int64], col: NDArray[int32]
    ) -> GraphSet: ...
    def transposed(self) -> GraphSet: ...
    def search(
        self,
        self_loops: str,
        idempotent: bool,
        finds: bool,
        intermediate: float,
        work_per_edge: int,
        worth_it: float,
        reorder: float,
        pack_rows: int,
        cut_rows: int,
        threads: int,
    ) -> None: ...
    def has(self, self_loops: str, idempotent: bool) -> bool: ...
    def counts(self, self_loops: str, idempotent: bool) -> NDArray[int64]: ...
    def programs(
        self, self_loops: str, idempotent: bool
    ) -> tuple[NDArray[int64], NDArray[int64], _Arrays]: ...
    def put(
        self,
        self_loops: str,
        idempotent: bool,
        graphs: NDArray[int64],
        numbers: NDArray[int64],
        tile_ptr: NDArray[int64],
        op_ptr: NDArray[int64],
        source: NDArray[int32],
        target: NDArray[int32],
        hub_row: NDArray[int32],
        hub_ptr: NDArray[int64],
    ) -> None: ...

def gather(sets: list[GraphSet], graphs: list[int]) -> GraphSet: ...
def batch_graphs(
    sets: list[GraphSet], graphs: list[int]
) -> tuple[NDArray[int64], NDArray[int32], int]: ...
def batch_programs(
    sets: list[GraphSet], graphs: list[int], self_loops: str, idempotent: bool
) -> tuple[_Arrays, NDArray[int32], bool]: ...
