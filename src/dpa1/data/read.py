"""``read``: any file, folder or pattern people keep labelled structures in → frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dpa1.data.build import Explicit
from dpa1.data.labels import check_mapping
from dpa1.data.report import LabelReport, SourceReport
from dpa1.data.resolve import Source, resolve
from dpa1.errors import UserError
from dpa1.frames import Frame

PathLike = str | os.PathLike[str]


def read(
    paths: PathLike | Sequence[PathLike],
    labels: Mapping[str, str] | None = None,
    *,
    type_map: Sequence[str] | None = None,
    report: LabelReport | None = None,
) -> list[Frame]:
    """Read every frame behind one path or several: a file, a folder, a glob pattern, ``file.h5#/group``.

    Parameters
    ----------
    paths: extended XYZ (also .gz .xz .bz2 .zst), anything ASE reads, DeePMD npy, npy/mixed, HDF5 or LMDB, packed store.
    labels: what labels are called where it cannot be guessed, e.g. ``{"energy": "my_energy"}``.
    type_map: elements by type index for DeePMD systems that lack a ``type_map.raw``.
    report: collects what was read and which key was taken for which label; ``print(report)``.

    Returns
    -------
    Frames in file order; energy eV, forces (N, 3) eV/Å, virial (3, 3) eV with W = −∂E/∂ε, each None where absent.

    Raises
    ------
    UserError
        missing, damaged, truncated or empty files, malformed frames, a key of ``labels`` no frame has.
    """
    return list(iter_frames(paths, labels, type_map=type_map, report=report))


def iter_frames(
    paths: PathLike | Sequence[PathLike],
    labels: Mapping[str, str] | None = None,
    *,
    type_map: Sequence[str] | None = None,
    report: LabelReport | None = None,
) -> Iterator[Frame]:
    """The same frames as ``read``, one after the other without keeping them."""
    report = LabelReport() if report is None else report
    since = len(report.sources)
    explicit = check_mapping(labels)
    symbols = tuple(type_map) if type_map else None
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise UserError("no data given: name at least one file or folder")
    for path in given:
        for source in resolve(path):
            yield from iter_source(source, symbols, explicit, report)
    report.require(explicit, since)


def iter_source(
    source: Source, type_map: tuple[str, ...] | None, explicit: Explicit, report: LabelReport
) -> Iterator[Frame]:
    """The frames of one resolved source.

    Raises
    ------
    UserError
        as ``read`` does; also when a part of the source holds no frames.
    """
    for part, frames in _open(source, type_map, explicit, report):
        yield from frames
        if part.frames == 0:
            raise UserError(f"{part.source}: holds no frames; remove it or add data")


def _open(
    source: Source, type_map: tuple[str, ...] | None, explicit: Explicit, report: LabelReport
) -> Iterator[tuple[SourceReport, Iterator[Frame]]]:
    """The parts of one source (an HDF5 file holds many systems), each with its report."""
    path = source.path
    if source.kind == "extxyz":
        from dpa1.data.extxyz import read_extxyz

        part = report.add(str(path), "extended XYZ")
        yield part, read_extxyz(path, explicit, part)
    elif source.kind == "npy":
        from dpa1.data.deepmd import Folder, read_system

        part = report.add(str(path), _npy_name(path))
        yield part, read_system(Folder(path), type_map, explicit, part)
    elif source.kind == "hdf5":
        from dpa1.data.deepmd import hdf5_systems, read_system

        with hdf5_systems(path, source.group) as systems:
            for name, group in systems:
                part = report.add(name, "DeePMD HDF5")
                yield part, read_system(group, type_map, explicit, part)
    elif source.kind == "lmdb":
        from dpa1.data.deepmd_lmdb import read_deepmd_lmdb

        part = report.add(str(path), "DeePMD LMDB")
        yield part, read_deepmd_lmdb(path, type_map, explicit, part)
    elif source.kind == "store":
        from dpa1.data.store import Store

        with Store(path) as store:
            part = report.add(str(path), "packed store")
            store.describe(part)
            yield part, (store[i] for i in range(len(store)))
    else:
        yield from _open_ase(path, explicit, report)


def _open_ase(path: Path, explicit: Explicit, report: LabelReport) -> Iterator[tuple[SourceReport, Iterator[Frame]]]:
    from dpa1.data.ase_formats import ase_format, read_ase
    from dpa1.data.extxyz import read_extxyz

    name = ase_format(path)
    if name in ("extxyz", "xyz"):
        part = report.add(str(path), "extended XYZ")
        yield part, read_extxyz(path, explicit, part)
    else:
        part = report.add(str(path), f"{name} (through ASE)")
        yield part, read_ase(path, name, explicit, part)


def _npy_name(path: Path) -> str:
    mixed = any(path.glob("set.*/real_atom_types.npy"))
    return "DeePMD npy/mixed" if mixed else "DeePMD npy"
