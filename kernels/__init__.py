"""The native kernels. `_cpu` takes addresses, so it links nothing of torch.

torch is imported first on purpose: its wheel carries libgomp, and the extension, loaded after it,
shares that copy instead of bringing a second OpenMP runtime into the process.
"""

import torch  # noqa: F401

from . import _cpu

__all__ = ["_cpu"]
