"""Command lines that take whole names only, and records without secrets."""

import argparse
import re
import sys
from pathlib import Path

import pytest

from diffusers_lasers.utils.command_line import CommandParser, hide_token, recorded_arguments


ROOT = Path(__file__).resolve().parents[2]
MADE = re.compile(r"[=(] *argparse\.ArgumentParser\b|return argparse\.ArgumentParser\b")  # built, or derived from
SOURCES = [
    path for folder in ("src", "examples", "benchmarks", "utils") for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("words", [["--hub_tok", "secret"], ["sub", "--hub_tok", "secret"]])
def test_abbreviations_are_refused_in_subcommands_too(words, capsys):
    parser = CommandParser(prog="x")
    parser.add_argument("--hub_token")
    if words[0] == "sub":
        parser.add_subparsers().add_parser("sub").add_argument("--hub_token")
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert "--hub_tok" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--hub_tok=hf_a"], "--hub_tok"),
        (["--hub_tok", "hf_a"], "--hub_tok"),
        (["left", "over"], "left over"),
        (["sub", "--hub_tok", "hf_a"], "--hub_tok"),
    ],
)
def test_what_is_not_known_is_named_without_its_value(words, named, capsys):
    parser = CommandParser(prog="x")
    if words[0] == "sub":
        parser.add_subparsers().add_parser("sub").add_argument("--hub_token")
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert capsys.readouterr().err.endswith(f"unrecognized arguments: {named}\n")


def test_no_parser_but_this_one_is_made():
    made = [p.relative_to(ROOT).as_posix() for p in SOURCES if MADE.search(p.read_text(encoding="utf-8"))]
    assert made == ["src/diffusers_lasers/utils/command_line.py"]


def test_tokens_are_hidden_by_value_wherever_they_stand():
    words = ["x.py", "--hub_token", "hf_a", "--url=https://u:hf_a@h", "b"]
    assert hide_token(words, "hf_a") == ["x.py", "--hub_token", "***", "--url=https://u:***@h", "b"]
    assert hide_token(words, None) == words
    args = argparse.Namespace(hub_token="hf_a", data="https://hf_a@h", parts=["hf_a", 1], steps=3)
    assert recorded_arguments(args) == {"data": "https://***@h", "parts": ["***", 1], "steps": 3}


def test_a_token_does_not_stay_in_the_command_line_that_trackers_record(monkeypatch):
    parser = CommandParser(prog="x")
    parser.add_argument("--hub_token")
    parser.add_argument("--steps", type=int)
    for words in (["--hub_token", "hf_a"], ["--hub_token=hf_a"]):
        given = ["x.py", *words, "--steps", "3"]
        monkeypatch.setattr("sys.argv", given)
        assert parser.parse_args().hub_token == "hf_a"
        assert given[-2:] == ["--steps", "3"] and "hf_a" not in " ".join(given) and "***" in " ".join(given)
    unchanged = ["x.py", "--steps", "3"]
    monkeypatch.setattr("sys.argv", list(unchanged))
    assert parser.parse_args(["--hub_token", "3"]).hub_token == "3" and parser.parse_args().hub_token is None
    assert sys.argv == unchanged
