"""Scripts that the other tests run in a process that has imported everything also start in one that has not."""

import pytest


SCRIPTS = ("examples/train_refiner.py", "utils/fuzz_codes.py", "benchmarks/benchmark_codec_speed.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_in_an_interpreter_of_its_own(starts, script):
    starts(script)
