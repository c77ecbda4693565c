"""Frame: one configuration with whatever labels it has. Signs and units of the whole package are fixed here.

===========  ============  =======================================================================
quantity     unit          sign and shape
===========  ============  =======================================================================
positions    Å             (N, 3)
cell         Å             (3, 3), rows are lattice vectors; zero rows where not periodic
energy       eV            total energy of the frame
forces       eV/Å          (N, 3), −∂E/∂r
virial       eV            (3, 3), W = −∂E/∂ε; positive when the cell wants to expand
stress       eV/Å³         σ = −W/V, as ASE has it
===========  ============  =======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dpa1.errors import UserError
from dpa1.units import EV_PER_A3

if TYPE_CHECKING:
    from ase import Atoms

GPA = 1.0 / EV_PER_A3  # eV/Å³ per GPa


@dataclass(frozen=True, eq=False)
class Frame:
    """One structure and its labels (numpy, float64). ``None`` means "this frame does not have it".

    Attributes
    ----------
    numbers: (N,) atomic numbers.
    positions: (N, 3) Å.
    cell: (3, 3) Å, rows are lattice vectors.
    pbc: (3,) which lattice directions are periodic.
    energy: eV.  forces: (N, 3) eV/Å.  virial: (3, 3) eV, positive = the cell wants to expand.
    atomic_energies: (N,) eV.
    weight: factor on this frame's contribution to the training loss.
    source, index: the file (or system) the frame came from and its position in it, for messages.
    level: level of theory of the labels, when known.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    energy: float | None = None
    forces: np.ndarray | None = None
    virial: np.ndarray | None = None
    atomic_energies: np.ndarray | None = None
    weight: float = 1.0
    source: str = ""
    index: int = 0
    level: str | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def name(self) -> str:
        """How messages name this frame: ``file, frame 3``."""
        return f"{self.source or 'structure'}, frame {self.index}"

    @property
    def volume(self) -> float:
        """Cell volume in Å³ (0 for a frame without a full cell)."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def stress(self) -> np.ndarray | None:
        """(3, 3) eV/Å³, σ = −W/V; ``None`` without a virial or a volume."""
        return None if self.virial is None or self.volume == 0.0 else -self.virial / self.volume

    def replace(self, **changes: object) -> Frame:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def make_frame(numbers: object, positions: object, cell: object = None, pbc: object = None, **labels: object) -> Frame:
    """Build a Frame from array-likes, converting dtypes and checking every shape.

    ``pbc`` defaults to True along each non-zero cell vector.

    Raises
    ------
    UserError
        when a shape does not fit the number of atoms or a value is not finite; the sentence names the frame.
    """
    name = f"{labels.get('source') or 'structure'}, frame {labels.get('index', 0)}"
    numbers = np.array(numbers, dtype=np.int64).reshape(-1)
    n = len(numbers)
    if n == 0:
        raise UserError(f"{name}: has no atoms; remove it from the file")
    if numbers.min() < 1 or numbers.max() > 118:
        bad = int(np.flatnonzero((numbers < 1) | (numbers > 118))[0])
        raise UserError(f"{name}: atom {bad} has atomic number {numbers[bad]}; known elements are 1 to 118")
    cell_array = np.zeros((3, 3)) if cell is None else _array(cell, (3, 3), "cell", name)
    periodic = np.any(cell_array != 0, axis=1) if pbc is None else np.broadcast_to(np.array(pbc, dtype=bool), (3,))
    fields: dict[str, object] = {}
    for key, shape in (("forces", (n, 3)), ("virial", (3, 3)), ("atomic_energies", (n,))):
        value = labels.pop(key, None)
        fields[key] = None if value is None else _array(value, shape, key, name)
    energy = labels.pop("energy", None)
    fields["energy"] = None if energy is None else float(_array(energy, (), "energy", name))
    frame = Frame(
        numbers=numbers,
        positions=_array(positions, (n, 3), "positions", name),
        cell=cell_array,
        pbc=np.array(periodic),
        **fields,  # type: ignore[arg-type]
        **labels,  # type: ignore[arg-type]
    )
    _check_cell(frame)
    return frame


def _array(value: object, shape: tuple[int, ...], key: str, name: str) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name}: {key} are not numbers; repair or remove the frame") from None
    if array.size != int(np.prod(shape, dtype=int)):
        raise UserError(f"{name}: {key} have shape {array.shape}, expected {shape}; repair or remove the frame")
    array = array.reshape(shape)
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0] if array.ndim else []
        atom = f" of atom {where[0]}" if key in ("positions", "forces", "atomic_energies") else ""
        raise UserError(f"{name}: NaN or infinite {key}{atom}; repair or remove the frame")
    return array


def _check_cell(frame: Frame) -> None:
    vectors = frame.cell[frame.pbc]
    if len(vectors) == 0:
        return
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths.min() == 0.0:
        direction = "abc"[int(np.flatnonzero(frame.pbc)[np.argmin(lengths)])]
        raise UserError(
            f"{frame.name}: periodic along {direction} but that cell vector is zero; give the cell or set pbc to F there"
        )
    unit = vectors / lengths[:, None]
    if np.sqrt(max(np.linalg.det(unit @ unit.T), 0.0)) < 1e-6:
        raise UserError(
            f"{frame.name}: the periodic cell vectors lie in one plane (zero volume); repair the cell or set pbc to F"
        )


def from_ase(atoms: Atoms, *, source: str = "", index: int = 0) -> Frame:
    """Turn ASE ``Atoms`` into a Frame; labels are taken from an attached calculator's stored results, if any.

    The stress of ASE (eV/Å³, negative under compression) becomes the virial W = −σV.
    """
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    stress = results.get("stress")
    virial = None
    if stress is not None and atoms.cell.rank == 3:
        virial = -voigt_to_matrix(np.asarray(stress)) * atoms.get_volume()
    energy = results.get("energy", results.get("free_energy"))
    return make_frame(
        atoms.numbers,
        atoms.positions,
        np.array(atoms.cell),
        atoms.pbc,
        energy=energy,
        forces=results.get("forces"),
        virial=virial,
        atomic_energies=results.get("energies"),
        source=source,
        index=index,
    )


def to_ase(frame: Frame) -> Atoms:
    """ASE ``Atoms`` with the frame's labels in a ``SinglePointCalculator`` (stress in ASE's sign)."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    labels = {"energy": frame.energy, "forces": frame.forces, "energies": frame.atomic_energies}
    if frame.stress is not None:
        labels["stress"] = matrix_to_voigt(frame.stress)
    labels = {key: value for key, value in labels.items() if value is not None}
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def voigt_to_matrix(stress: np.ndarray) -> np.ndarray:
    """(6,) xx yy zz yz xz xy, (9,) or (3, 3) → (3, 3)."""
    if stress.size == 9:
        return stress.reshape(3, 3)
    xx, yy, zz, yz, xz, xy = stress.reshape(6)
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def matrix_to_voigt(stress: np.ndarray) -> np.ndarray:
    """(3, 3) → (6,) xx yy zz yz xz xy of the symmetric part."""
    s = 0.5 * (stress + stress.T)
    return np.array([s[0, 0], s[1, 1], s[2, 2], s[1, 2], s[0, 2], s[0, 1]])
