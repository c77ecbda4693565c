"""The packed store: one file that large runs stream from.

Layout: 16 bytes of head (magic, version), the frames as raw float64 bytes one after the other, then an index (JSON with
units, elements, levels of theory and sources, followed by plain columns), then 28 bytes of foot that say where the index
is. A file without its foot is incomplete. Frames are read with ``pread``, so nothing is mapped, memory stays flat, and
one open store serves threads and forked processes. Every frame and the index carry a checksum. LMDB was not taken:
reading a damaged LMDB file can end the process instead of raising an error.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dpa1.data.report import SourceReport
from dpa1.data.resolve import STORE_MAGIC as MAGIC
from dpa1.data.table import LABELS, FrameTable, TableBuilder
from dpa1.errors import UserError
from dpa1.frames import Frame

VERSION = 1
UNITS = {
    "length": "Å",
    "energy": "eV",
    "forces": "eV/Å",
    "virial": "eV, W = −∂E/∂ε, positive: the cell wants to expand",
}
_HEAD = struct.Struct("<8sII")
_FOOT = struct.Struct("<QQI8s")
_INDEX = {
    "offset": "<u8", "checksum": "<u4", "index": "<u4", "n_atoms": "<u4", "mask": "u1", "energy": "<f8",
    "volume": "<f8", "kinds": "u1", "z": "u1", "count": "<u4", "source": "<u4", "level": "<i2",
}  # fmt: skip


class StoreWriter:
    """Writes a store frame by frame; the file appears under its name only when it is complete.

    Raises
    ------
    UserError
        when the file exists or its folder does not.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists():
            raise UserError(f"{self.path}: exists already and is not overwritten; choose another name or remove it")
        if not self.path.parent.is_dir():
            raise UserError(f"{self.path}: the folder {self.path.parent} does not exist; create it first")
        self._partial = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")
        try:
            self._file = self._partial.open("wb")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror or error})") from error
        self._file.write(_HEAD.pack(MAGIC, VERSION, 0))
        self._table = TableBuilder()
        self._offset, self._checksum, self._index = array("Q", [_HEAD.size]), array("L"), array("L")
        self._position = _HEAD.size

    def abandon(self) -> None:
        """Leave no file."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, frame: Frame) -> None:
        """Append one frame."""
        record = _encode(frame)
        self._file.write(record)
        self._position += len(record)
        self._offset.append(self._position)
        self._checksum.append(zlib.crc32(record))
        self._index.append(frame.index)
        self._table.add(frame)

    def finish(self, **about: Any) -> None:
        """Write the index and give the file its name.

        ``about``: further JSON-able entries of the metadata.
        """
        table = self._table.build()
        columns: dict[str, Any] = {name: getattr(table, name) for name in _INDEX if hasattr(table, name)}
        columns |= {"offset": self._offset, "checksum": self._checksum, "index": self._index}
        arrays = {name: np.asarray(columns[name]).astype(kind) for name, kind in _INDEX.items()}
        meta = {
            "format": "dpa1 packed store",
            "version": VERSION,
            "frames": len(table),
            "atoms": int(table.n_atoms.sum()),
            "elements": table.elements,
            "units": UNITS,
            "levels": table.levels,
            "sources": table.sources,
            "labels": {label: int(table.has(label).sum()) for label in LABELS},
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **about,
            "columns": [[name, kind, len(arrays[name])] for name, kind in _INDEX.items()],
        }
        text = json.dumps(meta, ensure_ascii=False).encode()
        index = struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays.values())
        self._file.write(index)
        self._file.write(_FOOT.pack(self._position, len(index), zlib.crc32(index), MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        try:
            # A link fails where a rename would overwrite a file that has appeared meanwhile.
            os.link(self._partial, self.path)
            self._partial.unlink()
        except FileExistsError:
            self._partial.unlink(missing_ok=True)
            raise UserError(f"{self.path}: exists already and is not overwritten; choose another name") from None
        except OSError:
            self._partial.rename(self.path)


def _encode(frame: Frame) -> bytes:
    parts: list[Any] = [frame.energy if frame.energy is not None else np.nan, frame.weight, frame.cell, frame.positions]
    parts += [value for value in (frame.forces, frame.virial, frame.atomic_energies) if value is not None]
    floats = np.concatenate([np.asarray(part, dtype="<f8").ravel() for part in parts])
    return floats.tobytes() + frame.numbers.astype("u1").tobytes() + frame.pbc.astype("u1").tobytes()


class Store:
    """An open store: ``len(store)``, ``store[i]`` → Frame, ``store.table``, ``store.meta``.

    Raises
    ------
    UserError
        not a store, cut off, damaged, or written by a newer version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd = -1
        try:
            self._fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be opened ({error.strerror or error})") from error
        try:
            self._read_index()
        except UserError:
            self.close()
            raise
        except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
            self.close()
            raise UserError(f"{self.path}: the index of the packed store is damaged; copy or pack it again") from error

    def _read_index(self) -> None:
        size = os.fstat(self._fd).st_size
        if size < _HEAD.size or os.pread(self._fd, 8, 0) != MAGIC:
            raise UserError(f"{self.path}: is not a packed store; write one with `dpa1 data pack`")
        version = _HEAD.unpack(os.pread(self._fd, _HEAD.size, 0))[1]
        if version > VERSION:
            raise UserError(
                f"{self.path}: is a packed store of version {version}, this dpa1 reads up to {VERSION}; update dpa1"
            )
        start, length, checksum, magic = 0, 0, 0, b""
        if size >= _HEAD.size + _FOOT.size:
            start, length, checksum, magic = _FOOT.unpack(os.pread(self._fd, _FOOT.size, size - _FOOT.size))
        if magic != MAGIC or start + length + _FOOT.size != size:
            raise UserError(f"{self.path}: the packed store is truncated; copy or pack it again")
        index = _pread(self._fd, length, start)
        if zlib.crc32(index) != checksum:
            raise UserError(f"{self.path}: the index of the packed store is damaged; copy or pack it again")
        (text,) = struct.unpack_from("<Q", index)
        self.meta: dict[str, Any] = json.loads(bytes(index[8 : 8 + text]))
        columns: dict[str, np.ndarray] = {}
        position = 8 + text
        for name, kind, n in self.meta.pop("columns"):
            columns[name] = np.frombuffer(index, dtype=kind, count=n, offset=position)
            position += columns[name].nbytes
        self._offset, self._checksum = columns.pop("offset"), columns.pop("checksum")
        self._index = columns.pop("index")
        for name in ("n_atoms", "kinds"):
            columns[name] = columns[name].astype(np.int64)
        self._frames = len(columns["n_atoms"])
        self.table = FrameTable(**columns, sources=tuple(self.meta["sources"]), levels=tuple(self.meta["levels"]))

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, i: int) -> Frame:
        frames = self._frames
        if not -frames <= i < frames:
            raise IndexError(f"{self.path} has {frames} frames, not {i}")
        i %= frames
        start = int(self._offset[i])
        try:
            record = _pread(self._fd, int(self._offset[i + 1]) - start, start)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: frame {i} cannot be read ({error}); copy or pack the store again") from error
        if zlib.crc32(record) != self._checksum[i]:
            raise UserError(f"{self.path}: frame {i} is damaged (checksum); copy or pack the store again")
        table = self.table
        n, mask, level = int(table.n_atoms[i]), int(table.mask[i]), int(table.level[i])
        words = (len(record) - n - 3) // 8
        floats = np.frombuffer(record, dtype="<f8", count=words)
        end = 11 + 3 * n
        fields: dict[str, Any] = {}
        for bit, size, label, shape in (
            (2, 3 * n, "forces", (n, 3)),
            (4, 9, "virial", (3, 3)),
            (8, n, "atomic_energies", (n,)),
        ):
            if mask & bit:
                fields[label] = floats[end : end + size].reshape(shape)
                end += size
        return Frame(
            numbers=np.frombuffer(record, dtype="u1", count=n, offset=8 * words).astype(np.int64),
            positions=floats[11 : 11 + 3 * n].reshape(n, 3),
            cell=floats[2:11].reshape(3, 3),
            pbc=np.frombuffer(record, dtype=bool, count=3, offset=8 * words + n),
            energy=float(floats[0]) if mask & 1 else None,
            weight=float(floats[1]),
            source=table.sources[table.source[i]],
            index=int(self._index[i]),
            level=None if level < 0 else table.levels[level],
            **fields,
        )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        # Worker processes open the file themselves.
        return Store, (str(self.path),)

    def describe(self, report: SourceReport) -> None:
        """Fill a report from the index, without reading frames."""
        report.frames = len(self)
        for label, n in self.meta["labels"].items():
            if n:
                report.taken[label] = Counter({label: n})
                report.keys.add(label)


def _pread(fd: int, size: int, offset: int) -> bytearray:
    """``size`` bytes into a writable buffer; one call may give fewer (2 GiB at most), so large reads take several."""
    buffer = bytearray(os.pread(fd, size, offset))
    while len(buffer) < size:
        more = os.pread(fd, size - len(buffer), offset + len(buffer))
        if not more:
            raise ValueError("the file ends early")
        buffer += more
    return buffer


def write_store(
    frames: Iterable[Frame], path: str | os.PathLike[str], about: Callable[[], dict[str, Any]] = dict
) -> int:
    """Write frames to a new store and return how many; ``about()`` gives further metadata once all are written.

    Raises
    ------
    UserError
        when the file exists, its folder does not, or there is no frame; no file is left then.
    """
    writer = StoreWriter(path)
    n = 0
    try:
        for frame in frames:
            writer.add(frame)
            n += 1
        if n == 0:
            raise UserError(f"{path}: there is no frame to pack; give data that holds frames")
    except BaseException:
        writer.abandon()
        raise
    writer.finish(**about())
    return n
