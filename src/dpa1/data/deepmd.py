"""DeePMD systems, uniform and mixed-type, in folders of .npy files or in HDF5 groups.

Energies eV, box rows are lattice vectors, virial W in eV with the sign used here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase.data import atomic_numbers

from dpa1.data.build import Explicit, build_frame
from dpa1.data.labels import choose
from dpa1.data.report import SourceReport
from dpa1.errors import UserError, did_you_mean, needs
from dpa1.frames import Frame

_STRUCTURE = ("coord", "box", "real_atom_types")


class Storage(Protocol):
    """Where one system lies: a folder or a group."""

    def names(self, folder: str = "") -> list[str]:
        """Entries of the system or of one of its sets."""

    def array(self, path: str) -> np.ndarray:
        """One .npy entry."""

    def text(self, path: str) -> list[str]:
        """The words of one .raw entry."""


class Folder:
    """A system in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, folder: str = "") -> list[str]:
        return sorted(p.name for p in (self.root / folder).iterdir())

    def array(self, path: str) -> np.ndarray:
        file = self.root / path
        try:
            return np.load(file, allow_pickle=False)
        except Exception as error:
            raise UserError(
                f"{file}: is no readable .npy file ({str(error).splitlines()[0][:80] if str(error) else 'empty'}); "
                "it is damaged or truncated, copy it again"
            ) from error

    def text(self, path: str) -> list[str]:
        try:
            return (self.root / path).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.root / path}: cannot be read as text ({error}); copy it again") from error


class Group:
    """A system in a group of an open HDF5 file."""

    def __init__(self, group: Any, source: str) -> None:
        self.group, self.source = group, source

    def names(self, folder: str = "") -> list[str]:
        with _hdf5_errors(self.source):
            return sorted(self.group[folder] if folder else self.group)

    def array(self, path: str) -> np.ndarray:
        with _hdf5_errors(f"{self.source}/{path}"):
            array = self.group[path][()]
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
                raise TypeError("not a numeric array")
            return array

    def text(self, path: str) -> list[str]:
        with _hdf5_errors(f"{self.source}/{path}"):
            value = np.ravel(self.group[path][()]).tolist()
            return " ".join(v.decode() if isinstance(v, bytes) else str(v) for v in value).split()


@contextmanager
def _hdf5_errors(where: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).splitlines()
        raise UserError(
            f"{where}: cannot be read as DeePMD HDF5 ({text[0][:80] if text else type(error).__name__}); "
            "it is damaged or truncated, or no such group"
        ) from error


@contextmanager
def hdf5_systems(path: Path, group: str = "") -> Iterator[list[tuple[str, Group]]]:
    """Every system below ``group`` of an HDF5 file, as (source name, storage); the file is open inside the block.

    Raises
    ------
    UserError
        when the file is damaged, the group is missing, or holds no system.
    """
    try:
        import h5py
    except ImportError:
        raise needs("h5py", "deepmd", f"{path}: reading HDF5") from None
    with _hdf5_errors(str(path)):
        file = h5py.File(path, "r")
    try:
        found: list[str] = []
        with _hdf5_errors(f"{path}#{group}" if group else str(path)):
            top = file[group] if group.strip("/") else file
            if "type.raw" in top:
                found.append("")
            top.visit(lambda name: found.append(name[: -len("/type.raw")]) if name.endswith("/type.raw") else None)
        if not found:
            raise UserError(f"{path}#{group}: holds no DeePMD system (a group with type.raw and set.*)")
        prefix = group.strip("/")
        systems = []
        for name in sorted(found):
            source = f"{path}#/{'/'.join(part for part in (prefix, name) if part)}".removesuffix("#/")
            systems.append((source, Group(top[name] if name else top, source)))
        yield systems
    finally:
        file.close()


def read_system(
    storage: Storage, type_map: tuple[str, ...] | None, explicit: Explicit, report: SourceReport
) -> Iterator[Frame]:
    """Yield the frames of one system, all sets in order.

    Raises
    ------
    UserError
        wrong shapes, unknown elements, no type_map, no sets …, naming system, set, frame and remedy.
    """
    source, names = report.source, storage.names()
    types = _types(storage, source)
    elements = _elements(storage, names, type_map, source)
    sets = [name for name in names if re.fullmatch(r"set\..+", name)]
    if not sets:
        raise UserError(f"{source}: has type.raw but no set.* folder; convert raw data with dpdata to deepmd/npy first")
    index = 0
    for folder in sets:
        for frame in _read_set(storage, folder, types, elements, "nopbc" in names, explicit, report, index):
            yield frame
            index += 1
    if index == 0:
        raise UserError(f"{source}: holds no frames (all of its sets are empty); remove it or add data")


def _types(storage: Storage, source: str) -> np.ndarray:
    try:
        types = np.array([int(float(word)) for word in storage.text("type.raw")], dtype=np.int64)
    except (ValueError, OverflowError):
        raise UserError(f"{source}: type.raw is not a list of integers; repair it") from None
    if len(types) == 0:
        raise UserError(f"{source}: type.raw is empty; it needs the type index of every atom")
    return types


def _elements(storage: Storage, names: list[str], given: tuple[str, ...] | None, source: str) -> np.ndarray:
    symbols = tuple(storage.text("type_map.raw")) if "type_map.raw" in names else ()
    if given and not all(symbol in atomic_numbers and symbol != "X" for symbol in symbols):
        symbols = ()
    return element_table(symbols or given, source)


def element_table(symbols: tuple[str, ...] | None, source: str) -> np.ndarray:
    """Atomic number of every type index.

    Raises
    ------
    UserError
        when there is no type map, or a name in it is no element.
    """
    if not symbols:
        raise UserError(
            f"{source}: has no type_map.raw, so its elements are unknown; give them by type index, e.g. type_map: [O, H]"
        )
    for symbol in symbols:
        if symbol not in atomic_numbers or symbol == "X":
            raise UserError(
                f"{source}: type_map holds '{symbol}', which is no element symbol{did_you_mean(symbol, atomic_numbers)}; "
                "give the elements by type index, e.g. type_map: [O, H]"
            )
    return np.array([atomic_numbers[symbol] for symbol in symbols], dtype=np.int64)


def _read_set(
    storage: Storage,
    folder: str,
    types: np.ndarray,
    elements: np.ndarray,
    nopbc: bool,
    explicit: Explicit,
    report: SourceReport,
    first: int,
) -> Iterator[Frame]:
    where, n = f"{report.source}/{folder}", len(types)
    stems = [name.removesuffix(".npy") for name in storage.names(folder) if name.endswith(".npy")]
    if "coord" not in stems:
        raise UserError(f"{where}: has no coord.npy; the set is incomplete, remove or complete it")
    coord = storage.array(f"{folder}/coord.npy")
    frames = len(coord) if coord.ndim else 0
    coord = _shaped(coord, (frames, n, 3), f"{where}/coord.npy")
    kinds = np.broadcast_to(types, (frames, n))
    if "real_atom_types" in stems:
        kinds = _shaped(storage.array(f"{folder}/real_atom_types.npy"), (frames, n), f"{where}/real_atom_types.npy")
    if not nopbc and "box" not in stems:
        raise UserError(f"{where}: has no box.npy; add it, or an empty file 'nopbc' in {report.source} if not periodic")
    box = None if nopbc else _shaped(storage.array(f"{folder}/box.npy"), (frames, 3, 3), f"{where}/box.npy")
    wanted = {key for _, key in explicit}
    keys = [s for s in stems if s not in _STRUCTURE and (s in wanted or _is_label(s))]
    report.keys.update(s for s in stems if s not in _STRUCTURE)
    arrays = {}
    for key in keys:
        array = storage.array(f"{folder}/{key}.npy")
        if array.ndim == 0 or len(array) != frames or array.size % max(frames, 1):
            raise UserError(f"{where}/{key}.npy: has shape {array.shape}, expected {frames} frames as coord.npy has")
        arrays[key] = array.reshape(frames, -1)
    for i in range(frames):
        yield system_frame(kinds[i], elements, coord[i], None if box is None else box[i],
                           {k: a[i] for k, a in arrays.items()}, explicit, report, first + i)  # fmt: skip


def _is_label(stem: str) -> bool:
    # The DeePMD format has no stress; what such a file would hold is anybody's guess.
    return bool(set(choose((stem,), (stem,))) & {"energy", "forces", "virial", "atomic_energies", "weight"})


def _shaped(array: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    if array.size != int(np.prod(shape)) or array.dtype.kind not in "fiu" or len(array) != shape[0]:
        raise UserError(f"{where}: has shape {array.shape}, expected {shape}; it does not fit type.raw and coord.npy")
    return array.reshape(shape)


def system_frame(
    types: np.ndarray,
    elements: np.ndarray,
    coord: np.ndarray,
    box: np.ndarray | None,
    labels: dict[str, np.ndarray],
    explicit: Explicit,
    report: SourceReport,
    index: int,
) -> Frame:
    """One frame from the arrays of a DeePMD system: types become elements, atoms of type −1 (padding) are left out."""
    name = f"{report.source}, frame {index}"
    types = np.asarray(types).astype(np.int64)
    real = types >= 0
    if (types < -1).any() or types.max(initial=-1) >= len(elements):
        atom = int(np.flatnonzero((types < -1) | (types >= len(elements)))[0])
        raise UserError(
            f"{name}: atom {atom} has type {types[atom]}, but the type map has {len(elements)} elements; complete it"
        )
    n = len(types)
    per_frame: dict[str, Any] = {}
    per_atom: dict[str, Any] = {}
    for key, value in labels.items():
        value = np.asarray(value, dtype=np.float64)
        quantity = next((q for q, k in explicit if k == key), next(iter(choose((key,), (key,))), ""))
        if quantity in ("forces", "atomic_energies"):
            if value.size not in (n, 3 * n):
                raise UserError(f"{name}: {key} has {value.size} numbers for {n} atoms; repair or remove the system")
            per_atom[key] = value.reshape(n, -1)[real]
        else:
            # Rows first, as DeePMD writes them; extended XYZ's column order does not apply here.
            per_frame[key] = value.reshape(3, 3) if value.size == 9 else value
    periodic = box is not None
    return build_frame(
        elements[types[real]],
        np.asarray(coord).reshape(-1, 3)[real],
        box,
        periodic,
        per_frame,
        per_atom,
        explicit,
        report,
        index,
    )
