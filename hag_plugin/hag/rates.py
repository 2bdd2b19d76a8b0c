"""What an op and a row cost on a processor: the constants of the cost model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple


class Arithmetic(NamedTuple):
    """What is done to the rows that are read, as far as it has a price of its own."""

    is_half: bool = False  # they are converted to float32
    is_extremum: bool = False


SUM, HALF_SUM = Arithmetic(), Arithmetic(is_half=True)
EXTREMUM, HALF_EXTREMUM = Arithmetic(False, True), Arithmetic(True, True)
ARITHMETICS = (SUM, HALF_SUM, EXTREMUM, HALF_EXTREMUM)


@dataclass(frozen=True)
class RowCost:
    """Seconds that a row takes, affine in its bytes."""

    fixed: float
    per_byte: float

    def of(self, row_bytes: Any) -> Any:
        """Seconds for a row of so many bytes; of an array of bytes, for each."""
        return self.fixed + self.per_byte * row_bytes


@dataclass(frozen=True)
class Constants:
    """What the parts of an aggregation cost, in seconds on one thread, warm, into a kept output.

    The defaults were measured on a server with AVX-512 (`hag-plugin calibrate`).

    Attributes:
        call: one aggregation of sums of float32, however small; bytes are those of a row in the
            dtype that sums accumulate in.
        op: one op, beside its rows.
        written: a byte of y, or of a partial sum, that the cache does not hold; one that it does
            costs as much as a byte of a near row.
        scratch: a row of scratch, written or read.
        near: a row of x that the tile has read before, or that the cache holds. The cache holds
            all of x and y, or as large a share of them as `cache_bytes` are.
        far: any other row of x.
        half: what a row of x of a half type costs more than to read it, to become one of float32.
        extremum: what max and min cost more than a sum, for each row read.
        memory: what a byte of x costs more that comes from main memory though another tile has
            read it before: of these rows the last-level cache keeps as large a share as it holds
            of x and y.
        parallel: what each further thread adds, in threads: with T of them the work takes
            1 / (1 + parallel (T - 1)) of the time.
        cache_bytes: of the cache that near rows come from.
        last_bytes: of the last-level cache, as much as one program may count on.
        error: the largest relative error of a prediction by these constants that was met where
            they were measured. 1, a factor of two, for a processor that they were not measured on.
    """

    call: float = 1.7e-6
    op: float = 1.3e-9
    written: float = 5.4e-11
    scratch: RowCost = RowCost(1.4e-9, 4.4e-12)
    near: RowCost = RowCost(0.15e-9, 8.4e-12)
    far: RowCost = RowCost(0.0, 3.2e-11)
    half: RowCost = RowCost(0.0, 2.0e-11)
    extremum: RowCost = RowCost(0.0, 1.0e-12)
    memory: float = 2.6e-11
    parallel: float = 0.99
    cache_bytes: int = 2 << 20
    last_bytes: int = 32 << 20
    error: float = 1.0

    @cached_property
    def digest(self) -> str:
        """A hash of the constants, 12 hexadecimal digits. Kept with every HAG."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Constants:
        """Constants from names and numbers, as JSON gives them.

        Raises:
            ValueError: a name is missing or unknown, or a value is no finite number >= 0.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            found = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"constants are {found}; expected {sorted(names)}")
        made: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(getattr(DEFAULT, name), RowCost):
                if not isinstance(value, Mapping) or set(value) != {"fixed", "per_byte"}:
                    raise ValueError(f"{name} is {value!r}; expected fixed and per_byte")
                made[name] = RowCost(**{k: _number(f"{name}.{k}", v) for k, v in value.items()})
            else:
                made[name] = _number(name, value)
        return cls(**made | {name: int(made[name]) for name in ("cache_bytes", "last_bytes")})


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}; expected a number")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}; expected a finite number, 0 or more")
    return float(value)


DEFAULT = Constants()
