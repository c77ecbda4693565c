"""The electron configurations that type embeddings are built from."""

import hashlib

import numpy as np
from ase.data import chemical_symbols

from dpa1.model.elements import electron_configuration

# Of DeePMD-kit's table (deepmd/utils/econf_embd.py), rows H … Og as int8; test_deepmd_kit.py compares with the original.
SHA256 = "306fe19a29d49dbedebe1c8ee400eb89bd5ccbae623894269c3f62725fecbbc0"


def test_table_is_deepmd_kits() -> None:
    table = np.array([electron_configuration(symbol) for symbol in chemical_symbols[1:]]).astype(np.int8)
    assert table.shape == (118, 118)
    assert hashlib.sha256(table.tobytes()).hexdigest() == SHA256


def test_every_element_has_its_electrons() -> None:
    for number, symbol in enumerate(chemical_symbols[1:], start=1):
        assert (electron_configuration(symbol) > 0).sum() == number
