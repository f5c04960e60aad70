"""Product and residual codes against faiss and against exhaustive search."""

import faiss
import numpy as np
import pytest
import torch

from diffusers_lasers.functional import decode_product, decode_residual, encode_product, encode_residual, set_backend
from diffusers_lasers.functional.kernels import operators as kernels
from diffusers_lasers.functional.kernels.codewords import fused_decode_codewords
from diffusers_lasers.functional.quantisers import decode_channels


def signals(count=500, features=12, seed=0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def test_product_codes_are_those_of_faiss():
    y = signals(2000)
    quantizer = faiss.ProductQuantizer(12, 3, 4)
    quantizer.train(y.numpy())
    books = torch.from_numpy(faiss.vector_to_array(quantizer.centroids).reshape(3, 16, 4).copy())
    index = faiss.IndexPQ(12, 3, 4)
    index.pq = quantizer
    index.is_trained = True
    reference = torch.from_numpy(index.sa_decode(index.sa_encode(y.numpy())))
    indices = encode_product(y, books)
    torch.testing.assert_close(decode_product(indices, books), reference, rtol=0, atol=1e-5)
    assert indices.shape == (2000, 3) and indices.dtype == torch.int64


def test_a_wide_beam_finds_the_best_sum():
    y, books = signals(40, 5), signals(3 * 6, 5, seed=1).view(3, 6, 5)
    sums = books[0][:, None, None] + books[1][None, :, None] + books[2][None, None]
    best = (y[:, None] - sums.reshape(1, -1, 5)).square().sum(dim=2).min(dim=1)
    found = encode_residual(y, books, beam=36)
    torch.testing.assert_close((decode_residual(found, books) - y).square().sum(dim=1), best.values)
    assert torch.equal(found[:, 0] * 36 + found[:, 1] * 6 + found[:, 2], best.indices)


def test_a_beam_of_one_is_the_greedy_search_and_wider_ones_are_better():
    y, books = signals(), signals(4 * 16, 12, seed=1).view(4, 16, 12) * 0.7
    residual, expected = y, []
    for book in books:
        expected.append(torch.cdist(residual, book).argmin(dim=1))
        residual = residual - book[expected[-1]]
    assert torch.equal(encode_residual(y, books, beam=1), torch.stack(expected, dim=1))
    errors = [(decode_residual(encode_residual(y, books, b), books) - y).square().mean() for b in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2]


def test_residual_codes_are_not_worse_than_those_of_faiss():
    y = signals(3000, 8)
    quantizer = faiss.ResidualQuantizer(8, 3, 5)
    quantizer.train(y.numpy())
    books = torch.from_numpy(faiss.vector_to_array(quantizer.codebooks).reshape(3, 32, 8).copy())
    reference = np.square(quantizer.decode(quantizer.compute_codes(y.numpy())) - y.numpy()).mean()
    ours = (decode_residual(encode_residual(y, books, beam=quantizer.max_beam_size), books) - y).square().mean()
    assert ours <= reference * 1.0001


def test_decoding_is_differentiable_and_stages_may_be_left_out():
    books = signals(2 * 4, 3).view(2, 4, 3).requires_grad_()
    indices = torch.tensor([[0, 3], [2, 3]])
    decode_residual(indices, books).sum().backward()
    assert books.grad[1, 3].tolist() == [2.0] * 3 and books.grad[0, 1].abs().sum() == 0
    torch.testing.assert_close(decode_residual(indices[:, :1], books), books[0][indices[:, 0]])


def test_bad_arguments_are_named():
    books = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match="`signals`"):
        encode_product(torch.zeros(5, 7), books)
    with pytest.raises(ValueError, match="`codebooks`"):
        encode_product(torch.zeros(5, 6), books[0])
    with pytest.raises(ValueError, match="`beam`"):
        encode_residual(torch.zeros(5, 3), books, beam=0)


CHANNELS = [(4, 37, 64), (1, 256, 64), (4, 19, 16), (3, 5, 64), (2, 7, 32)]


def channels(count=1000, shapes=CHANNELS):
    generator = torch.Generator().manual_seed(0)
    books = [torch.randn(shape, generator=generator) for shape in shapes]
    indices = [torch.randint(book.shape[1], (count, book.shape[0]), generator=generator) for book in books]
    return torch.cat(indices, dim=1), books


@pytest.mark.parametrize("level, name", [(2, "_avx512"), (1, "_avx2"), (0, "_generic")])
def test_channels_are_sums_or_parts_by_hand(level, name):
    if kernels._kernels is not None and kernels._kernels.instruction_set(level) != name:
        pytest.skip(f"this processor has no {name[1:]}")
    try:
        for count in (0, 1, 1000):
            indices, books = channels(count)
            decoded = decode_channels(indices, books, 64)
            assert decoded.shape == (5, count, 64)
            first = 0
            for signal, book in zip(decoded, books):
                slots = book.shape[0]
                words = torch.stack([book[j][indices[:, first + j]] for j in range(slots)], dim=1)  # (N, m, d)
                expected = words.sum(dim=1) if book.shape[2] == 64 else words.flatten(1)
                torch.testing.assert_close(signal, expected, rtol=1e-6, atol=1e-6)
                first += slots
    finally:
        if kernels._kernels is not None:
            kernels._kernels.instruction_set(2)


def test_channels_on_both_backends_odd_widths_and_gradients():
    indices, books = channels(50, [(2, 3, 7), (1, 4, 7)])
    fused = decode_channels(indices, books, 7)
    set_backend("torch")
    try:
        torch.testing.assert_close(decode_channels(indices, books, 7), fused)
    finally:
        set_backend("auto")
    books[0].requires_grad_()
    decode_channels(indices, books, 7)[0].sum().backward()
    counts = torch.bincount(indices[:, 0], minlength=3).float()
    torch.testing.assert_close(books[0].grad[0], counts[:, None].expand(3, 7))
    if kernels._kernels is not None:
        torch.library.opcheck(fused_decode_codewords, (indices, [book.detach() for book in books], 7))


def test_channels_refuse_what_does_not_fit():
    indices, books = channels(10)
    with pytest.raises(ValueError, match=r"`indices` must have shape \(N, 14\)"):
        decode_channels(indices[:, 1:], books, 64)
    with pytest.raises(ValueError, match="`codebooks` must give signals of 63 features"):
        decode_channels(indices, books, 63)
    for wrong in ([], [torch.zeros(0, 3, 64)]):
        with pytest.raises(ValueError, match="`codebooks` must"):
            decode_channels(torch.zeros(5, 0, dtype=torch.int64), wrong, 64)
    for wrong in (-1, 400):
        with pytest.raises(ValueError, match="`indices` must be"):
            decode_channels(torch.full_like(indices, wrong), books, 64)
