"""Nearest codewords, k-means and running-mean codebooks."""

import faiss
import numpy as np
import pytest
import torch
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

from diffusers_lasers.functional import kmeans, nearest_codewords
from diffusers_lasers.functional.quantisers import codeword_statistics, update_codebook


def data(n=500, features=5, codewords=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=generator), torch.randn(codewords, features, generator=generator)


def test_nearest_codewords_are_those_of_faiss():
    signals, codebook = data()
    index = faiss.IndexFlatL2(5)
    index.add(codebook.numpy())
    assert np.array_equal(nearest_codewords(signals, codebook).numpy(), index.search(signals.numpy(), 1)[1][:, 0])


def test_statistics_count_and_sum_the_assigned_signals():
    signals, codebook = data()
    indices = nearest_codewords(signals, codebook)
    counts, sums = codeword_statistics(signals, indices, 16)
    one_hot = torch.nn.functional.one_hot(indices, 16).float()
    torch.testing.assert_close(counts, one_hot.sum(dim=0))
    torch.testing.assert_close(sums, one_hot.t() @ signals)


def test_update_is_the_running_mean_of_vector_quantize_pytorch():
    signals, codebook = data()
    peer = Codebook(dim=5, codebook_size=16, decay=0.9, kmeans_init=False, eps=0.0, threshold_ema_dead_code=0)
    peer.embed.data.copy_(codebook[None])
    peer.embed_avg.data.copy_(codebook[None])
    peer.cluster_size.data.fill_(1.0)
    peer.initted.data.fill_(True)
    peer.train()
    peer(signals[None])
    counts, sums = codeword_statistics(signals, nearest_codewords(signals, codebook), 16)
    _, _, ours = update_codebook(torch.ones(16), codebook.clone(), counts, sums, signals[:16], 0.9, 0.0)
    torch.testing.assert_close(ours, peer.embed[0], rtol=1e-5, atol=1e-5)


def test_dead_codewords_restart_with_their_statistics():
    signals, codebook = data()
    running = torch.ones(16)
    running[3] = 1e-6
    counts, sums = codeword_statistics(signals, nearest_codewords(signals, codebook), 16)
    counts[3] = 0.0
    sums[3] = 0.0
    new_counts, new_sums, new = update_codebook(
        running, codebook * running[:, None], counts, sums, signals[:16], 0.99, 0.03
    )
    torch.testing.assert_close(new[3], signals[3])
    torch.testing.assert_close(new_sums[3] / new_counts[3], signals[3])
    # The next step, again without a signal, leaves it where it was put and alive.
    again = update_codebook(new_counts, new_sums, counts, sums, signals[16:32], 0.99, 0.03)
    torch.testing.assert_close(again[2][3], signals[3])
    alive = [k for k in range(16) if k != 3 and counts[k] > 0]
    assert not any(torch.allclose(new[k], signals[k]) for k in alive)


def test_unused_codewords_stay_without_revival():
    counts, sums, codebook = torch.ones(2), torch.tensor([[1.0, 0.0], [0.0, 3.0]]), None
    for _ in range(3000):
        counts, sums, codebook = update_codebook(
            counts, sums, torch.tensor([4.0, 0.0]), torch.tensor([[4.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2), 0.9, 0.0
        )
    torch.testing.assert_close(codebook, torch.tensor([[1.0, 0.0], [0.0, 3.0]]))


def test_kmeans_is_as_good_as_faiss():
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(20, 6, generator=generator) * 4
    signals = (centres[:, None] + torch.randn(20, 60, 6, generator=generator) * 0.3).flatten(0, 1)
    codebook, counts = kmeans(signals, 32, iterations=20, generator=torch.Generator().manual_seed(0))
    peer = faiss.Kmeans(6, 32, niter=20, seed=1, min_points_per_centroid=1)
    peer.train(signals.numpy())
    error = (signals - codebook[nearest_codewords(signals, codebook)]).square().sum(dim=1).mean().item()
    assert error <= 1.25 * peer.obj[-1] / len(signals)
    assert counts.sum() == len(signals)


@pytest.mark.parametrize("n", [1, 5])
def test_kmeans_with_fewer_signals_than_codewords(n):
    signals = torch.randn(n, 3)
    codebook, _ = kmeans(signals, 8)
    assert torch.isfinite(codebook).all()
    torch.testing.assert_close(codebook[nearest_codewords(signals, codebook)], signals, rtol=1e-4, atol=1e-4)


def test_kmeans_is_reproducible():
    signals, _ = data()
    first = kmeans(signals, 16, generator=torch.Generator().manual_seed(3))[0]
    assert torch.equal(first, kmeans(signals, 16, generator=torch.Generator().manual_seed(3))[0])
