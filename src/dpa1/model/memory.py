"""Memory: what is free, how much one neighbour slot takes, and how work goes on in smaller pieces when it runs out."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch

from dpa1.config.model import ModelConfig
from dpa1.errors import RunError
from dpa1.model.threads import even_slots, spread, thread_count

log = logging.getLogger("dpa1")
R = TypeVar("R")
B = TypeVar("B", bound="Block")
PAIR_BYTES = (
    250  # outside the blocks per neighbour pair: list with its skin, vectors, slopes (measured: 135 without a skin)
)
ATOM_BYTES = 1500  # the same per atom
FEWER = "use fewer atoms at once, or a machine with more"  # the remedy where blocks no longer help
SHARE = 0.5  # of the free memory that one block of slots may take
UNCHECKED = 256 << 20  # a block of fewer bytes is not worth asking the system what is free
LEAST_SLOTS = (
    2000  # tried however little seems free: the system's figure leaves out what the process holds and can reuse
)
SHARED_SLOTS = 800  # of a block at least, where threads share the blocks
LAYER_FREE = 6  # times as many slots without attention, whose operations are short and keep little
GPU_SLOTS = 4_000_000  # slots of one block on a GPU, whose speed wants large blocks
_EXHAUSTED = re.compile(r"out of memory|can't allocate|cannot allocate|bad_alloc|alloc_cpu|failed to allocate", re.I)


class Block(Protocol):
    """Some atoms (``len``) with their neighbours in ``slots`` slots, on a device."""

    @property
    def slots(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def halves(self) -> list[Self]:
        """The second and the first."""


def slot_bytes(config: ModelConfig, dtype: torch.dtype, neighbors: float) -> int:
    """What evaluating one neighbour slot with its derivative keeps at once, an upper estimate of what was measured."""
    attention = 8 * config.attention_width + 4 * config.embedding[-1] + 4 * neighbors
    numbers = 4 * sum(config.embedding) + config.attention_layers * attention
    return 200 + int(numbers * dtype.itemsize)


def block_slots(
    config: ModelConfig, dtype: torch.dtype, n_atoms: int, n_pairs: int, device: torch.device, most: int
) -> int:
    """Slots to evaluate at once, or what fits into half the free memory.

    ``most`` holds for attention in float64 on a CPU; float32 takes twice as many, and a GPU far more.
    """
    if device.type == "cpu":
        wide = most * 8 // dtype.itemsize
        factor = 1 if config.attention_layers else LAYER_FREE
        most = even_slots(n_pairs, factor * wide, factor * SHARED_SLOTS)
    else:
        most = max(most, GPU_SLOTS)
    each = slot_bytes(config, dtype, n_pairs / max(n_atoms, 1))
    if min(most, n_pairs) * each < UNCHECKED:
        return most
    at_once = thread_count() if device.type == "cpu" else 1
    return min(most, max(LEAST_SLOTS, int(SHARE * free_memory(device) / each / at_once)))


def capacity(config: ModelConfig, dtype: torch.dtype, neighbors: float, memory: int) -> int:
    """Atoms with so many neighbours each whose energy, forces and virial fit into ``memory`` bytes; 0 for not one.

    Blocks adapt, so beside the pairs only one atom's slots have to fit.
    """
    one = slot_bytes(config, dtype, neighbors) * neighbors
    return max(0, int((memory - one) / (ATOM_BYTES + PAIR_BYTES * neighbors)))


def fitting_atoms(config: ModelConfig, dtype: torch.dtype, neighbors: float) -> dict[str, str]:
    """Device → the sentence about how many atoms with so many neighbours each fit into what is free there now."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", k) for k in range(torch.cuda.device_count())]
    found = {}
    for device in devices:
        free = free_memory(device)
        atoms = capacity(config, dtype, neighbors, free)
        rounded = int(f"{atoms:.1e}".partition("e")[0].replace(".", "")) * 10 ** max(len(str(atoms)) - 2, 0)
        found[str(device)] = (
            f"about {rounded if atoms >= 100 else atoms:,} atoms in {_text(free)} of free memory (energy, forces and virial "
            f"in {str(dtype).removeprefix('torch.')}, {neighbors:.0f} neighbors within {config.cutoff:g} Å of each atom)"
        )
    return found


def in_blocks(
    plans: Iterable[B],
    work: Callable[[B], R],
    most: int | None = None,
    take: Callable[[R], None] | None = None,
) -> int | None:
    """Do ``work`` on every block; one for which memory does not suffice is halved, and so are those after it.

    On a CPU each thread works on a block of its own. ``take`` receives what ``work`` returns, in the order of the blocks.
    ``most`` bounds the slots of a block further than its plan did; what it has become is returned.

    Raises
    ------
    RunError
        when a single atom does not fit.
    """

    def one(plan: B) -> list[R]:
        nonlocal most
        found: list[R] = []
        pending = [plan]
        while pending:
            block = pending.pop()
            slots, atoms = block.slots, len(block)
            if atoms > 1 and most is not None and slots > most:
                pending += block.halves()
                continue
            if _done(work, block, found):
                continue
            if atoms == 1:
                raise RunError(
                    f"an atom with {slots} neighbors does not fit into the memory that is free "
                    f"({_text(free_memory(block.device))}): free some, use float32, or a larger machine"
                )
            if block.device.type == "cuda":
                torch.cuda.empty_cache()
            most = min(slots // 2, most or slots)
            log.warning("%d atoms at once do not fit into memory: going on with at most %d neighbor slots", atoms, most)
            pending += block.halves()
        return found

    def take_all(results: list[R]) -> None:
        for result in results:
            if take:
                take(result)

    rest = iter(plans)
    for first in rest:
        spread(chain([first], rest), one, take_all, parallel=first.device.type == "cpu")
    return most


def _done(work: Callable[[B], R], block: B, found: list[R]) -> bool:
    """Whether there was memory enough. Returning lets go of the failed call's tensors, which its traceback holds."""
    try:
        found.append(work(block))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True


@contextmanager
def enough(what: str, remedy: str, device: torch.device) -> Iterator[None]:
    """Turn running out of memory inside into a ``RunError``: ``what`` did not fit, ``remedy`` helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise RunError(
            f"{what} do not fit into memory, of which {_text(free_memory(device))} are free: {remedy}"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch, numpy or Python says that there is no memory left."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and bool(_EXHAUSTED.search(str(error)))
    )


def free_memory(device: torch.device) -> int:
    """Bytes this process can still take on ``device``: of the machine, of its control group and of its own limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = [_machine(), *_groups()]
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            limits.append(limit - _line("/proc/self/status", "VmSize"))
    except (ImportError, OSError, StopIteration):
        pass
    return max(0, min(limits))


def _machine() -> int:
    try:
        return _line("/proc/meminfo", "MemAvailable")
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return 4 << 30  # nothing to be learnt here; running out is noticed all the same


def _line(path: str, key: str) -> int:
    """Bytes of a ``key: n kB`` line."""
    text = Path(path).read_text()
    return int(next(line for line in text.splitlines() if line.startswith(key + ":")).split()[1]) * 1024


def _groups() -> list[int]:
    """What each control group this process is in still grants (versions 2 and 1 of the kernel's interface)."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        folder = root / place.strip("/")
        # In a container the group's own folder is often mounted as the root.
        for group in {folder, *folder.parents} if folder.is_dir() else {root}:
            if group.is_relative_to(root):
                found += _granted(group, *names)
    return found


def _granted(group: Path, limit: str, usage: str) -> list[int]:
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    if most == "max" or int(most) >= 1 << 60:
        return []
    # The kernel drops file pages nobody uses before it refuses memory.
    cache = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return [int(most) - used + cache]


def _text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
