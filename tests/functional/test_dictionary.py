"""Dictionary geometry, initialisation and revival: algebraic properties and NumPy references."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusers_lasers.functional.dictionary import (
    accumulate_statistics,
    block_coordinate_update,
    dictionary_from_signals,
    draw_signals,
    draw_subset,
    mutual_coherence,
    normalize_atoms,
    project_to_tangent,
    random_dictionary,
    revive_atoms,
)


HALF = [torch.float16, torch.bfloat16]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_unit(dictionary, tolerance=1e-6):
    norms = dictionary.double().norm(dim=0)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=tolerance)


def cosines(left, right):
    """|cos| of every column of `left` with every column of `right`."""
    left, right = (x.double() / x.double().norm(dim=0).clamp_min(1e-300) for x in (left, right))
    return (left.t() @ right).abs()


# --- retraction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e18, 1e38])
def test_normalize_is_the_retraction_at_every_scale(scale):
    dictionary = torch.randn(7, 11, generator=seeded()).clamp(-3, 3)
    unit = normalize_atoms(dictionary * scale)
    assert_unit(unit)
    torch.testing.assert_close(unit, dictionary / dictionary.norm(dim=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normalize_atoms(unit), unit, rtol=0, atol=2e-7)  # idempotent


def test_normalize_keeps_zero_columns_and_the_argument():
    dictionary = torch.randn(4, 3, generator=seeded())
    dictionary[:, 1] = 0
    before = dictionary.clone()
    unit = normalize_atoms(dictionary)
    assert torch.equal(unit[:, 1], torch.zeros(4))
    assert_unit(unit[:, [0, 2]])
    assert torch.equal(dictionary, before)


def test_normalize_gradient():
    dictionary = torch.randn(5, 4, dtype=torch.float64, generator=seeded()).requires_grad_()
    assert torch.autograd.gradcheck(normalize_atoms, dictionary)
    with torch.no_grad():
        dictionary[:, 2] = 0
    normalize_atoms(dictionary).sum().backward()
    assert torch.isfinite(dictionary.grad).all()


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    dictionary = torch.randn(16, 24, generator=seeded()).to(dtype)
    unit = normalize_atoms(dictionary)
    assert unit.dtype == torch.float32
    assert_unit(unit)
    assert torch.equal(unit, normalize_atoms(dictionary.float()))
    gradient = torch.randn(16, 24, generator=seeded(1)).to(dtype)
    projected = project_to_tangent(gradient, unit.to(dtype))
    assert projected.dtype == torch.float32
    # exact although the atoms are rounded
    assert (projected * unit.to(dtype).float()).sum(dim=0).abs().max() < 1e-5
    assert mutual_coherence(dictionary).dtype == torch.float32
    assert (
        revive_atoms(dictionary, torch.ones(24, dtype=torch.bool), torch.randn(30, 16).to(dtype)).dtype
        == torch.float32
    )
    assert dictionary_from_signals(torch.randn(30, 16).to(dtype), 8).dtype == torch.float32


def test_float64_stays_float64():
    dictionary = torch.randn(6, 9, dtype=torch.float64, generator=seeded())
    assert_unit(normalize_atoms(dictionary), 1e-15)
    assert mutual_coherence(dictionary).dtype == torch.float64
    assert project_to_tangent(dictionary, dictionary).abs().max() < 1e-14


# --- tangent space ----------------------------------------------------------------------------------------------------


def test_tangent_projection_is_an_orthogonal_projection():
    dictionary = random_dictionary(9, 20, seeded())
    gradient, other = torch.randn(2, 9, 20, generator=seeded(1))
    projected = project_to_tangent(gradient, dictionary)
    assert (projected * dictionary).sum(dim=0).abs().max() < 1e-6
    torch.testing.assert_close(project_to_tangent(projected, dictionary), projected, rtol=0, atol=1e-6)  # idempotent
    # self-adjoint: <Pg, h> = <g, Ph>, column by column
    torch.testing.assert_close(
        (projected * other).sum(dim=0),
        (gradient * project_to_tangent(other, dictionary)).sum(dim=0),
        rtol=0,
        atol=1e-5,
    )
    reference = gradient.numpy() - dictionary.numpy() * np.einsum("lk,lk->k", dictionary.numpy(), gradient.numpy())
    np.testing.assert_allclose(projected.numpy(), reference, atol=1e-6)


def test_tangent_projection_is_the_gradient_through_the_retraction():
    # d/dD f(normalize(D)) at unit-norm D is the projected gradient of f
    dictionary = random_dictionary(5, 6, seeded(), dtype=torch.float64).requires_grad_()
    weight = torch.randn(5, 6, dtype=torch.float64, generator=seeded(1))
    (normalize_atoms(dictionary).pow(3) * weight).sum().backward()
    euclidean = 3 * dictionary.detach().pow(2) * weight
    torch.testing.assert_close(dictionary.grad, project_to_tangent(euclidean, dictionary.detach()))


def test_tangent_step_changes_no_length_to_first_order():
    dictionary = random_dictionary(8, 10, seeded(), dtype=torch.float64)
    step = project_to_tangent(torch.randn(8, 10, dtype=torch.float64, generator=seeded(1)), dictionary)
    lengths = [((dictionary - rate * step).norm(dim=0) - 1).max().item() for rate in (1e-3, 1e-4)]
    assert lengths[0] / lengths[1] == pytest.approx(100, rel=0.01)  # second order


def test_tangent_projection_at_a_zero_atom_is_the_gradient():
    dictionary = random_dictionary(4, 3, seeded())
    dictionary[:, 0] = 0
    gradient = torch.randn(4, 3, generator=seeded(1))
    assert torch.equal(project_to_tangent(gradient, dictionary)[:, 0], gradient[:, 0])


# --- coherence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features, atoms", [(1, 1), (6, 1), (6, 2), (16, 40), (4, 1024), (3, 1025), (3, 2500)])
def test_coherence_against_numpy(features, atoms):
    dictionary = torch.randn(features, atoms, generator=seeded(), dtype=torch.float64) * 3
    unit = dictionary.numpy() / np.linalg.norm(dictionary.numpy(), axis=0)
    gram = np.abs(unit.T @ unit)
    np.fill_diagonal(gram, 0.0)
    coherence = mutual_coherence(dictionary)
    assert coherence.shape == ()
    assert coherence.item() == pytest.approx(min(gram.max(), 1.0), abs=1e-12)


def test_coherence_of_known_dictionaries():
    assert mutual_coherence(torch.eye(5)).item() == 0.0
    assert mutual_coherence(torch.tensor([[1.0, -2.0], [1.0, -2.0]])).item() == pytest.approx(1.0, abs=1e-6)
    assert mutual_coherence(torch.randn(8, 30)).item() <= 1.0
    assert mutual_coherence(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).item() == 0.0  # a zero atom resembles none
    angle = torch.tensor(math.pi / 3)
    pair = torch.stack([torch.tensor([1.0, 0.0]), torch.stack([angle.cos(), angle.sin()])], dim=1)
    assert mutual_coherence(pair).item() == pytest.approx(0.5, abs=1e-6)


def test_coherence_ignores_autocast():
    dictionary = random_dictionary(16, 64, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mutual_coherence(dictionary), mutual_coherence(dictionary.clone()))
        inside = mutual_coherence(dictionary)
    assert torch.equal(inside, mutual_coherence(dictionary))


# --- initialisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 1e-2)])
def test_random_dictionary(dtype, tolerance):
    dictionary = random_dictionary(16, 50, seeded(3), dtype=dtype)
    assert dictionary.shape == (16, 50) and dictionary.dtype == dtype
    assert_unit(dictionary, tolerance)
    assert torch.equal(dictionary, random_dictionary(16, 50, seeded(3), dtype=dtype))
    assert not torch.equal(dictionary, random_dictionary(16, 50, seeded(4), dtype=dtype))


def test_random_dictionary_is_uniform_on_the_sphere():
    dictionary = random_dictionary(4, 20000, seeded())
    moments = dictionary @ dictionary.t() / 20000
    torch.testing.assert_close(moments, torch.eye(4) / 4, rtol=0, atol=0.01)
    assert dictionary.mean(dim=1).abs().max() < 0.02


def test_dictionary_from_signals_takes_distinct_signals():
    signals = torch.randn(40, 8, generator=seeded()) * torch.logspace(-6, 6, 40).unsqueeze(1)
    signals[::10] = 0
    dictionary = dictionary_from_signals(signals, 30, generator=seeded(1))
    assert dictionary.shape == (8, 30) and dictionary.is_contiguous()
    assert_unit(dictionary)
    match = cosines(dictionary, signals.t())
    assert match.amax(dim=1).min() > 1 - 1e-6
    assert len(set(match.argmax(dim=1).tolist())) == 30
    # atoms keep the sign of their signals
    chosen = signals[match.argmax(dim=1)].t()
    assert ((dictionary * chosen).sum(dim=0) > 0).all()
    assert torch.equal(dictionary, dictionary_from_signals(signals, 30, generator=seeded(1)))
    assert not torch.equal(dictionary, dictionary_from_signals(signals, 30, generator=seeded(2)))


def test_dictionary_from_signals_counts_repeats_once():
    # flat image regions: 500 equal latents, some scaled or negated, and 6 others
    common, others = torch.randn(1, 8, generator=seeded()), torch.randn(6, 8, generator=seeded(1))
    signals = torch.cat([common.repeat(400, 1), -common.repeat(50, 1), 3 * common.repeat(50, 1), others])
    dictionary = dictionary_from_signals(signals, 7, generator=seeded(2))
    match = cosines(dictionary, torch.cat([common, others]).t())
    assert sorted(match.argmax(dim=1).tolist()) == list(range(7))
    assert mutual_coherence(dictionary) < 0.999


def test_dictionary_from_few_signals_jitters_the_repeats():
    signals = torch.randn(5, 12, generator=seeded())
    dictionary = dictionary_from_signals(signals, 23, jitter=0.01, generator=seeded(1))
    assert_unit(dictionary)
    match = cosines(dictionary, signals.t())
    sources = match.argmax(dim=1)
    assert sorted(torch.bincount(sources, minlength=5).tolist()) == [4, 4, 5, 5, 5]
    distance = (1 - match.amax(dim=1).square()).clamp_min(0).sqrt()  # sine of the angle to the signal
    assert distance[:5].max() < 1e-3 and sorted(sources[:5].tolist()) == list(range(5))
    assert 1e-3 < distance[5:].min() and distance[5:].max() < 0.03
    assert mutual_coherence(dictionary) < 1 - 1e-6  # all differ


@pytest.mark.parametrize(
    "signals",
    [torch.zeros(6, 4), torch.full((3, 4), math.nan), torch.tensor([[math.inf, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])],
)
def test_dictionary_from_no_usable_signal_is_random(signals):
    dictionary = dictionary_from_signals(signals, 9, generator=seeded())
    assert_unit(dictionary)
    assert mutual_coherence(dictionary) < 1 - 1e-4


def test_dictionary_from_signals_skips_non_finite_ones():
    signals = torch.randn(20, 6, generator=seeded())
    signals[3, 2], signals[5, 0], signals[7] = math.nan, -math.inf, math.inf
    assert_unit(dictionary_from_signals(signals, 17, generator=seeded()))


# --- revival ----------------------------------------------------------------------------------------------------------


def test_revive_replaces_only_dead_atoms():
    dictionary = random_dictionary(8, 20, seeded())
    signals = torch.randn(100, 8, generator=seeded(1)) * 50
    dead = torch.zeros(20, dtype=torch.bool)
    dead[[0, 3, 4, 19]] = True
    before = dictionary.clone()
    revived = revive_atoms(dictionary, dead, signals, generator=seeded(2))
    assert torch.equal(dictionary, before)
    assert torch.equal(revived[:, ~dead], dictionary[:, ~dead])
    assert_unit(revived)
    match = cosines(revived[:, dead], signals.t())
    assert match.amax(dim=1).min() > 0.98  # a jitter of 0.05
    assert len(set(match.argmax(dim=1).tolist())) == 4
    assert torch.equal(revived, revive_atoms(dictionary, dead, signals, generator=seeded(2)))
    assert not torch.equal(revived, revive_atoms(dictionary, dead, signals, generator=seeded(3)))


def test_revive_of_nothing_changes_nothing():
    dictionary = random_dictionary(8, 20, seeded())
    signals = torch.randn(10, 8)
    none = torch.zeros(20, dtype=torch.bool)
    assert torch.equal(revive_atoms(dictionary, none, signals), dictionary)
    assert torch.equal(revive_atoms(dictionary, ~none, signals[:0]), dictionary)  # no signals
    assert torch.equal(revive_atoms(dictionary, ~none, torch.zeros(10, 8)), dictionary)  # no direction
    assert torch.equal(revive_atoms(dictionary, ~none, torch.full((10, 8), math.nan)), dictionary)


def test_revive_without_jitter_takes_every_signal_in_turn():
    dictionary, dead = random_dictionary(8, 7, seeded()), torch.ones(7, dtype=torch.bool)
    signals = torch.randn(9, 8, generator=seeded(1))
    signals[[0, 4, 8]] = 0
    signals[2, 1] = math.inf
    revived = revive_atoms(dictionary, dead, signals, jitter=0.0, generator=seeded(2))
    match = cosines(revived, torch.nan_to_num(signals, posinf=0.0).t())
    assert match.amax(dim=1).min() > 1 - 1e-6
    counts = torch.bincount(match.argmax(dim=1), minlength=9)
    assert counts[[0, 2, 4, 8]].sum() == 0
    assert sorted(counts[[1, 3, 5, 6, 7]].tolist()) == [1, 1, 1, 2, 2]  # 7 atoms from 5 signals


def test_revive_with_jitter_makes_repeats_differ():
    dictionary, dead = random_dictionary(8, 30, seeded()), torch.ones(30, dtype=torch.bool)
    revived = revive_atoms(dictionary, dead, torch.ones(1, 8), generator=seeded(1))
    assert_unit(revived)
    assert mutual_coherence(revived) < 1 - 1e-6
    assert cosines(revived, torch.ones(8, 1)).min() > 0.97


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_revive_at_extreme_scales(scale):
    dead = torch.ones(5, dtype=torch.bool)
    revived = revive_atoms(random_dictionary(6, 5), dead, scale * torch.randn(9, 6, generator=seeded()))
    assert_unit(revived)


# --- devices ----------------------------------------------------------------------------------------------------------


def training_step_calls(device):
    """Everything that runs in a training step, on tensors of one device."""
    dictionary, gradient = torch.randn(8, 12, device=device), torch.randn(8, 12, device=device)
    signals, coefficients = torch.randn(30, 8, device=device), torch.randn(30, 3, device=device)
    indices = torch.randint(-1, 12, (30, 3), device=device)
    dead = torch.randint(0, 2, (12,), device=device).bool()
    normalize_atoms(project_to_tangent(gradient, dictionary))
    mutual_coherence(dictionary)
    statistics = torch.zeros(12, 12, device=device), torch.zeros(8, 12, device=device)
    statistics = accumulate_statistics(*statistics, signals, indices, coefficients, 0.5)
    block_coordinate_update(dictionary, *statistics)
    revive_atoms(dictionary, dead, signals)


def test_nothing_in_a_training_step_reads_a_value_on_the_host():
    with FakeTensorMode():  # fake tensors have no values: a read raises
        training_step_calls("cpu")


# --- errors -----------------------------------------------------------------------------------------------------------

D, Z = torch.eye(3, 4), torch.ones(5, 3)
ALL = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: normalize_atoms(torch.ones(3)), r"`dictionary` .* shape \(features, atoms\), got .* shape \(3,\)"),
        (lambda: normalize_atoms(torch.ones(3, 4).long()), "`dictionary` .* got torch.int64"),
        (lambda: mutual_coherence(torch.ones(0, 4)), r"`dictionary` must be a non-empty .* \(0, 4\)"),
        (lambda: project_to_tangent(torch.ones(3, 5), D), r"`gradient` .* \(3, 4\), got \(3, 5\)"),
        (lambda: random_dictionary(0, 4), "`features` and `atoms` must be at least 1, got 0 and 4"),
        (lambda: random_dictionary(4, 0), "`features` and `atoms` must be at least 1, got 4 and 0"),
        (lambda: random_dictionary(4, 4, dtype=torch.int64), "`dtype` .* got torch.int64"),
        (lambda: dictionary_from_signals(torch.ones(0, 3), 4), r"`signals` must be a non-empty .* \(0, 3\)"),
        (lambda: dictionary_from_signals(Z, 0), "`atoms` must be at least 1, got 0"),
        (lambda: dictionary_from_signals(Z, 4, jitter=0.0), "`jitter` must be above 0, got 0.0"),
        (lambda: dictionary_from_signals(Z, 4, jitter=math.nan), "`jitter` must be above 0, got nan"),
        (lambda: revive_atoms(D, ALL[:3], Z), r"`dead` must be bool of shape \(4,\), got torch.bool of shape \(3,\)"),
        (lambda: revive_atoms(D, ALL.float(), Z), "`dead` must be bool .* got torch.float32"),
        (lambda: revive_atoms(D, ALL, torch.ones(5, 2)), r"`signals` must have the shape \(N, 3\), got \(5, 2\)"),
        (lambda: revive_atoms(D, ALL, Z, jitter=-1.0), "`jitter` must be at least 0, got -1.0"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- draws ------------------------------------------------------------------------------------------------------------


def test_draw_subset_draws_marked_atoms_alone():
    mask = torch.zeros(40, dtype=torch.bool)
    mask[::3] = True  # 14 of them
    for amount in (0, 5, 14, 20, 99):
        drawn = draw_subset(mask, amount, seeded(amount))
        assert drawn.sum() == min(amount, 14) and (mask | ~drawn).all()
    assert not torch.equal(draw_subset(mask, 5, seeded(1)), draw_subset(mask, 5, seeded(2)))
    assert torch.equal(draw_subset(mask, 5, seeded(1)), draw_subset(mask, 5, seeded(1)))


def test_draw_signals_draws_distinct_ones_by_weight():
    signals = torch.arange(6.0).unsqueeze(1)
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    generator = seeded()
    draws = torch.stack([draw_signals(signals, weights, 2, generator).flatten() for _ in range(4000)])
    assert (draws[:, 0] != draws[:, 1]).all()
    first = torch.bincount(draws[:, 0].long(), minlength=6) / 4000
    torch.testing.assert_close(first, weights / 10, rtol=0, atol=0.03)
    second = sum(weights[j] / 10 * weights / (10 - weights[j]) * (torch.arange(6) != j) for j in range(6))
    torch.testing.assert_close(torch.bincount(draws[:, 1].long(), minlength=6) / 4000, second, rtol=0, atol=0.03)
    assert (
        len(draw_signals(signals, weights, 99, generator)) == 6 and len(draw_signals(signals[:0], weights[:0], 3)) == 0
    )
