"""Damaged files of priors: a short run of `utils/fuzz_priors.py`, which finds a fault where there is one."""

import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
SCRIPT = Path(__file__).resolve().parents[2] / "utils" / "fuzz_priors.py"


def test_damaged_files_are_refused_or_codes(apart):
    code, stdout, stderr = apart(SCRIPT, "--count", 2500, "--seed", 1)
    assert code == 0, stdout + stderr
    assert "2,500 damaged files of 9 priors: 0 faults" in stdout
    assert "sealed       write_payload  a code" in stdout  # some get past all checks


def test_faults_are_reported_with_their_file(apart):
    code, stdout, _ = apart(SCRIPT, "--count", 20, "--seconds", 0.000001)
    assert code == 1 and "it takes" in stdout and "case 7, " in stdout
