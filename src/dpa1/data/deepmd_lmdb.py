"""DeePMD LMDB databases: msgpack frames beside a ``__metadata__`` entry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dpa1.data.build import Explicit
from dpa1.data.deepmd import element_table, system_frame
from dpa1.data.labels import choose
from dpa1.data.report import SourceReport
from dpa1.errors import UserError, needs
from dpa1.frames import Frame

_SKIP = ("coords", "cells", "atom_types", "atom_numbs", "atom_names", "nopbc", "orig", "real_atom_types")
_NAMES = {"energies": "energy", "forces": "force", "virials": "virial", "coord": "coords", "box": "cells",
          "atype": "atom_types", "atomic_ener": "atom_ener"}  # fmt: skip
_DAMAGED = "the database is damaged or truncated, copy it again"


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A read transaction.

    The size of the file is compared with what the header announces first: LMDB maps the file, and touching a page
    beyond a cut-off end would kill the process.
    """
    try:
        import lmdb
    except ImportError:
        raise needs("lmdb", "deepmd", f"{path}: reading LMDB") from None
    folder = path.is_dir()
    data = path / "data.mdb" if folder else path
    try:
        environment = lmdb.open(str(path), readonly=True, lock=False, subdir=folder, readahead=False, max_readers=8)
    except Exception as error:
        raise UserError(f"{path}: is no readable LMDB database ({str(error)[-80:]}); {_DAMAGED}") from error
    try:
        pages = environment.info()["last_pgno"] + 1
        if data.stat().st_size < pages * environment.stat()["psize"]:
            raise UserError(f"{path}: is smaller than its header announces; {_DAMAGED}")
        with environment.begin() as transaction:
            yield transaction
    except lmdb.Error as error:
        raise UserError(f"{path}: {error}; {_DAMAGED}") from error
    finally:
        environment.close()


def _unpack(raw: bytes, where: str) -> dict[str, Any]:
    try:
        import msgpack
    except ImportError:
        raise needs("msgpack", "deepmd", f"{where}: reading DeePMD LMDB") from None
    try:
        values = msgpack.unpackb(raw, raw=False, strict_map_key=False)
        if not isinstance(values, dict):
            raise TypeError("not a mapping")
        return {k.decode() if isinstance(k, bytes) else str(k): _decode(v) for k, v in values.items()}
    except Exception as error:
        raise UserError(f"{where}: cannot be decoded ({str(error)[:80]}); {_DAMAGED}") from error


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    value = {k.decode() if isinstance(k, bytes) else k: v for k, v in value.items()}
    if "data" not in value or "type" not in value:
        return value
    kind = value["type"]
    dtype = np.dtype(kind.decode() if isinstance(kind, bytes) else kind)
    if dtype.kind not in "fiub":
        raise TypeError(f"arrays of {dtype} are not read")
    array = np.frombuffer(value["data"], dtype=dtype)
    return array.reshape(value["shape"]) if "shape" in value else array


def read_deepmd_lmdb(
    path: Path, type_map: tuple[str, ...] | None, explicit: Explicit, report: SourceReport
) -> Iterator[Frame]:
    """Yield all frames of a DeePMD LMDB database in the order of their keys.

    Raises
    ------
    UserError
        no metadata, missing frames, damaged values, wrong shapes …
    """
    with _open(path) as transaction:
        raw = transaction.get(b"__metadata__")
        if raw is None:
            raise UserError(f"{path}: is an LMDB database without __metadata__, so not one of DeePMD-kit's")
        meta = _unpack(raw, f"{path}, __metadata__")
        frames, form = meta.get("nframes"), meta.get("frame_idx_fmt", "012d")
        if not isinstance(frames, int) or not isinstance(form, str):
            raise UserError(f"{path}: __metadata__ does not give the number of frames; {_DAMAGED}")
        if frames == 0:
            raise UserError(f"{path}: holds no frames; add data or leave it out")
        symbols = meta.get("type_map")
        elements = element_table(
            tuple(map(str, symbols)) if isinstance(symbols, list) and symbols else type_map, str(path)
        )
        for index in range(frames):
            try:
                key = format(index, form).encode()
            except ValueError:
                raise UserError(f"{path}: frame_idx_fmt '{form}' in __metadata__ is no format; {_DAMAGED}") from None
            value = transaction.get(key)
            if value is None:
                raise UserError(f"{path}: frame {index} of {frames} is missing; {_DAMAGED}")
            yield _frame(_unpack(value, f"{path}, frame {index}"), elements, explicit, report, index)


def _frame(values: dict[str, Any], elements: np.ndarray, explicit: Explicit, report: SourceReport, index: int) -> Frame:
    name = f"{report.source}, frame {index}"
    wanted = {key for _, key in explicit}
    values = {key if key in wanted else _NAMES.get(key, key): value for key, value in values.items()}
    for key in ("coords", "atom_types"):
        if not isinstance(values.get(key), np.ndarray):
            raise UserError(f"{name}: has no {key}; {_DAMAGED}")
    types, coords = values["atom_types"].reshape(-1), values["coords"]
    if coords.size != 3 * len(types):
        raise UserError(f"{name}: {coords.size} coordinates for {len(types)} atoms; {_DAMAGED}")
    box = values.get("cells")
    if isinstance(box, np.ndarray) and box.size != 9:
        raise UserError(f"{name}: the cell has {box.size} numbers, expected 9; {_DAMAGED}")
    # A frame without periodic boundaries has no cell, an all-zero one, or says so.
    if not isinstance(box, np.ndarray) or not np.any(box) or bool(np.any(values.get("nopbc", False))):
        box = None
    labels = {}
    for key, value in values.items():
        if key in _SKIP or key.startswith("find_") or not isinstance(value, (np.ndarray, int, float)):
            continue
        report.keys.add(key)
        if not np.all(np.asarray(values.get(f"find_{key}", 1.0), dtype=float)):
            continue
        if key in wanted or set(choose((key,), (key,))) & {"energy", "forces", "virial", "atomic_energies", "weight"}:
            labels[key] = np.asarray(value, dtype=np.float64).reshape(-1)
    return system_frame(types, elements, coords.reshape(-1, 3), None if box is None else box.reshape(3, 3),
                        labels, explicit, report, index)  # fmt: skip
