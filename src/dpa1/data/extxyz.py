"""Extended XYZ, plain or compressed, read as a stream.

Neither parser at hand would do: ASE is several times slower and refuses a six-number stress; the C parser wants an
uncompressed file on disk and takes a damaged atom count for the end of the file, which would drop frames silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from dpa1.data.build import Explicit, build_frame
from dpa1.data.report import SourceReport
from dpa1.errors import UserError, did_you_mean, needs
from dpa1.frames import Frame

_PAIR = re.compile(
    r"""(?P<key>"(?:\\.|[^"\\])*"|[^\s="']+)\s*(?:=\s*(?P<value>
    "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | \{[^{}]*\} | \[(?:[^\[\]]|\[[^\[\]]*\])*\] | [^\s]* ))?""",
    re.VERBOSE,
)
_SPELLED = {"lattice": "Lattice", "properties": "Properties", "pbc": "pbc"}
_TRUE, _FALSE = ("t", "true", "1"), ("f", "false", "0")


@contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, decompressing by suffix.

    Raises
    ------
    UserError
        when the file cannot be opened, or turns out damaged or cut off while it is read.
    """
    import bz2
    import gzip
    import lzma
    import zlib

    errors: tuple[type[BaseException], ...] = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
    try:
        if path.suffix == ".zst":
            try:
                import zstandard
            except ImportError:
                raise needs("zstandard", "zstd", f"{path}: reading .zst") from None
            errors = (*errors, zstandard.ZstdError)
            with path.open("rb") as raw:
                _check_zstd(raw, path)
                with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                    import io

                    yield io.BufferedReader(stream)
            return
        opener: Any = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(path.suffix, open)
        with opener(path, "rb") as file:
            yield file
    except UserError:
        raise
    except errors as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}); copy or download the file again") from error


def _check_zstd(raw: IO[bytes], path: Path) -> None:
    """Walk the block headers: the stream reader itself takes a cut-off file for a complete one."""
    import zstandard

    data_size = path.stat().st_size
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    while True:
        if decompressor.eof:
            rest = decompressor.unused_data
            if not rest and raw.tell() >= data_size:
                break
            decompressor = zstandard.ZstdDecompressor().decompressobj()
            chunk = rest or raw.read(1 << 20)
        else:
            chunk = raw.read(1 << 20)
        if not chunk:
            raise UserError(f"{path}: ends early; copy or download the file again")
        decompressor.decompress(chunk)
    raw.seek(0)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:120] if text else type(error).__name__


def read_extxyz(path: Path, explicit: Explicit, report: SourceReport) -> Iterator[Frame]:
    """Yield the frames of one file.

    Raises
    ------
    UserError
        for anything malformed, naming file, frame and atom; also for a last frame with fewer lines than announced.
    """
    with open_stream(path) as file:
        index = 0
        while True:
            head = file.readline()
            if not head:
                break
            if not head.strip():
                continue
            yield _read_frame(head, file, explicit, report, index)
            index += 1


def _read_frame(head: bytes, file: IO[bytes], explicit: Explicit, report: SourceReport, index: int) -> Frame:
    name = f"{report.source}, frame {index}"
    try:
        n = int(head)
    except ValueError:
        shown = head[:40].decode("utf-8", "replace").strip()
        raise UserError(
            f"{name}: expected the number of atoms, found '{shown}'; the file is damaged or the frame before it has "
            "more lines than it announces"
        ) from None
    if n <= 0:
        raise UserError(f"{name}: announces {n} atoms; remove the frame from the file")
    comment = file.readline().decode("utf-8", "replace").strip()
    lines = list(islice(file, n))
    if len(lines) < n or not lines[-1].strip():
        raise UserError(f"{name}: announces {n} atoms but the file ends after {len(lines)}; it is truncated")
    if not lines[-1].endswith(b"\n") and _cut_off(lines):
        raise UserError(f"{name}: the last number of the file is cut off; it is truncated")
    info = parse_comment(comment)
    cell, pbc = _cell(info, name)
    announced = "Properties" in info
    properties = info.pop("Properties", "species:S:1:pos:R:3")
    columns = _columns(properties)
    if columns is None:
        raise UserError(
            f"{name}: Properties = '{properties[:60]}' is not name:type:columns triples with types R, I, S or L"
        )
    if not announced and len(lines[0].split()) > 4:
        report.note("columns after x y z have no name (no Properties=) and are not used", name)
    arrays = _table(lines, columns, announced, name)
    if "pos" not in arrays:
        raise UserError(f"{name}: has no 'pos' column in Properties; name the columns of the file")
    if arrays["pos"].dtype.kind != "f" or arrays["pos"].shape != (n, 3):
        raise UserError(f"{name}: 'pos' in Properties is not pos:R:3; name the columns of the file")
    positions = arrays.pop("pos")
    return build_frame(_numbers(arrays, name), positions, cell, pbc, info, arrays, explicit, report, index)


def _cut_off(lines: list[bytes]) -> bool:
    """Whether the very last number has fewer decimals than all others of its column, which share one count."""
    decimals = [len(words[-1].partition(b".")[2]) for words in map(bytes.split, lines) if words]
    return len(set(decimals[:-1])) == 1 and decimals[-1] < decimals[0]


def parse_comment(comment: str) -> dict[str, Any]:
    """The key=value pairs of a comment line, values as text without quotes; a bare word is left out."""
    pairs: dict[str, Any] = {}
    for match in _PAIR.finditer(comment):
        key, value = match["key"].strip('"'), match["value"]
        if value is None:
            continue
        if len(value) > 1 and value[0] in "\"'{" and value[-1] == {"{": "}"}.get(value[0], value[0]):
            value = value[1:-1].replace('\\"', '"')
        # The standard writes Lattice and Properties; to overlook another spelling would lose the cell.
        pairs[_SPELLED.get(key.lower(), key)] = value
    return pairs


def _cell(info: dict[str, Any], name: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Lattice rows and periodic directions; a frame with a lattice is periodic unless it says otherwise."""
    lattice, pbc = info.pop("Lattice", None), info.pop("pbc", None)
    cell = None
    if lattice is not None:
        try:
            cell = np.array([float(x) for x in re.findall(r"[^\s,\[\]]+", lattice)])
        except ValueError:
            raise UserError(f"{name}: Lattice = '{lattice[:30]}' is not nine numbers; repair the frame") from None
        if cell.size == 3:
            cell = np.diag(cell)
        elif cell.size == 9:
            # Nine plain numbers list the vectors in turn; a nested matrix has them as columns (extended XYZ standard).
            cell = cell.reshape(3, 3).T if lattice.count("[") > 1 else cell.reshape(3, 3)
        else:
            raise UserError(f"{name}: Lattice has {cell.size} numbers, expected 9; repair the frame")
    if pbc is None:
        return cell, np.full(3, cell is not None)
    words = [w.lower() for w in re.findall(r"[^\s,\[\]]+", pbc)]
    if len(words) not in (1, 3) or any(w not in _TRUE + _FALSE for w in words):
        raise UserError(f"{name}: pbc = '{pbc[:30]}' is not three of T or F; repair the frame")
    return cell, np.broadcast_to(np.array([w in _TRUE for w in words]), (3,))


@lru_cache(maxsize=64)
def _columns(properties: str) -> tuple[tuple[str, str, int], ...] | None:
    """(name, type, number of columns) triples; None when malformed."""
    fields = properties.split(":")
    try:
        columns = tuple((fields[i], fields[i + 1], int(fields[i + 2])) for i in range(0, len(fields), 3))
        if any(kind not in "RISL" or len(kind) != 1 or count < 1 for _, kind, count in columns):
            return None
    except (ValueError, IndexError):
        return None
    return columns


def _table(
    lines: list[bytes], columns: tuple[tuple[str, str, int], ...], announced: bool, name: str
) -> dict[str, np.ndarray]:
    """The columns of the atom lines by name: float64 for R, int for I, text for S; one column is one-dimensional."""
    n, width = len(lines), sum(count for _, _, count in columns)
    words = b" ".join(lines).split()
    if len(words) != n * width or not announced:
        rows = [line.split() for line in lines]
        for atom, row in enumerate(rows):
            # A plain XYZ file may carry further columns; with Properties every column is accounted for.
            if len(row) != width and (announced or len(row) < width):
                raise UserError(
                    f"{name}: the line of atom {atom} has {len(row)} columns, expected {width}; repair the frame"
                )
        words = [word for row in rows for word in row[:width]]
    arrays: dict[str, np.ndarray] = {}
    table = np.array(words, dtype=object).reshape(n, width)
    start = 0
    for key, kind, count in columns:
        block = table[:, start] if count == 1 else table[:, start : start + count]
        start += count
        if kind in "RI":
            try:
                block = np.array(list(map(float, block.ravel())), dtype=np.float64).reshape(block.shape)
            except ValueError:
                raise _not_number(block, key, name) from None
        arrays[key] = block
    return arrays


def _not_number(block: np.ndarray, key: str, name: str) -> UserError:
    for atom, row in enumerate(block.reshape(len(block), -1)):
        for word in row:
            try:
                float(word)
            except ValueError:
                shown = word[:20].decode("utf-8", "replace")
                return UserError(f"{name}: {key} of atom {atom} is '{shown}', not a number; repair or remove the frame")
    return UserError(f"{name}: {key} is not numeric; repair or remove the frame")


def _numbers(arrays: dict[str, np.ndarray], name: str) -> list[int]:
    for key in ("Z", "numbers", "atomic_numbers"):
        if key in arrays and "species" not in arrays:
            values = arrays.pop(key)
            if values.dtype.kind != "f" or not np.isfinite(values).all():
                raise UserError(f"{name}: column '{key}' holds no atomic numbers; write it as {key}:I:1")
            return values.astype(np.int64).tolist()
    species = arrays.pop("species", arrays.pop("symbols", None))
    if species is None or species.ndim != 1:
        raise UserError(f"{name}: has neither 'species' nor 'Z' in Properties; name the columns of the file")
    return [_number(str(word, "utf-8", "replace") if isinstance(word, bytes) else str(int(word)), atom, name)
            for atom, word in enumerate(species)]  # fmt: skip


def _number(symbol: str, atom: int, name: str) -> int:
    z = atomic_numbers.get(symbol) or atomic_numbers.get(symbol.capitalize()) or (
        int(symbol) if symbol.isascii() and symbol.isdigit() and len(symbol) < 4 else None
    )  # fmt: skip
    if not z:
        raise UserError(
            f"{name}: atom {atom} has the unknown element symbol '{symbol}'"
            f"{did_you_mean(symbol.capitalize(), chemical_symbols[1:])}"
        )
    return z
