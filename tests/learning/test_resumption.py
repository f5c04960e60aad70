"""A fit that was stopped and goes on is the fit that was not; files are whole or refused."""

import json
import os
import stat
import struct

import pytest
import torch
from safetensors.torch import save_file

from diffusers_lasers import OnlineDictionaryLearner


ARGUMENTS = {"num_atoms": 64, "sparsity": 2, "batch_size": 50, "revive_every": 2, "revive_fraction": 0.1, "seed": 3}
SIGNALS = torch.randn(330, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2, 8)  # 7 minibatches


class Stop(Exception):
    pass


def stop_at(step):
    def callback(learner):
        if learner.step == step:
            raise Stop

    return callback


def everything(learner):
    return {name: value for name, value in learner.state_dict().items() if name != "config"}


def assert_same(learner, other):
    for (name, value), theirs in zip(everything(learner).items(), everything(other).values(), strict=True):
        assert torch.equal(value, theirs) if torch.is_tensor(value) else value == theirs, name


@pytest.fixture(params=["tensor", "items"])
def signals(request):
    return SIGNALS if request.param == "tensor" else SIGNALS.split(130)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "dictionary.safetensors"
    OnlineDictionaryLearner(**ARGUMENTS).fit(SIGNALS, steps=5, progress=False).save(path)
    return path


@pytest.mark.parametrize("step", [1, 3, 4, 7, 8, 11, 14, 20])
def test_a_stopped_fit_goes_on_exactly(tmp_path, signals, step):
    whole = OnlineDictionaryLearner(**ARGUMENTS).fit(signals, steps=21, progress=False)
    assert whole.revived > 0
    stopped = OnlineDictionaryLearner(**ARGUMENTS)
    with pytest.raises(Stop):
        stopped.fit(signals, steps=21, progress=False, callback=stop_at(step))
    stopped.save(tmp_path / "state")
    torch.rand(3)  # the global generator may be anywhere
    resumed = OnlineDictionaryLearner.load(tmp_path / "state")
    assert resumed.step == step and torch.equal(resumed.dictionary, stopped.dictionary)
    assert_same(resumed.fit(signals, steps=21, resume=True, progress=False), whole)
    # the learner itself, and another one with the same arguments
    other = OnlineDictionaryLearner(**ARGUMENTS)
    other.load_state_dict(stopped.state_dict())
    for learner in (stopped, other):
        assert_same(learner.fit(signals, steps=21, resume=True, progress=False), whole)


def test_passes_count_from_the_start():
    whole = OnlineDictionaryLearner(**ARGUMENTS).fit(SIGNALS, passes=3, progress=False)
    parts = OnlineDictionaryLearner(**ARGUMENTS).fit(SIGNALS, passes=1, progress=False)
    assert_same(parts.fit(SIGNALS, passes=3, resume=True, progress=False), whole)
    assert_same(parts.fit(SIGNALS, passes=3, resume=True, progress=False), whole)  # nothing is left to do
    assert parts.position.passes == 3 and parts.step == 21


def test_an_iterator_that_starts_anew_resumes():
    whole = OnlineDictionaryLearner(**ARGUMENTS).fit(SIGNALS.split(130), progress=False)
    stopped = OnlineDictionaryLearner(**ARGUMENTS)
    with pytest.raises(Stop):
        stopped.fit(iter(SIGNALS.split(130)), progress=False, callback=stop_at(4))
    assert_same(stopped.fit(iter(SIGNALS.split(130)), resume=True, progress=False), whole)


def test_a_state_is_a_copy():
    learner = OnlineDictionaryLearner(**ARGUMENTS).fit(SIGNALS, steps=2, progress=False)
    state = learner.state_dict()
    kept = {name: value.clone() for name, value in state.items() if torch.is_tensor(value)}
    other = OnlineDictionaryLearner(**ARGUMENTS)
    other.load_state_dict(state)
    for each in (learner, other):
        each.fit(SIGNALS, steps=9, resume=True, progress=False)
    for name, value in kept.items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    "arguments",
    [
        {"init": torch.randn(8, 64, generator=torch.Generator().manual_seed(1))},
        {"dtype": torch.float64, "pursuit": "ols", "tolerance": 0.25, "init": "random", "revive_every": None},
        {"forgetting": 1.0},
    ],
)
def test_a_file_holds_the_arguments(tmp_path, arguments):
    learner = OnlineDictionaryLearner(**ARGUMENTS | arguments)
    for steps in (None, 6):
        if steps:
            learner.fit(SIGNALS, steps=steps, progress=False)
        learner.save(str(tmp_path / "state"))
        loaded = OnlineDictionaryLearner.load(str(tmp_path / "state"))
        assert loaded.config == learner.config and loaded.dtype == learner.dtype
        assert_same(loaded, learner)
    # a fit that starts anew starts from the same dictionary
    for each in (learner, loaded):
        each.fit(SIGNALS, steps=3, progress=False)
    assert_same(loaded, learner)


def test_a_state_of_other_arguments_is_refused():
    state = OnlineDictionaryLearner(**ARGUMENTS).fit(SIGNALS, steps=2, progress=False).state_dict()
    for arguments in ({"num_atoms": 63}, {"batch_size": 49}, {"seed": 4}, {"dtype": torch.float64}):
        other = OnlineDictionaryLearner(**ARGUMENTS | arguments)
        with pytest.raises(ValueError, match=f"`state` must have {next(iter(arguments))} .* as this learner"):
            other.load_state_dict(state)
        assert other.dictionary is None


def test_a_file_is_replaced_in_one_step(file, monkeypatch):
    before = file.read_bytes()
    learner = OnlineDictionaryLearner(**ARGUMENTS).fit(SIGNALS, steps=9, progress=False)

    def fail(*arguments):
        raise OSError("no space left")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space left"):
            learner.save(file)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]
    learner.save(file)
    assert os.listdir(file.parent) == [file.name] and OnlineDictionaryLearner.load(file).step == 9
    (file.parent / "other").touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((file.parent / "other").stat().st_mode)


@pytest.mark.parametrize("length", [0, 4, 100, 2000, -1])
def test_a_file_that_was_cut_off_is_refused(file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"`path` must be a whole file of a saved OnlineDictionaryLearner, got '.*"):
        OnlineDictionaryLearner.load(file)


def test_a_changed_byte_is_noticed_anywhere(file):
    content = file.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    places = [*range(0, start, 37), *range(start, len(content), 997), len(content) - 1]
    assert len(places) > 20
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ValueError, match="`path` must be a whole file"):
            OnlineDictionaryLearner.load(file)


def test_other_files_are_refused(tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "weights")
    save_file({"x": torch.zeros(3)}, tmp_path / "other", {"kind": "Other", "values": json.dumps({}), "sha256": ""})
    (tmp_path / "text").write_text("a dictionary")
    for name in ("weights", "other", "text"):
        with pytest.raises(ValueError, match="`path` must be a whole file"):
            OnlineDictionaryLearner.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        OnlineDictionaryLearner.load(tmp_path / "nothing")
