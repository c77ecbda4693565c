"""Convert model files: DeePMD-kit's ⇄ ``*.dpa1``."""

from __future__ import annotations

from pathlib import Path

from dpa1.errors import UserError
from dpa1.interop.shipped import find_model

TARGETS = (".dpa1", ".dp", ".yaml", ".yml")


def convert(source: str | Path, target: str | Path, *, overwrite: bool = False, branch: str | None = None) -> None:
    """Read ``source`` (.dpa1 .dp .yaml .pt .pth) and write ``target`` (.dpa1 .dp .yaml), chosen by its suffix.

    branch: which model of a multi-task ``.pt``, or which level of a ``.dpa1`` that holds several.

    Raises
    ------
    UserError
        when the source cannot be opened, the target exists (unless ``overwrite``) or has another suffix, or DeePMD-kit
        has no formulas for the model (``convention: smooth``).
    """
    source, target = find_model(source), Path(target)
    if target.suffix.lower() not in TARGETS:
        hint = "; write .dp and let DeePMD-kit finish:  dp convert-backend model.dp model.pth"
        raise UserError(
            f"{target}: cannot be written; targets end in {', '.join(TARGETS)}"
            + (hint if target.suffix in (".pth", ".pt", ".pb", ".pt2") else "")
        )
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists already; choose another name or remove it")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder; create it first")
    from dpa1.interop.load import load_potential

    own = source.suffix.lower() == ".dpa1"
    potential = load_potential(source, None if own else branch)
    if target.suffix.lower() == ".dpa1":
        if own and branch is not None:
            raise UserError(f"{source}: --branch picks a level to export; from .dpa1 to .dpa1 nothing is converted")
        from dpa1.model.file import save_model

        save_model(potential, target)
        return
    from dpa1.interop.export import to_neutral
    from dpa1.interop.neutral import write_neutral

    write_neutral(to_neutral(potential, str(source), branch if own else None), target)
