"""Codes chosen by error and the bits of a prior: against searches and sums of all codes, and what is refused."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_lasers import (
    AutoencoderDL,
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    ExternalQuantizerBottleneck,
    FactorizedPrior,
    FSQBottleneck,
    IndexCode,
    ModelBasedVQCodec,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    SparseCode,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.functional.images.color import ycbcr_to_rgb
from diffusers_lasers.functional.quantisers.cheapest_points import cheapest_points
from diffusers_lasers.functional.quantisers.codebook import with_costs
from diffusers_lasers.functional.quantisers.subquantizers import encode_product
from diffusers_lasers.models.priors.image_codes import fit_prior


SCALES = torch.tensor([2.0, 1.0, 0.5, 0.25])
SHARED = {"coefficient_bits": 5, "coefficient_scaling": "shared"}


def latents(batch=3, seed=0):
    """Channels of falling deviation, with heavy tails, so that symbols are not used evenly."""
    z = torch.randn(batch, 4, 6, 7, generator=torch.Generator().manual_seed(seed))
    return z * z.abs() * SCALES[:, None, None] + 0.1


def images(batch=3, seed=0):
    noise = torch.rand(batch, 3, 19, 22, generator=torch.Generator().manual_seed(seed))
    return (noise.square() * 2 - 1) * torch.linspace(0.2, 1, 22)


def codec(notation):
    model = ModelBasedVQCodec.from_notation(notation, patch_size=4, codebook_bits=4)
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.startswith("codebooks"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) / 4)
        if name.startswith("rotation"):
            buffer.copy_(torch.linalg.qr(torch.randn(buffer.shape, generator=generator))[0])
    model.fitted.fill_(True)
    return model


MAKE = {
    "vq": lambda: VectorQuantizerBottleneck(4, num_codewords=24),
    "residual vq": lambda: ResidualVQBottleneck(4, num_codewords=16, depth=3, patch_size=2),
    "residual vq, beam": lambda: ResidualVQBottleneck(4, num_codewords=16, depth=3, beam_size=4),
    "fsq": lambda: FSQBottleneck(4, levels=(7, 4, 5, 3)),
    "fsq, projected": lambda: FSQBottleneck(4, levels=(7, 4, 5)),
    "scalar": lambda: ScalarQuantizerBottleneck(4, bits=4, transform="klt"),
    "entropy scalar": lambda: EntropyScalarBottleneck(4, bits=6, rate_weight=1e-3),
    "dictionary": lambda: DictionaryBottleneck(4, 20, 3, coefficient_bits=5),
    "dictionary, set": lambda: DictionaryBottleneck(4, 20, 3, **SHARED),
    "codec, OPQ": lambda: codec("OPQ-{8-4-4}"),
    "codec, RQ": lambda: codec("RQ-{8-4-4}"),
    "codec, VQ": lambda: codec("VQ-{6-4-4}"),
}
_BUILT = {}


def build(name):
    """A model that is not trained further, and its prior."""
    if name not in _BUILT:
        torch.manual_seed(0)
        model = MAKE[name]().eval()
        inputs = images if "codec" in name else latents
        if name == "scalar":
            model.fit(latents(40, seed=7))
        elif "codec" not in name:
            model.initialize(latents(40, seed=7), generator=torch.Generator().manual_seed(0))
        batches = [inputs(40, 1), inputs(40, 2)]
        # a prior of nearest codes has seen no site of fewer atoms
        arguments = {"rate_weight": 1e-2, "contexts": False} if "dictionary" in name else {}
        prior = fit_prior(model, batches, **arguments)
        _BUILT[name] = model, prior, inputs(5, 3)
    return _BUILT[name]


def decoded(model, code):
    output = model.decode_from_code(code)
    return output if torch.is_tensor(output) else output.sample


def weight(model, prior, rate_weight):
    return 4 * rate_weight * float(model._variance_under(prior.symbol_bits(model)))


# Bits


def one_site_codes(atoms, slots, bits, ordered):
    """All sparse codes of one site, as images: indices and cells `(N, S)`."""
    rows = []
    for size in range(slots + 1):
        supports = (
            itertools.permutations(range(atoms), size) if ordered else itertools.combinations(range(atoms), size)
        )
        for support in supports:
            for cells in itertools.product(range(2**bits), repeat=size):
                rows.append(((*support, *(-1,) * (slots - size)), (*cells, *(0,) * (slots - size))))
    return (torch.tensor(part) for part in zip(*rows))


def sparse_prior(ordered, contexts, atoms=5, slots=3, bits=2):
    config = {"coefficient_scaling": "depth" if ordered else "shared", "tolerance": 0.8}
    torch.manual_seed(0)
    model = DictionaryBottleneck(4, atoms, slots, coefficient_bits=bits, **config).eval()
    model.initialize(latents(40, seed=7), generator=torch.Generator().manual_seed(0))
    prior = FactorizedPrior.from_coder(model, contexts=contexts).fit(model.encode(latents(8, seed=1)))
    indices, cells = one_site_codes(atoms, slots, bits, ordered)
    points = ((2 * cells + 1) / 2**bits - 1) * model.slot_scales
    coefficients = torch.where(indices >= 0, points, 0.0)
    code = SparseCode(indices[:, None, None], coefficients[:, None, None], atoms, (1, 1))
    return model, prior, indices, cells, torch.exp2(-prior.bits(code))


@pytest.mark.parametrize("contexts", [True, False])
def test_bits_of_sets_are_those_of_the_sums_over_all_sets(contexts):
    model, prior, indices, cells, chance = sparse_prior(False, contexts)
    assert float(chance.sum()) == pytest.approx(1, abs=1e-6)
    used, bits = indices >= 0, prior.symbol_bits(model)
    for found, symbols, count in ((bits.symbols, indices, 5), (bits.cells, cells, 4)):
        expected = torch.stack([(chance * ((symbols == k) & used).sum(dim=1)).sum() for k in range(count)])
        expected = expected / expected.sum()
        for slot in range(3):
            torch.testing.assert_close(torch.exp2(-found[slot]).double(), expected, rtol=1e-4, atol=1e-7)
    sizes = torch.stack([chance[used.sum(dim=1) == size].sum() for size in range(4)])
    torch.testing.assert_close(torch.exp2(-bits.sizes).double(), sizes, rtol=1e-4, atol=1e-7)


def test_bits_of_sequences_are_those_of_the_prior_or_its_mean_over_contexts():
    model, prior, indices, cells, chance = sparse_prior(True, False)
    torch.testing.assert_close(
        prior.symbol_bits(model).of(indices, cells).double(), -chance.log2(), rtol=1e-5, atol=1e-4
    )
    model, prior, indices, cells, chance = sparse_prior(True, True)
    bits = prior.symbol_bits(model)
    for slot in range(3):  # supports of the same atoms have the same tables of cells
        here = (indices == torch.tensor([0, 1, 2])).all(dim=1)
        expected = torch.stack([chance[here & (cells[:, slot] == cell)].sum() for cell in range(4)])
        torch.testing.assert_close(
            torch.exp2(-bits.cells[slot]).double(), expected / expected.sum(), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("name", [name for name in MAKE if "dictionary" not in name])
def test_bits_of_indices_are_those_of_the_prior_without_contexts(name):
    model, _, x = build(name)
    code = model.encode_to_code(x)
    prior = FactorizedPrior.from_coder(model, contexts=False).fit(code)
    bits = prior.symbol_bits(model).of(code.indices.flatten(0, 2)).view(len(code), -1).sum(dim=1)
    torch.testing.assert_close(bits.double(), prior.bits(code), rtol=1e-5, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in MAKE if "codec" not in name])
def test_the_variance_is_about_that_of_decoded_codes(name):
    model, prior, _ = build(name)
    signals = model.signals(model.decode(model.encode(latents(40, seed=1))))
    found = float(model._variance_under(prior.symbol_bits(model)))
    # slots count as independent; the density of the scalar one is that of the latents
    assert found == pytest.approx(float(signals.var(dim=0).mean()), rel=0.1 if "residual" not in name else 0.4)


# Choices


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 9), st.sampled_from([0.0, 0.1, 3.0, 1e3]))
def test_the_cheapest_point_is_that_of_a_search_of_all(seed, slots, number, unit):
    rng = np.random.default_rng(seed)
    points = np.sort(rng.normal(size=(slots, number)), axis=1)
    costs = unit * rng.exponential(size=(slots, number))
    padded = rng.integers(1, number + 1, slots)
    for slot, count in enumerate(padded):
        points[slot, count:], costs[slot, count:] = np.inf, np.inf
    values = rng.normal(size=(20, slots)) * 2
    nearest = np.abs(values[:, :, None] - points).argmin(axis=2)
    found = cheapest_points(*map(torch.tensor, (values, nearest, points, costs))).numpy()
    losses = (values[:, :, None] - points) ** 2 + costs
    chosen = np.take_along_axis(losses, found[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(chosen, losses.min(axis=2), rtol=1e-12)
    if unit == 0:
        assert (found == nearest).all()


def test_costs_of_a_product_quantiser_are_a_part_of_each_distance():
    rng = np.random.default_rng(0)
    signals, books, costs = rng.normal(size=(50, 6)), rng.normal(size=(3, 5, 2)), rng.exponential(size=(3, 5))
    found = encode_product(*with_costs(*map(torch.tensor, (signals, books, costs)), together=False)).numpy()
    losses = ((signals.reshape(50, 3, 1, 2) - books) ** 2).sum(axis=3) + costs
    assert (found == losses.argmin(axis=2)).all()


@pytest.mark.parametrize("name", MAKE)
def test_no_weight_is_the_nearest_code(name):
    model, prior, x = build(name)
    expected = model.encode_to_code(x)
    for arguments in ((0.0,), (0,), (0.0, prior), (None, prior), (None, None)):
        assert model.encode_to_code(x, *arguments) == expected


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["vq", "fsq", "scalar", "entropy scalar"]),
    st.integers(0, 1000),
    st.sampled_from([1e-4, 3e-3, 0.1]),
)
def test_no_site_is_worse_than_its_nearest_code(name, seed, rate_weight):
    model, prior, _ = build(name)
    z = latents(2, seed=10 + seed)
    bits, w = prior.symbol_bits(model), weight(model, prior, rate_weight)
    signals = model.signals(z)
    target = (model._bounded(signals) / model.half_widths if name == "fsq" else signals).double()
    losses = []
    for code in (model.encode(z, rate_weight, prior), model.encode(z)):
        errors = (model._dequantize(code.indices.flatten(0, 2)).double() - target).square().sum(dim=1)
        losses.append(errors + w * bits.of(code.indices.flatten(0, 2)).double())
    assert bool((losses[0] <= losses[1] * (1 + 1e-5) + 1e-6).all())


@torch.no_grad()
@pytest.mark.parametrize("rate_weight", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("name", [name for name in MAKE if "residual" in name or "dictionary" in name])
def test_stages_and_atoms_are_better_than_the_nearest_in_sum(name, rate_weight):
    """Their searches are not of all codes, so that single sites may be worse."""
    model, prior, _ = build(name)
    z = latents(20, seed=5)
    bits, w, losses = prior.symbol_bits(model), weight(model, prior, rate_weight), []
    for code in (model.encode(z, rate_weight, prior), model.encode(z)):
        indices = code.indices.flatten(0, 2)
        cells = None if code.coefficients is None else model._cells(code.coefficients.flatten(0, 2))
        errors = (model.signals(model.decode(code)) - model.signals(z)).double().square().sum()
        losses.append(float(errors + w * bits.of(indices, cells).double().sum()))
    assert losses[0] < losses[1] * (1.001 if rate_weight == 1e-3 else 1)


@pytest.mark.parametrize("rate_weight", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("kind", ["vq", "scalar", "residual vq"])
def test_the_choice_is_that_of_a_search_of_all_codes(kind, rate_weight):
    torch.manual_seed(0)
    model = {
        "vq": lambda: VectorQuantizerBottleneck(4, num_codewords=7),
        "scalar": lambda: ScalarQuantizerBottleneck(4, bits=1, transform="klt"),
        "residual vq": lambda: ResidualVQBottleneck(4, num_codewords=4, depth=2, beam_size=4),
    }[kind]()
    model.fit(latents(40, seed=7)) if kind == "scalar" else model.initialize(latents(40, seed=7))
    prior = FactorizedPrior.from_coder(model.eval()).fit(model.encode(latents(20, seed=1)))
    z = latents(3, seed=3)
    every = torch.tensor(list(itertools.product(*map(range, model.levels))))
    points = model._dequantize(every).double()
    frequency = prior.symbol_model.shares(prior._tables()[0])[0]
    bits = -sum(frequency[slot][every[:, slot]].log2() for slot in range(every.shape[1]))
    losses = (model.signals(z).double()[:, None] - points).square().sum(dim=2) + weight(
        model, prior, rate_weight
    ) * bits
    found = model.encode(z, rate_weight, prior).indices.flatten(0, 2)
    rows = (found[:, None] == every).all(dim=2).long().argmax(dim=1)
    chosen = losses.gather(1, rows[:, None])[:, 0]
    assert bool((chosen <= losses.min(dim=1).values * (1 + 1e-4) + 1e-5).all())
    assert rate_weight < 0.1 or not torch.equal(found, model.encode(z).indices.flatten(0, 2))


def test_a_codec_weighs_errors_by_what_they_do_to_rgb():
    """Of each channel alone, in float64: gain · ‖y − e‖² + 3 λ bits, where a bit of a pixel costs λ."""
    model, prior, x = build("codec, VQ")
    rate_weight, side = 0.02, 4
    found = model.encode(x, rate_weight=rate_weight, prior=prior).codes.permute(0, 2, 3, 1).flatten(0, 2)
    padded = torch.nn.functional.pad(x, (0, 2, 0, 1), mode="replicate").double()
    matrix = np.linalg.inv(ycbcr_to_rgb(torch.eye(3, dtype=torch.float64)[:, :, None, None])[:, :, 0, 0].T.numpy())
    colours = torch.einsum("dc,bchw->bdhw", torch.tensor(matrix), padded)
    for number, (channel, book) in enumerate(model.codebooks.items()):
        patches = colours[:, number].unfold(1, side, side).unfold(2, side, side).reshape(-1, side * side)
        delta = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
        delta[0, number] = 1.0
        gain = float(ycbcr_to_rgb(delta).square().sum())
        frequency = prior.symbol_model.shares(prior._tables()[0])[0][number, : book.shape[1]]
        losses = gain * (patches[:, None] - book[0].double()).square().sum(dim=2) - 3 * rate_weight * frequency.log2()
        chosen = losses.gather(1, found[:, number : number + 1])[:, 0]
        assert bool((chosen <= losses.min(dim=1).values + 1e-5).all()), channel


@pytest.mark.parametrize("name", MAKE)
def test_more_weight_is_fewer_bits_and_more_error(name):
    model, prior, x = build(name)
    table, found = prior.symbol_bits(model), []
    for rate_weight in (1e-4, 1e-3, 1e-2, 0.1, 1.0):
        code = model.encode_to_code(x, rate_weight, prior)
        indices = code.indices.flatten(0, 2)
        cells = None if code.coefficients is None else model._cells(code.coefficients.flatten(0, 2))
        found.append((float(table.of(indices, cells).sum()), (decoded(model, code) - x).square().mean().item()))
    for (bits, error), (fewer, worse) in zip(found, found[1:]):
        assert fewer <= bits * 1.001 and worse >= error * 0.98
    assert found[-1][0] < 0.9 * found[0][0] and found[-1][1] > found[0][1]


@pytest.mark.parametrize("name", MAKE)
def test_a_file_gives_the_chosen_code_back_and_images_do_not_depend_on_each_other(name):
    model, prior, x = build(name)
    code = model.encode_to_code(x, 1e-2, prior)
    assert code != model.encode_to_code(x)
    assert prior.decompress(prior.compress(code)) == (model.unpack(model.pack(code)) if "set" in name else code)
    assert model.encode_to_code(x, 1e-2, prior) == code
    for number in range(len(x)):
        assert model.encode_to_code(x[number : number + 1], 1e-2, prior) == code[number : number + 1]


@pytest.mark.parametrize("name", ["vq", "residual vq", "dictionary"])
def test_a_model_with_tables_of_its_own_takes_any_weight(name):
    make = {
        "vq": lambda **kw: VectorQuantizerBottleneck(4, num_codewords=24, **kw),
        "residual vq": lambda **kw: ResidualVQBottleneck(4, num_codewords=16, depth=3, **kw),
        "dictionary": lambda **kw: DictionaryBottleneck(4, 20, 3, coefficient_bits=5, **kw),
    }[name]
    torch.manual_seed(0)
    model, z = make(rate_weight=1e-2), latents(3, seed=3)
    model.initialize(latents(40, seed=7))
    model.eval()
    own = model.encode(z)
    assert model.encode(z, 1e-2) == own != model.encode(z, 0.1)
    plain = make()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("tables")})
    assert model.encode(z, 0.0) == plain.encode(z)
    prior = FactorizedPrior.from_coder(model, contexts=False).fit(own)
    assert model.encode(z, 1e-2, prior) == plain.encode(z, 1e-2, prior)
    # a weight means the same by tables and by a prior of the same codes
    z = latents(40, seed=7)
    prior.fit(model.encode(z))
    codes = [model.encode(z).indices, model.encode(z, 1e-2, prior).indices]
    assert (codes[0] == codes[1]).all(dim=-1).float().mean() > 0.85


def test_an_autoencoder_passes_weight_and_prior_on():
    torch.manual_seed(0)
    config = {"num_codewords": 16}
    model = AutoencoderDL(
        block_out_channels=(4, 4), residual_channels=2, bottleneck_type="vq", bottleneck_config=config
    )
    x = images(6)
    model.initialize(x)
    prior = FactorizedPrior.from_coder(model.eval()).fit(model.encode_to_code(x))
    expected = model.bottleneck.encode(model.encode(x).latents, 0.05, prior)
    code = model.encode_to_code(x, 0.05, prior)
    assert torch.equal(code.indices, expected.indices) and code.image_size == (19, 22)
    assert model.encode_to_code(x, rate_weight=0.05, prior=prior) == code != model.encode_to_code(x)


def test_what_does_not_fit_is_refused():
    model, prior, x = build("vq")
    for bad in (-1.0, math.nan, math.inf, "1"):
        with pytest.raises(ValueError, match="`rate_weight` must be"):
            model.encode(x, bad, prior)
    with pytest.raises(ValueError, match="^`prior` must be given with a `rate_weight` above 0, since this Vector"):
        model.encode(x, 0.1)
    with pytest.raises(ValueError, match="^`prior` must be fitted to the codes of this VectorQuantizerBottleneck"):
        model.encode(x, 0.1, build("fsq")[1])
    with pytest.raises(ValueError, match="The FactorizedPrior is not fitted"):
        model.encode(x, 0.1, FactorizedPrior.from_coder(model))
    codec, codec_prior, pixels = build("codec, RQ")
    with pytest.raises(
        ValueError, match=r"^`prior` must be given with a `rate_weight` above 0, got `rate_weight` 0.1\.$"
    ):
        codec.encode_to_code(pixels, 0.1)
    with pytest.raises(ValueError, match="`prior` must be fitted to the codes of this ModelBasedVQCodec"):
        codec.encode_to_code(pixels, 0.1, prior)
    with pytest.raises(ValueError, match="`rate_weight` must be"):
        codec.encode_to_code(pixels, -0.1, codec_prior)
    floats = DictionaryBottleneck(4, 20, 3).eval()
    floats_prior = FactorizedPrior.from_coder(floats).fit(floats.encode(x))
    with pytest.raises(
        ValueError, match="^`coefficient_bits` must be set for a `rate_weight` with a prior, got None.$"
    ):
        floats.encode(x, 0.1, floats_prior)
    floats.set_coefficient_bits(4)
    with pytest.raises(
        ValueError, match="`prior` must be fitted to the codes of this Dictionary.* `coefficient_bits`"
    ):
        floats.encode(x, 0.1, floats_prior)


def test_an_external_quantiser_takes_no_weight():
    pytest.importorskip("vector_quantize_pytorch")
    model, z = ExternalQuantizerBottleneck(4, "lfq", {"codebook_size": 16}).eval(), latents()
    prior = FactorizedPrior.from_coder(model).fit(model.encode(z))
    assert isinstance(model.encode(z, 0.0, prior), IndexCode)
    for arguments in ((0.1, prior), (0.1,)):
        with pytest.raises(
            ValueError, match="^`rate_weight` must be 0 for an External.* chooses without bits, got 0.1.$"
        ):
            model.encode(z, *arguments)
