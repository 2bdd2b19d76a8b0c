"""What figures were taken on: the machine, and the versions of packages."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from hag_plugin.devices import processor
from hag_plugin.version import __version__

OWN = "hag-plugin"
PACKAGES = (OWN, "torch", "torch_geometric", "dgl", "numpy")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "system": platform.system(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Of Python and of the packages that figures may depend on; None: it is not there."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    if OWN in versions:
        versions[OWN] = __version__  # of what runs: another may be installed, or none
    return versions
