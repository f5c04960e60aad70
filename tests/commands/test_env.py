"""`env`: the facts of this process."""

import json
import platform

import torch

from diffusers_lasers.commands.env import package_version


def test_both_forms_say_the_same(run):
    code, output, errors = run("env --json")
    facts = json.loads(output)
    assert (code, errors) == (0, "")
    assert facts["python"] == platform.python_version() and facts["torch"] == package_version("torch")
    assert facts["torch threads"].startswith(str(torch.get_num_threads()))
    assert {"diffusers", "diffusers_lasers", "device", "OMP_NUM_THREADS"} <= set(facts)
    assert run("env")[1].splitlines() == [f"{name}: {value}" for name, value in facts.items()]


def test_a_missing_package_is_said_to_be():
    assert package_version("no-such-package") == "not installed"
