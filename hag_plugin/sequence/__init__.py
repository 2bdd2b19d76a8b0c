"""Sequential aggregates over a prefix tree: LSTM, and the child sums of an N-ary Tree-LSTM.

Each step of the recurrence runs once for every distinct prefix, a level of the tree at a time.
"""

from hag_plugin.sequence.lstm import child_sum, lstm_aggregate
from hag_plugin.sequence.prefix_tree import (
    ORDERS,
    Order,
    SequenceStats,
    SequentialHAG,
    build_sequence,
)

__all__ = [
    "ORDERS",
    "Order",
    "SequenceStats",
    "SequentialHAG",
    "build_sequence",
    "child_sum",
    "lstm_aggregate",
]
