"""How the tensor operations of the greedy pursuits find the best atom: by products or through the Gram matrix, with the
same results."""

import math

import pytest
import torch

from diffusers_lasers.functional import ols, omp, random_dictionary, set_backend
from diffusers_lasers.functional.pursuit import correlations
from diffusers_lasers.functional.pursuit.correlations import RUN, GramForm, ResidualForm, faster_form, row_maximum


both = pytest.mark.parametrize("pursuit", [omp, ols])


@pytest.fixture(autouse=True)
def tensor_operations():
    set_backend("torch")
    yield
    set_backend("auto")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def use_gram(monkeypatch, yes):
    monkeypatch.setattr(correlations, "_gram_is_faster", lambda *sizes: yes)


def decaying_sums_of_twins():
    """Signals that eight atoms explain, with weights down to 1e-5, of a dictionary whose atoms come in pairs;
    float64."""
    generator = seeded()
    atoms = torch.randn(64, 128, generator=generator, dtype=torch.float64)
    twins = atoms + 0.02 * torch.randn(64, 128, generator=generator, dtype=torch.float64)
    dictionary = torch.cat([atoms, twins], dim=1)
    dictionary = dictionary / dictionary.norm(dim=0)
    support = torch.rand(400, 256, generator=generator).topk(8).indices
    weights = torch.randn(400, 8, generator=generator).sign().double() * 10.0 ** (-0.7 * torch.arange(8))
    return (dictionary.t()[support] * weights.unsqueeze(2)).sum(dim=1), dictionary


@both
def test_both_forms_give_the_same_codes(monkeypatch, pursuit):
    generator = seeded()
    signals, dictionary = torch.randn(700, 48, generator=generator), random_dictionary(48, 300, generator)
    use_gram(monkeypatch, False)
    indices, coefficients = pursuit(signals, dictionary, 7)
    use_gram(monkeypatch, True)
    others, weights = pursuit(signals, dictionary, 7)
    same = (indices == others).all(dim=1)
    assert same.float().mean() > 0.99  # nearly equal atoms may change places
    torch.testing.assert_close(coefficients[same], weights[same], rtol=1e-4, atol=1e-5)


@both
def test_the_gram_form_takes_products_where_it_would_lose_digits(monkeypatch, pursuit):
    signals, dictionary = decaying_sums_of_twins()
    reference, _ = pursuit(signals, dictionary, 8)

    def agreement():
        indices, _ = pursuit(signals.float(), dictionary.float(), 8)
        return (indices == reference).all(dim=1).double().mean().item()

    use_gram(monkeypatch, False)
    products = agreement()
    use_gram(monkeypatch, True)
    corrected = agreement()
    assert corrected >= products - 0.005
    monkeypatch.setattr(correlations, "_WORST_ROUNDING", math.inf)
    assert agreement() < corrected - 0.02  # without them digits are lost


@both
def test_codes_do_not_depend_on_the_product(monkeypatch, pursuit):
    # oneDNN's where this torch has it, the plain one elsewhere
    generator = seeded()
    signals, dictionary = torch.randn(300, 40, generator=generator), random_dictionary(40, 200, generator)
    indices, coefficients = pursuit(signals, dictionary, 6)
    monkeypatch.setattr(correlations, "_has_onednn", lambda: False)
    others, weights = pursuit(signals, dictionary, 6)
    same = (indices == others).all(dim=1)
    assert same.float().mean() > 0.99  # nearly equal atoms may change places
    torch.testing.assert_close(coefficients[same], weights[same], rtol=1e-4, atol=1e-5)


def test_the_form_follows_the_sizes():
    assert faster_form(torch.zeros(256, 512), 4096, 16) is GramForm
    assert faster_form(torch.zeros(16, 512), 65536, 5) is ResidualForm  # few features
    assert faster_form(torch.zeros(256, 512), 4096, 64) is ResidualForm  # many atoms a signal
    assert faster_form(torch.zeros(256, 512), 100, 16) is ResidualForm  # too few signals for K × K products
    assert faster_form(torch.zeros(256, 512, dtype=torch.float64), 4096, 16) is ResidualForm


@pytest.mark.parametrize("atoms", [RUN, 2 * RUN, 7 * RUN])
def test_row_maximum_finds_the_first_of_the_largest(atoms):
    values = torch.randint(-3, 4, (500, atoms), generator=seeded()).float()  # full of ties
    values[0] = 0.0
    values[1, 1:] = -1e30
    values[2] *= 1e-30
    values[3] = -5.0
    best, slot = row_maximum(values.clone())
    assert torch.equal(best, values.amax(dim=1))
    assert torch.equal(slot, (values == best.unsqueeze(1)).int().argmax(dim=1))


def test_row_maximum_stays_in_range_beside_what_is_not_finite():
    values = torch.randn(50, 2 * RUN, generator=seeded())
    values[0] = math.nan
    values[1, 70] = math.nan
    values[2, 3] = math.inf
    values[3] = -math.inf
    _, slot = row_maximum(values.clone())
    assert ((slot >= 0) & (slot < 2 * RUN)).all()
    assert torch.equal(slot[4:], values[4:].argmax(dim=1))


def test_one_name_does_not_stand_for_two_thresholds():
    """The features from which the kernel takes its Gram form, and those from which tensor operations do, differ."""
    from diffusers_lasers.functional.kernels import operators as kernels
    from diffusers_lasers.functional.pursuit import correlations

    shared = {"_GRAM_FROM", "_GRAM_FEATURES"}
    assert {name for name in shared if hasattr(kernels, name)} == {"_GRAM_FROM"}
    assert {name for name in shared if hasattr(correlations, name)} == {"_GRAM_FEATURES"}
