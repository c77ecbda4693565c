"""Options of the test run."""

import importlib.util
import os
import sys

import pytest
from hypothesis import settings

# Tests are small: a second thread costs more than it brings, and far more when the cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more about the machine than about the code.
# In CI always the same examples: a new one that fails belongs on the desk of whoever runs the tests by hand.
settings.register_profile("dpa1", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("dpa1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deepmd-python", help="interpreter that has deepmd-kit, for the tests marked 'deepmd'")


@pytest.fixture(scope="session")
def deepmd_python(request: pytest.FixtureRequest) -> str:
    """An interpreter that can import deepmd-kit; tests that need one are skipped without."""
    given = request.config.getoption("--deepmd-python")
    if given is None and importlib.util.find_spec("deepmd") is None:
        pytest.skip("deepmd-kit is not installed; give --deepmd-python=PATH")
    return given or sys.executable
