"""Calls the command line as a person does and returns exit code, stdout and stderr."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpa1.cli.main import main


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


def call(capsys: pytest.CaptureFixture, *arguments: object) -> Result:
    """In this process: the same entry point, without the second that starting Python and torch takes."""
    before = sys.argv
    sys.argv = ["dpa1", *map(str, arguments)]
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return Result(code, captured.out, captured.err)


def spawn(*arguments: object, cwd: Path, **environment: str) -> Result:
    """In a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "dpa1", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    return Result(done.returncode, done.stdout, done.stderr)


def assert_refused(result: Result, *words: str) -> None:
    """Exit code 2, one sentence on stderr with these words, no trace and nothing on stdout."""
    assert result.code == 2, result.err
    assert result.out == ""
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in result.err
    for word in words:
        assert word in lines[0], lines[0]
