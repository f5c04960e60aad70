"""Orders of a codebook: against scikit-learn, SciPy and plain loops, and on lines where the right order is known."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

from diffusers_lasers.functional import codebook_order
from diffusers_lasers.functional.quantisers import ORDERS, OrderScore, score_order


def codebook(count=24, features=5, seed=0):
    scales = torch.linspace(3, 0.5, features)
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed)) * scales


def line(count=12):
    """Points along a line, shuffled; and the order along it."""
    places = torch.linspace(0, 4, count)
    points = torch.stack([places, 0.5 * places, -places], dim=1)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    return points[shuffled]


@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize("count", [1, 2, 3, 24])
def test_every_order_is_a_permutation_and_repeats(kind, count):
    book = codebook(count)
    orders = [codebook_order(book, kind, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*orders) and sorted(orders[0].tolist()) == list(range(count))


def test_pca_is_scikit_learns_with_a_fixed_sign():
    book = codebook()
    fitted = PCA(1).fit(book.double().numpy())
    direction = fitted.components_[0] * np.sign(fitted.components_[0][np.abs(fitted.components_[0]).argmax()])
    expected = ((book.double().numpy() - fitted.mean_) @ direction).argsort()
    np.testing.assert_array_equal(codebook_order(book).numpy(), expected)
    flipped = codebook_order(-book)  # the same axis, run through backwards
    assert torch.equal(flipped, codebook_order(book).flip(0))


@pytest.mark.parametrize("kind", ["pca", "spectral", "salesman"])
def test_points_on_a_line_are_put_in_line(kind):
    book = line()
    ordered = book[codebook_order(book, kind)][:, 0]
    steps = ordered.diff()
    assert (steps > 0).all() or (steps < 0).all()
    score = score_order(book[codebook_order(book, kind)])
    assert score.violations == 0 and score.spearman > 0.99  # equal steps differ by rounding


def test_norms_rise():
    book = codebook()
    assert (book[codebook_order(book, "norm")].norm(dim=1).diff() >= 0).all()


def test_the_salesman_walks_less_than_all_others():
    book = codebook(count=60, seed=4)
    walked = {kind: score_order(book[codebook_order(book, kind)]).neighbour_distance for kind in ORDERS}
    assert min(walked, key=walked.get) == "salesman" and walked["pca"] < walked["random"]


def test_the_score_is_that_of_plain_loops():
    book = codebook(count=11)
    points = book.double().numpy()
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    pairs = list(combinations(range(11), 2))
    neighbour = np.mean([distances[i, i + 1] for i in range(10)]) / np.mean([distances[p] for p in pairs])
    spearman = spearmanr([j - i for i, j in pairs], [distances[p] for p in pairs])[0]
    broken = [
        distances[i, j] > distances[i, k] or distances[j, k] > distances[i, k]
        for i, j, k in combinations(range(11), 3)
    ]
    score = score_order(book)
    assert isinstance(score, OrderScore)
    assert score == pytest.approx((neighbour, spearman, np.mean(broken)), rel=1e-9)
    sampled = score_order(codebook(count=80), max_triples=20_000)
    assert sampled.violations == pytest.approx(score_order(codebook(count=80)).violations, abs=0.02)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`kind` must be one of .*'best'"):
        codebook_order(codebook(), "best")
    for wrong in (torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="`codebook`"):
            codebook_order(wrong)
    with pytest.raises(ValueError, match="at least two"):
        score_order(torch.zeros(1, 3))
