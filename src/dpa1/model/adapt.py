"""A trained potential made ready for other data: with further elements, and with the levels of theory one needs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from dpa1.errors import UserError
from dpa1.model.elements import TypeEmbedding
from dpa1.model.networks import Dense
from dpa1.model.periodic import nearest
from dpa1.model.potential import DTYPES, Potential


def parents(base: Potential, symbols: Sequence[str]) -> dict[str, str]:
    """Those of ``symbols`` that ``base`` was not trained on → the trained element nearest in the periodic table.

    Raises
    ------
    UserError
        for an element the base leaves out of its energy, which no training can change.
    """
    left_out = [symbol for symbol in symbols if symbol in base.config.exclude_elements]
    if left_out:
        raise UserError(
            f"the base leaves {', '.join(left_out)} out of its energy (exclude_elements), so it cannot learn them; "
            "use another base"
        )
    known = [atomic_numbers[symbol] for symbol in base.trained_elements]
    new = [symbol for symbol in symbols if symbol not in base.trained_elements]
    return {symbol: chemical_symbols[nearest(atomic_numbers[symbol], known)] for symbol in new}


@torch.no_grad()
def adapt(base: Potential, new: dict[str, str], levels: Sequence[str], sources: Sequence[int]) -> Potential:
    """A copy of ``base`` that has further elements and other levels of theory; nothing else changes.

    Parameters
    ----------
    new: element → the base's element whose type embedding, normalisation and energy bias it starts with.
    levels: names of the levels.  sources: for each, the number of the base's level it is a copy of.
    """
    elements = (*base.elements, *(symbol for symbol in new if symbol not in base.elements))
    row = torch.tensor([base.elements.index(new.get(symbol, symbol)) for symbol in elements])
    potential = Potential(base.config.model_copy(update={"elements": elements}), levels)
    precision = {dtype: name for name, dtype in DTYPES.items()}
    potential.set_precision(precision[base.dtype], precision[base.fitting.output.weight.dtype])
    old, into = base.descriptor, potential.descriptor
    state = old.state_dict()
    table = "type_embedding.net.layers.0.weight"
    for name in ("mean", "scale"):
        state[name] = state[name][row]
    if not base.config.electron_configuration and row.tolist() != list(range(len(base.elements))):
        # The layer may add an identity, which depends on the number of elements: the vectors themselves are kept.
        state[table] = state[table][row]
        into.load_state_dict(state)
        state[table] = old.type_embedding()[row] - _beside_weight(into.type_embedding, state[table])
    into.load_state_dict(state)
    heads = [base.fitting, *base.level_fittings]
    for place, head in enumerate([potential.fitting, *potential.level_fittings]):
        head.load_state_dict(heads[sources[place] if len(heads) > 1 else 0].state_dict())
    potential.energy_bias.copy_(base.energy_bias[list(sources)][:, row])
    potential.info = copy.deepcopy(base.info)
    if "trained_elements" in base.info:
        potential.info["trained_elements"] = [s for s in elements if s in base.trained_elements or s in new]
    return potential.eval()


def _beside_weight(embedding: TypeEmbedding, like: Tensor) -> Tensor:
    """(E, width) what the type-embedding layer gives beside its weight rows: its bias and, by its widths, an identity."""
    layer = cast(Dense, embedding.net.layers[0])
    kept = layer.weight.detach().clone()
    layer.weight.zero_()
    beside: Tensor = embedding()
    layer.weight.copy_(kept)
    return beside.to(like)
