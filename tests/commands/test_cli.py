"""The entry: help, errors in one line, exit codes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError

from diffusers_lasers.commands import main
from diffusers_lasers.commands.cli import COMMANDS
from diffusers_lasers.commands.env import EnvironmentCommand


ROOT = Path(__file__).resolve().parents[2]


def start(*words, options=(), **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *options, "-m", "diffusers_lasers", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_module_prints_help_and_loads_no_model_for_it():
    process = start("--help", options=("-X", "importtime"))
    assert process.returncode == 0 and all(command.name in process.stdout for command in COMMANDS)
    loaded = re.findall(r"\| +([\w.]+)$", process.stderr, flags=re.MULTILINE)
    assert "diffusers_lasers.commands.cli" in loaded
    assert not [name for name in loaded if name.startswith(("diffusers_lasers.models", "diffusers.models"))]


def test_a_process_with_a_model_of_the_hub_ends_with_the_code_and_one_line(saved, local_hub, tmp_path):
    """Libraries that load a model have much to say; stderr is left to the error."""
    (local_hub.root / "someone").symlink_to(saved, target_is_directory=True)
    (tmp_path / "x.code").write_bytes(b"something else")
    words = ("decode", tmp_path / "x.code", tmp_path / "x.png", "--model", "someone/pipeline", "--subfolder", "vae")
    process = start(*words, HF_HOME=str(tmp_path), **local_hub.environment)
    assert process.returncode == 2 and process.stdout == ""
    assert re.fullmatch(r"diffusers-lasers decode: error: .*x\.code: the data must be .*\n", process.stderr)


def test_the_console_script_is_the_entry():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    module, name = re.search(r'"diffusers-lasers=([\w.]+):(\w+)"', text).groups()
    assert getattr(sys.modules[module], name) is main


RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://hub"))


@pytest.mark.parametrize(
    "error, message",
    [
        (LocalEntryNotFoundError("offline"), "the Hub, which may have such a repository, cannot be reached"),
        (RepositoryNotFoundError("404\nmore", response=RESPONSE), "the Hub gave no such repository: 404\n"),
        (
            RemoteEntryNotFoundError("404", response=RESPONSE),
            "its folder 'vae' holds neither config.json nor model_index",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line(run, monkeypatch, error, message):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    code, output, errors = run("inspect someone/nothing --subfolder vae")
    assert (code, output) == (2, "") and errors.count("\n") == 1 and message in errors


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_shows_an_example(run, command):
    code, output, errors = run(f"{command.name} --help")
    assert (code, errors) == (0, "")
    assert f"diffusers-lasers {command.name}" in output.split("example:")[1]


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "name a command: env, encode, decode, evaluate, fit-prior, inspect"),
        ("compress", "invalid choice: 'compress'"),
        ("encode saved/a.png", "required: CODE_FILE, --model"),
        ("encode saved/a.png x.code --model saved/dl --coefficient_bits many", "an integer or `float`, got 'many'"),
    ],
)
def test_words_that_are_no_command_line_are_one_line(run, line, message):
    code, output, errors = run(line)
    assert (code, output) == (2, "") and errors.count("\n") == 1 and message in errors


def raising(error):
    def run(self):
        raise error

    return run


def test_an_interruption_is_quiet(run, monkeypatch):
    monkeypatch.setattr(EnvironmentCommand, "run", raising(KeyboardInterrupt()))
    assert run("env") == (130, "", "")


def test_debug_shows_where_an_error_comes_from(run, monkeypatch):
    monkeypatch.setattr(EnvironmentCommand, "run", raising(OSError("two\n  lines")))
    assert run("env") == (2, "", "diffusers-lasers env: error: two lines\n")
    code, _, errors = run("env --debug")
    assert (
        code == 2
        and errors.startswith("Traceback")
        and 'File "' in errors
        and errors.endswith("OSError: two\n  lines\n")
    )


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(EnvironmentCommand, "run", raising(KeyError("fault")))
    with pytest.raises(KeyError):
        main(["env"])


def test_a_reader_that_has_read_enough_is_no_error(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["env"]) == 0
