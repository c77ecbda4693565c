"""Open a potential, whoever wrote it: told apart by content, never by executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpa1.errors import UserError
from dpa1.interop.neutral import HDF5_MAGIC, SUFFIXES
from dpa1.interop.shipped import find_model

if TYPE_CHECKING:
    from dpa1.model.potential import Potential

# Formats of DeePMD-kit's other backends, which it can convert itself.
FOREIGN = (".pb", ".pt2", ".pte", ".savedmodel", ".savedmodeltf", ".hlo", ".jax", ".pd", ".json")


@torch.inference_mode(False)  # parameters made in that mode would never serve a derivative
def load_potential(path: str | Path, branch: str | None = None, device: str = "cpu") -> Potential:
    """Open ``*.dpa1``, a DeePMD-kit DPA-1 model (``.dp``, ``.yaml``, ``.pt``, ``.pth``), or a shipped model by its name.

    branch: which model of a multi-task ``.pt``.

    Raises
    ------
    UserError
        when the file is missing, no model, truncated, damaged or a pickle (which is not opened), or holds a model
        this package cannot compute; one sentence that names the file.
    """
    path = find_model(path)
    head = _head(path)
    if path.suffix.lower() in FOREIGN and head[:8] != HDF5_MAGIC:
        raise UserError(
            f"{path}: a format of another DeePMD-kit backend; convert it first with  dp convert-backend {path.name} model.dp"
        )
    if head[:2] == b"PK":
        from dpa1.interop.torch_files import read_torch

        potential, kind = read_torch(path, branch), "torch"
    else:
        known = head[:8] == HDF5_MAGIC or head[:1] == b"\x80" or head[8:9] == b"{"
        if path.suffix.lower() in (".pt", ".pth") and not known:
            raise UserError(
                f"{path}: neither a DeePMD-kit checkpoint nor a frozen model; copy it again or give another"
            )
        if branch is not None:
            raise UserError(f"{path}: holds a single DeePMD-kit model or levels of its own; leave --branch out")
        if head[:8] == HDF5_MAGIC or (path.suffix.lower() in SUFFIXES and head[:1] != b"\x80"):
            from dpa1.interop.neutral import read_neutral
            from dpa1.interop.weights import from_neutral

            potential, kind = from_neutral(read_neutral(path), str(path)), "neutral"
        else:
            from dpa1.model.file import load_model

            return load_model(path, device)
    potential.info = {"imported_from": {"program": "DeePMD-kit", "file": path.name, "kind": kind, "branch": branch}}
    return potential.to(device)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give the model file in it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
