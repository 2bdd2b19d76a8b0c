"""Checkpoints of parallel models, in the format of torch.distributed.checkpoint.

Every rank writes its shards. A checkpoint is for the model, not for the plan: another number of
ranks, another plan, and the model in a single process can load it.
"""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from hag_plugin.arguments import check_kind, check_path
from hag_plugin.saved import set_module

METADATA = ".metadata"  # torch writes it last


@set_module("hag_plugin.parallel")
def save_checkpoint(
    path: str | os.PathLike[str], model: Module, optimizer: torch.optim.Optimizer
) -> None:
    """Writes a model, its optimizer, and how many steps it was trained; every rank calls it.

    The folder appears whole or not at all; one that is there already stays until then.

    Args:
        path: a folder that all ranks see.
        model: what `parallelize` returned.
        optimizer: of its parameters.

    Raises:
        OSError: `path` is a file, or a folder of something else, which would be lost.
        RuntimeError: a rank could not write; the folder is as it was before.

    Example:
        save_checkpoint("checkpoint", model, optimizer)
    """
    # Slow to import, and wanted only here.
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    check_path("path", path)
    check_kind("model", model, Module)
    check_kind("optimizer", optimizer, torch.optim.Optimizer)
    parallel: Any = getattr(model, "parallel", None)
    if parallel is None:
        raise ValueError(f"model is a {type(model).__name__}; expected what `parallelize` returned")
    path = Path(path)
    group = parallel.group
    partial, old = (path.with_name(f"{path.name}.{word}") for word in ("partial", "old"))
    with group.together("preparing the checkpoint's folder"):
        if group.rank == 0:
            _check_folder(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in (partial, old):
                shutil.rmtree(left, ignore_errors=True)
    with group.together("collecting what to save"):
        state = _state(model, [optimizer]) | {"step": torch.tensor(parallel.step)}
    try:
        save(state, checkpoint_id=partial)  # a rank's error is raised on all
    except (CheckpointException, RuntimeError) as e:  # a rank failed, or has ended
        raise RuntimeError(f"the checkpoint {path} could not be written: {e}") from e
    with group.together("putting the checkpoint in its place"):
        if group.rank == 0:
            if path.exists():
                path.rename(old)
            partial.rename(path)
            shutil.rmtree(old, ignore_errors=True)


def _check_folder(path: Path) -> None:
    """Raises OSError where a checkpoint would take the place of something else."""
    if not path.exists():
        return
    if not path.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "it is a file; expected the folder of a checkpoint", str(path)
        )
    if any(path.iterdir()) and not (path / METADATA).exists():
        raise FileExistsError(
            errno.EEXIST, "the folder holds other files; expected a checkpoint's folder", str(path)
        )


@set_module("hag_plugin.parallel")
def load_checkpoint(
    path: str | os.PathLike[str], model: Module, *optimizers: torch.optim.Optimizer
) -> None:
    """Reads what `save_checkpoint` wrote.

    Torch's format holds pickled metadata: load only what you or those you trust have written.

    Args:
        path: the folder.
        model: what `parallelize` returned, then every rank calls it; or the plain model.
        optimizers: the one of its parameters, or none where only the model is wanted.

    Raises:
        FileNotFoundError: there is no whole checkpoint.
        ValueError: it is of another model, or damaged.
        RuntimeError: another rank does not find it.

    Example:
        load_checkpoint("checkpoint", model, optimizer)
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    check_path("path", path)
    check_kind("model", model, Module)
    for each in optimizers:
        check_kind("optimizers", each, torch.optim.Optimizer)
    parallel: Any = getattr(model, "parallel", None)
    path = Path(path)
    with nullcontext() if parallel is None else parallel.group.together("finding the checkpoint"):
        if not (path / METADATA).is_file():
            raise FileNotFoundError(
                f"{path} holds no checkpoint; expected a folder with {METADATA}"
            )
    state: dict[str, Any] = _state(model, optimizers)
    if parallel is not None:
        state["step"] = torch.tensor(parallel.step)
    with warnings.catch_warnings():
        # In a single process it says that it is in a single process.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            load(state, checkpoint_id=path, no_dist=parallel is None)
        except (CheckpointException, RuntimeError, ValueError) as e:
            raise ValueError(f"the checkpoint {path} is of another model, or damaged: {e}") from e
    set_state_dict(
        model,
        list(optimizers),
        model_state_dict=state["model"],
        optim_state_dict=state.get("optimizer", {}),
    )
    if parallel is not None:
        parallel.step = int(state["step"])


def _state(model: Module, optimizers: Any) -> dict[str, Any]:
    """By the names of parameters, in the optimizer's state too: it fits every world size."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    of_model, of_optimizer = get_state_dict(model, list(optimizers))
    return {"model": of_model} | ({"optimizer": of_optimizer} if optimizers else {})
