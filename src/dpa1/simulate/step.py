"""Steps of molecular dynamics for some hundred atoms: one CUDA graph instead of hundreds of launches.

On a GPU such a step costs what its launches cost. Here everything between positions and forces has a fixed shape
(``dpa1.model.fixed``), is recorded once and replayed; the list of neighbours stays on the device and fills the recorded
buffers anew when atoms have moved too far. Recording happens again only if a buffer becomes too small. Every recording is
compared with the ordinary evaluation before it is used. On a CPU the same function runs as it is.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dpa1.kernels.proof import TOLERANCE
from dpa1.model import memory
from dpa1.model.fixed import Answer, FixedShapes
from dpa1.model.table import R_MIN
from dpa1.neighbors import CLOSEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase import Atoms

    from dpa1.model.potential import Potential
    from dpa1.simulate.skin import SkinList

log = logging.getLogger("dpa1")
MAX_SLOTS = 200_000  # of one step; more keep a GPU busy without a graph
ROUND, SPARE = 16, 4  # slots per atom come in multiples, a few more than needed now
WARM_UP = 2  # evaluations before recording: they compile kernels and prove fast paths
TITLE = {"cuda": "step of fixed shape, replayed as a CUDA graph", "cpu": "step of fixed shape"}


class FixedStep:
    """Predictions for successive ``Atoms`` of one kind, by way of ``neighbors``' list.

    Parameters
    ----------
    potential: frozen.
    level: index of the level of theory.
    """

    def __init__(self, potential: Potential, neighbors: SkinList, level: int) -> None:
        self.potential, self.neighbors, self.level = potential, neighbors, level
        self.recordings = 0
        self.refusal = ""  # why the present structure is evaluated in the ordinary way
        self.error: float | None = None  # largest relative difference from the ordinary evaluation when last compared
        self._numbers = np.zeros(0, dtype=np.int64)
        self._builds = -1
        self._failed = False
        self._proven = False
        self._fixed: FixedShapes | None = None
        self._replay: Callable[[], Tensor] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FixedStep:
        # A recording cannot be copied; the copy makes its own.
        return FixedStep(copy.deepcopy(self.potential, memo), copy.deepcopy(self.neighbors, memo), self.level)

    def __str__(self) -> str:
        title = TITLE[self.neighbors.device.type]
        if self._fixed is None or self.error is None:
            return f"no {title}: {self.refusal or 'not used yet'}"
        return f"{title}, {self.recordings} recorded, differs by {self.error:.1e} from the ordinary evaluation"

    def predict(self, atoms: Atoms) -> Answer | None:
        """None, and a ``refusal``, where only the ordinary evaluation is right or worth it.

        Raises
        ------
        UserError
            as ``SkinList.batch``.
        """
        self.neighbors.update(atoms)
        if self.neighbors.builds != self._builds:
            self._fill(atoms)
        while (fixed := self._fixed) is not None:
            fixed.positions.copy_(torch.from_numpy(atoms.get_positions()))
            fixed.cell.copy_(torch.from_numpy(np.array(atoms.cell)))
            answer = self._answer(fixed)
            if answer is None:
                return None
            if answer.closest < CLOSEST:
                self.neighbors.build(atoms)  # raises, naming the atoms
            if self.potential.tables is not None and answer.closest < R_MIN:
                self._say(f"two atoms are closer than {R_MIN} Å, where the tables end")
                return None
            if answer.needed > fixed.width:
                self._resize(fixed.listed, answer.needed)
            elif self._proven or self._prove(atoms, answer):
                self.refusal = ""
                return answer
        return None

    def _fill(self, atoms: Atoms) -> None:
        """Take the list the neighbours have now; new buffers for another structure, or where the old ones are too small."""
        self._builds = self.neighbors.builds
        numbers, centre, _, _ = self.neighbors.pairs
        listed = int(torch.bincount(centre, minlength=1).max())
        known = np.array_equal(self._numbers, atoms.numbers)
        if not known:
            self._numbers, self._failed, self._fixed = atoms.numbers.copy(), False, None
        if self._failed:
            return
        if self._fixed is None:
            within = self.neighbors.batch(atoms).centre
            self._resize(listed, int(torch.bincount(within, minlength=len(numbers)).max()))
        elif listed > self._fixed.listed:
            self._resize(listed, self._fixed.width - SPARE)
        else:
            self._fixed.fill(*self.neighbors.pairs[1:])

    def _resize(self, listed: int, most: int) -> None:
        """Other buffers, of which the next step makes another recording; none where a ``refusal`` says why."""
        self._drop()
        numbers = self.neighbors.pairs[0]
        width, refusal = self._width(most)
        if len(numbers) * width > MAX_SLOTS:
            refusal = f"{len(numbers)} atoms with up to {most} neighbors keep the device busy without it"
        if refusal:
            self._say(refusal)
            return
        self._fixed = FixedShapes(self.potential, numbers, self.level, max(_rounded(listed), width), width)
        self._fixed.fill(*self.neighbors.pairs[1:])

    def _width(self, most: int) -> tuple[int, str]:
        """Slots for up to ``most`` neighbours within the cutoff, or why there can be none."""
        config = self.potential.config
        if config.convention == "smooth":
            return _rounded(most), ""
        assert config.sel is not None
        if config.slot_statistics:
            return 0, "the model has statistics of its own for every neighbor slot"
        if most > config.sel:
            return 0, f"an atom has more than the {config.sel} neighbors that the model takes"
        return min(_rounded(most), config.sel), ""

    def _drop(self) -> None:
        self._fixed, self._replay, self._proven = None, None, False

    def _answer(self, fixed: FixedShapes) -> Answer | None:
        """For the positions in the buffers, by the recording, which is made here if there is none yet."""
        try:
            if self._replay is None:
                self._replay = _record(fixed) if fixed.positions.is_cuda else fixed.evaluate
                self.recordings += 1
            return fixed.read(self._replay())
        except (MemoryError, RuntimeError) as problem:
            short = memory.out_of_memory(problem)
            self._give_up("memory does not suffice" if short else f"it failed ({str(problem).strip().splitlines()[0]})")
            return None

    def _prove(self, atoms: Atoms, found: Answer) -> bool:
        """Compare a new recording with the ordinary evaluation, relative to the largest value (at least 1 eV, 1 eV/Å)."""
        assert self._fixed is not None
        exact = self.potential.predict(self.neighbors.batch(atoms), level=self.potential.levels[self.level])
        self.error = 0.0
        for key, value in (("atomic_energy", found.energies), ("forces", found.forces), ("virial", found.virial)):
            true = exact[key].reshape(value.shape).cpu()
            least = float(len(atoms)) if key == "virial" else 1.0
            error = float((value - true).abs().max() / true.abs().max().clamp(min=least))
            self.error = max(self.error, error if np.isfinite(error) else float("inf"))
        self._proven = self.error <= TOLERANCE[self.potential.dtype]
        if self._proven:
            title = TITLE[self.neighbors.device.type]
            log.info("%s: %d atoms, %d neighbor slots each", title, len(atoms), self._fixed.width)
        else:
            self._give_up(f"it differs from the reference by {self.error:.1e}")
        return self._proven

    def _give_up(self, reason: str) -> None:
        """Use it no more for this structure, and say so aloud."""
        self._drop()
        self._failed = True
        self._say(reason, logging.WARNING)

    def _say(self, refusal: str, severity: int = logging.INFO) -> None:
        """Note why the ordinary evaluation runs, in the log too when that is news."""
        if refusal != self.refusal:
            self.refusal = refusal
            title = TITLE[self.neighbors.device.type]
            log.log(severity, "no %s: %s; the ordinary evaluation runs instead", title, refusal)


def _rounded(slots: int) -> int:
    return -(-(slots + SPARE) // ROUND) * ROUND


def _record(fixed: FixedShapes) -> Callable[[], Tensor]:
    """Record ``fixed.evaluate`` on its CUDA device; what is returned replays it."""
    device = fixed.positions.device
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                fixed.evaluate()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = fixed.evaluate()

    def replay() -> Tensor:
        graph.replay()
        return answer

    return replay


def small_system() -> tuple[Potential, Atoms]:
    """A random small model, its forces of the size of real ones, and a distorted crystal: what checks are made with."""
    from ase.build import bulk

    from dpa1.config.model import ModelConfig
    from dpa1.model.potential import Potential

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        potential = Potential(ModelConfig(size="small", elements=("Na", "Cl"), cutoff=4.0, mean_neighbors=20.0))
    potential.descriptor.scale.fill_(0.03)
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=0)
    return potential, atoms


def report(device: str) -> list[dict[str, Any]]:
    """The fixed step on a small crystal in both precisions, as ``dispatch.report`` lists fast paths."""
    potential, atoms = small_system()
    found = []
    for precision in ("float32", "float64"):
        calculator = potential.calculator(dtype=precision, device=device, fixed_shapes=True)
        calculator.get_forces(atoms)
        step = calculator.fixed_step
        error = float("inf") if step is None or step.error is None else step.error
        title = TITLE[torch.device(device).type]
        ok = error <= TOLERANCE[calculator.potential.dtype]
        found.append({"operation": "step", "path": title, "precision": precision, "error": error, "ok": ok})
    return found
