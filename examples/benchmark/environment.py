"""Where and with what a result was taken: machine, versions, revision of the code, settings."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import hag_plugin
from hag_plugin.kernels import _cpu
from hag_plugin.provenance import package_versions

PACKAGES = ("hag-plugin", "torch", "torch_geometric", "dgl", "torch_scatter", "pyg_lib", "numpy")
HERE = Path(__file__).resolve().parent
# What shapes a measurement; pages and plots made from it do not.
MEASURING = (
    "timing.py", "verdict.py", "sides.py", "models.py", "graphs.py", "variants.py", "suite_*.py",
)  # fmt: skip
NOT_MEASURED = "parallel"  # the folder of hag_plugin that no suite runs


def describe(settings: dict[str, Any]) -> dict[str, Any]:
    """Everything a result depends on, and an `id` that is equal where all of that is equal."""
    stated: dict[str, Any] = {
        "machine": machine(),
        "versions": package_versions(PACKAGES),
        "threads": torch.get_num_threads(),
        "code": code_fingerprint(),
        "settings": settings,
    }
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:12]
    return {"kind": "environment", "id": digest, **stated, "git": git_revision(), "date": now()}


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def load_average() -> float | None:
    """Mean number of running processes in the last minute; None where it is not known."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def machine() -> dict[str, Any]:
    """Processor, cores, caches, memory and system."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "instruction_sets": list(_cpu.instruction_sets()),
        "instruction_set": _cpu.instruction_set(),
        "caches": _caches(),
        "memory_gib": _memory_gib(),
        "huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "system": f"{platform.system()} {platform.release()}",
    }


def code_fingerprint() -> str:
    """A hash of what runs: hag_plugin's sources, its native module and what measures."""
    root = Path(hag_plugin.__file__).parent
    sources = [p for p in root.rglob("*.py") if NOT_MEASURED not in p.relative_to(root).parts]
    files = [*sorted(sources), Path(str(_cpu.__file__))]
    for pattern in MEASURING:
        files += sorted(HERE.glob(pattern))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def git_revision() -> str | None:
    """The commit this file is at, "+" behind it where files have changed since; or None."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(HERE), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    line = next((line for line in lines if line.startswith(name)), "")
    return line.partition(":")[2].strip()


def _memory_gib() -> int | None:
    kib = _field("/proc/meminfo", "MemTotal").split()
    return round(int(kib[0]) / 2**20) if kib else None


def _chosen(path: str) -> str | None:
    """The word in brackets of a setting such as `always [madvise] never`."""
    try:
        words = Path(path).read_text().split()
    except OSError:
        return None
    return next((word.strip("[]") for word in words if word.startswith("[")), None)


def _caches() -> dict[str, str]:
    """Size of each cache that the first core sees."""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / part).read_text().strip() for part in ("level", "type", "size")
            )
        except OSError:
            continue
        caches[f"L{level} {kind.lower()}"] = size
    return caches
