"""Has every process of Python take the native module that HAG_PLUGIN_SANITIZED names."""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from typing import Any

NAME = "hag_plugin.kernels._cpu"


class Sanitized(PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != NAME:
            return None
        return spec_from_file_location(NAME, os.environ["HAG_PLUGIN_SANITIZED"])


sys.meta_path.insert(0, Sanitized)
