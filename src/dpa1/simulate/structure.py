"""The structure a simulation starts from: read, and checked before anything else happens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpa1.errors import UserError
from dpa1.frames import Frame, from_ase, to_ase
from dpa1.model import memory
from dpa1.model.inference import check_elements
from dpa1.neighbors import find_neighbors

if TYPE_CHECKING:
    from ase import Atoms

    from dpa1.model.potential import Potential

OURS = (".zst", ".h5", ".hdf5", ".lmdb")  # read by dpa1 and not by ASE, as are folders


def read_structure(path: Path, potential: Potential, index: int | None = None) -> tuple[Atoms, Frame]:
    """One structure from anything ASE or dpa1 reads, with its velocities and constraints but without labels.

    index: which frame; needed only where the file holds several. Returns it also as a Frame, which names file and
    frame in messages.

    Raises
    ------
    UserError
        for a missing or unreadable file, no or several frames, bad positions or cell, an element the model does not
        know, or two atoms on one spot.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    frames = _read_all(path)
    if not frames:
        raise UserError(f"{path}: holds no structure")
    if index is None and len(frames) > 1:
        raise UserError(f"{path}: holds {len(frames)} structures; choose one with --index (0 first, -1 last)")
    try:
        atoms = frames[index or 0]
    except IndexError:
        raise UserError(f"{path}: has no structure {index}; it holds {len(frames)}, counted from 0") from None
    atoms.calc = None
    frame = from_ase(atoms, source=str(path), index=(index or 0) % len(frames))
    check_elements(frame, potential)
    with memory.enough(f"{len(frame)} atoms with their neighbors", memory.FEWER, torch.device("cpu")):
        find_neighbors(frame, potential.cutoff)  # raises for two atoms on one spot
    return atoms, frame


def _read_all(path: Path) -> list[Atoms]:
    if path.is_dir() or path.suffix.lower() in OURS:
        from dpa1.data.read import read as read_frames

        return [to_ase(frame) for frame in read_frames(path)]
    from ase.io import read
    from ase.io.formats import UnknownFileTypeError

    try:
        found = read(path, ":")
    except UnknownFileTypeError:
        raise UserError(f"{path}: ASE does not know this file format; give an extended XYZ, POSCAR, CIF…") from None
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        text = (str(error).strip().split("\n") or [""])[0]
        raise UserError(f"{path}: cannot be read as a structure ({type(error).__name__}: {text})") from error
    return found if isinstance(found, list) else [found]
