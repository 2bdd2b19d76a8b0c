"""The one table: the record of each layer, found by its class."""

from __future__ import annotations

from hag_plugin.layers import dgl, pyg
from hag_plugin.layers.record import Record

RECORDS: dict[str, Record] = {record.name: record for record in (*pyg.RECORDS, *dgl.RECORDS)}


def record_of(cls: type) -> Record | None:
    """The record of a class, or of the first of its bases that has one."""
    names = (f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)
    return next((RECORDS[name] for name in names if name in RECORDS), None)
