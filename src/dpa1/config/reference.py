"""Every configuration key with its type, default and meaning, generated from the sections themselves."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dpa1.config.base import Section
from dpa1.config.run import RunConfig


@dataclass(frozen=True)
class Key:
    """One line of the reference: dotted name, readable type, default as it would be written, meaning."""

    name: str
    kind: str
    default: str
    meaning: str


def keys(section: type[Section] = RunConfig, prefix: str = "") -> Iterator[Key]:
    """Every key below ``section``, depth first."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            meaning = " ".join((field.description or "").replace("``", "`").split())
            yield Key(prefix + name, _kind(field.annotation), _default(field), meaning)


def markdown() -> str:
    """The page docs/config.md."""
    lines = [
        "# Configuration keys",
        "",
        "A configuration is YAML, JSON or TOML; only `data.train` must be given. On the command line any key can be set "
        "after the file: `dpa1 train water.yaml training.steps=500`. `dpa1 train --keys` prints this page, `dpa1 train "
        "--schema` a JSON schema for editors.",
    ]
    section = None
    for key in keys():
        top = key.name.split(".")[0] if "." in key.name else ""
        if top != section:
            section = top
            lines += ["", f"## {top or 'At the top'}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        cells = (f"`{key.name}`", key.kind, f"`{key.default}`" if key.default else "required", key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def schema() -> str:
    """JSON schema of a run configuration."""
    return json.dumps(RunConfig.model_json_schema(), indent=1)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    return json.dumps(field.get_default(call_default_factory=True), default=list, ensure_ascii=False)


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(str(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _kind(a) for a in arguments)
    if origin is tuple:
        inner = dict.fromkeys(_kind(a) for a in arguments if a is not Ellipsis)
        return f"list of {' and '.join(inner)}"
    if origin is dict:
        return f"{_kind(arguments[0])}: {_kind(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "path or section with " + ", ".join(f"`{name}`" for name in annotation.model_fields)
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )
