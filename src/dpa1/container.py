"""One file format for models and checkpoints: safetensors tensors, a JSON header, a format version and a checksum.

Nothing in such a file is ever executed. A file is written beside its destination and moved into place when it is
complete, and it is read back only if its checksum fits, so half a file is never mistaken for a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa1.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

KEY = "dpa1"


def write_container(
    path: str | Path, kind: str, version: int, header: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write ``tensors`` and a JSON-able ``header`` atomically to ``path`` as format ``version`` of ``kind``."""
    from safetensors.torch import save

    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    metadata = {
        "kind": kind,
        "version": version,
        "header": text,
        "checksum": content_checksum(kind, version, text, tensors),
    }
    content = save(tensors, metadata={KEY: json.dumps(metadata)})
    replace_file(path, content)


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` so that a reader (or a crash) sees either the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def read_container(path: str | Path, kind: str, newest: int) -> tuple[int, dict[str, Any], dict[str, Tensor]]:
    """Read (version, header, tensors) of a file of this ``kind``.

    Raises
    ------
    UserError
        when the file is missing, of another format (a pickle is recognised and never opened), truncated, damaged,
        of another kind, or of a version newer than ``newest``.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    _refuse_foreign(path, content)
    damaged = UserError(f"{path}: truncated or damaged; copy the file again or use another {kind}")
    try:
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][KEY])
        found, version, text, checksum = (metadata[k] for k in ("kind", "version", "header", "checksum"))
    except (KeyError, TypeError):
        raise UserError(f"{path}: a safetensors file, but not one written by dpa1") from None
    except (ValueError, RecursionError):
        raise damaged from None
    # The version is read before anything else is trusted, so that a newer layout is not called damaged.
    if isinstance(version, int) and version > newest:
        raise UserError(
            f"{path}: written by a newer dpa1 (format {version}, this one reads up to {newest}); upgrade dpa1"
        )
    try:
        tensors = load(content)
        if checksum != content_checksum(found, version, text, tensors):
            raise damaged
        header = json.loads(text)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        raise damaged from None
    if found != kind:
        raise UserError(f"{path}: holds a {found}, not a {kind}")
    return version, header, tensors


def _refuse_foreign(path: Path, content: bytes) -> None:
    if len(content) < 16:
        raise UserError(f"{path}: is empty or truncated, not a dpa1 file; copy it again or give another")
    length = int.from_bytes(content[:8], "little")
    if length <= 100_000_000 and content[8:9] == b"{":
        if len(content) < 8 + length:
            raise UserError(f"{path}: truncated; copy the file again")
    elif content[:1] == b"\x80" or content[:2] == b"PK":
        raise UserError(
            f"{path}: is a Python pickle or torch archive, not a dpa1 file; it was not opened because it could run code"
        )
    else:
        raise UserError(f"{path}: not a dpa1 file; copy it again if it should be one, or give another")


def content_checksum(kind: str, version: int, header: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of everything a container holds."""
    import torch

    digest = hashlib.sha256(json.dumps([kind, version, header]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
