"""From what a person writes – a file, a folder, a pattern, ``file.h5#/group`` – to the readable things behind it."""

from __future__ import annotations

import fnmatch
import glob
import os
from dataclasses import dataclass
from pathlib import Path

from dpa1.errors import UserError, did_you_mean

EXTXYZ = (".xyz", ".extxyz")
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
STORE_MAGIC = b"DPA1DATA"
# What a folder is searched for, in this order; in a folder with an OUTCAR its vasprun.xml is the same run.
_IN_FOLDERS = (
    "*.xyz", "*.extxyz", "*.xyz.*", "*.extxyz.*", "OUTCAR*", "*.OUTCAR", "vasprun*.xml*", "*.traj", "*.db", "*.h5",
    "*.hdf5", "*.lmdb", "*.dpa1data",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One readable thing. ``kind``: extxyz, ase, npy, hdf5, lmdb or store; ``group``: inside an HDF5 file."""

    kind: str
    path: Path
    group: str = ""


def resolve(given: str | os.PathLike[str]) -> list[Source]:
    """Everything readable behind one path, sorted by name.

    Raises
    ------
    UserError
        nothing there (with the nearest name that is), or nothing readable in a folder.
    """
    text = os.path.expanduser(os.fspath(given))
    file, mark, group = text.partition("#")
    if mark and not os.path.exists(text):
        if not os.path.exists(file):
            raise _missing(file)
        return [Source("hdf5", Path(file), group)]
    path = Path(text)
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{text!r}: is no usable path ({error})") from error
    if exists:
        return _classify(path)
    if any(mark in text for mark in "*?["):
        matches = sorted({os.path.normpath(match) for match in glob.glob(text, recursive=True)})
        if not matches:
            raise UserError(f"{text}: no file or folder matches this pattern")
        # A pattern may match a system and the folders inside it; what lies inside is read with it.
        tops = [m for m in matches if not any(m.startswith(other + os.sep) for other in matches)]
        sources = [source for match in tops for source in _classify(Path(match), quiet=len(tops) > 1)]
        if not sources:
            raise UserError(f"{text}: nothing that matches this pattern holds structures")
        return sources
    raise _missing(text)


def _missing(text: str) -> UserError:
    path = Path(text)
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, near) or "; check the path"
    return UserError(f"{text}: no such file or folder{hint}")


def _classify(path: Path, quiet: bool = False) -> list[Source]:
    if path.is_dir():
        found = _search(path)
        if not found and not quiet:
            raise UserError(
                f"{path}: holds nothing to read (looked for DeePMD systems, extended XYZ, OUTCAR, vasprun.xml, traj, db, "
                "HDF5 and LMDB, also in its sub-folders); name the files themselves"
            )
        return found
    return [Source(_file_kind(path), path)]


def _search(folder: Path) -> list[Source]:
    """Depth first, sorted: a DeePMD system or LMDB ends the search in its folder."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be opened ({error.strerror or error})") from error
    names = {entry.name for entry in entries}
    if "data.mdb" in names:
        return [Source("lmdb", folder)]
    if "type.raw" in names:
        # Further systems may lie below this one.
        below = [s for e in entries if e.is_dir() and not e.name.startswith("set.") for s in _search(e)]
        return [Source("npy", folder), *(source for source in below if source.kind == "npy")]
    found: list[Source] = []
    outcar = any(fnmatch.fnmatch(name, "OUTCAR*") for name in names)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += _search(entry)
        elif outcar and fnmatch.fnmatch(entry.name, "vasprun*.xml*"):
            continue
        elif any(fnmatch.fnmatch(entry.name, pattern) for pattern in _IN_FOLDERS):
            found.append(Source(_file_kind(entry), entry))
    return found


def _file_kind(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror or error})") from error
    if head == STORE_MAGIC:
        return "store"
    if path.name == "data.mdb" or path.suffix in (".lmdb", ".mdb"):
        return "lmdb"
    if path.suffix in (".h5", ".hdf5") or head == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    inner = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    if inner.lower() in EXTXYZ:
        return "extxyz"
    if not head and path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; copy or download the file again")
    return "ase"
