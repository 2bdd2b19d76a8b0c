"""What a command prints: text, or with --json a document that also says where it was made."""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from typing import Any

from hag_plugin.provenance import machine, package_versions


def print_result(args: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Prints `text`, or `result` as JSON where --json is given."""
    if not args.json:
        print(text)
        return
    document = {
        "command": args.command,
        **result,
        "machine": machine(),
        "versions": package_versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    print(json.dumps(document, indent=2, allow_nan=False))
