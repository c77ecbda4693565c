"""Everything ASE reads, with the ends checked that ASE lets pass."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dpa1.data.build import Explicit, build_frame
from dpa1.data.report import SourceReport
from dpa1.errors import UserError
from dpa1.frames import Frame

# Formats whose reader would execute what the file says.
REFUSED = ("bundletrajectory", "py", "postgresql", "mysql")


def ase_format(path: Path) -> str:
    """The name ASE has for the format of a file.

    Raises
    ------
    UserError
        when ASE does not know it.
    """
    from ase.io.formats import filetype, ioformats

    guessed = _lammps_format(path)
    if guessed:
        return guessed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            name = str(filetype(str(path), read=True))
        if name not in ioformats:
            raise ValueError(name)
    except Exception as error:
        raise UserError(
            f"{path}: the format is not recognised; known are extended XYZ, DeePMD npy/HDF5/LMDB, packed stores and all "
            "that ASE reads (rename the file to its usual name or suffix)"
        ) from error
    if name in REFUSED:
        raise UserError(f"{path}: the format '{name}' is not read; convert it to extended XYZ")
    return name


def _lammps_format(path: Path) -> str | None:
    """LAMMPS data and dump files have no fixed suffix: look at their first lines."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror or error})") from error
    if head.startswith((b"ITEM: TIMESTEP", b"ITEM: UNITS")):
        return "lammps-dump-text"
    if re.search(rb"^\s*\d+\s+atoms\s*$", head, re.M) and re.search(rb"^\s*\d+\s+atom types\s*$", head, re.M):
        return "lammps-data"
    return None


def read_ase(path: Path, format: str, explicit: Explicit, report: SourceReport) -> Iterator[Frame]:
    """Yield the frames of one file through ASE.

    Raises
    ------
    UserError
        when ASE cannot read the file, when the file ends early, or a frame is malformed.
    """
    _check_end(path, format)
    images = _database(path) if format in ("db", "json") else _images(path, format)
    index = 0
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                atoms, extra = next(images)
        except StopIteration:
            break
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{path}: cannot be read as {format} after {index} frames ({_reason(error)}); the file is damaged, "
                "truncated or of another format"
            ) from error
        yield _frame(atoms, extra, explicit, report, index)
        index += 1
    _check_count(path, format, index, report)


def _images(path: Path, format: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    from ase.io import iread

    for atoms in iread(str(path), ":", format=format):
        yield atoms, {}


def _database(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Rows in the order of their ids; key-value pairs and data beside the stored results."""
    from ase.db import connect

    with connect(str(path)) as database:
        expected = database.count()
        seen = 0
        for row in database.select():
            values = {key: value for key, value in row.data.items() if np.ndim(value) or np.isscalar(value)}
            seen += 1
            yield row.toatoms(), {**values, **row.key_value_pairs}
        if seen != expected:
            raise UserError(f"{path}: holds {expected} rows but {seen} can be read; the database is damaged")


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:100]}" if text else type(error).__name__


def _frame(atoms: Any, extra: dict[str, Any], explicit: Explicit, report: SourceReport, index: int) -> Frame:
    name = f"{report.source}, frame {index}"
    per_frame = {**atoms.info, **extra}
    per_atom = {key: value for key, value in atoms.arrays.items() if key not in ("numbers", "positions")}
    n = len(atoms)
    # forces may sit in the data of a database row
    for key in [k for k, v in per_frame.items() if np.ndim(v) and len(v) == n and np.size(v) in (n, 3 * n)]:
        if np.ndim(per_frame[key]) == 2 or n != 1:
            per_atom.setdefault(key, per_frame[key])
    if atoms.calc is not None:
        for key, value in atoms.calc.results.items():
            if value is not None:
                (per_atom if key in ("forces", "energies") else per_frame).setdefault(key, value)
    unknown = np.flatnonzero(np.asarray(atoms.numbers) < 1)
    if len(unknown):
        raise UserError(f"{name}: atom {unknown[0]} has no element ('X'); name the element in the file")
    return build_frame(
        atoms.numbers, atoms.positions, np.array(atoms.cell), atoms.pbc, per_frame, per_atom, explicit, report, index
    )


def _check_end(path: Path, format: str) -> None:
    """What ASE takes for complete although it is cut off, or would guess wrong."""
    from dpa1.data.extxyz import open_stream

    if format == "vasp-xml":
        with open_stream(path) as file:
            tail = b""
            while block := file.read(1 << 20):
                tail = (tail + block)[-4096:]
        if b"</modeling>" not in tail:
            raise UserError(f"{path}: ends without </modeling>, so it is truncated or the run was not finished; "
                            "finish the run or copy the file again")  # fmt: skip
    elif format == "vasp-out":
        _check_outcar(path)
    elif format == "lammps-data":
        text = path.read_text(errors="replace")
        if not re.search(r"^\s*(Masses|Atom Type Labels)\b", text, re.M):
            raise UserError(f"{path}: has no Masses section, so the elements are unknown; add one (mass of each type)")
    elif format == "lammps-dump-text":
        with path.open("rb") as file:
            columns = next((line for line in file if line.startswith(b"ITEM: ATOMS")), b"").split()
        if columns and b"element" not in columns and b"mass" not in columns:
            raise UserError(
                f"{path}: has no element column; write the dump with `dump_modify … element` and the column"
            )
    elif format == "db":
        _check_sqlite(path)


def _check_outcar(path: Path) -> None:
    """A finished run says so at its end; else all steps asked for must be there, complete, and no further one begun."""
    from dpa1.data.extxyz import open_stream

    forces = energies = asked = 0
    begun = finished = False
    line = b""
    with open_stream(path) as file:
        for line in file:
            if b"TOTAL-FORCE (eV/Angst)" in line:
                forces += 1
                begun = False
            elif b"energy  without entropy=" in line and forces > energies:
                energies += 1
            elif b"number of steps for IOM" in line and (found := re.search(rb"NSW\s*=\s*(\d+)", line)):
                asked = int(found[1])
            elif b"- Iteration " in line:
                begun = True
            elif b"General timing and accounting" in line:
                finished = True
    if forces == 0:
        raise UserError(f"{path}: holds no complete ionic step; it is truncated, or no OUTCAR")
    cut_off = begun or energies < forces or energies < asked or not line.endswith(b"\n")
    if cut_off and not finished:
        raise UserError(
            f"{path}: ends within or before ionic step {energies + 1}, so it is truncated or the run was not finished; "
            "finish the run, or write the complete steps to extended XYZ"
        )


def _check_sqlite(path: Path) -> None:
    import sqlite3

    try:
        connection = sqlite3.connect(f"file:{path.resolve()}?mode=ro", uri=True)
        try:
            answer = connection.execute("PRAGMA integrity_check(1)").fetchone()
        finally:
            connection.close()
    except (sqlite3.Error, ValueError) as error:
        raise UserError(f"{path}: is a damaged or truncated ASE database ({error}); copy it again") from error
    if answer is None or answer[0] != "ok":
        raise UserError(f"{path}: is a damaged ASE database; copy it again")


def _check_count(path: Path, format: str, frames: int, report: SourceReport) -> None:
    if format != "vasp-out":
        return
    from dpa1.data.extxyz import open_stream

    with open_stream(path) as file:
        steps = sum(b"TOTAL-FORCE (eV/Angst)" in line for line in file)
    if steps != frames or report.count("energy") != frames:
        raise UserError(
            f"{path}: has {steps} ionic steps but {frames} could be read with their energies; it is damaged or truncated"
        )
