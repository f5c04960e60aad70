"""Examples that the other tests run in a process that has imported everything also start in one that has not."""

import pytest


SCRIPTS = (
    *("fit_codec", "fit_latent_bottleneck", "benchmark_codec"),
    *("evaluate_retrofit", "evaluate_autoencoder", "evaluate_generation"),
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_in_an_interpreter_of_its_own(starts, script):
    starts(f"examples/{script}.py")
