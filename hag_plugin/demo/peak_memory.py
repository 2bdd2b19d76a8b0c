"""The most memory that this process held, as the system tells it."""

from __future__ import annotations

import os
import sys


def _status_bytes(field: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            line = next((line for line in file if line.startswith(field + ":")), None)
    except OSError:
        return None
    return None if line is None else int(line.split()[1]) * 1024


def reset() -> int | None:
    """Resident bytes now, from where growth is counted; the kernel's peak mark is reset."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return peak()
    return _status_bytes("VmRSS")


def peak() -> int | None:
    """The most bytes that were resident, or None where the system does not tell."""
    most = _status_bytes("VmHWM")
    if most is not None or os.name != "posix":
        return most
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
