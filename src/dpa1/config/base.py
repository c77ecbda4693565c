"""What every configuration section shares: no unknown keys, and errors in one sentence."""

from __future__ import annotations

from textwrap import shorten
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dpa1.errors import UserError, did_you_mean


class Section(BaseModel):
    """A strict section: unknown keys, wrong types and values out of range are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def parse(section: type[S], values: Any, where: str) -> S:
    """Validate ``values`` as ``section``.

    Raises
    ------
    UserError
        one sentence that names ``where`` (the file), the key, what is wrong and, for a misspelt key, the nearest one.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected key: value pairs at the top, found {type(values).__name__}")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_sentence(section, e) for e in error.errors()[:3])) from None


def _sentence(section: type[Section], error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        keys = _keys(section, error["loc"][:-1])
        return f"unknown key '{path}'" + (
            did_you_mean(str(error["loc"][-1]), keys) or f"; known here: {', '.join(keys)}"
        )
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] == "missing" else f" (given: {shorten(repr(error.get('input')), 80, placeholder=' …')})"
    return f"'{path}': {message[0].lower()}{message[1:]}{given}" if path else message


def _keys(section: type[Section], path: tuple[Any, ...]) -> list[str]:
    """The valid keys of the sub-section that ``path`` leads to."""
    for part in path:
        field = section.model_fields.get(str(part))
        if field is None:
            continue
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, Section):
                section = candidate
                break
    return list(section.model_fields)
