"""Edges as a file gave them, and how their ids become nodes 0..N-1."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hag_plugin.data import generators
from hag_plugin.data.graph_data import MAX_ID, GraphData
from hag_plugin.files import DatasetError

MAX_EXACT_FLOAT = 2.0**53  # from here on not every whole number is a double
LARGER = "(2^31 - 2; --relabel numbers any ids)"
LONGEST = 1000  # characters of a number; Python reads no more than 4300
GAPS = 10  # nodes for each id that occurs; with fewer than FEW_NODES, any number
FEW_NODES = 10**6
WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MISSING = ("", "nan", "inf", "+inf", "-inf")
# Names of the two columns of an edge table, the source's first, without "id", "node" and so on.
ENDS = (
    ("source", "target"), ("src", "dst"), ("source", "destination"), ("src", "dest"),
    ("source", "dest"), ("src", "tgt"), ("from", "to"), ("start", "end"), ("sender", "receiver"),
    ("head", "tail"), ("row", "col"), ("row", "column"), ("u", "v"), ("i", "j"), ("1", "2"),
)  # fmt: skip
NOISE = re.compile(r"[^a-z0-9]|nodes?|vertex|vertices|index|idx|ids?|name")


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges of a file.

    Attributes:
        pairs: int64 `[2, E]`, ids as given; or, where `named`, 0..n-1 in the order of the names.
        words: what they were read as.
        where: says where edge `i` is, and what stands there.
        num_nodes: where the file says so.
        named: whether the ids were texts, or numbers beyond int64.
        says_undirected: whether the file says that its edges have no direction.
    """

    pairs: np.ndarray
    words: str
    where: Callable[[int], str]
    num_nodes: int | None = None
    named: bool = False
    says_undirected: bool = False


def whole(text: str) -> int | None:
    """The whole number that a text stands for, as in "3", "+3", "3.0" and "3e2"."""
    text = text.strip()
    if len(text) > LONGEST:
        return None
    if WHOLE.fullmatch(text):
        return int(text.partition(".")[0])
    if NUMBER.fullmatch(text):
        value = float(text)
        if value.is_integer() and abs(value) < MAX_EXACT_FLOAT:
            return int(value)
    return None


def counted(number: int, what: str) -> str:
    """A number of things: "1 edge", "2,000 edges"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def ends(names: Sequence[str]) -> tuple[int, int] | None:
    """Which columns hold source and target, by their names; None where the names don't say."""
    plain = [NOISE.sub("", name.strip().lower()) for name in names]
    for source, target in ENDS:
        if source in plain and target in plain:
            return plain.index(source), plain.index(target)
    return None


def from_floats(values: np.ndarray) -> np.ndarray | None:
    """int64 of floats `[2, E]`, or None if one of them is not a whole number."""
    if not ((np.abs(values) < MAX_EXACT_FLOAT) & (values == np.floor(values))).all():
        return None  # NaN fails both
    return values.astype(np.int64)


def from_names(
    codes: np.ndarray, names: Sequence[str], where: Callable[[int], str], relabel: bool
) -> tuple[np.ndarray, bool]:
    """Ids of texts: whole numbers if all are, otherwise their order in the alphabet.

    Args:
        codes: int `[2, E]`, positions in `names`.
        names: distinct texts.
        where: says where an edge is.
        relabel: whether anything but node ids will do.

    Returns:
        int64 `[2, E]`, and whether they were numbered here.
    """
    numbers = [whole(name) for name in names]
    if None not in numbers and all(abs(number or 0) < 2**63 for number in numbers):
        return np.array(numbers, np.int64)[codes], False
    bad = [
        (number is None or not 0 <= number <= MAX_ID)
        if not relabel
        else name.strip().lower() in MISSING or (number is None and bool(NUMBER.fullmatch(name)))
        for name, number in zip(names, numbers, strict=True)
    ]
    if any(bad):
        edge = int(np.array(bad)[codes].any(0).argmax())
        hint = "" if relabel else f" from 0 to {MAX_ID} {LARGER}"
        raise DatasetError(f"{where(edge)}; expected two node ids{hint}")
    keys: Sequence[int | str] = [n for n in numbers if n is not None]
    if len(keys) < len(names):
        keys = [name.strip() for name in names]
    rank = {key: i for i, key in enumerate(sorted(set(keys)))}
    return np.array([rank[key] for key in keys], np.int64)[codes], True


def graph_of(name: str, edges: Edges, relabel: bool, undirected: bool) -> GraphData:
    """The graph of the edges of a file.

    Raises:
        DatasetError: an id can't be a node's, or hardly any of the ids occurs.
    """
    pairs, words = edges.pairs, edges.words
    if relabel:
        ids, flat = np.unique(pairs, return_inverse=True)
        pairs = flat.reshape(pairs.shape).astype(np.int64)
        num_nodes = len(ids)
        if edges.named:
            words += ", ids numbered in the order of their names"
        elif num_nodes and (ids[0] != 0 or ids[-1] != num_nodes - 1):
            words += f", ids relabelled in increasing order (they were {ids[0]} to {ids[-1]})"
    else:
        num_nodes, missing = _nodes(edges)
        if missing and edges.num_nodes is None:
            words += (
                f", {missing:,} of the ids 0..{num_nodes - 1} do not occur and are isolated nodes "
                "(--relabel drops them)"
            )
    if undirected:
        pairs = generators.undirected(pairs, num_nodes)
        words += ", both directions of every edge"
    elif edges.says_undirected:
        words += (
            ", each in its direction only, although the file says that it is undirected "
            "(--undirected takes both)"
        )
    return GraphData(name, words, torch.from_numpy(np.ascontiguousarray(pairs)), num_nodes)


def _nodes(edges: Edges) -> tuple[int, int]:
    """The number of nodes, and how many of them no edge touches."""
    pairs = edges.pairs
    limit = MAX_ID + 1 if edges.num_nodes is None else edges.num_nodes
    if pairs.size and not (int(pairs.min()) >= 0 and int(pairs.max()) < limit):
        wrong = int(((pairs < 0) | (pairs >= limit)).any(0).argmax())
        power = f" {LARGER}" if edges.num_nodes is None else ""
        raise DatasetError(f"{edges.where(wrong)}; expected ids from 0 to {limit - 1}{power}")
    largest = int(pairs.max()) + 1 if pairs.size else 0
    num_nodes = largest if edges.num_nodes is None else edges.num_nodes
    distinct = pairs.size
    if num_nodes <= max(FEW_NODES, GAPS * pairs.size):  # otherwise there is no room for flags
        seen = np.zeros(num_nodes, bool)
        seen[pairs] = True
        distinct = int(seen.sum())
    if num_nodes > max(FEW_NODES, GAPS * distinct):
        last = "" if not pairs.size else edges.where(int(pairs.max(0).argmax())) + "; "
        raise DatasetError(
            f"{last}{num_nodes:,} nodes, of which edges touch {distinct:,} or fewer; expected ids "
            "without such gaps, or --relabel, which numbers the ids that occur"
        )
    return num_nodes, num_nodes - distinct
