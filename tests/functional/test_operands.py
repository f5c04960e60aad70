"""Nothing reaches C, or an index, that does not fit: operators by their names in `torch.ops`, public functions, arrays
of NumPy."""

import itertools

import numpy as np
import pytest
import torch

from diffusers_lasers.functional import (
    decode_product,
    decode_residual,
    encode_product,
    encode_residual,
    fista,
    iht,
    kmeans,
    nearest_codewords,
    ols,
    omp,
    random_dictionary,
    set_backend,
    synthesize,
)
from diffusers_lasers.functional.dictionary import accumulate_statistics, block_coordinate_update
from diffusers_lasers.functional.kernels import operators as kernels
from diffusers_lasers.functional.pursuit import projection_synthesis
from diffusers_lasers.functional.quantisers import codeword_statistics, decode_channels


built = pytest.mark.skipif(kernels._kernels is None, reason="the compiled kernels were not built")
PURSUITS = [omp, ols, iht, fista]
F, I = torch.float32, torch.int64


@pytest.fixture(params=["auto", "torch"])
def backend(request):
    set_backend(request.param)
    yield request.param
    set_backend("auto")


def normal(*shape, dtype=F):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def zeros(*shape, dtype=F, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


# --- operators by name ------------------------------------------------------------------------------------------------

# arguments that fit, and for some of them what does not
OPERATORS = {
    "greedy_pursuit": (
        (normal(5, 6), normal(6, 9), 2, -1.0, False),
        {
            0: [
                zeros(5, 7),
                zeros(5),
                zeros(5, 6, 1),
                zeros(5, 0),
                zeros(5, 6, dtype=torch.float64),
                zeros(5, 6, dtype=I),
            ],
            1: [zeros(5, 9), zeros(6), zeros(6, 0), zeros(0, 9), zeros(6, 9, dtype=torch.float16)],
            2: [0, -1, 10, 2**40],
        },
    ),
    "synthesis_gradients": (
        (normal(5, 6), zeros(5, 2, dtype=I), normal(5, 2), normal(6, 9), True, True),
        {
            0: [zeros(4, 6), zeros(5, 7), zeros(6), zeros(5, 6, dtype=torch.float64)],
            1: [
                zeros(5, 3, dtype=I),
                zeros(4, 2, dtype=I),
                zeros(10, dtype=I),
                zeros(5, 2),
                zeros(5, 2, dtype=torch.bool),
                torch.full((5, 2), 9),
                torch.full((5, 2), -(2**62)),
                torch.full((5, 2), 2**62),
            ],
            2: [zeros(5, 3), zeros(4, 2), zeros(5, 2, dtype=torch.float64)],
            3: [zeros(5, 9), zeros(6, 0), zeros(6), zeros(6, 9, dtype=torch.bfloat16)],
        },
    ),
    "block_update": (
        (normal(4, 6), normal(4, 6), normal(4, 4), normal(4)),
        {
            0: [zeros(4, 5), zeros(5, 6), zeros(6, 4).t(), zeros(4, 6, dtype=torch.float64)],
            1: [zeros(3, 6), zeros(4, 5), zeros(4), zeros(4, 6, dtype=torch.float64)],
            2: [zeros(3, 3), zeros(4, 3), zeros(4), zeros(4, 4, dtype=torch.float64)],
            3: [zeros(3), zeros(4, 1), zeros(4, dtype=torch.float64)],
        },
    ),
    "nearest_codewords": (
        (normal(5, 6), normal(2, 9, 3)),
        {
            0: [zeros(5, 2), zeros(5, 7), zeros(5), zeros(5, 2, 3), zeros(5, 6, dtype=torch.float64)],
            1: [zeros(2, 0, 3), zeros(0, 9, 3), zeros(2, 9, 4), zeros(9, 6), zeros(2, 9, 0), zeros(2, 9, 3, dtype=I)],
        },
    ),
    "decode_codewords": (
        (zeros(5, 3, dtype=I), [normal(1, 9, 6), normal(2, 7, 3)], 6),
        {
            0: [
                zeros(5, 2, dtype=I),
                zeros(5, 4, dtype=I),
                zeros(15, dtype=I),
                zeros(5, 3, dtype=torch.int32),
                zeros(5, 3),
                torch.full((5, 3), 7),
                torch.full((5, 3), -1),
                torch.tensor(3),
            ],
            1: [
                [],
                [zeros(3, 9, 6, dtype=torch.float64)],
                [zeros(3, 9, 5)],
                [zeros(3, 0, 6)],
                [zeros(9, 6)],
                [zeros(1, 9, 6)],
            ],
            2: [5, 0, -6, 2**40],
        },
    ),
}


@built
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_refuse_what_does_not_fit(name):
    operator, (arguments, wrong) = getattr(torch.ops.diffusers_lasers, name), OPERATORS[name]
    operator(*arguments)
    for place, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError):
                operator(*arguments[:place], value, *arguments[place + 1 :])


@built
def test_the_reported_case_is_refused():
    # two features against two million: it read beyond its arrays until the process died
    signals, codewords = zeros(2, 2), zeros(4, 2_000_000)
    with pytest.raises(ValueError, match="`codebook` must be a tensor of shape .* with features = 2, got shape"):
        nearest_codewords(signals, codewords)
    with pytest.raises(ValueError, match=r"`signals` must have shape \(N, 2000000\), got \(2, 2\)"):
        torch.ops.diffusers_lasers.nearest_codewords(signals, codewords.unsqueeze(0))


@built
def test_operators_take_any_strides():
    def other(tensor):  # the same numbers, every second one of twice as many, backwards in memory order
        if not isinstance(tensor, torch.Tensor) or tensor.ndim == 0:
            return tensor
        order = list(reversed(range(tensor.ndim)))
        wide = torch.stack([tensor, tensor], dim=-1).permute(*order, tensor.ndim).contiguous()
        return wide[..., 0].permute(*order)

    for name, (arguments, _) in OPERATORS.items():
        operator = getattr(torch.ops.diffusers_lasers, name)
        strided = [[other(x) for x in value] if isinstance(value, list) else other(value) for value in arguments]
        if name == "block_update":  # it overwrites its first argument
            rows, expected = arguments[0].clone(), arguments[0].clone()
            operator(rows, *strided[1:]), operator(expected, *arguments[1:])
            assert torch.equal(rows, expected)
            continue
        found, wanted = operator(*strided), operator(*arguments)
        for ours, theirs in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, wanted))):
            assert torch.equal(ours, theirs), name


@built
def test_codebooks_of_one_layout_or_another():
    books, signals = normal(64, 4, 8).transpose(0, 1), normal(50, 32)
    with torch.device("meta"):  # a default device must not reach what C reads
        indices = torch.ops.diffusers_lasers.nearest_codewords(signals, books)
        decoded = decode_channels(indices, [books], 32)
    assert torch.equal(indices, encode_product(signals, books.contiguous()))
    assert torch.equal(decoded[0], decode_product(indices, books))


@built
def test_without_the_extension_operators_say_so(monkeypatch):
    monkeypatch.setattr(kernels, "_kernels", None)
    for name, (arguments, _) in OPERATORS.items():
        with pytest.raises(ImportError, match="built when the package is installed"):
            getattr(torch.ops.diffusers_lasers, name)(*arguments)


@built
def test_c_has_a_fence_of_its_own():
    c = kernels._kernels
    for call in (
        lambda: c.pursue(*[0] * 7, 1, 0, 1, 1, 1, -1.0, 0, 0, 1),
        lambda: c.pursue(*[0] * 7, 1, 1, 2**40, 1, 1, -1.0, 0, 0, 1),
        lambda: c.synthesis_gradients(*[0] * 6, -1, 1, 1, 1, 1),
        lambda: c.nearest(*[0] * 4, 1, 2, 2, 2, 1, 1),
        lambda: c.codewords(0, 0, 0, 0, 1, 1, 1, 1),
        lambda: c.block_update(*[0] * 4, 0, 1, 1),
    ):
        with pytest.raises(ValueError, match="out of range"):
            call()


# --- public functions -------------------------------------------------------------------------------------------------

HOSTILE = [
    zeros(0),
    zeros(0, 0),
    zeros(4, 0),
    zeros(0, 4),
    zeros(5),
    zeros(2, 3, 4),
    zeros(4, 4, dtype=I),
    zeros(4, 4, dtype=torch.bool),
    zeros(4, 4, dtype=torch.complex64),
    zeros(4, 4, dtype=torch.float64),
    zeros(4, 4, dtype=torch.float16),
    zeros(4, 4, device="meta"),
    zeros(4, 4).to_sparse(),
    torch.full((4, 4), torch.nan),
    torch.full((4, 4), torch.inf),
    torch.full((5, 2), 2**40),
    torch.full((5, 2), -7),
    torch.tensor(3.0),
    np.zeros((4, 4)),
    np.array([["a"]]),
    np.zeros((4, 4), dtype=object),
    None,
    "omp",
    -1,
    0,
    2**70,
    0.5,
    float("nan"),
    [],
    [[1.0]],
    True,
]
CODES = (torch.zeros(5, 2, dtype=I), normal(5, 2))
FUNCTIONS = [
    *[(pursuit, (normal(5, 4), normal(4, 7), 2, None)) for pursuit in PURSUITS],
    (synthesize, (*CODES, normal(4, 7))),
    (projection_synthesis, (normal(5, 4), normal(4, 7), *CODES)),
    (nearest_codewords, (normal(5, 4), normal(7, 4))),
    (codeword_statistics, (normal(5, 4), torch.arange(5), 7)),
    (kmeans, (normal(5, 4), 3, 2)),
    (encode_product, (normal(5, 4), normal(2, 7, 2))),
    (encode_residual, (normal(5, 4), normal(2, 7, 4), 3)),
    (decode_product, (CODES[0], normal(2, 7, 2))),
    (decode_residual, (CODES[0], normal(2, 7, 4))),
    (decode_channels, (CODES[0], [normal(1, 7, 4), normal(1, 7, 4)], 4)),
    (accumulate_statistics, (zeros(7, 7), zeros(4, 7), normal(5, 4), *CODES)),
    (block_coordinate_update, (normal(4, 7), torch.eye(7), normal(4, 7), 1)),
]


@pytest.mark.parametrize("function, arguments", FUNCTIONS, ids=[function.__name__ for function, _ in FUNCTIONS])
def test_functions_refuse_with_a_sentence(function, arguments, backend):
    function(*arguments)
    for place, value in itertools.product(range(len(arguments)), HOSTILE):
        if type(value) is int and value > 9 and function in (kmeans, block_coordinate_update):
            continue  # so many iterations are allowed, and so many codewords only a matter of memory
        try:
            function(*arguments[:place], value, *arguments[place + 1 :])
        except ValueError as error:
            assert "`" in str(error), (place, value, error)


@pytest.mark.parametrize("pursuit", PURSUITS)
def test_pursuits_of_nothing(pursuit, backend):
    for wrong, dictionary in ((zeros(3, 0), zeros(0, 5)), (zeros(3, 4), zeros(4, 0)), (zeros(0, 0), zeros(0, 3))):
        with pytest.raises(ValueError, match="`signals` must|`sparsity` must"):
            pursuit(wrong, dictionary, 1)
    with pytest.raises(ValueError, match="`sparsity` must be an integer from 1"):
        pursuit(zeros(3, 4), normal(4, 5), 0)
    indices, coefficients = pursuit(zeros(0, 4), normal(4, 5), 2)
    assert indices.shape == coefficients.shape == (0, 2)


def test_indices_out_of_range_are_refused(backend):
    indices, coefficients, dictionary = torch.zeros(5, 2, dtype=I), normal(5, 2), normal(4, 7)
    for wrong, message in (
        (7, "below the number of atoms"),
        (2**40, "below the number of atoms"),
        (-2, "at least -1"),
    ):
        indices[3, 1] = wrong
        for call in (
            lambda: synthesize(indices, coefficients, dictionary),
            lambda: projection_synthesis(normal(5, 4), dictionary, indices, coefficients),
            lambda: accumulate_statistics(zeros(7, 7), zeros(4, 7), normal(5, 4), indices, coefficients),
        ):
            if wrong < 0 and call.__code__.co_names[0] == "accumulate_statistics":
                continue  # looks at no value itself: what is negative is unused
            with pytest.raises(ValueError, match=f"`indices` must be {message}"):
                call()


@pytest.mark.parametrize("dtype", [F, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [I, torch.int32])
@pytest.mark.parametrize("features", [1, 4, 33])
def test_synthesis_refuses_an_index_in_every_type(dtype, kind, features):
    dictionary = normal(features, 7, dtype=dtype)
    for wrong in (7, 2**30, -2, -(2**30)):
        for place in ((0, 0), (4, 1)):
            indices = torch.zeros(5, 2, dtype=kind)
            indices[place] = wrong
            with pytest.raises(ValueError, match="`indices` must be"):
                synthesize(indices, normal(5, 2), dictionary)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refused_indices_leave_statistics_as_they_were(dtype, backend):
    A, B = torch.eye(7, dtype=dtype), torch.ones(7, 4, dtype=dtype).t()
    indices, coefficients = torch.tensor([[1, 7]]), torch.ones(1, 2, dtype=dtype)
    with pytest.raises(ValueError, match=r"`indices` must be below the number of atoms \(7\), got 7"):
        accumulate_statistics(A, B, torch.ones(1, 4, dtype=dtype), indices, coefficients, 0.5, in_place=True)
    assert torch.equal(A, torch.eye(7, dtype=dtype)) and torch.equal(B, torch.ones(4, 7, dtype=dtype))


def test_an_index_of_another_slot_is_refused():
    # it named a codeword of the next slot's codebook
    books = normal(2, 7, 2)
    for wrong in (7, -1):
        with pytest.raises(ValueError, match="`indices` must be"):
            decode_product(torch.tensor([[wrong, 0]]), books)
        with pytest.raises(ValueError, match="`indices` must be"):
            decode_residual(torch.tensor([[0, wrong]]), books)
        with pytest.raises(ValueError, match="`indices` must be"):
            codeword_statistics(normal(1, 2), torch.tensor([wrong]), 7)


# --- NumPy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pursuit", PURSUITS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pursuits_take_arrays(pursuit, dtype, backend):
    signals, dictionary = normal(40, 6).numpy().astype(dtype), normal(6, 20).numpy().astype(dtype)
    expected = pursuit(torch.tensor(signals), torch.tensor(dictionary), 3)
    frozen = signals.copy()
    frozen.flags.writeable = False
    for array in (signals, frozen, signals[::-1][::-1], signals.astype(signals.dtype.newbyteorder(">"))):
        for found, wanted in zip(pursuit(array, dictionary, 3), expected):
            assert isinstance(found, torch.Tensor) and torch.equal(found, wanted)
    indices, coefficients = (values.numpy() for values in expected)
    restored = synthesize(indices, coefficients, dictionary)
    assert torch.equal(restored, synthesize(*expected, torch.tensor(dictionary)))
    words = np.ascontiguousarray(dictionary.T)
    assert torch.equal(
        nearest_codewords(signals, words), nearest_codewords(torch.tensor(signals), torch.tensor(words))
    )


def test_reversed_arrays_and_whole_numbers():
    signals, dictionary = normal(40, 6).numpy(), random_dictionary(6, 20, torch.Generator().manual_seed(1)).numpy()
    reversed_, _ = omp(signals[::-1], dictionary, 3)
    assert torch.equal(reversed_.flip(0), omp(signals, dictionary, 3)[0])
    with pytest.raises(ValueError, match="`signals` must be a floating-point tensor"):
        omp((signals * 9).astype(int), dictionary, 3)
    with pytest.raises(ValueError, match="`signals` must be a tensor or an array of NumPy, got list"):
        omp(signals.tolist(), dictionary, 3)
