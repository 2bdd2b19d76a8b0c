"""The manifest of a store: the counts of its parts, and what each of their files must be.

A JSON document with a SHA-256 of all else that is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hag_plugin.files import DatasetError, read_json
from hag_plugin.hag.graph import MAX_NODES
from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.graphs.stats import GraphStats, HagCounts, PartitionStats
from hag_plugin.parallel.graphs.store.part_files import NAME, OWN, SUFFIX, FileRecord
from hag_plugin.saved import set_module

LOOPS: dict[str, SelfLoops] = {"none": False, "add": "add", "fill": "fill"}
"""Loops that a layer adds, by their name in a manifest."""

FILE = "manifest.json"
FORMAT = "hag_plugin graph store"
VERSION = 1


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Part:
    """What the manifest says of one part.

    Attributes:
        rows: its nodes.
        edges: that lead to them.
        inner: those of which it has the source, too.
        loops: those that lead from a node to itself.
        halo: `[R]`, rows that it reads of each part.
        hags: rows that its HAG reads and writes, by `LOOPS`; {} where none was searched.
        files: by the array's name.
    """

    rows: int
    edges: int
    inner: int
    loops: int
    halo: tuple[int, ...]
    hags: dict[str, tuple[int, int]]
    files: dict[str, FileRecord]


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Manifest:
    """A graph cut into parts on disk.

    Attributes:
        nodes: N.
        edges: E.
        method: how nodes were assigned: "contiguous", "metis", "labels", "fennel" or "assignment".
        undirected: whether every edge was taken in both directions, once.
        source: what the graph was read as.
        fingerprint: of the edges in the store's numbering, as `measure` has it.
        merged: for each number of parts that may be one, and leaves several, `[R / c, R / c]`: rows
            that each such group reads of each other one.
        edge_names: what edges have.
        parts: R of them.
    """

    nodes: int
    edges: int
    method: str
    undirected: bool
    source: str
    fingerprint: str
    merged: dict[int, tuple[tuple[int, ...], ...]]
    edge_names: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def ranks(self) -> int:
        """R."""
        return len(self.parts)

    @property
    def first(self) -> np.ndarray:
        """int64 `[R + 1]`, the first node of each part, and N."""
        rows = [part.rows for part in self.parts]
        return np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """What nodes have."""
        others = (*OWN, *self.edge_names)
        return tuple(name for name in self.parts[0].files if name not in others)

    @property
    def searched(self) -> bool:
        """Whether it tells what HAGs of its parts save."""
        return bool(self.parts[0].hags)

    @property
    def cut(self) -> float:
        """Edges between parts, over E."""
        return 1 - sum(part.inner for part in self.parts) / self.edges if self.edges else 0.0

    @property
    def node_balance(self) -> float:
        """Nodes of the largest part, over the mean."""
        return max(p.rows for p in self.parts) * self.ranks / self.nodes if self.nodes else 1.0

    @property
    def edge_balance(self) -> float:
        """Edges of the part that has most, over the mean."""
        return max(p.edges for p in self.parts) * self.ranks / self.edges if self.edges else 1.0

    @property
    def stats(self) -> GraphStats:
        """What `plan` has to know of the graph: counted for R parts, merged or not, and for one."""
        return self.counted(False)

    def counted(self, self_loops: SelfLoops) -> GraphStats:
        """The same as a layer aggregates it that adds loops: False, "add" or "fill"."""
        known = {
            (self.ranks, count): self._merge(count, self_loops)
            for count in (*self.merged, self.ranks)
        }
        known[1, 1] = known[self.ranks, self.ranks]
        known[self.ranks, 1] = self._cut(self_loops)
        edges = int(known[1, 1].edges.sum())
        return GraphStats(
            self.nodes, edges, self.fingerprint, source="graph store", _partitions=known
        )

    def _cut(self, self_loops: SelfLoops) -> PartitionStats:
        found = self._merge(1, self_loops)
        outer = np.array([part.edges - part.inner for part in self.parts], np.int64)
        hags, loops = None, self_loops or "none"
        if self.searched:
            hags = tuple(HagCounts(*part.hags[loops]) for part in self.parts)
        return replace(found, inner=found.edges - outer, hags=hags)

    def reads(self, count: int) -> np.ndarray:
        """int64 `[R / c, R / c]`, rows that each `count` parts, as one, read of each other one."""
        if count == 1:
            return np.array([part.halo for part in self.parts], np.int64)
        return np.array(((0,),) if count == self.ranks else self.merged[count], np.int64)

    def _merge(self, count: int, self_loops: SelfLoops) -> PartitionStats:
        """The counts where each `count` parts are one."""
        added = {False: 0, "add": 1, "fill": 1}[self_loops]
        lost = self_loops == "fill"  # one takes the place of those that are there
        counts = np.array(
            [(p.rows, p.edges + added * p.rows - lost * p.loops) for p in self.parts], np.int64
        )
        rows, edges = counts.reshape(-1, count, 2).sum(axis=1).T
        inner = edges if len(rows) == 1 else None
        return PartitionStats(rows, edges, self.reads(count), None, None, self.method, inner)

    def save(self, folder: Path) -> None:
        """Writes it into the folder of a store."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        content["merged"] = {str(count): halo for count, halo in self.merged.items()}
        document = {**content, "sha256": _digest(content)}
        with open(folder / FILE, "x") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Manifest:
        """The manifest of a store.

        Raises:
            DatasetError: there is none, or it is damaged or of another kind. It names the file.
        """
        path = Path(folder) / FILE
        try:
            document = read_json(path)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise DatasetError(
                f"{path} is missing; expected the folder of a store, as hag-plugin partition makes"
            ) from e
        except IsADirectoryError as e:
            raise DatasetError(f"{path} is a folder; expected a store's manifest") from e
        except ValueError as e:
            raise DatasetError(str(e)) from e
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise DatasetError(f"{path} is no manifest of a graph store")
        if document.get("version") != VERSION:
            raise DatasetError(
                f"{path} is of version {str(document.get('version'))[:20]}; expected {VERSION}"
            )
        digest = document.pop("sha256", None)
        if digest != _digest(document):
            raise DatasetError(f"{path} was changed: its SHA-256 is not that of its content")
        try:
            return _checked(cls._of(document))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as e:
            raise DatasetError(f"{path} is no valid manifest: {type(e).__name__}: {e}") from e

    @classmethod
    def _of(cls, document: dict[str, Any]) -> Manifest:
        fields = {name: document[name] for name in cls.__dataclass_fields__}
        fields["merged"] = {
            int(count): tuple(map(tuple, halo)) for count, halo in document["merged"].items()
        }
        fields["edge_names"] = tuple(document["edge_names"])
        fields["parts"] = tuple(
            Part(**{
                **part,
                "halo": tuple(part["halo"]),
                "hags": {loops: tuple(counts) for loops, counts in part["hags"].items()},
                "files": {
                    name: FileRecord(**{**record, "shape": tuple(record["shape"])})
                    for name, record in part["files"].items()
                },
            })
            for part in document["parts"]
        )  # fmt: skip
        return cls(**fields)


def groups(parts: int) -> list[int]:
    """How many parts may be one, so that several are left."""
    return [count for count in range(2, parts) if parts % count == 0]


def part_folder(folder: str | os.PathLike[str], part: int) -> Path:
    """The folder of a part."""
    return Path(folder) / f"part-{part:05d}"


def array_path(folder: str | os.PathLike[str], part: int, name: str) -> Path:
    """The file of an array of a part."""
    return part_folder(folder, part) / f"{name}{SUFFIX}"


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(found: Manifest) -> Manifest:
    """The same; raises ValueError where its counts do not fit each other."""
    counts = [found.nodes, found.edges]
    for part in found.parts:
        counts += [part.rows, part.edges, part.inner, part.loops, *part.halo]
        counts += [count for pair in part.hags.values() for count in pair]
        if any(len(pair) != 2 for pair in part.hags.values()):
            raise ValueError("a HAG has other counts than of rows read and rows written")
    for halo in found.merged.values():
        counts += [count for row in halo for count in row]
    if not all(type(count) is int and count >= 0 for count in counts) or found.nodes > MAX_NODES:
        raise ValueError("a count is no whole number, 0 or more")
    texts = found.method, found.source, found.fingerprint
    if not all(isinstance(text, str) for text in texts) or type(found.undirected) is not bool:
        raise ValueError("method, source and fingerprint are texts, undirected is true or false")
    if not found.parts:
        raise ValueError("it has no parts")
    if {(*sorted(part.hags),) for part in found.parts} not in ({()}, {(*sorted(LOOPS),)}):
        raise ValueError(f"HAGs are not of all parts, or not of loops {[*LOOPS]}")
    if sum(p.rows for p in found.parts) != found.nodes:
        raise ValueError(f"its parts do not have {found.nodes} nodes")
    if sum(p.edges for p in found.parts) != found.edges:
        raise ValueError(f"its parts do not have {found.edges} edges")
    if found.merged.keys() != {*groups(found.ranks)} or any(
        {len(halo), *map(len, halo)} != {found.ranks // count}
        for count, halo in found.merged.items()
    ):
        raise ValueError("merged does not fit its parts")
    names = found.parts[0].files.keys()
    if not {*found.edge_names} <= names - {*OWN}:
        raise ValueError(f"there are no files of what edges have, {found.edge_names}")
    for number, part in enumerate(found.parts):
        if part.files.keys() != names or not {*OWN} <= names or not all(map(NAME.fullmatch, names)):
            raise ValueError(f"part {number} has files {sorted(part.files)}")
        rows = {"indptr": part.rows + 1, "sources": part.edges, "halo": sum(part.halo)}
        rows |= dict.fromkeys(found.edge_names, part.edges)
        for name, record in part.files.items():
            np.dtype(record.dtype)
            if record.shape[0] != rows.get(name, part.rows):
                raise ValueError(f"part {number} has {name} of shape {record.shape}")
        if (
            not part.loops <= part.inner <= part.edges
            or len(part.halo) != len(found.parts)
            or part.halo[number]
        ):
            raise ValueError(f"part {number} has counts that do not fit each other")
    return found
