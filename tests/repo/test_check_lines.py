"""The check of line lengths in Markdown: it names what is too long and can be broken, and nothing else."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).resolve().parents[2] / "utils" / "check_lines.py"
WORDS = ("word " * 30).strip()


@pytest.fixture(scope="module")
def check():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("check_lines", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_exit_code_says_what_was_found(tmp_path):
    for text, code, output in (
        ("short", 0, "Markdown: no line of more than 120 columns\n"),
        (WORDS, 1, "README.md:1 has more than 120 columns\n"),
    ):
        (tmp_path / "README.md").write_text(text)
        process = subprocess.run([sys.executable, SCRIPT, "--root", tmp_path], capture_output=True, text=True)
        assert (process.returncode, process.stdout) == (code, output)


@pytest.mark.parametrize("page", ["README.md", "docs/source/en/api/page.md", "examples/reproduce/README.md"])
def test_a_long_line_is_named_with_its_page(check, tmp_path, page):
    (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / page).write_text(f"# Page\n\n{'x' * 60} {'y' * 59}\n{'x' * 60} {'y' * 60}\n")
    assert check.violations(tmp_path) == [f"{page}:4 has more than 120 columns"]


@pytest.mark.parametrize(
    "line",
    [
        f"- {WORDS}",
        f"> {WORDS}",
        f"text `{WORDS}`",
        f"- text [{WORDS}](page)",
        f"```bash\npython script.py {WORDS}\n```",
        f"$$\n{WORDS}\n$$",
    ],
)
def test_what_can_be_broken_is_too_long(check, line):
    assert len(check.too_long(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        f"| {WORDS} | {WORDS} |",
        f"![{WORDS}](image.png)",
        f"[{WORDS}](page)",
        f"  - `{WORDS}`",
        f"3. `{WORDS}`",
        "https://example.com/" + "x" * 120,
        "x " * 60,
        "é " * 60,
    ],
)
def test_what_cannot_be_broken_and_tables_are_not(check, line):
    assert check.too_long(line.rstrip()) == []
