"""A fit that was stopped and goes on is the fit that was not; files are whole or refused."""

import errno
import json
import math
import os
import stat
import struct
from copy import deepcopy
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusers_lasers import OnlineDictionaryLearner
from diffusers_lasers.learning import state_files as files
from diffusers_lasers.learning.state_files import read_state, write_state


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
        with pytest.raises(ValueError, match=f"`state` must have {next(iter(arguments))} .* like this learner"):
            other.load_state_dict(state)
        assert other.dictionary is None


def test_a_file_is_replaced_in_one_step(file, monkeypatch):
    before = file.read_bytes()
    learner = OnlineDictionaryLearner(**ARGUMENTS).fit(SIGNALS, steps=9, progress=False)

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "no space left")

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
    with pytest.raises(
        ValueError, match=r"`path` must be the unchanged file of a saved OnlineDictionaryLearner, got '.*"
    ):
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
        with pytest.raises(ValueError, match="`path` must be the unchanged file"):
            OnlineDictionaryLearner.load(file)


def test_other_files_are_refused(tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "weights")
    save_file({"x": torch.zeros(3)}, tmp_path / "other", {"kind": "Other", "values": json.dumps({}), "sha256": ""})
    (tmp_path / "text").write_text("a dictionary")
    for name in ("weights", "other", "text"):
        with pytest.raises(ValueError, match="`path` must be the unchanged file"):
            OnlineDictionaryLearner.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        OnlineDictionaryLearner.load(tmp_path / "nothing")


# --- files that are whole and sealed, and lie -------------------------------------------------------------------------

KIND = "OnlineDictionaryLearner"
_VALUES = [
    None, True, -1, 0, 3, 2**31, 2**70, 0.5, -0.5, 1e300, math.nan, math.inf, -math.inf, "", "omp", "given", "float16",
    [], [1, 2], [0, 0, -1],
    [0, 0, 2**80], {}, {"a": 1}, [[]], "\u0000", torch.zeros(0), torch.zeros(3), torch.tensor(math.nan),
    torch.zeros(8, 64, dtype=torch.int8),
    torch.full((8, 64), math.nan), torch.full((64, 64), math.inf), torch.full((64,), -1),
    torch.zeros(64, 8, dtype=torch.complex64),
    torch.zeros(64, 64, dtype=torch.float64), torch.zeros(8, 64, dtype=torch.float8_e4m3fn), torch.zeros(2, 2, 2),
]  # fmt: skip


def damaged(state, random):
    """The state with one to three entries replaced, missing or new, at the top or among the arguments."""
    state = {**state, "config": dict(state["config"])}
    for _ in range(random.randint(1, 3)):
        value = random.choice(_VALUES)
        value = value.clone() if isinstance(value, torch.Tensor) else deepcopy(value)  # shared with no other entry
        part = state["config"] if random.random() < 0.4 and isinstance(state.get("config"), dict) else state
        if part is not state and isinstance(value, torch.Tensor):
            continue
        name = random.choice([*part, "unknown"]) if part else "unknown"
        if random.random() < 0.2:
            part.pop(name, None)
        else:
            part[name] = value
    return state


def check_damaged_files(path, count, seed):
    """Loads so many damaged files; how many of them were learners all the same, each of which can go on."""
    random, loaded = Random(seed), 0
    whole, scratch = read_state(path, KIND), path.with_name("damaged")
    given = OnlineDictionaryLearner(**ARGUMENTS | {"init": torch.randn(8, 64)}).state_dict()
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    for case in range(count):
        kind = case % 4
        if kind < 2:
            write_state(scratch, KIND, damaged(whole if kind else {**whole, **given} if case % 8 else given, random))
        else:
            changed = bytearray(content[: random.randrange(len(content))] if kind == 2 else content)
            for _ in range(random.randint(1, 8)):
                place = random.randrange(start if random.random() < 0.7 else len(content))
                if place < len(changed):
                    changed[place] = random.choice((0, 1, 34, 44, 91, 123, 125, 255, random.randrange(256)))
            scratch.write_bytes(changed)
        try:
            learner = OnlineDictionaryLearner.load(scratch)
        except ValueError as error:
            assert str(error).startswith("`") and "\n" not in str(error), (case, error)
            continue
        loaded += 1
        if learner.dictionary is not None:
            assert learner.dictionary.isfinite().all()
            learner.encode(torch.randn(2, learner.dictionary.shape[0]))
    return loaded


def test_damaged_files_are_refused_or_learners(file):
    assert 0 < check_damaged_files(file, 2000, seed=0) < 1000


@pytest.mark.slow
def test_many_damaged_files_are_refused_or_learners(file):
    assert 0 < check_damaged_files(file, 40_000, seed=1) < 20_000


def test_a_sealed_file_of_other_numbers_is_refused(file, tmp_path):
    state = read_state(file, KIND)
    for name, value in (
        ("dictionary", torch.full((8, 64), math.nan)),
        ("dictionary", torch.zeros(8, 63)),
        ("code_statistics", torch.full((64, 64), math.inf)),
        ("counts", torch.full((64,), -1)),
        ("scale", 0.0),
        ("scale", math.nan),
        ("step", -1),
        ("position", [0, 0]),
        ("change", "small"),
        ("config", {**state["config"], "dtype": "load"}),
        ("config", {**state["config"], "pursuit": ["omp"]}),
        ("config", {**state["config"], "tolerance": "8"}),
        ("config", {**state["config"], "unknown": 1}),
    ):
        write_state(tmp_path / "sealed", KIND, {**state, name: value})
        with pytest.raises(ValueError, match="`"):
            OnlineDictionaryLearner.load(tmp_path / "sealed")
        learner = OnlineDictionaryLearner.load(file)
        before = learner.state_dict()
        with pytest.raises(ValueError, match="`"):
            learner.load_state_dict({**state, name: value})
        assert torch.equal(learner.dictionary, before["dictionary"]) and learner.step == before["step"]


def test_a_file_of_many_brackets_and_what_is_no_file(tmp_path):
    values = "[" * 100_000
    tensors = {"x": torch.zeros(1)}
    digest = files._digest(KIND, values, tensors)
    save_file(tensors, tmp_path / "brackets", {"kind": KIND, "values": values, "sha256": digest})
    os.mkfifo(tmp_path / "pipe")
    for name in ("brackets", "pipe", "."):
        with pytest.raises(ValueError, match="`path` must be the unchanged file"):
            OnlineDictionaryLearner.load(tmp_path / name)
    with pytest.raises(ValueError, match="`path` must be a regular file"):
        OnlineDictionaryLearner(**ARGUMENTS).save(tmp_path / "pipe")


def test_a_file_from_before_the_change_was_recorded_goes_on(file, tmp_path):
    state = read_state(file, KIND)
    state.pop("change")
    write_state(tmp_path / "old", KIND, state)
    for path in (file, tmp_path / "old"):
        assert_same(OnlineDictionaryLearner.load(path), OnlineDictionaryLearner.load(file))


# --- the end by a small change ----------------------------------------------------------------------------------------


def test_a_fit_ends_when_the_dictionary_changes_little():
    changes, atoms = [], []

    def note(learner):
        changes.append(learner.change), atoms.append(learner.dictionary)

    arguments = {**ARGUMENTS, "revive_every": 0}
    whole = OnlineDictionaryLearner(**arguments).fit(
        SIGNALS, passes=40, progress=False, change_tolerance=1e-12, callback=note
    )
    assert whole.step == len(changes) == 280
    for before, after, change in zip(atoms, atoms[1:], changes[1:]):
        assert change == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)
    tolerance = sorted(changes)[60]
    step = next(number for number, change in enumerate(changes, 1) if change <= tolerance)
    ended = OnlineDictionaryLearner(**arguments).fit(SIGNALS, passes=40, progress=False, change_tolerance=tolerance)
    assert 1 < ended.step == step < 280 and ended.change == changes[step - 1]
    assert torch.equal(ended.dictionary, atoms[step - 1])
    # nothing is left to do with the same tolerance, something with a smaller one
    again = OnlineDictionaryLearner(**arguments)
    again.load_state_dict(ended.state_dict())
    assert again.fit(SIGNALS, passes=40, resume=True, progress=False, change_tolerance=tolerance).step == step
    again.fit(SIGNALS, passes=40, resume=True, progress=False)
    assert again.step == 280 and torch.equal(again.dictionary, whole.dictionary) and again.change is None


def test_a_fit_that_ends_early_goes_on_exactly():
    arguments, options = {**ARGUMENTS, "revive_every": 0}, {"passes": 40, "progress": False, "change_tolerance": 0.02}
    whole = OnlineDictionaryLearner(**arguments).fit(SIGNALS, **options)
    assert 3 < whole.step < 280
    for step in (1, 3, whole.step):
        stopped = OnlineDictionaryLearner(**arguments)
        with pytest.raises(Stop):
            stopped.fit(SIGNALS, callback=stop_at(step), **options)
        assert_same(stopped.fit(SIGNALS, resume=True, **options), whole)


@pytest.mark.parametrize("wrong", [-1e-3, math.nan, math.inf, "1e-3", None])
def test_a_tolerance_of_the_change_is_checked(wrong):
    with pytest.raises(ValueError, match="`change_tolerance` must be a finite number of at least 0, got"):
        OnlineDictionaryLearner(**ARGUMENTS).fit(SIGNALS, progress=False, change_tolerance=wrong)


# --- arrays of NumPy --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_arrays_are_learned_like_tensors(tmp_path):
    first = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    expected = OnlineDictionaryLearner(**ARGUMENTS, init=first).fit(SIGNALS, passes=2, progress=False)
    np.save(tmp_path / "signals.npy", SIGNALS.numpy())
    mapped = np.load(tmp_path / "signals.npy", mmap_mode="r")
    for signals in (SIGNALS.numpy(), mapped):
        learner = OnlineDictionaryLearner(**ARGUMENTS, init=first.numpy()).fit(signals, passes=2, progress=False)
        assert_same(learner, expected)
    items = OnlineDictionaryLearner(**ARGUMENTS, init=first.numpy())
    items.fit([part.numpy() for part in SIGNALS.split(130)], passes=2, progress=False)
    assert_same(
        items, OnlineDictionaryLearner(**ARGUMENTS, init=first).fit(SIGNALS.split(130), passes=2, progress=False)
    )
    for found, wanted in zip(learner.encode(mapped), expected.encode(SIGNALS)):
        assert isinstance(found, torch.Tensor) and torch.equal(found, wanted)
    assert learner.objective(mapped) == expected.objective(SIGNALS)
    assert learner.objective([mapped[:100], mapped[100:]]) == pytest.approx(expected.objective(SIGNALS), rel=1e-5)
    assert_same(learner.partial_fit(mapped[:50]), expected.partial_fit(SIGNALS[:50]))


def test_training_and_the_learner_revive_in_the_same_way():
    """One function draws: unused atoms become the signals that the others code worst."""
    from diffusers_lasers.learning import online_dictionary, revival
    from diffusers_lasers.training.dictionaries import maintenance as upkeep

    assert upkeep.revive_unused is online_dictionary.revive_unused is revival.revive_unused
    dictionary = torch.eye(4)[:, :3]
    signals = torch.eye(4)[[0, 1, 3, 3]] * torch.tensor([[5.0], [5.0], [1.0], [1.0]])
    indices, coefficients = torch.tensor([[0], [1], [0], [0]]), torch.tensor([[5.0], [5.0], [0.0], [0.0]])
    counts = torch.tensor([1, 1, 0])
    new, drawn = revival.revive_unused(
        dictionary, counts, signals, indices, coefficients, 1, 0.0, torch.Generator().manual_seed(0)
    )
    assert drawn.tolist() == [False, False, True] and torch.equal(new[:, :2], dictionary[:, :2])
    assert torch.equal(new[:, 2], torch.eye(4)[:, 3])  # not the signals that are coded exactly
