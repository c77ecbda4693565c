"""Models that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from dpa1.errors import UserError, did_you_mean

FOLDER = Path(__file__).parents[1] / "models"


def names() -> list[str]:
    """The names there are."""
    return sorted(path.stem for path in FOLDER.glob("*.dpa1"))


def find_model(path: str | Path) -> Path:
    """The file behind what a person gives for a model: a path, or the name of a shipped model.

    A file of that name in the current folder wins; a folder does not, so that a run folder may be called like a model.

    Raises
    ------
    UserError
        for a bare name that is neither, listing the names there are.
    """
    path = Path(path)
    if len(path.parts) != 1 or path.suffix or path.is_file():
        return path
    known = names()
    if path.name in known:
        return FOLDER / f"{path.name}.dpa1"
    if path.exists():
        return path
    shipped = f"the models that come with dpa1 are {', '.join(known)}" if known else "no model comes with this dpa1"
    raise UserError(f"{path}: no such file, and {shipped}{did_you_mean(path.name, known)}")
