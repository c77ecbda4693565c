"""DPA-1, the attention-based Deep Potential: pretrain on many elements, fine-tune on few frames, simulate."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Frame": "dpa1.frames",
    "Potential": "dpa1.model.potential",
    "evaluate": "dpa1.analysis.evaluate",
    "finetune": "dpa1.workflow",
    "load": "dpa1.interop.load",
    "read": "dpa1.data.read",
    "train": "dpa1.workflow",
}
_NAME = {"load": "load_potential"}

if TYPE_CHECKING:
    from dpa1.analysis.evaluate import evaluate
    from dpa1.data.read import read
    from dpa1.frames import Frame
    from dpa1.interop.load import load_potential as load
    from dpa1.model.potential import Potential
    from dpa1.workflow import finetune, train

__all__ = ["Frame", "Potential", "__version__", "evaluate", "finetune", "load", "read", "train"]


def __getattr__(name: str) -> Any:
    # Lazily, so that `import dpa1` and the command line start without torch.
    if name not in _HOME:
        raise AttributeError(f"module 'dpa1' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), _NAME.get(name, name))
