"""``dpa1 doctor``: what is installed, which devices there are, and whether the model computes rightly here."""

from __future__ import annotations

import platform
import re
import time
from importlib import metadata
from typing import Annotated, Any

import typer

from dpa1 import __version__
from dpa1.cli.terminal import to_json
from dpa1.errors import RunError

# package → what it adds
OPTIONAL = {
    "h5py": "DeePMD HDF5 data and .dp models",
    "lmdb": "DeePMD LMDB data",
    "msgpack": "DeePMD LMDB data",
    "zstandard": ".zst files",
    "matplotlib": "plots",
    "tensorboard": "TensorBoard logs",
    "wandb": "Weights & Biases logs",
    "mlflow": "MLflow logs",
}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor")(doctor_command)


def doctor_command(
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Versions, devices, optional packages, and a self-check: forces against finite differences on each device."""
    found = examine()
    if json:
        typer.echo(to_json(found))
    else:
        typer.echo(f"dpa1 {__version__}, Python {found['python']}, {found['platform']}, {found['threads']} threads")
        typer.echo("required:  " + ", ".join(f"{name} {version}" for name, version in found["required"].items()))
        for name, entry in found["optional"].items():
            typer.echo(f"optional:  {name} {entry['version'] or 'is not installed'} ({entry['for']})")
        for name, check in found["devices"].items():
            typer.echo(
                f"device:    {name} ({check['name']}): forces off by {check['force_error']:.1e} eV/Å in float64, float32 "
                f"differs by {check['float32_error']:.1e} eV/Å, {check['seconds']:.2f} s – {'ok' if check['ok'] else 'WRONG'}"
            )
            for path in check["fast_paths"]:
                verdict = "ok" if path["ok"] else "WRONG, a slower way runs instead"
                typer.echo(
                    f"fast path: {path['path']}, {path['precision']} on {name}: "
                    f"differs by {path['error']:.1e} from the reference – {verdict}"
                )
    wrong = [name for name, check in found["devices"].items() if not check["ok"]]
    if wrong:
        raise RunError(f"the model computes wrong forces on {', '.join(wrong)}; reinstall torch or use another device")


def required() -> dict[str, str]:
    """Version of every package dpa1 depends on here, by its own declaration."""
    declared = [entry for entry in metadata.requires("dpa1") or [] if "extra ==" not in entry]
    return {name: _version(name) or "is not installed" for name in (re.split(r"[^\w.-]", d)[0] for d in declared)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def examine() -> dict[str, Any]:
    """Everything ``dpa1 doctor`` prints."""
    import torch

    devices = {"cpu": platform.processor() or platform.machine()}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        devices[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    return {
        "dpa1": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "required": required(),
        "optional": {package: {"version": _version(package), "for": purpose} for package, purpose in OPTIONAL.items()},
        "devices": {device: {"name": name, **self_check(device)} for device, name in devices.items()},
    }


def self_check(device: str) -> dict[str, Any]:
    """A random small model on a distorted crystal: forces against finite differences, float32 against float64 (eV/Å)."""
    import numpy as np

    from dpa1.kernels import dispatch
    from dpa1.neighbors import report as searches
    from dpa1.simulate.step import report as fixed_steps
    from dpa1.simulate.step import small_system

    begun = time.perf_counter()
    potential, atoms = small_system()
    exact = potential.calculator(dtype="float64", device=device)
    forces = exact.get_forces(atoms)
    single = potential.calculator(dtype="float32", device=device).get_forces(atoms)
    atom, step, energies = 3, 1e-3, []
    for k in (-2, -1, 1, 2):
        moved = atoms.copy()
        moved.positions[atom, 0] += k * step
        energies.append(exact.get_potential_energy(moved))
    numerical = (8 * (energies[2] - energies[1]) - (energies[3] - energies[0])) / (-12 * step)
    error = abs(numerical - forces[atom, 0])
    paths = [*dispatch.report(device), *searches(device), *fixed_steps(device)]
    single_error = float(np.abs(single - forces).max())
    return {
        "force_error": float(error),
        "fast_paths": paths,
        "float32_error": single_error,
        "seconds": time.perf_counter() - begun,
        "ok": bool(
            error < 1e-7
            and all(path["ok"] for path in paths)
            and single_error < 1e-4
            and np.abs(forces.sum(axis=0)).max() < 1e-9
        ),
    }
