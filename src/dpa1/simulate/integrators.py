"""ASE's integrators behind three ensembles, with their state saved and restored so that a restart is exact.

========  ==========================================  =====================================================
ensemble  ASE class                                   why this one
========  ==========================================  =====================================================
nve       ``VelocityVerlet``                          time-reversible, no drift
nvt       ``Bussi`` (stochastic velocity rescaling)   canonical, hardly disturbs the dynamics, a conserved energy
npt       ``IsotropicMTKNPT`` (Martyna–Tobias–Klein)  true isothermal-isobaric ensemble, isotropic cell
========  ==========================================  =====================================================

The centre of mass rests, so N atoms have 3N − 3 degrees of freedom and thermostats aim at that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units

from dpa1.errors import UserError
from dpa1.frames import GPA

if TYPE_CHECKING:
    from ase import Atoms
    from ase.md.md import MolecularDynamics

    from dpa1.simulate.settings import MDSettings

# Where ASE keeps what an integrator carries from step to step: (part, attribute).
_STATE: dict[str, tuple[tuple[str, str], ...]] = {
    "nve": (),
    "nvt": (("", "transferred_energy"),),
    "npt": (
        ("", "_q"), ("", "_p"), ("", "_eps"), ("", "_p_eps"), ("", "_cell0"), ("", "_volume0"),
        ("_thermostat", "_eta"), ("_thermostat", "_p_eta"), ("_barostat", "_xi"), ("_barostat", "_p_xi"),
    ),
}  # fmt: skip


def degrees_of_freedom(atoms: Atoms) -> int:
    """Of the momenta: 3N, less the resting centre of mass (or whatever constraints remove)."""
    if atoms.constraints:
        return int(atoms.get_number_of_degrees_of_freedom())
    return 3 * len(atoms) - (3 if len(atoms) > 1 else 0)


def temperature(atoms: Atoms) -> float:
    """K."""
    return float(2.0 * atoms.get_kinetic_energy() / (units.kB * max(degrees_of_freedom(atoms), 1)))


def set_velocities(atoms: Atoms, kelvin: float, rng: np.random.Generator) -> None:
    """Maxwell–Boltzmann momenta with zero total momentum, scaled to exactly this temperature."""
    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * kelvin)
    atoms.set_momenta(momenta)
    rest(atoms)
    now = temperature(atoms)
    if now > 0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(kelvin / now))


def rest(atoms: Atoms) -> None:
    """Bring the centre of mass to rest (of several free atoms)."""
    if len(atoms) > 1 and not atoms.constraints:
        momenta, masses = atoms.get_momenta(), atoms.get_masses()[:, None]
        atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())


def make_integrator(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> MolecularDynamics:
    """The integrator of ``settings.ensemble``; ``rng`` drives its thermostat.

    Raises
    ------
    UserError
        for npt without a fully periodic cell or with constraints.
    """
    step, kelvin = settings.timestep * units.fs, settings.temperature
    if settings.ensemble == "nve":
        from ase.md.verlet import VelocityVerlet

        return VelocityVerlet(atoms, step)
    if settings.ensemble == "nvt":
        from ase.md.bussi import Bussi

        dynamics = Bussi(atoms, step, temperature_K=kelvin, taut=settings.thermostat_time * units.fs, rng=rng)
        dynamics.ndof = degrees_of_freedom(atoms)
        dynamics.target_kinetic_energy = 0.5 * units.kB * kelvin * dynamics.ndof
        return dynamics
    if not atoms.pbc.all():
        raise UserError(
            "pressure: NPT needs a structure that is periodic in all three directions; "
            "drop --pressure for NVT, or set pbc to T T T"
        )
    if atoms.constraints:
        raise UserError("pressure: NPT cannot keep atoms fixed; drop --pressure, or remove the constraints")
    from ase.md.nose_hoover_chain import IsotropicMTKNPT

    # ASE's chain thermostats count 3N degrees of freedom; this temperature gives the 3N − 3 there are the right energy.
    share = degrees_of_freedom(atoms) / (3 * len(atoms))
    return IsotropicMTKNPT(
        atoms,
        step,
        temperature_K=kelvin * share,
        pressure_au=(settings.pressure or 0.0) * GPA,
        tdamp=settings.thermostat_time * units.fs,
        pdamp=settings.barostat_time * units.fs,
    )


def conserved_energy(dynamics: Any, ensemble: str) -> float:
    """eV; the energy the equations of motion conserve: total energy less what thermostat and barostat put in."""
    if ensemble == "npt":
        return float(dynamics.get_conserved_energy())
    total = dynamics.atoms.get_potential_energy() + dynamics.atoms.get_kinetic_energy()
    return float(total - (dynamics.transferred_energy if ensemble == "nvt" else 0.0))


def get_state(dynamics: MolecularDynamics, ensemble: str) -> dict[str, np.ndarray]:
    """Arrays that ``set_state`` puts back."""
    return {
        f"{part}.{name}": np.array(getattr(_part(dynamics, part), name), dtype=np.float64)
        for part, name in _STATE[ensemble]
    }


def set_state(dynamics: MolecularDynamics, ensemble: str, state: dict[str, np.ndarray]) -> None:
    """Continue from what ``get_state`` returned."""
    for part, name in _STATE[ensemble]:
        value = state[f"{part}.{name}"]
        setattr(_part(dynamics, part), name, value.copy() if value.ndim else float(value))


def _part(dynamics: MolecularDynamics, name: str) -> Any:
    return getattr(dynamics, name) if name else dynamics
