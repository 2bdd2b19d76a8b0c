"""What files say about the version that made them."""

from __future__ import annotations

import subprocess
import sys

import hag_plugin

SCRIPT = """
import importlib.metadata

def version(package):
    if package == "numpy":
        return "1.2.3"
    raise importlib.metadata.PackageNotFoundError(package)

importlib.metadata.version = version
from hag_plugin.provenance import package_versions
found = package_versions(["hag-plugin", "torch", "numpy"])
print(found["hag-plugin"], found["torch"], found["numpy"])
"""


def test_the_version_is_that_of_the_code_that_runs() -> None:
    """From a checkout that is not installed, too."""
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [hag_plugin.__version__, "None", "1.2.3"]
