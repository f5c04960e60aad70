"""Damaged files of packed codes: a short run of `utils/fuzz_codes.py`, which finds a fault where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "utils" / "fuzz_codes.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_damaged_files_are_refused_or_codes():
    result = run("--count", "3000", "--seed", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3,000 damaged files of 16 decoders: 0 faults" in result.stdout
    assert "sealed       write_payload  a code" in result.stdout  # some get past all checks


def test_faults_are_reported_with_their_file():
    result = run("--count", "20", "--seconds", "0.000001")
    assert result.returncode == 1 and "it takes" in result.stdout and "case 7, " in result.stdout
