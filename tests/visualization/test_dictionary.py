"""Pictures of dictionaries: pixels of tiles, and the values that the figures were drawn from."""

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from diffusers_lasers.functional import mutual_coherence, random_dictionary
from diffusers_lasers.visualization import atom_map, atom_tiles, coherence_histogram, usage_histogram


def dictionary(features=6, atoms=10, seed=0):
    return random_dictionary(features, atoms, torch.Generator().manual_seed(seed))


def tiles(picture, height, width, count):
    """Tiles in reading order, and the colour right above each."""
    pixels = np.asarray(picture)
    found, frames = [], []
    for top in range(4, pixels.shape[0], height + 4):
        for left in range(4, pixels.shape[1], width + 4):
            found.append(pixels[top : top + height, left : left + width, 0].astype(int))
            frames.append(tuple(map(int, pixels[top - 1, left])))
    return np.stack(found[:count]), frames[:count]


def test_tiles_are_the_atoms_in_the_order_of_use():
    atoms, usage = dictionary(), torch.tensor([5, 0, 7, 1, 0, 2, 9, 4, 3, 8])
    found, frames = tiles(atom_tiles(atoms, usage=usage), 16, 24, 10)  # 2 × 3 features, enlarged 8 times
    order = [6, 9, 2, 0, 7, 8, 5, 3, 1, 4]
    expected = (atoms / atoms.abs().amax(dim=0)).t()[order].view(10, 2, 3).add(1).mul(127.5).round().numpy()
    assert np.array_equal(found[:, ::8, ::8], expected) and np.array_equal(found, np.kron(expected, np.ones((8, 8))))
    assert len(set(frames[:8])) == len(set(frames[8:])) == 1 and frames[0] != frames[9]
    plain, frames = tiles(atom_tiles(atoms), 16, 24, 10)
    assert np.array_equal(plain[order], found) and len(set(frames)) == 1


def test_zero_is_grey_and_tiles_take_the_shape_they_are_given():
    atoms = torch.cat([torch.zeros(16, 1), torch.eye(16)], dim=1)
    assert (tiles(atom_tiles(atoms, columns=17), 24, 24, 17)[0][0] == 128).all()
    assert atom_tiles(atoms, columns=17).size == (17 * 28 + 4, 28 + 4)
    assert atom_tiles(atoms).size == (5 * 28 + 4, 4 * 28 + 4)  # 5 columns, since √17 is above 4
    assert atom_tiles(atoms, (2, 8), columns=1).size == (24 + 8, 17 * (6 + 4) + 4)
    assert atom_tiles(torch.ones(17, 1)).size == (17 + 8, 1 + 8)  # a prime: one row; longer than 12, not enlarged
    assert atom_tiles(torch.ones(12, 1)).size == (24 + 8, 18 + 8)  # 3 × 4


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((torch.ones(4),), "`atoms` must be floating point of shape"),
        ((torch.ones(4, 2).long(),), "`atoms` must be floating point of shape"),
        ((torch.ones(4, 2) / 0,), "`atoms` must be finite"),
        ((torch.ones(4, 2), (2, 3)), "`tile_shape` must be two sides whose product is the features, 4"),
        ((torch.ones(4, 2), (-2, -2)), "`tile_shape` must be"),
        ((torch.ones(4, 2), None, torch.ones(3)), r"`usage` must have the shape \(2,\), got \(3,\)"),
        ((torch.ones(4, 2), None, torch.tensor([1, -1])), "`usage` must hold counts of 0 or more"),
        ((torch.ones(4, 2), None, None, 0), "`columns` must be at least 1"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        atom_tiles(*arguments)


def points(figure):
    return [np.asarray(entry.get_offsets()) for entry in figure.axes[0].collections]


def test_the_plane_of_principal_components():
    atoms = dictionary(5, 40)
    (found,) = points(atom_map(atoms, method="pca"))
    centred = atoms.t().double().numpy()
    centred = centred - centred.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(found), np.abs(left[:, :2] * values[:2]), atol=1e-6)
    assert (found[np.abs(found).argmax(0), [0, 1]] > 0).all()  # the sign is fixed
    share = 100 * values[0] ** 2 / (values**2).sum()
    assert (
        atom_map(atoms, method="pca").axes[0].get_xlabel() == f"principal component 1, {share:.0f} % of the variance"
    )


def test_use_is_colour_and_size_and_the_unused_are_crosses():
    usage = torch.tensor([0, 1, 10, 100, 0])
    figure = atom_map(dictionary(4, 5), usage, method="pca")
    dots, crosses = figure.axes[0].collections
    assert np.allclose(dots.get_array(), [100 / 111, 1000 / 111, 10000 / 111])
    assert (np.diff(dots.get_sizes()) > 0).all() and len(crosses.get_offsets()) == 2
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "never used: 2"
    assert "%" in figure.axes[1].get_ylabel()
    even, unused = (atom_map(dictionary(4, 5), torch.full((5,), n), method="pca") for n in (3, 0))
    for figure in (even, unused):
        figure.draw_without_rendering()
        assert sum(map(len, points(figure))) == 5


def test_umap_is_asked_for_a_repeatable_layout(monkeypatch):
    calls = []

    class UMAP:
        def __init__(self, **options):
            calls.append(options)

        def fit_transform(self, rows):
            return rows[:, :2]

    module = ModuleType("umap")
    module.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", module)
    atoms = dictionary(4, 6)
    (found,) = points(atom_map(atoms, seed=3))
    assert np.allclose(found, atoms.t()[:, :2])
    assert calls[0]["random_state"] == 3 and calls[0]["n_neighbors"] == 5  # fewer than the atoms
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"diffusers_lasers\[visualization\]"):
        atom_map(atoms)


@pytest.mark.slow  # umap-learn is compiled at its first call
def test_umap_keeps_clusters_and_repeats_itself():
    generator = torch.Generator().manual_seed(0)
    atoms = torch.cat(
        [0.05 * torch.randn(8, 20, generator=generator) + 4 * torch.eye(8)[:, :1] * sign for sign in (-1, 1)], 1
    )
    (first,), (second,) = points(atom_map(atoms)), points(atom_map(atoms))
    assert np.array_equal(first, second)
    distance = np.linalg.norm(first[:, None] - first, axis=-1)
    assert distance[:20, :20].max() < distance[:20, 20:].min()
    assert len(points(atom_map(atoms[:, :4]))[0]) == 4


def test_maps_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 rows and 4 columns for a map, got \(4, 3\)"):
        atom_map(dictionary(4, 3), method="pca")
    with pytest.raises(ValueError, match="at least 2 rows and 4 columns"):
        atom_map(dictionary(1, 8), method="pca")
    with pytest.raises(ValueError, match="`method` must be 'umap' or 'pca', got 'tsne'"):
        atom_map(dictionary(), method="tsne")


def heights(figure):
    return figure.axes[0].patches[0].get_data()[:2]


def lines(figure):
    """Labels of the legend, and the places of the lines that are drawn."""
    axis = figure.axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    return labels, {line.get_label(): line.get_data() for line in axis.get_lines()}


def test_shares_are_sorted_and_the_perplexity_marked():
    figure = usage_histogram(torch.tensor([1, 0, 4, 1, 2]), title="mine")
    shares, edges = heights(figure)
    assert np.allclose(shares, [50, 25, 12.5, 12.5, 0]) and np.allclose(edges, np.arange(6) + 0.5)
    labels, drawn = lines(figure)
    perplexity = 2 ** (0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3)
    assert f"perplexity {perplexity:.1f}" in labels and "never used: 1 of 5" in labels
    assert drawn[f"perplexity {perplexity:.1f}"][0][0] == pytest.approx(perplexity)
    assert drawn["even use, 20 %"][1][0] == 20
    assert (
        figure.axes[0].get_title() == "mine" and usage_histogram(torch.ones(5)).axes[0].get_title() == "Use of 5 atoms"
    )


@pytest.mark.parametrize(
    "counts, sentence",
    [
        (torch.zeros(4), "`counts` must hold at least one use"),
        (torch.ones(2, 2), r"`counts` must have the shape \(K,\), got \(2, 2\)"),
        (torch.tensor([1.0, torch.nan]), "`counts` must hold counts of 0 or more"),
    ],
)
def test_counts_that_are_none_are_refused(counts, sentence):
    with pytest.raises(ValueError, match=sentence):
        usage_histogram(counts)


@pytest.mark.parametrize("features, atoms", [(3, 7), (8, 4), (16, 1500)])
def test_every_pair_of_atoms_counts_once(features, atoms):
    matrix = 5 * dictionary(features, atoms).double()  # of any length
    figure = coherence_histogram(matrix)
    unit = (matrix / 5).numpy()
    pairs = np.abs(unit.T @ unit)[np.triu_indices(atoms, 1)]
    shares, edges = heights(figure)
    expected = 100 * np.histogram(pairs, bins=100, range=(0, 1))[0] / len(pairs)
    assert len(pairs) == math.comb(atoms, 2) and np.allclose(
        shares, expected, atol=300 / len(pairs) if atoms > 99 else 1e-9
    )
    labels, drawn = lines(figure)
    coherence = float(mutual_coherence(matrix))
    assert coherence == pytest.approx(pairs.max()) and drawn[labels[0]][0][0] == pytest.approx(coherence)
    welch = math.sqrt((atoms - features) / (features * (atoms - 1))) if atoms > features else 0
    assert labels == [f"mutual coherence {coherence:.3f}", f"Welch bound {welch:.3f}"]


def test_the_bound_is_reached_by_an_equiangular_frame():
    angles = torch.arange(3) * 2 * math.pi / 3
    figure = coherence_histogram(torch.stack([angles.cos(), angles.sin()]))
    assert lines(figure)[0] == ["mutual coherence 0.500", "Welch bound 0.500"]
    with pytest.raises(ValueError, match="`dictionary` must have at least 2 columns, got 1"):
        coherence_histogram(torch.ones(3, 1))
