"""The configuration reference is what the sections say."""

import json
from pathlib import Path

from dpa1.config.reference import keys, markdown, schema
from dpa1.config.run import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_page_is_current():
    """Write it anew with  dpa1 train --keys > docs/config.md."""
    assert PAGE.read_text(encoding="utf-8") == markdown()


def test_every_key_says_what_it_means():
    undocumented = [key.name for key in keys() if not key.meaning]
    assert not undocumented


def test_schema_names_every_section():
    assert set(json.loads(schema())["properties"]) == set(RunConfig.model_fields)
