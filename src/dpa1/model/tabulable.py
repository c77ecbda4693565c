"""What a potential can do with tables: be copied into a tabulated one, build them, and refuse to be trained then."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from dpa1.errors import UserError
from dpa1.model.table import Tables

if TYPE_CHECKING:
    from typing import Self

    from dpa1.model.potential import Potential


class Tabulable(nn.Module):
    """The part of ``Potential`` that deals with tables."""

    energy_bias: Tensor
    _tables: Tables | None = None

    def types(self, numbers: Tensor) -> Tensor:
        """(N,) atomic numbers → element indices."""
        raise NotImplementedError

    @property
    def tables(self) -> Tables | None:
        """Those of a potential made by ``tabulated``; their ``reports`` say what was built and measured."""
        return self._tables

    @torch.inference_mode(False)  # as a potential that is loaded
    def tabulated(self, max_force_error: float = 1e-6, elements: Iterable[str] | None = None) -> Self:
        """A copy that looks up in tables what depends on one distance and two elements only; faster, for inference.

        Its state dict, and the file it is saved to, are those of this potential. Tables are built here for ``elements``
        (chemical symbols), and for others when a structure first holds them.

        Parameters
        ----------
        max_force_error: eV/Å; bound on what the tables change a force by, before rounding to the potential's precision.

        Raises
        ------
        UserError
            for an element the model does not know, or a bound that is not positive.
        RunError
            when the bound cannot be met.
        """
        if not max_force_error > 0:
            raise UserError(f"max_force_error: must be positive, in eV/Å (given: {max_force_error:g})")
        copied = copy.deepcopy(self).eval().requires_grad_(False)
        copied._tables = Tables(max_force_error)
        if elements is not None:
            copied.build_tables(elements)
        return copied

    def build_tables(self, elements: Iterable[str]) -> None:
        """Build the tables of a potential made by ``tabulated`` for these elements (chemical symbols) now."""
        assert self.tables is not None
        numbers = [atomic_numbers.get(symbol, 0) for symbol in elements]
        self.tables.prepare(cast("Potential", self), self.types(torch.tensor(numbers, device=self.energy_bias.device)))

    def train(self, mode: bool = True) -> Self:
        """As in torch; a tabulated potential refuses, because its tables would not follow the weights."""
        if mode and self.tables is not None:
            raise UserError("a tabulated potential cannot be trained; train the one it was made from and tabulate that")
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As in torch; refused as in ``train``."""
        if requires_grad and self.tables is not None:
            raise UserError("a tabulated potential cannot be trained; train the one it was made from and tabulate that")
        return super().requires_grad_(requires_grad)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As in torch; tables of the weights there were are forgotten."""
        if self.tables is not None:
            self.tables.clear()
        return super().load_state_dict(*arguments, **options)
