"""OnlineDictionaryLearner: planted dictionaries, peers, the definition of a step, revival, ranks, and what it
refuses."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from diffusers_lasers import OnlineDictionaryLearner
from diffusers_lasers.functional import omp, random_dictionary, synthesize
from diffusers_lasers.functional.dictionary import accumulate_statistics, block_coordinate_update, forgetting_factor


FEATURES, ATOMS, SPARSITY = 8, 24, 2
COUNTING = {
    "init": "random",
    "revive_every": 0,
}  # each signal uses all its slots, none being an atom, and all are counted


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(n=600, features=FEATURES, seed=0):
    return torch.randn(n, features, generator=seeded(seed))


def learner(**arguments):
    return OnlineDictionaryLearner(ATOMS, SPARSITY, **{"batch_size": 50, **arguments})


def fit(signals, steps=None, passes=1, **arguments):
    return learner(**arguments).fit(signals, steps=steps, passes=passes, progress=False)


def assert_unit(dictionary):
    norms = dictionary.double().norm(dim=0)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-5)


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_a_planted_dictionary_is_found_up_to_sign_and_order():
    # an orthonormal basis and 4 Hadamard columns: coherence 1/√8
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=seeded(8)))[0]
    columns = torch.tensor(hadamard(8)[:, [1, 2, 4, 7]]) / 8**0.5
    planted = rotation @ torch.cat([torch.eye(8), columns], dim=1)
    indices = torch.rand(6000, 12, generator=seeded(1)).topk(2).indices
    coefficients = torch.randn(6000, 2, generator=seeded(2))
    signals = synthesize(indices, coefficients + 0.5 * coefficients.sign(), planted) + 0.01 * gaussian(6000, seed=3)
    # the problem is not convex: of a few starts, the best
    starts = (
        OnlineDictionaryLearner(12, 2, batch_size=300, seed=seed).fit(signals, passes=4, progress=False)
        for seed in range(4)
    )
    best = min(starts, key=lambda found: found.objective(signals))
    assert best.objective(signals) < 8 * 0.01**2  # the noise is 8/2 · 0.01²
    agreement = (planted.t() @ best.dictionary).abs()
    assert agreement.amax(dim=1).min() > 0.99
    assert sorted(agreement.argmax(dim=1).tolist()) == list(range(12))  # one learned atom for each planted one


def photo_patches(name, count, seed, side=6):
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = datasets.load_sample_image(name).mean(axis=2, dtype=np.float32) / 255
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side))
    random = np.random.default_rng(seed)
    places = [random.integers(0, size, count) for size in windows.shape[:2]]
    patches = windows[tuple(places)].reshape(count, -1)
    return patches - patches.mean(axis=1, keepdims=True)


@pytest.mark.filterwarnings("ignore:Objective did not converge")
def test_no_worse_than_scikit_learn_on_photographs():
    decomposition = pytest.importorskip("sklearn.decomposition")
    train, held_out = photo_patches("china.jpg", 2000, 0), photo_patches("flower.jpg", 1000, 1)
    theirs = []
    for alpha in (0.03, 0.1):
        model = decomposition.MiniBatchDictionaryLearning(
            n_components=48,
            alpha=alpha,
            fit_algorithm="cd",
            batch_size=200,
            max_iter=2,
            transform_algorithm="omp",
            transform_n_nonzero_coefs=4,
            random_state=0,
        ).fit(train)
        residual = held_out - model.transform(held_out) @ model.components_
        theirs.append(0.5 * np.square(residual).sum(axis=1).mean())
    ours = OnlineDictionaryLearner(48, 4, batch_size=200).fit(torch.from_numpy(train), passes=2, progress=False)
    assert ours.objective(torch.from_numpy(held_out)) < min(theirs)


@pytest.mark.parametrize("pursuit", ["omp", "ols"])
def test_the_objective_falls_and_is_that_of_the_codes(pursuit):
    signals = photo_patches("china.jpg", 2000, 2)
    signals = torch.from_numpy(signals)
    values = []
    found = OnlineDictionaryLearner(48, 3, batch_size=100, pursuit=pursuit)
    found.fit(signals, passes=3, progress=False, callback=lambda found: values.append(found.objective(signals)))
    assert values[-1] < 0.9 * values[0]
    indices, coefficients = found.encode(signals)
    assert indices.shape == coefficients.shape == (2000, 3) and indices.dtype == torch.int64
    residual = signals.double() - synthesize(indices, coefficients.double(), found.dictionary.double())
    assert found.objective(signals) == pytest.approx(0.5 * residual.square().sum().item() / 2000, rel=1e-4)
    assert found.objective([signals[:700], signals[700:]]) == pytest.approx(found.objective(signals), rel=1e-5)
    assert_unit(found.dictionary)


def test_common_energy_makes_no_dictionary_of_one_atom():
    signals = torch.from_numpy(photo_patches("china.jpg", 3000, 3)) + 0.5
    shared = torch.full((36,), 1 / 6)
    first = []
    found = OnlineDictionaryLearner(40, 3, revive_every=0)
    found.fit(signals, steps=1, progress=False, callback=lambda found: first.append(found.dictionary))
    assert (shared @ first[0]).abs()[0] > 0.99
    assert ((shared @ first[0]).abs() > 0.9).sum() <= 1 + 4  # the first, and a tenth that are whole signals
    given = torch.nn.functional.normalize(signals[:40].t(), dim=0)
    whole = OnlineDictionaryLearner(40, 3, init=given, revive_every=0).fit(signals, passes=2, progress=False)
    assert found.fit(signals, passes=2, progress=False).objective(signals) < whole.objective(signals)


# --- what a step is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgetting", [0.0, 1.0, 4.0])
def test_a_step_is_the_papers(forgetting):
    start = random_dictionary(FEATURES, ATOMS, seeded(1), dtype=torch.float64)
    found = learner(init=start, forgetting=forgetting, revive_every=0, dtype=torch.float64)
    dictionary, A, B = start, torch.zeros(ATOMS, ATOMS).double(), torch.zeros(FEATURES, ATOMS).double()
    for step in range(1, 30):  # σ is multiplied in once on the way where it sinks fast
        batch = gaussian(50, seed=step).double()
        indices, coefficients = omp(batch, dictionary, SPARSITY)
        beta = forgetting_factor(step, 50) ** forgetting
        A, B = accumulate_statistics(A, B, batch, indices, coefficients, beta)
        dictionary = block_coordinate_update(dictionary, A, B)
        found.partial_fit(batch)
        torch.testing.assert_close(found.A, A, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.B, B, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.dictionary, dictionary, rtol=0, atol=1e-9)
    assert found.step == 29 and found.counts.sum() == 29 * 50 * SPARSITY


def test_a_short_minibatch_counts_by_its_signals():
    start = random_dictionary(FEATURES, ATOMS, seeded(1))
    batch = gaussian(50)
    full, part = (learner(init=start).partial_fit(part) for part in (batch, batch[:10]))
    for name in ("A", "B"):
        assert getattr(part, name).norm() < 0.4 * getattr(full, name).norm()
    torch.testing.assert_close(full.A.trace(), (50 / 10) * part.A.trace(), rtol=0.5, atol=0)


def test_a_pass_visits_each_signal_once():
    signals = gaussian(330)
    counted = fit(signals, passes=1, **COUNTING)
    assert counted.step == math.ceil(330 / 50) and counted.counts.sum() == 330 * SPARSITY
    assert fit(signals, passes=3, **COUNTING).counts.sum() == 3 * 330 * SPARSITY
    assert fit(signals, steps=9).step == 9  # in the second pass


def test_the_seed_and_nothing_else_decides():
    signals = gaussian()
    state = torch.get_rng_state()
    one, other = fit(signals, seed=1), fit(signals, seed=2)
    torch.manual_seed(5)
    again = learner(seed=1)
    for _ in range(2):  # a second fit starts anew
        assert torch.equal(again.fit(signals, progress=False).dictionary, one.dictionary)
    assert not torch.equal(one.dictionary, other.dictionary)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    fit(signals)
    assert torch.equal(torch.rand(1), expected)  # the global generator is not touched
    torch.set_rng_state(state)


def test_iterables_are_learned_item_by_item():
    signals = gaussian(400)
    whole = fit(signals, passes=2, init=random_dictionary(FEATURES, ATOMS, seeded(1)))
    one_item = fit([signals], passes=2, init=random_dictionary(FEATURES, ATOMS, seeded(1)))
    assert torch.equal(whole.dictionary, one_item.dictionary)
    many = fit(signals.split(130), passes=2, **COUNTING)
    assert many.step == 2 * (3 + 3 + 3 + 1) and many.counts.sum() == 2 * 400 * SPARSITY
    once = fit(iter(signals.split(130)), passes=1, **COUNTING)  # nothing is lost to the initialisation
    assert once.counts.sum() == 400 * SPARSITY
    loader = torch.utils.data.DataLoader(signals, batch_size=40)
    assert fit(loader).step == 10


def test_memory_mapped_signals(tmp_path):
    signals = gaussian()
    np.save(tmp_path / "signals.npy", signals.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "signals.npy", mmap_mode="c"))
    assert torch.equal(fit(mapped).dictionary, fit(signals).dictionary)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_signals_of_other_types(dtype):
    signals = gaussian().to(dtype)
    found = fit(signals)
    assert found.dictionary.dtype == found.A.dtype == torch.float32
    assert torch.equal(found.dictionary, fit(signals.float()).dictionary)
    assert found.encode(signals)[1].dtype == torch.float32


def test_float64_throughout():
    found = fit(gaussian().double(), dtype=torch.float64)
    assert {found.dictionary.dtype, found.A.dtype, found.B.dtype} == {torch.float64}
    single = fit(gaussian(), steps=2)
    torch.testing.assert_close(fit(gaussian(), steps=2, dtype=torch.float64).dictionary.float(), single.dictionary)


def test_autocast_does_not_reach_it():
    expected = fit(gaussian()).dictionary
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fit(gaussian()).dictionary, expected)


# --- degenerate signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param(torch.zeros(120, FEATURES), id="zero"),
        pytest.param(torch.ones(120, FEATURES), id="constant"),
        pytest.param(gaussian(3), id="three"),
        pytest.param(gaussian(1), id="one"),
        pytest.param(gaussian(120, 1), id="one feature"),
        pytest.param(torch.cat([torch.zeros(100, FEATURES), gaussian(5)]), id="mostly zero"),
        pytest.param(gaussian() * 1e-15, id="tiny"),
        pytest.param(gaussian() * 1e15, id="huge"),
    ],
)
@pytest.mark.parametrize("init", ["signals", "random"])
def test_degenerate_signals(signals, init):
    found = fit(signals, passes=5, init=init, revive_every=2, revive_fraction=0.5)
    assert_unit(found.dictionary)
    energy = 0.5 * signals.double().square().sum(dim=1).mean().item()
    assert 0 <= found.objective(signals) <= energy
    assert torch.isfinite(found.A).all() and torch.isfinite(found.B).all()
    if len(signals) > 1 and signals.std(dim=0).max() == 0 and init == "signals":
        assert found.objective(signals) <= 1e-10 * energy


# --- revival ----------------------------------------------------------------------------------------------------------


def buried(revive_every, revive_fraction=1.0):
    """A learner whose last 8 atoms no code can choose, since they are zero."""
    start = random_dictionary(FEATURES, ATOMS, seeded(1))
    start[:, 16:] = 0
    return learner(init=start, revive_every=revive_every, revive_fraction=revive_fraction)


def test_unused_atoms_become_signals_of_the_minibatch():
    found = buried(revive_every=3)
    for step in range(3):
        assert found.revived is None or found.revived == 0
        found.partial_fit(gaussian(200, seed=step))
    assert found.revived == 8 and found.counts.sum() == 0  # a new window
    fresh = found.dictionary[:, 16:]
    assert_unit(fresh)
    match = torch.nn.functional.normalize(gaussian(200, seed=2), dim=1) @ fresh
    assert match.amax(dim=0).min() > 0.99 and match.argmax(dim=0).unique().numel() == 8
    # no statistics, so that the next update leaves them alone until a code uses them
    assert not found.A[16:].any() and not found.A[:, 16:].any() and not found.B[:, 16:].any()
    assert found.A[:16, :16].diagonal().min() > 0


def test_the_statistics_of_a_revived_atom_do_not_pull_it_back():
    batch = gaussian(200)
    found = learner(init=random_dictionary(FEATURES, ATOMS, seeded(1)), revive_fraction=1.0).partial_fit(batch)
    gone, A, B = found.dictionary[:, 5].clone(), found.A, found.B
    found.counts.fill_(1)[5] = 0  # as if no code had used it
    found._revive(batch, *found.encode(batch))
    fresh = found.dictionary[:, 5]
    assert found.revived == 1 and (fresh @ gone).abs() < 0.9
    assert (block_coordinate_update(found.dictionary, A, B)[:, 5] @ gone).abs() > 0.9  # what the old ones would do
    assert torch.equal(block_coordinate_update(found.dictionary, found.A, found.B)[:, 5], fresh)
    others = torch.arange(ATOMS) != 5
    assert torch.equal(found.A[others][:, others], A[others][:, others])
    assert torch.equal(found.B[:, others], B[:, others])


def test_an_event_replaces_at_most_its_share():
    found = buried(revive_every=1, revive_fraction=0.1)
    for event in (1, 2, 3):
        found.partial_fit(gaussian(200, seed=event))
        assert found.revived == min(8, 3 * event)  # ⌈0.1 · 24⌉ of them


@pytest.mark.parametrize("arguments", [{"revive_every": 0}, {"revive_every": 1, "revive_fraction": 0.0}])
def test_revival_can_be_turned_off(arguments):
    found = buried(**arguments)
    for step in range(3):
        found.partial_fit(gaussian(200, seed=step))
    assert found.revived == 0 and not found.dictionary[:, 16:].any()


@pytest.mark.parametrize(
    "num_atoms, sparsity, batch_size, ranks, window",
    [(256, 5, 512, 1, 10), (1024, 2, 512, 1, 64), (1024, 2, 512, 2, 32), (4096, 4, 512, 1, 128)],
)
def test_the_window_gives_an_average_atom_64_uses(num_atoms, sparsity, batch_size, ranks, window):
    assert OnlineDictionaryLearner(num_atoms, sparsity, batch_size).config.window(ranks) == window


# --- ranks ------------------------------------------------------------------------------------------------------------


def _rank(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    start = random_dictionary(FEATURES, ATOMS, seeded(1))
    halves = learner(batch_size=25, init=start)
    for step in range(6):
        halves.partial_fit(gaussian(50, seed=step)[25 * rank : 25 * rank + 25])
    # unequal shares: 8 and 3 minibatches, 3 items and 1
    shards = fit(gaussian(400, seed=10) if rank == 0 else gaussian(120, seed=11), passes=2, revive_every=4)
    items = [gaussian(60, seed=20 + n) for n in range(3 - 2 * rank)]
    items = fit(items, passes=2, **COUNTING)
    names = ("dictionary", "A", "B", "counts", "revived")
    found = {"halves": halves, "shards": shards, "items": items}
    states = {key: {name: getattr(value, name) for name in names} for key, value in found.items()}
    torch.save({"steps": [value.step for value in found.values()], **states}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_learn_as_one(in_two_processes, tmp_path):
    ranks = in_two_processes(_rank, tmp_path)
    assert ranks[0]["steps"] == ranks[1]["steps"] == [6, 2 * 8, 2 * 3 * 2]
    for key in ("halves", "shards", "items"):
        for name, value in ranks[0][key].items():
            assert torch.equal(value, ranks[1][key][name]), (key, name)
    alone = learner(batch_size=50, init=random_dictionary(FEATURES, ATOMS, seeded(1)))
    for step in range(6):
        alone.partial_fit(gaussian(50, seed=step))
    for name, value in ranks[0]["halves"].items():
        torch.testing.assert_close(value, getattr(alone, name), rtol=1e-4, atol=1e-5, msg=name)
    assert ranks[0]["items"]["counts"].sum() == 2 * (3 * 60 + 60) * SPARSITY  # both ranks' signals, each once a pass


# --- progress and refusals --------------------------------------------------------------------------------------------


def test_progress_shows_the_objective(capsys, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: 2.0 * next(ticks))  # so that each minibatch is shown
    learner().fit(gaussian(), passes=2, progress=True)
    shown = capsys.readouterr().err
    assert "dictionary" in shown and "objective=" in shown and "24/24" in shown
    learner().fit(gaussian(), progress=False)
    assert capsys.readouterr().err == ""


def test_progress_is_the_only_thing_that_needs_tqdm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    assert fit(gaussian()).step == 12
    with pytest.raises(ImportError, match="tqdm"):
        learner().fit(gaussian())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_atoms": 0}, "`num_atoms` .* from 1 to 2147483647, got 0"),
        ({"num_atoms": 2.0}, "`num_atoms` .* got 2.0"),
        ({"sparsity": True}, "`sparsity` .* got True"),
        ({"sparsity": 25}, r"`sparsity` must be at most `num_atoms` \(24\), got 25"),
        ({"batch_size": 0}, "`batch_size` .* got 0"),
        ({"pursuit": "lasso"}, "`pursuit` must be one of 'omp', .* got 'lasso'"),
        ({"tolerance": -1.0}, "`tolerance` .* got -1.0"),
        ({"tolerance": math.nan}, "`tolerance` .* got nan"),
        ({"init": "kmeans"}, "`init` must be 'signals', 'random' or a tensor, got 'kmeans'"),
        ({"init": [[0.0]]}, "`init` must be 'signals'"),
        ({"init": "given"}, "`init` must be 'signals', 'random' or a tensor, got 'given'"),
        ({"init": np.zeros((8, 24), int)}, "`init` must be finite and floating point"),
        ({"init": torch.zeros(8, 23)}, r"`init` .* \(features, 24\), .* \(8, 23\)"),
        ({"init": torch.full((8, 24), math.inf)}, "`init` must be finite"),
        ({"forgetting": -0.5}, "`forgetting` .* got -0.5"),
        ({"revive_every": -1}, "`revive_every` .* got -1"),
        ({"revive_fraction": 1.5}, r"`revive_fraction` must be a finite number in \[0, 1\], got 1.5"),
        ({"seed": -1}, "`seed` .* got -1"),
        ({"dtype": torch.float16}, "`dtype` .* got torch.float16"),
    ],
)
def test_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        OnlineDictionaryLearner(**{"num_atoms": ATOMS, "sparsity": SPARSITY, **arguments})


NAN = gaussian(60)
NAN[7, 3] = math.nan


@pytest.mark.parametrize(
    "signals, message",
    [
        (np.zeros((10, 8), int), "`signals` must be floating point .* torch.int64"),
        (np.array([["a"]]), "`signals` must be of a type that tensors have"),
        ([[gaussian(10)]], "`signals` must be .* got list"),  # what a DataLoader of a TensorDataset gives
        (3, "`signals` must be .* got int"),
        (torch.zeros(10, 8, dtype=torch.int64), "`signals` must be floating point .* torch.int64"),
        (torch.zeros(10, 2, 4), r"`signals` must be .* \(10, 2, 4\)"),
        (torch.zeros(0, 8), "`signals` must hold at least one signal, got none"),
        ([], "`signals` must hold at least one signal, got none"),
        ([gaussian(30), gaussian(30, 7)], "`signals` must have 8 features .* got 7"),
        (NAN, "`signals` must be finite"),
    ],
)
def test_signals_are_checked(signals, message):
    with pytest.raises(ValueError, match=message):
        fit(signals)


def test_a_refused_minibatch_changes_nothing():
    found = fit(gaussian(), steps=3)
    before = found.state_dict()
    for batch in (NAN, gaussian(5, 7)):
        with pytest.raises(ValueError, match="`signals`"):
            found.partial_fit(batch)
    after = found.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if torch.is_tensor(value) else value == after[name], name


def test_calls_are_checked():
    with pytest.raises(ValueError, match="no dictionary before `fit`"):
        learner().encode(gaussian())
    assert learner().dictionary is learner().A is learner().B is learner().counts is None
    with pytest.raises(ValueError, match="`steps` must be .* got 0"):
        fit(gaussian(), steps=0)
    with pytest.raises(ValueError, match="`passes` must be .* got 1.5"):
        fit(gaussian(), passes=1.5)
    with pytest.raises(ValueError, match="got none in pass 2"):
        fit(iter([gaussian()]), passes=2)
    with pytest.raises(ValueError, match="`init` must have 8 features like `signals`, got 5"):
        fit(gaussian(), init=torch.ones(5, ATOMS))
    with pytest.raises(ValueError, match="`signals` must have 8 features"):
        fit(gaussian()).encode(gaussian(10, 9))
    with pytest.raises(ValueError, match="at least one signal"):
        fit(gaussian()).objective([])
