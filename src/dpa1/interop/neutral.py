"""DeePMD-kit's backend-neutral model container: ``.dp`` (HDF5) and ``.yaml``. Nested dicts with numpy arrays as leaves."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa1.container import replace_file
from dpa1.errors import UserError, needs

if TYPE_CHECKING:
    import h5py

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
SUFFIXES = (".dp", ".yaml", ".yml")
CHECKSUM = "dpa1_checksum"


def read_neutral(path: str | Path) -> dict[str, Any]:
    """Read a container, HDF5 or YAML by its content.

    Raises
    ------
    UserError
        when the file is missing, neither of the two, truncated or damaged; the sentence names it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    data = _read_hdf5(path) if head == HDF5_MAGIC else _read_yaml(path)
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise UserError(f"{path}: holds no DeePMD-kit model; give a file that 'dp convert-backend' wrote")
    if CHECKSUM in data and data[CHECKSUM] != _checksum(data["model"]):
        raise UserError(
            f"{path}: damaged, or changed after dpa1 wrote it; copy the file again, or remove its '{CHECKSUM}' if the "
            "change is meant"
        )
    return data


def write_neutral(data: dict[str, Any], path: str | Path) -> None:
    """Write a container atomically; the suffix (``.dp``, ``.yaml``) chooses the format, as in DeePMD-kit."""
    path = Path(path)
    stamp = {
        "software": "deepmd-kit",
        "version": "3.2.0",
        "time": str(datetime.datetime.now(tz=datetime.UTC)),
        **data,
        # DeePMD-kit does not look at keys it does not know.
        CHECKSUM: _checksum(data["model"]),
    }
    replace_file(path, _hdf5_bytes(stamp) if path.suffix == ".dp" else _yaml_bytes(stamp))


def _checksum(model: dict[str, Any]) -> str:
    def leaf(value: Any) -> list[Any]:
        array = np.ascontiguousarray(value)
        return [str(array.dtype), list(np.shape(value)), hashlib.sha256(array.tobytes()).hexdigest()]

    return hashlib.sha256(json.dumps(_map_variables(model, leaf), sort_keys=True).encode()).hexdigest()


def _map_variables(node: Any, change: Callable[[Any], Any], inside: bool = False) -> Any:
    """A copy with ``change`` applied to every leaf below an ``@variables`` key."""
    if isinstance(node, dict) and not node.get("@is_variable"):
        return {key: _map_variables(value, change, inside or key == "@variables") for key, value in node.items()}
    if isinstance(node, list) and not inside:
        return [_map_variables(value, change) for value in node]
    return change(node) if inside and node is not None else node


def _read_hdf5(path: Path) -> Any:
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            if "json" not in file.attrs:
                raise UserError(f"{path}: an HDF5 file without a DeePMD-kit model; for data use it as a data source")
            return _map_variables(json.loads(file.attrs["json"]), lambda name: _dataset(file, name))
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError):
        raise UserError(f"{path}: truncated or damaged; copy the file again or use another model") from None


def _dataset(file: h5py.File, name: Any) -> Any:
    return file[name][()] if isinstance(name, str) else name


def _hdf5_bytes(data: dict[str, Any]) -> bytes:
    import io

    h5py = _h5py()
    buffer = io.BytesIO()
    count = 0
    with h5py.File(buffer, "w") as file:

        def store(value: Any) -> str:
            nonlocal count
            array = np.asarray(value)
            # A checksum per dataset as well: DeePMD-kit, too, notices a damaged copy.
            guard = {"fletcher32": True, "compression": "gzip", "shuffle": True} if array.size and array.ndim else {}
            name = file.create_dataset(f"variable_{count:04d}", data=array, **guard).name
            count += 1
            return str(name)

        file.attrs["json"] = json.dumps(_map_variables(data, store), separators=(",", ":"))
    return buffer.getvalue()


def _read_yaml(path: Path) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = path.read_bytes().decode()
        if "@variables" not in text:
            raise UserError(f"{path}: not a model that this program knows (.dpa1, or DeePMD-kit .dp .yaml .pt .pth)")
        return _map_variables(yaml.load(text, loader), _array)
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise UserError(
            f"{path}: not a model that this program knows (.dpa1, or DeePMD-kit .dp .yaml .pt .pth)"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: truncated or damaged; copy the file again or use another model") from None


def _array(value: Any) -> Any:
    if isinstance(value, dict) and value.get("@class") == "np.ndarray":
        return np.asarray(value["value"], dtype=np.dtype(value["dtype"]))
    return value


def _yaml_bytes(data: dict[str, Any]) -> bytes:
    import yaml

    def plain(value: Any) -> Any:
        array = np.asarray(value)
        return {
            "@class": "np.ndarray",
            "@is_variable": True,
            "@version": 1,
            "dtype": array.dtype.name,
            "value": array.tolist(),
        }

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(_map_variables(data, plain), Dumper=dumper, default_flow_style=None, sort_keys=False)
    return text.encode()


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise needs("h5py", "deepmd", "reading or writing DeePMD-kit's .dp files") from None
    return h5py
