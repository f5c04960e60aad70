"""Priors over codes: bits are what files cost, files give the same code back, and nothing else is accepted."""

import copy
import itertools
import math
import struct
import time
import zlib
from dataclasses import replace

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
    IdentityBottleneck,
    IndexCode,
    ModelBasedVQCodec,
    PriorOutput,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    SparseCode,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.functional import set_backend


def latents(batch=3, channels=4, height=7, width=10, seed=0):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def codec():
    model = ModelBasedVQCodec.from_notation("OPQ-{8-4-4}", patch_size=4, codebook_bits=4)
    for name, buffer in model.named_buffers():
        if name.startswith("codebooks"):
            buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(0)) / 4)
    model.fitted.fill_(True)
    return model


SHARED = {"coefficient_scaling": "shared"}
MAKE = {
    "float": lambda: DictionaryBottleneck(4, 20, 3),
    "float, variable": lambda: DictionaryBottleneck(4, 20, 3, patch_size=2, tolerance=1.5),
    "depth": lambda: DictionaryBottleneck(4, 50, 4, coefficient_bits=7),
    "depth, variable": lambda: DictionaryBottleneck(4, 50, 4, coefficient_bits=16, tolerance=1.0),
    "shared": lambda: DictionaryBottleneck(4, 50, 4, coefficient_bits=7, **SHARED),
    "shared, variable": lambda: DictionaryBottleneck(4, 33, 4, coefficient_bits=1, tolerance=1.0, **SHARED),
    "shared, all atoms": lambda: DictionaryBottleneck(4, 3, 3, coefficient_bits=3, **SHARED),
    "one atom": lambda: DictionaryBottleneck(4, 1, 1, coefficient_bits=3, **SHARED),
    "one atom, ordered": lambda: DictionaryBottleneck(4, 1, 1, coefficient_bits=3),
    "lasso": lambda: DictionaryBottleneck(4, 20, 4, pursuit="fista", coefficient_bits=5),
    "vq": lambda: VectorQuantizerBottleneck(4, num_codewords=50),
    "one codeword": lambda: VectorQuantizerBottleneck(4, num_codewords=1),
    "residual_vq": lambda: ResidualVQBottleneck(4, num_codewords=50, depth=3, patch_size=2),
    "fsq": lambda: FSQBottleneck(4, levels=(7, 5, 5, 3)),
    "lfq": lambda: ExternalQuantizerBottleneck(4, "lfq", {"codebook_size": 16, "num_codebooks": 3}),
    "residual_fsq": lambda: ExternalQuantizerBottleneck(4, "residual_fsq", {"levels": [5, 5, 3]}),
    "scalar": lambda: ScalarQuantizerBottleneck(4, bits=3, transform="klt"),
    "entropy_scalar": lambda: EntropyScalarBottleneck(4, bits=8, rate_weight=1e-2),
    "codec": codec,
}
_BUILT = {}


def build(name):
    """A model, codes that its prior is fitted to, other codes, and the prior."""
    if name not in _BUILT:
        torch.manual_seed(0)
        model = MAKE[name]()
        if name == "codec":
            make = lambda batch, seed: model.encode_to_code(  # noqa: E731
                torch.rand(batch, 3, 27, 39, generator=torch.Generator().manual_seed(seed)) * 2 - 1
            )
        else:
            if name == "scalar":
                model.fit(latents(20, seed=7))
            else:
                model.initialize(latents(20, seed=7), generator=torch.Generator().manual_seed(0))
            model.eval()
            make = lambda batch, seed: replace(model.encode(latents(batch, seed=seed)), image_size=(27, 39))  # noqa: E731
        codes, held = [make(8, 1), make(5, 2)], make(7, 3)
        _BUILT[name] = model, codes, held, FactorizedPrior.from_coder(model).fit(codes)
    return _BUILT[name]


def canonical(model, code):
    """The code with its slots as files of the model give them back."""
    return model.unpack(model.pack(code))


@pytest.mark.parametrize("name", MAKE)
def test_a_file_gives_the_code_back_at_its_bits(name):
    model, _, held, prior = build(name)
    bits, data = prior.bits(held), prior.compress(held)
    assert bits.shape == (len(held),) and bits.dtype == torch.float64 and bool((bits >= 0).all())
    assert prior.decompress(data) == canonical(model, held)
    if getattr(model, "ordered", True):
        assert prior.decompress(data) == held
    assert len(data) <= 1.01 * float(bits.sum()) / 8 + 64
    assert len(data) >= float(bits.sum()) / 8


def test_forward_gives_the_bits():
    _, _, held, prior = build("depth")
    output = prior(held)
    assert isinstance(output, PriorOutput) and torch.equal(output.bits, prior.bits(held))
    assert torch.equal(prior(held, return_dict=False)[0], output.bits)


@pytest.mark.parametrize("name", MAKE)
def test_single_images_are_read_alone(name):
    _, _, held, prior = build(name)
    data = prior.compress(held)
    whole = prior.decompress(data)
    for images in (slice(2, 5), slice(None, None, -2), slice(6, None), slice(3, 3), slice(-1, None)):
        part = prior.decompress(data, images=images)
        chosen = list(range(7))[images]
        assert torch.equal(part.indices, whole.indices[chosen]) and part.image_size == whole.image_size
    assert prior.decompress(prior.compress(held[:0])) == whole[:0]
    with pytest.raises(ValueError, match=r"`images` must be a slice, e.g. slice\(2, 5\), got 3."):
        prior.decompress(data, images=3)


def test_streams_without_the_wanted_images_are_not_decoded():
    """Their words are not looked at; streams hold about 64 kB."""
    from diffusers_lasers.coding import streams

    _, _, held, prior = build("entropy_scalar")
    many = replace(held, indices=held.indices.repeat(320, 1, 1, 1))
    data = prior.compress(many)
    header, words = streams.unpack_streams(data)
    assert 2 <= len(words) <= 12 and header.stream_images * len(words) >= 2240
    assert len(data) <= 1.003 * float(prior.bits(many).sum()) / 8 + 64
    spoiled = streams.pack_streams(header, [words[0], np.full_like(words[1], 2**32 - 1), *words[2:]])
    assert prior.decompress(spoiled, images=slice(0, 3)) == held[:3]
    with pytest.raises(ValueError, match="`data` must"):
        prior.decompress(spoiled)


def all_codes(prior, grid, coefficients):
    """Every code of one image."""
    levels, sites = prior.config.levels, math.prod(grid)
    if not prior.config.sparse:
        for symbols in itertools.product(*[range(level) for _ in range(sites) for level in levels]):
            yield IndexCode(torch.tensor(symbols).view(1, *grid, len(levels)), tuple(levels), grid)
        return
    atoms, most = levels[0], len(levels)
    points = (2 * torch.arange(2**prior.config.coefficient_bits) + 1) / 2**prior.config.coefficient_bits - 1
    of_a_site = []
    for size in range(most + 1):
        for support in itertools.combinations(range(atoms), size):
            for cells in itertools.product(range(len(points)), repeat=size):
                of_a_site.append((support, cells))
    for chosen in itertools.product(of_a_site, repeat=sites):
        indices, values = torch.full((1, *grid, most), -1), torch.zeros(1, *grid, most)
        for site, (support, cells) in enumerate(chosen):
            place = (0, site // grid[1], site % grid[1])
            for slot, (atom, cell) in enumerate(zip(support, cells)):
                indices[(*place, slot)], values[(*place, slot)] = atom, points[cell]
        yield SparseCode(indices, values, atoms, grid)


def random_index_code(levels, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(level, shape, generator=generator) ** 2 // level for level in levels]
    return IndexCode(torch.stack(parts, dim=-1), levels, shape[1:])


@pytest.mark.parametrize("contexts", [True, False])
@pytest.mark.parametrize("kind", ["index", "sets"])
def test_the_probabilities_of_all_codes_sum_to_one(kind, contexts):
    """So `bits` are those of a distribution: each set once, whatever the order of its atoms, and all contexts whole."""
    if kind == "index":
        prior, grid = FactorizedPrior((2, 3), contexts=contexts), (2, 2)
        prior.fit([random_index_code((2, 3), (3, 4, 5), seed) for seed in range(2)])
    else:
        prior, grid = FactorizedPrior((5,) * 3, True, False, 1, contexts=contexts), (1, 1)
        prior.fit(list(itertools.islice(all_codes(prior, grid, 1), 20, 400, 7)))
    total = sum(2.0 ** -float(prior.bits(code)) for code in all_codes(prior, grid, 1))
    assert total == pytest.approx(1, abs=1e-4)


def test_tables_of_repetition_pay_in_flat_areas_and_cost_little_elsewhere():
    """The codewords have no order here, so that the mean index of neighbours says nothing."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randint(64, (60, 1, 4, 4), generator=generator).float()
    flat = torch.nn.functional.interpolate(flat, scale_factor=6).long().permute(0, 2, 3, 1)
    noise = torch.randint(64, flat.shape, generator=generator)
    for indices, low, high in ((flat, 0.3, 0.85), (noise, 0.999, 1.001)):
        codes = [IndexCode(part.contiguous(), (64,), (24, 24)) for part in indices.split(30)]
        bits = [
            float(FactorizedPrior((64,), repeats=repeats).fit([codes[0]]).bits(codes[1]).sum())
            for repeats in (True, False)
        ]
        assert low < bits[0] / bits[1] < high
    prior = FactorizedPrior((2,), repeats=True)
    prior.fit([random_index_code((2,), (3, 4, 5), seed) for seed in range(2)])
    total = sum(2.0 ** -float(prior.bits(code)) for code in all_codes(prior, (3, 3), 1))
    assert 0.9 < total < 1 - 1e-6  # what is left: the common symbol, after "it is not repeated"


def test_the_order_of_a_set_costs_nothing_and_changes_nothing():
    _, _, held, prior = build("shared")
    order = torch.rand(held.indices.shape, generator=torch.Generator().manual_seed(0)).argsort(dim=-1)
    other = replace(held, indices=held.indices.gather(-1, order), coefficients=held.coefficients.gather(-1, order))
    assert other != held and torch.equal(prior.bits(other), prior.bits(held))
    assert prior.compress(other) == prior.compress(held)


def test_sets_cost_what_an_enumeration_of_their_subsets_says():
    """Independent reference: codes with a uniform distribution over sets cost log2 of their number."""
    atoms, slots, images = 9, 3, 400
    generator = torch.Generator().manual_seed(0)
    make = lambda: torch.rand(images, 4, 4, atoms, generator=generator).topk(slots, dim=-1).indices  # noqa: E731
    codes = [SparseCode(indices, torch.full(indices.shape, 0.5), atoms, (4, 4)) for indices in (make(), make())]
    prior = FactorizedPrior((atoms,) * slots, True, False, 1, contexts=False).fit(codes[0])
    expected = math.log2(math.comb(atoms, slots))
    assert float(prior.bits(codes[1]).mean()) / 16 == pytest.approx(expected, rel=0.01)


def test_index_tables_are_the_cross_entropy_of_counts():
    """Without contexts: −log₂ of Witten–Bell's shares, computed by numpy."""
    levels, first, other = (4, 7), random_index_code((4, 7), (5, 6, 7), 0), random_index_code((4, 7), (5, 6, 7), 1)
    prior = FactorizedPrior(levels, contexts=False).fit(first)
    expected = np.zeros(5)
    for slot, level in enumerate(levels):
        counts = np.bincount(first.indices[..., slot].flatten().numpy(), minlength=level)
        different = (counts > 0).sum()
        shares = (counts + different / level) / (counts.sum() + different)
        expected -= np.log2(shares[other.indices[..., slot].numpy()]).sum(axis=(1, 2))
    assert prior.bits(other).numpy() == pytest.approx(expected, rel=1e-5)


def test_contexts_pay_where_neighbours_tell_something_and_cost_little_where_not():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 1, 16, 16, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2) * 5
    for values, low, high in ((smooth, -9, 0.90), (noise, 0.99, 1.02)):
        indices = (values * 8 + 32).round().clamp(0, 63).long().permute(0, 2, 3, 1)
        codes = [IndexCode(part, (64,), (16, 16)) for part in indices.split(200)]
        bits = [
            float(FactorizedPrior((64,), contexts=contexts).fit([codes[0]]).bits(codes[1]).sum())
            for contexts in (True, False)
        ]
        assert low < bits[0] / bits[1] < high


def synthetic(images=60, seed=0):
    """Ordered codes of a known prior: 8 atoms with shares 1 : 2 : … : 8, coefficients from two Gaussians."""
    source = np.random.default_rng(seed)
    shape = (images, 16, 16, 1)
    indices = source.choice(8, size=shape, p=np.arange(1, 9) / 36)
    values = np.where(source.random(shape) < 0.25, source.normal(-0.5, 0.1, shape), source.normal(0.3, 0.15, shape))
    values = np.where(source.random(shape) < 0.2, 0, values)
    cells = np.clip(np.floor((values + 1) * 32), 0, 63)
    used = values != 0
    coefficients = torch.from_numpy(np.where(used, (2 * cells + 1) / 64 - 1, 0)).float()
    return SparseCode(torch.from_numpy(np.where(used, indices, -1)), coefficients, 8, (16, 16))


def test_the_parameters_of_a_synthetic_code_come_back():
    prior = FactorizedPrior((8,), True, True, 6, components=2).fit(synthetic())
    weights, means, deviations = prior.mixtures[:, 0]
    order = means.argsort()
    for found, expected in zip((weights, means, deviations), ((0.25, 0.75), (-0.5, 0.3), (0.1, 0.15))):
        torch.testing.assert_close(found[order], torch.tensor(expected), rtol=0, atol=0.02)
    shares = prior.table_atoms[0] / 2**24
    expected = torch.tensor([0.2, *(0.8 * torch.arange(1, 9) / 36)])
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", [*MAKE, "synthetic"])
def test_samples_are_codes_with_the_statistics_of_what_was_fitted(name):
    if name == "synthetic":
        codes, prior = synthetic(), FactorizedPrior((8,), True, True, 6, components=2).fit(synthetic())
        drawn = prior.sample(60, (16, 16), torch.Generator().manual_seed(0))
        used = [code.coefficients[code.indices >= 0] for code in (codes, drawn)]
        assert float(used[1].mean()) == pytest.approx(float(used[0].mean()), abs=0.02)
        assert float(used[1].std()) == pytest.approx(float(used[0].std()), abs=0.02)
    else:
        model, (codes, _), _, prior = build(name)
        drawn = prior.sample(16, codes.grid, torch.Generator().manual_seed(0))
        assert type(drawn) is type(codes) and drawn.levels == codes.levels and drawn.grid == codes.grid
        decoded = model.decode_from_code(drawn)  # a code of the model
        assert torch.isfinite(decoded if torch.is_tensor(decoded) else decoded.sample).all()
        assert prior.decompress(prior.compress(drawn)) == drawn
        assert prior.sample(16, codes.grid, torch.Generator().manual_seed(0)) == drawn
        # what is drawn costs on average what is coded
        own, other = (float(prior.bits(code).mean()) for code in (codes, drawn))
        assert 0.75 * own - 30 <= other <= 1.35 * own + 30
    shares = [code.usage_counts() / code.usage_counts().sum() for code in (codes, drawn)]
    assert float((shares[0] - shares[1]).abs().max()) < 0.08


@pytest.mark.parametrize("name", ["depth", "shared", "float", "residual_vq", "entropy_scalar", "codec"])
def test_a_saved_prior_reads_and_writes_the_same_bytes_alone(name, tmp_path):
    _, _, held, prior = build(name)
    data = prior.compress(held)
    prior.save_pretrained(tmp_path / "prior")
    for arguments in ({}, {"torch_dtype": torch.float16}, {"device_map": "cpu"}):
        again = FactorizedPrior.from_pretrained(tmp_path / "prior", **arguments)
        assert again.compress(held) == data and again.decompress(data) == prior.decompress(data)
        assert torch.equal(again.bits(held), prior.bits(held))
    assert copy.deepcopy(prior).compress(held) == data


PROCESS = """
import torch, zlib
from diffusers_lasers import FactorizedPrior
torch.set_num_threads({threads})
for name in {names}:
    prior = FactorizedPrior.from_pretrained(name)
    code = torch.load(name + ".pt", weights_only=False)
    data = prior.compress(code)
    result[name] = [data.hex(), prior.decompress(data) == prior.decompress(bytes.fromhex(open(name + ".hex").read()))]
"""


def test_bytes_are_the_same_over_threads_and_processes(fresh, tmp_path):
    names = ["depth", "shared", "entropy_scalar", "codec"]
    for name in names:
        _, _, held, prior = build(name)
        prior.save_pretrained(tmp_path / name)
        torch.save(held, tmp_path / f"{name}.pt")
        (tmp_path / f"{name}.hex").write_text(prior.compress(held).hex())
    for threads in (1, 4):
        found = fresh(PROCESS.format(threads=threads, names=names), tmp_path, OMP_NUM_THREADS=str(threads))
        for name in names:
            assert found[name] == [(tmp_path / f"{name}.hex").read_text(), True]


def test_files_of_priors_without_repeats_stay_readable():
    """Made when `repeats` was no argument yet."""
    data = (
        "444c50520100000000124123ea020000000300000004000000000000000000000002000200"
        "00008a9acdd403ac569d3f9c7ca154d76ae62d"
    )
    prior = FactorizedPrior((3, 4)).fit(random_index_code((3, 4), (2, 3, 4), 0))
    assert prior.decompress(bytes.fromhex(data)) == random_index_code((3, 4), (2, 3, 4), 1)


def test_bytes_are_the_same_with_both_backends():
    for name in ("depth", "shared", "codec"):
        model, _, held, prior = build(name)
        data = prior.compress(held)
        try:
            set_backend("torch")
            assert prior.compress(held) == data and prior.decompress(data) == canonical(model, held)
        finally:
            set_backend("auto")


def test_a_new_fit_replaces_the_old_one():
    model, codes, held, _ = build("depth")
    prior = FactorizedPrior.from_coder(model).fit(codes)
    before, data = prior.bits(held), prior.compress(held)
    prior.fit(held)
    assert float(prior.bits(held).sum()) < float(before.sum())
    with pytest.raises(ValueError, match="`data` must be compressed by this prior, it is of another."):
        prior.decompress(data)


def test_truncated_codes_have_a_price_too():
    for name in ("depth", "shared"):
        model, _, held, prior = build(name)
        cut = model.truncate(held, 2)
        assert prior.decompress(prior.compress(cut)) == canonical(model, cut)
        assert float(prior.bits(cut).sum()) < 0.8 * float(prior.bits(held).sum())
    model, _, held, prior = build("residual_vq")
    cut = replace(held, indices=held.indices[..., :2].contiguous(), levels=held.levels[:2])
    assert prior.decompress(prior.compress(cut)) == cut


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.tuples(st.integers(0, 4), st.integers(1, 11), st.integers(1, 11)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_index_code_comes_back(levels, shape, contexts, repeats, seed):
    """Also one that has nothing to do with the codes that the prior was fitted to."""
    levels = tuple(levels)
    prior = FactorizedPrior(levels, contexts=contexts, repeats=repeats)
    prior.fit(random_index_code(levels, (2, 3, 4), seed))
    code = random_index_code(levels, shape, seed + 1)
    code = replace(code, indices=torch.tensor(levels) - 1 - code.indices)
    if seed % 2:
        code.indices[:, 1:] = code.indices[:, :1]  # neighbours alike
    data = prior.compress(code)
    assert prior.decompress(data) == code
    assert float(prior.bits(code).sum()) / 8 <= len(data) <= float(prior.bits(code).sum()) / 8 * 1.01 + 64


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40).flatmap(lambda atoms: st.tuples(st.just(atoms), st.integers(1, min(atoms, 5)))),
    st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5)),
    st.booleans(),
    st.sampled_from([1, 3, 8, None]),
    st.integers(0, 2**31),
)
def test_any_sparse_code_comes_back(sizes, shape, ordered, bits, seed):
    atoms, slots = sizes
    ordered = ordered and bits is not None
    prior = FactorizedPrior((atoms,) * slots, True, ordered, bits)
    prior.coefficient_scale.fill_(0.7)

    def make(shape, seed):
        generator = torch.Generator().manual_seed(seed)
        indices = torch.rand(*shape, atoms, generator=generator).topk(slots, dim=-1).indices
        size = torch.randint(slots + 1, (*shape, 1), generator=generator)
        indices = torch.where(torch.arange(slots) < size, indices, -1)
        values = torch.randn(indices.shape, generator=generator)
        if bits is not None:
            cells = ((values + 1) * 2**bits / 2).floor().clamp(0, 2**bits - 1)
            values = ((2 * cells + 1) / 2**bits - 1) * torch.tensor(0.7)
        values = torch.where(indices >= 0, values, 0.0)
        order = torch.where(indices >= 0, -values.abs(), torch.inf).argsort(dim=-1, stable=True)
        return SparseCode(indices.gather(-1, order), values.gather(-1, order), atoms, shape[1:])

    prior.fit(make((2, 3, 3), seed))
    code = make(shape, seed + 1)
    data, bits_of_it = prior.compress(code), float(prior.bits(code).sum())
    again = prior.decompress(data)
    if ordered:
        assert again == code
    else:  # equal magnitudes come by ascending atom
        order = code.indices.sort(dim=-1)
        found = again.indices.sort(dim=-1)
        assert torch.equal(found.values, order.values)
        assert torch.equal(again.coefficients.gather(-1, found.indices), code.coefficients.gather(-1, order.indices))
        magnitudes = torch.where(again.indices >= 0, again.coefficients.abs(), -1)
        assert bool((magnitudes[..., 1:] <= magnitudes[..., :-1]).all()) and prior.compress(again) == data
    assert bits_of_it / 8 <= len(data) <= bits_of_it / 8 * 1.01 + 64


def mutants(data, other, count, seed):
    source = np.random.default_rng(seed)
    for number in range(count):
        changed, kind = bytearray(data), number % 5
        if kind == 0:
            position = source.integers(8 * len(data))
            changed[position // 8] ^= 1 << position % 8
        elif kind == 1:
            changed = changed[: source.integers(len(data))]
        elif kind == 2:
            changed += source.bytes(source.integers(1, 9))
        elif kind == 3:
            start = source.integers(len(data))
            changed[start : start + source.integers(1, 30)] = source.bytes(source.integers(0, 30))
        else:
            start = source.integers(min(len(data), len(other)))
            changed = changed[:start] + other[start:]
        if bytes(changed) not in (data, other):
            yield bytes(changed)


@pytest.mark.parametrize(
    "name", ["depth", "shared", "float, variable", "vq", "one codeword", "entropy_scalar", "codec"]
)
def test_no_damaged_file_is_accepted(name):
    _, _, held, prior = build(name)
    data, other = prior.compress(held), prior.compress(held[:2])
    assert len(list(mutants(data, other, 400, 0))) > 300
    for changed in mutants(data, other, 400, 0):
        with pytest.raises(ValueError, match=r"^`data` must [^\n]*\.$"):
            prior.decompress(changed)


def sealed(data):
    return data[:39] + struct.pack("<I", zlib.crc32(data[43:], zlib.crc32(data[:39]))) + data[43:]


@pytest.mark.parametrize(
    "name", ["depth", "shared", "float, variable", "vq", "one codeword", "entropy_scalar", "codec"]
)
def test_a_damaged_file_with_its_checksum_mended_is_refused_or_a_code(name):
    """At once, and in little memory: header and length of the payload say so before anything is decoded."""
    _, _, held, prior = build(name)
    data, accepted = prior.compress(held), 0
    source = np.random.default_rng(1)
    for number in range(400):
        changed = bytearray(data)
        if number % 2:
            place = source.integers(43, len(data) + 1)
            changed[place : place + 8] = source.bytes(8)
        else:
            place = 13 + 4 * source.integers(5) if number % 4 else source.integers(33, 39)
            changed[place : place + 4] = struct.pack("<I", source.choice([0, 1, 2, 3, 7, 2**16, 2**20, 2**32 - 1]))
        start = time.perf_counter()
        try:
            found = prior.decompress(sealed(bytes(changed)), max_sites=2**16)
            accepted += 1
            assert found.num_sites <= 2**16 and prior.decompress(prior.compress(found)) == found
        except ValueError as error:
            assert str(error).startswith("`data` must") and str(error).endswith(".") and "\n" not in str(error)
        assert time.perf_counter() - start < 5
    assert accepted < 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda code: code.indices, "`code` must be a SparseCode of at most 4 out of 50 atoms, got Tensor."),
        (lambda code: replace(code, num_atoms=51), "`code` must be a SparseCode of at most 4 out of 50 atoms"),
        (lambda code: replace(code, indices=code.indices + 50), "`code` must have indices from -1 to below its 50"),
        (lambda code: replace(code, latent_size=(70, 10)), "`code` must have 70 × 10 sites"),
        (lambda code: replace(code, indices=code.indices * 0), "`code` must name each atom of a support once"),
        (lambda code: replace(code, coefficients=code.coefficients * 0.999), "`code` must have coefficients that are"),
        (lambda code: replace(code, coefficients=code.coefficients / 0), "`code` must have finite coefficients"),
    ],
)
def test_a_code_that_does_not_fit_is_refused(change, message):
    _, _, held, prior = build("depth")
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")):
        prior.compress(change(held))


def test_what_cannot_be_is_refused():
    model, codes, held, prior = build("depth")
    unfitted = FactorizedPrior.from_coder(model)
    for call in (lambda: unfitted.bits(held), lambda: unfitted.compress(held), lambda: unfitted.sample(1, (2, 2))):
        with pytest.raises(ValueError, match="The FactorizedPrior is not fitted: call `fit` first."):
            call()
    with pytest.raises(ValueError, match="`model` must make codes, got IdentityBottleneck, which makes none."):
        FactorizedPrior.from_coder(IdentityBottleneck(4))
    with pytest.raises(ValueError, match="`codes` must hold at least one site, got none."):
        unfitted.fit([])
    with pytest.raises(ValueError, match="must be readable twice where there are contexts, got an iterator"):
        FactorizedPrior((3,)).fit(iter([random_index_code((3,), (1, 2, 2), 0)]))
    with pytest.raises(ValueError, match="`levels` must name the atoms of one dictionary"):
        FactorizedPrior((3, 4), sparse=True, coefficient_bits=2)
    with pytest.raises(ValueError, match="`coefficient_bits` must be None for index codes"):
        FactorizedPrior((3, 4), coefficient_bits=2)
    with pytest.raises(ValueError, match="`data` must be compressed by this prior"):
        prior.decompress(build("shared")[3].compress(build("shared")[2]))
    with pytest.raises(ValueError, match="`data` must hold at most 16 sites"):
        prior.decompress(prior.compress(held), max_sites=16)
    with pytest.raises(ValueError, match="`batch` must be an integer"):
        prior.sample(-1, (2, 2))


def test_damaged_tables_are_refused():
    model, codes, held, _ = build("vq")
    prior = FactorizedPrior.from_coder(model).fit(codes)
    prior.table_contexts_50[3, 4] += 1
    with pytest.raises(
        ValueError, match=r"The tables of a FactorizedPrior must sum to 2\^24, table_contexts_50 does not."
    ):
        prior.bits(held)


def test_a_prior_of_an_autoencoder_is_that_of_its_bottleneck():
    torch.manual_seed(0)
    model = AutoencoderDL(block_out_channels=(8, 16), residual_channels=8, latent_channels=4, bottleneck_type="fsq",
                          bottleneck_config={"levels": (5, 5)}).eval()  # fmt: skip
    code = model.encode_to_code(torch.rand(3, 3, 21, 30) * 2 - 1)
    prior = FactorizedPrior.from_coder(model).fit(code)
    other = FactorizedPrior.from_coder(model.bottleneck).fit(code)
    assert prior.compress(code) == other.compress(code) and prior.decompress(prior.compress(code)) == code


def _fit_on_a_rank(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name in ("depth", "entropy_scalar"):
        prior, codes = torch.load(f"{folder}/{name}.pt", weights_only=False)
        prior.fit([codes[rank]])
        torch.save(prior.state_dict(), f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_fit_what_one_does(tmp_path):
    for name in ("depth", "entropy_scalar"):
        model, codes, _, _ = build(name)
        torch.save((FactorizedPrior.from_coder(model), codes), tmp_path / f"{name}.pt")
    torch.multiprocessing.spawn(_fit_on_a_rank, (str(tmp_path),), nprocs=2)
    for name in ("depth", "entropy_scalar"):
        expected = build(name)[3].state_dict()
        for rank in range(2):
            found = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_passes_code_each_site_once_after_its_neighbours(height, width):
    from diffusers_lasers.models.priors.index_model import _passes

    coded = np.zeros((height, width), dtype=bool)
    alone = 0
    for (rows, columns), neighbours in _passes((height, width)):
        assert not coded[rows, columns].any()
        for row in range(height)[rows]:
            for column in range(width)[columns]:
                near = [(row + down, column + across) for down, across in neighbours]
                near = [(r, c) for r, c in near if 0 <= r < height and 0 <= c < width]
                assert all(coded[place] for place in near)
                alone += not near
        coded[rows, columns] = True
    assert coded.all() and alone <= max(height, 8) * max(width, 8) / 64 + (height + width) / 4


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2**24))
def test_costs_of_contexts_are_eighths_of_a_bit(frequency):
    """Within an eighth and what a straight line between powers of two misses of the logarithm."""
    from diffusers_lasers.models.priors.index_model import _eighths

    found = int(_eighths(np.array([frequency]))[0])
    assert -0.001 <= found - 8 * (24 - math.log2(frequency)) <= 1 + 8 * 0.0861
