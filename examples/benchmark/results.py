"""The file of results: one JSON object a line, appended as soon as a cell is measured."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Results:
    """Records of cells and of the environments they were measured in.

    A run that was interrupted goes on where it stopped: a cell that is there for the same
    environment (machine, versions, threads, code, settings) is not measured again.
    """

    def __init__(self, path: Path) -> None:
        """Reads what is there. A line cut off by an interruption is dropped."""
        self.path = path
        self.records: list[Record] = []
        self._found: dict[str, Record] = {}  # cells by suite, cell and environment
        self._crashes: list[Record] = []
        self._cut = False
        if not path.exists():
            return
        text = path.read_text()
        self._cut = bool(text) and not text.endswith("\n")
        for number, line in enumerate(text.splitlines(), 1):
            try:
                self._keep(json.loads(line))
            except ValueError:
                print(f"{path.name}, line {number}: not a whole record, ignored", file=sys.stderr)

    def append(self, record: Record) -> None:
        """Writes a record to the end of the file, and to disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            if self._cut:
                file.write("\n")
                self._cut = False
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(record)

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if record["kind"] == "cell":
            self._found[_name(record["suite"], record["cell"], record["environment"])] = record
        elif record["kind"] == "crash":
            self._crashes.append(record)

    def add_environment(self, environment: Record) -> None:
        """Notes an environment, once."""
        known = {r["id"] for r in self.records if r["kind"] == "environment"}
        if environment["id"] not in known:
            self.append(environment)

    def find(self, suite: str, cell: Mapping[str, Any], environment: str) -> Record | None:
        """The record of a cell in an environment, the newest one."""
        return self._found.get(_name(suite, cell, environment))

    def crashed(self, suite: str, cell: Mapping[str, Any], environment: str) -> dict[str, str]:
        """The sides that took the process with them in a cell, and how; "" for an unknown one."""
        return {
            r["side"]: r["why"] for r in self.crashes(suite, (environment,)) if r["cell"] == cell
        }

    def crashes(self, suite: str, environments: Container[str]) -> list[Record]:
        """Every death of a process in a suite: `cell`, `side` and `why`."""
        return [
            r for r in self._crashes if r["suite"] == suite and r["environment"] in environments
        ]

    def cells(self, suite: str, environments: Container[str] | None = None) -> list[Record]:
        """The newest record of each cell of a suite, in the order they were first measured.

        Args:
            suite: which.
            environments: only records of these; None: of any.
        """
        newest: dict[str, Record] = {}
        for record in self._of(suite):
            if environments is None or record["environment"] in environments:
                newest[json.dumps(record["cell"], sort_keys=True)] = record
        return list(newest.values())

    def _of(self, suite: str) -> Iterator[Record]:
        return (r for r in self.records if r["kind"] == "cell" and r["suite"] == suite)

    def environments(self) -> list[Record]:
        """All environments, the oldest first."""
        return [r for r in self.records if r["kind"] == "environment"]


def _name(*words: Any) -> str:
    return json.dumps(words, sort_keys=True)
