"""What every bottleneck must do, then what is particular to each."""

import math

import pytest
import torch
from torch.nn import functional as F

from diffusers_lasers import (
    Bottleneck,
    BottleneckOutput,
    DictionaryBottleneck,
    EntropyScalarBottleneck,
    ExternalQuantizerBottleneck,
    FactorizedPrior,
    FSQBottleneck,
    IdentityBottleneck,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
    VectorQuantizerBottleneck,
)
from diffusers_lasers.coding import SparseCode
from diffusers_lasers.functional import get_pursuit, latents_to_signals, omp, synthesize
from diffusers_lasers.metrics import CodeRate


LEARNED = {
    "dictionary": lambda **kw: DictionaryBottleneck(6, num_atoms=24, sparsity=3, **kw),
    "dictionary-8bit": lambda **kw: DictionaryBottleneck(6, num_atoms=24, sparsity=3, coefficient_bits=8, **kw),
    "dictionary-projection": lambda **kw: DictionaryBottleneck(
        6, num_atoms=24, sparsity=3, gradient="projection", **kw
    ),
    "vq": lambda **kw: VectorQuantizerBottleneck(6, num_codewords=24, **kw),
    "residual_vq": lambda **kw: ResidualVQBottleneck(6, num_codewords=24, depth=3, **kw),
}
CODED = {
    **LEARNED,
    "vq, rate": lambda **kw: VectorQuantizerBottleneck(6, num_codewords=24, rate_weight=1e-2, **kw),
    "residual_vq, rate": lambda **kw: ResidualVQBottleneck(6, num_codewords=24, depth=3, rate_weight=1e-2, **kw),
    "dictionary, rate": lambda **kw: DictionaryBottleneck(
        6, num_atoms=24, sparsity=3, coefficient_bits=6, rate_weight=1e-2, **kw
    ),
    "fsq": lambda patch_size=1: FSQBottleneck(6, levels=(5,) * (6 * patch_size**2), patch_size=patch_size),
    "entropy_scalar": lambda **kw: EntropyScalarBottleneck(6, rate_weight=1e-2, **kw),
    "int4": lambda **kw: EntropyScalarBottleneck(6, bits=4, quantization="straight_through", **kw),
    **{
        name: lambda name=name, **kw: ExternalQuantizerBottleneck(6, name, **kw)
        for name in ("lfq", "bsq", "sim_vq", "cosine_vq", "residual_fsq", "residual_lfq", "residual_sim_vq")
    },
}


def latents(batch=3, channels=6, height=5, width=4, seed=0):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=sorted(CODED))
def make(request):
    def build(**kwargs):
        torch.manual_seed(0)
        bottleneck = CODED[request.param](**kwargs)
        bottleneck.initialize(latents(16, seed=7), generator=torch.Generator().manual_seed(0))
        return bottleneck.eval()

    return build


@pytest.mark.parametrize("patch_size", [1, 2])
def test_forward_is_decode_of_encode(make, patch_size):
    bottleneck, z = make(patch_size=patch_size), latents()
    output = bottleneck(z)
    assert isinstance(bottleneck, Bottleneck) and isinstance(output, BottleneckOutput)
    torch.testing.assert_close(bottleneck.decode(bottleneck.encode(z)), output.latents, rtol=1e-5, atol=1e-6)
    assert output.latents.shape == z.shape
    code = output.code
    assert code.indices.shape[:3] == (3, math.ceil(5 / patch_size), math.ceil(4 / patch_size))
    assert code.latent_size == (5, 4)


def test_initial_atoms_spread_although_sites_share_a_direction():
    z = latents(64) * 0.1 + 5.0
    bottleneck = dictionary_bottleneck()
    bottleneck.initialize(z)
    mean = F.normalize(latents_to_signals(z).mean(dim=0), dim=0)
    torch.testing.assert_close(bottleneck.dictionary[:, 0], mean)
    assert (bottleneck.dictionary[:, 1:].t() @ mean).abs().mean() < 0.6
    assert (bottleneck.encode(z).usage_counts() > 0).sum() >= 22


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_code_is_the_same_alone_and_in_any_batch(make, patch_size):
    """The authors' release mixed the images of a batch: changing the others changed image 0 by up to 0.63."""
    bottleneck, z = make(patch_size=patch_size), latents(7)
    together = bottleneck.encode(z)
    for image in range(7):
        alone = bottleneck.encode(z[image : image + 1])
        assert torch.equal(alone.indices[0], together.indices[image])
        if isinstance(alone, SparseCode):
            torch.testing.assert_close(alone.coefficients[0], together.coefficients[image], rtol=1e-6, atol=1e-6)


def test_gradients_pass_and_evaluation_does_not_change_state(make):
    bottleneck, z = make(), latents().requires_grad_()
    before = {name: value.clone() for name, value in bottleneck.state_dict().items()}
    output = bottleneck(z)
    (output.latents.square().sum() + output.loss).backward()
    assert torch.isfinite(z.grad).all() and z.grad.abs().sum() > 0
    for name, value in bottleneck.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents_are_coded_in_float32(make, dtype):
    bottleneck, z = make(), latents().to(dtype)
    output = bottleneck(z)
    assert output.latents.dtype == dtype and output.loss.dtype == torch.float32
    assert torch.equal(output.code.indices, bottleneck.encode(z.float()).indices)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bottleneck(z).code.indices, output.code.indices)


def test_save_and_load_give_the_same_codes(make, tmp_path):
    bottleneck, z = make(), latents()
    bottleneck.train()(z)
    bottleneck.eval().save_pretrained(str(tmp_path))
    loaded = type(bottleneck).from_pretrained(str(tmp_path))
    assert torch.equal(loaded.encode(z).indices, bottleneck.encode(z).indices)
    assert torch.equal(loaded(z).latents, bottleneck(z).latents)
    assert loaded.config.latent_channels == 6


def test_wrong_channels_are_refused(make):
    with pytest.raises(ValueError, match=r"`latents` must have shape \(batch, 6, height, width\)"):
        make()(latents(channels=5))


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_initialisation_uses_the_data_and_is_reproducible(name):
    first, second = LEARNED[name](), LEARNED[name]()
    # As an untrained encoder gives them: a common direction, and most of the rest in a plane.
    z = latents(64) * torch.tensor([1.0, 1.0, 0.05, 0.05, 0.05, 0.05])[:, None, None] + 2.0
    before = (first(z).latents - z).square().mean()
    for bottleneck in (first, second):
        bottleneck.initialize(z, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.encode(z).indices, second.encode(z).indices)
    assert (first(z).latents - z).square().mean() < 0.5 * before


# --- dictionary -----------------------------------------------------------------------------------------------------


def dictionary_bottleneck(**kwargs):
    torch.manual_seed(0)
    return DictionaryBottleneck(**{"latent_channels": 6, "num_atoms": 24, "sparsity": 3, **kwargs})


def test_codes_are_those_of_omp_on_true_patches():
    bottleneck, z = dictionary_bottleneck(patch_size=2), latents()
    assert bottleneck.dictionary.shape == (24, 24)
    indices, coefficients = omp(latents_to_signals(z, 2), bottleneck.dictionary, 3)
    code = bottleneck.encode(z)
    assert torch.equal(code.indices.flatten(0, 2), indices)
    assert torch.equal(code.coefficients.flatten(0, 2), coefficients)


def test_losses_are_those_of_equation_13():
    bottleneck = dictionary_bottleneck(dictionary_weight=0.7, commitment_weight=0.3)
    z = latents()
    output = bottleneck(z)
    error = (output.latents - z).square().mean()
    torch.testing.assert_close(output.codebook_loss, error)
    torch.testing.assert_close(output.commitment_loss, error)
    torch.testing.assert_close(output.loss, error)  # 0.7 + 0.3


def test_each_loss_reaches_only_its_side():
    """β on the wrong term is a known fault of VQ code: commitment moves the encoder, the other term the dictionary."""
    z = latents().requires_grad_()
    only_commitment = dictionary_bottleneck(dictionary_weight=0.0)
    only_commitment(z).loss.backward()
    assert z.grad.abs().sum() > 0 and only_commitment.dictionary.grad.abs().sum() == 0
    z.grad = None
    only_dictionary = dictionary_bottleneck(commitment_weight=0.0)
    only_dictionary(z).loss.backward()
    assert z.grad.abs().sum() == 0 and only_dictionary.dictionary.grad.abs().sum() > 0


def test_straight_through_copies_the_gradient():
    bottleneck, z = dictionary_bottleneck(), latents().requires_grad_()
    weight = torch.randn_like(z)
    (bottleneck(z).latents * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert bottleneck.dictionary.grad is None


@pytest.mark.parametrize("patch_size", [1, 2])
def test_projection_gradient_is_that_of_least_squares_on_the_support(patch_size):
    bottleneck = dictionary_bottleneck(gradient="projection", patch_size=patch_size)
    z = latents(height=4).requires_grad_()
    weight = torch.randn_like(z)
    (bottleneck(z).latents * weight).sum().backward()

    signals = latents_to_signals(z.detach(), patch_size).double().requires_grad_()
    dictionary = bottleneck.dictionary.detach().double().requires_grad_()
    indices = bottleneck.encode(z).indices.flatten(0, 2)
    atoms = dictionary.t()[indices].transpose(1, 2)
    projected = (atoms @ torch.linalg.solve(atoms.mT @ atoms, atoms.mT @ signals.unsqueeze(-1))).squeeze(-1)
    (projected * latents_to_signals(weight, patch_size).double()).sum().backward()
    torch.testing.assert_close(latents_to_signals(z.grad, patch_size).double(), signals.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bottleneck.dictionary.grad.double(), dictionary.grad, rtol=1e-3, atol=1e-3)


def test_bits_per_site_count_every_support_and_coefficient():
    exact = math.log2(sum(math.comb(512, s) for s in range(6)))
    assert DictionaryBottleneck().bits_per_site == pytest.approx(exact + 5 * 32)
    shared = DictionaryBottleneck(coefficient_bits=8, coefficient_scaling="shared").bits_per_site
    assert shared == pytest.approx(exact + 40)
    assert shared == pytest.approx(78.1, abs=0.05)
    ordered = math.log2(sum(math.perm(512, s) for s in range(6)))
    assert DictionaryBottleneck(coefficient_bits=8).bits_per_site == pytest.approx(ordered + 40)


def test_quantised_coefficients_lie_on_their_grid_and_cost_what_they_say():
    bottleneck = dictionary_bottleneck(coefficient_bits=4).train()
    for seed in range(5):
        bottleneck(latents(8, seed=seed))
    bottleneck.eval()
    assert (
        bottleneck.coefficient_scale[:-1] >= bottleneck.coefficient_scale[1:]
    ).all()  # greedy: first ones are largest
    code = bottleneck.encode(latents())
    for slot in range(3):
        values = code.coefficients[..., slot].unique()
        assert len(values) <= 16
        position = (values / bottleneck.coefficient_scale[slot] + 1) * 8 - 0.5
        torch.testing.assert_close(position, position.round(), rtol=0, atol=1e-4)


def test_more_coefficient_bits_are_better():
    bottleneck, z = dictionary_bottleneck().train(), latents(16)
    bottleneck(z)
    bottleneck.eval()
    errors = []
    for bits in (2, 4, 8, None):
        bottleneck.set_coefficient_bits(bits)
        errors.append((bottleneck(z).latents - z).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[-1]
    assert bottleneck.config.coefficient_bits is None


def test_coefficient_scale_follows_training_and_survives_saving(tmp_path):
    bottleneck = dictionary_bottleneck(coefficient_bits=6).train()
    bottleneck(latents(16))
    scale = bottleneck.coefficient_scale.clone()
    assert not torch.equal(scale, torch.ones(3))  # the first step sets it
    bottleneck.save_pretrained(str(tmp_path))
    assert torch.equal(DictionaryBottleneck.from_pretrained(str(tmp_path)).coefficient_scale, scale)


def test_tolerance_spends_fewer_atoms():
    z = latents(8)
    code = dictionary_bottleneck(tolerance=1.5).encode(z)
    used = (code.indices >= 0).sum()
    assert 0 < used < code.indices.numel()
    residual = latents_to_signals(z) - synthesize(
        code.indices.flatten(0, 2), code.coefficients.flatten(0, 2), dictionary_bottleneck().dictionary
    )
    stopped = (code.indices < 0).any(dim=-1).flatten()
    assert (residual.norm(dim=1)[stopped] <= 1.5 + 1e-5).all()


@pytest.mark.parametrize("bits", [None, 4])
def test_truncated_codes_stay_on_the_grid_and_know_their_bits(bits):
    bottleneck = dictionary_bottleneck(coefficient_bits=bits)
    bottleneck.initialize(latents(16))
    z = latents(8)
    errors, rates = [], []
    for sparsity in (1, 2, 3):
        code = bottleneck.truncate(bottleneck.encode(z), sparsity)
        errors.append((bottleneck.decode(code) - z).square().mean().item())
        rates.append(bottleneck.site_bits(sparsity))
        if bits:
            assert all(len(code.coefficients[..., slot].unique()) <= 2**bits for slot in range(sparsity))
    assert errors == sorted(errors, reverse=True) and rates == sorted(rates) and errors[0] > errors[2]
    assert rates[2] == bottleneck.bits_per_site


def test_initialisation_sets_the_coefficient_scale():
    """A dictionary that is fitted and used without training must not clip."""
    z = latents(16) * 30
    bottleneck = dictionary_bottleneck(coefficient_bits=10)
    bottleneck.initialize(z)
    exact = dictionary_bottleneck()
    exact.load_state_dict(bottleneck.state_dict())
    assert (bottleneck(z).latents - z).square().mean() < 1.05 * (exact(z).latents - z).square().mean()


@pytest.mark.parametrize("bits", [None, 8])
def test_diverged_values_are_never_coded_silently(bits):
    """Without the finite check (accelerators skip it) NaN must reach the output, not turn into an empty code."""
    bottleneck, z = dictionary_bottleneck(coefficient_bits=bits), latents()
    z[0, 0, 0, 0] = float("nan")
    indices, coefficients = omp(latents_to_signals(z), bottleneck.dictionary, 3, check_finite=False)
    coefficients = bottleneck._quantize(indices, coefficients)
    assert (indices[0] == -1).all() and coefficients[0].isnan().all() and torch.isfinite(coefficients[1:]).all()
    broken = bottleneck.dictionary.detach().clone()
    broken[0, 3] = float("nan")
    assert omp(latents_to_signals(latents()), broken, 3, check_finite=False)[1].isnan().all()


def test_decode_takes_truncated_codes_and_refuses_others():
    bottleneck, z = dictionary_bottleneck(), latents()
    code = bottleneck.encode(z)
    fewer = bottleneck.decode(code.truncate(1, bottleneck.dictionary))
    assert (fewer - z).square().mean() > (bottleneck.decode(code) - z).square().mean()
    with pytest.raises(ValueError, match="`code` must be a SparseCode of 24 atoms, got IndexCode of no atoms"):
        bottleneck.decode(VectorQuantizerBottleneck(6, 24).encode(z))
    with pytest.raises(ValueError, match="`code` must be a SparseCode of 24 atoms, got SparseCode of 30 atoms"):
        bottleneck.decode(dictionary_bottleneck(num_atoms=30).encode(z))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_atoms": 0}, "`num_atoms` must be an integer from 1 to .* got 0"),
        ({"sparsity": 25}, r"`sparsity` must be at most `num_atoms` \(24\), got 25"),
        ({"patch_size": 1.5}, "`patch_size` must be an integer from 1 to .* got 1.5"),
        ({"gradient": "none"}, "`gradient` must be 'straight_through' or 'projection'"),
        ({"coefficient_bits": 17}, "`coefficient_bits` must be an integer from 1 to 16 or None, got 17"),
        ({"coefficient_scaling": "x"}, "`coefficient_scaling` must be 'depth' or 'shared'"),
    ],
)
def test_bad_dictionary_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        dictionary_bottleneck(**arguments)


def test_non_finite_latents_are_refused():
    z = latents()
    z[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="`signals` must be finite"):
        dictionary_bottleneck().encode(z)


def test_forward_compiles_without_graph_breaks():
    bottleneck, z = dictionary_bottleneck().eval(), latents()
    compiled = torch.compile(lambda x: bottleneck(x).latents, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z), bottleneck(z).latents)


# --- vector quantisation --------------------------------------------------------------------------------------------


def test_vq_rates():
    assert VectorQuantizerBottleneck().bits_per_site == 9
    assert ResidualVQBottleneck().bits_per_site == 45
    assert FSQBottleneck().bits_per_site == pytest.approx(16 * math.log2(7))
    assert IdentityBottleneck().bits_per_site == 256


def test_first_step_after_initialisation_keeps_the_codebook():
    """k-means counts must weigh the running means, or the first update ruins the codebook (a known fault)."""
    bottleneck, z = VectorQuantizerBottleneck(6, 24), latents(64)
    bottleneck.initialize(z, generator=torch.Generator().manual_seed(0))
    before = bottleneck.codebook.clone()
    bottleneck.train()(z)
    torch.testing.assert_close(bottleneck.codebook, before, rtol=0, atol=0.05)


def test_training_lowers_the_error_and_uses_all_codewords():
    bottleneck = VectorQuantizerBottleneck(6, 24, decay=0.8).train()
    with torch.no_grad():
        bottleneck.codebook.mul_(0).add_(5.0)  # collapsed: every signal goes to codeword 0
        bottleneck.sums.copy_(bottleneck.codebook * bottleneck.counts.unsqueeze(-1))
    errors = [
        (bottleneck(latents(32, seed=s)).latents - latents(32, seed=s)).square().mean().item() for s in range(60)
    ]
    assert errors[-1] < 0.5 * errors[0]
    assert (bottleneck.eval().encode(latents(32)).usage_counts() > 0).sum() >= 22


def test_residual_stages_lower_the_error():
    bottleneck, z = ResidualVQBottleneck(6, 24, depth=4), latents(32)
    bottleneck.initialize(z)
    code = bottleneck.encode(z)
    errors = []
    for stages in range(1, 5):
        part = type(code)(code.indices[..., :stages], code.levels[:stages], code.latent_size)
        errors.append((bottleneck.decode(part) - z).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]


def test_vq_quantises_to_the_nearest_codeword():
    bottleneck, z = VectorQuantizerBottleneck(6, 24), latents()
    signals = latents_to_signals(z)
    nearest = torch.cdist(signals, bottleneck.codebook[0]).argmin(dim=1)
    assert torch.equal(bottleneck.encode(z).indices.flatten(), nearest)
    torch.testing.assert_close(
        latents_to_signals(bottleneck.decode(bottleneck.encode(z))), bottleneck.codebook[0][nearest]
    )


@pytest.mark.parametrize("arguments", [{"decay": 1.0}, {"revive_threshold": -0.1}, {"num_codewords": -3}])
def test_bad_vq_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        VectorQuantizerBottleneck(**arguments)


# --- finite scalar quantisation, none -------------------------------------------------------------------------------


def test_fsq_levels_cover_their_range():
    bottleneck = FSQBottleneck(2, levels=(5, 4))
    z = torch.stack([torch.linspace(-6, 6, 4000)] * 2).reshape(1, 2, 1, 4000)
    indices = bottleneck.encode(z).indices
    assert indices[..., 0].unique().tolist() == [0, 1, 2, 3, 4]
    assert indices[..., 1].unique().tolist() == [0, 1, 2, 3]


def test_fsq_projects_where_levels_are_fewer_than_features():
    bottleneck = FSQBottleneck(6, levels=(8, 8, 8))
    code = bottleneck.encode(latents())
    assert code.indices.shape[-1] == 3 and code.levels == (8, 8, 8)
    torch.testing.assert_close(bottleneck.decode(code), bottleneck(latents()).latents)


@pytest.mark.parametrize("levels", [(), (2, 5), (5, 1.5)])
def test_bad_levels_are_refused(levels):
    with pytest.raises(ValueError, match="`levels` must be one or more integers from 3 to"):
        FSQBottleneck(6, levels=levels)


def test_no_bottleneck_passes_latents_and_has_no_code():
    z = latents()
    output = IdentityBottleneck(6)(z)
    assert output.latents is z and output.loss == 0 and output.code is None
    for method in (IdentityBottleneck(6).encode, IdentityBottleneck(6).decode):
        with pytest.raises(ValueError, match="has no code"):
            method(z)


def test_gain_shape_code_of_one_atom_beats_vq_by_its_gain():
    """S = 1 with unit atoms is gain–shape VQ, not VQ as the paper says: it spends a coefficient and reads lower
    error."""
    z = latents(32)
    vq, dictionary = VectorQuantizerBottleneck(6, 24), dictionary_bottleneck(sparsity=1)
    with torch.no_grad():
        dictionary.dictionary.copy_(F.normalize(vq.codebook[0], dim=1).t())
    assert (dictionary(z).latents - z).square().mean() < (vq(z).latents - z).square().mean()
    assert dictionary.bits_per_site > vq.bits_per_site


# --- pursuits, and fitting to fixed latents ---------------------------------------------------------------------------


@pytest.mark.parametrize("pursuit", ["omp", "ols", "iht", "fista"])
def test_every_pursuit_codes_and_survives_the_round_trip(tmp_path, pursuit):
    bottleneck = DictionaryBottleneck(latent_channels=4, num_atoms=24, sparsity=3, pursuit=pursuit)
    latents = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    code = bottleneck.encode(latents)
    expected, _ = get_pursuit(pursuit)(bottleneck.signals(latents), bottleneck.dictionary.detach(), 3)
    assert torch.equal(code.indices.flatten(0, 2), expected)
    bottleneck.save_pretrained(tmp_path)
    again = DictionaryBottleneck.from_pretrained(tmp_path)
    assert again.config.pursuit == pursuit
    assert torch.equal(again.encode(latents).coefficients, code.coefficients)
    with pytest.raises(ValueError, match="must be one of 'omp', 'ols', 'iht', 'fista', got 'lasso'"):
        DictionaryBottleneck(pursuit="lasso")


@pytest.mark.parametrize("patch_size", [1, 2])
def test_fit_to_fixed_latents(patch_size):
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(4 * patch_size**2, 12, generator=generator), dim=0)
    sites = torch.zeros(4096, 12)
    sites.scatter_(
        1, torch.rand(4096, 12, generator=generator).topk(2).indices, torch.randn(4096, 2, generator=generator)
    )
    signals = sites @ truth.t()
    bottleneck = DictionaryBottleneck(
        latent_channels=4, num_atoms=12, sparsity=2, patch_size=patch_size, coefficient_bits=8
    )
    latents = bottleneck.latents(signals, (32 * patch_size, 128 * patch_size), torch.float32)
    assert latents.shape[0] == 1

    def error():
        return (bottleneck.decode(bottleneck.encode(latents)) - latents).square().mean() / latents.square().mean()

    before = error()
    learner = bottleneck.fit(latents, passes=4, batch_size=256, progress=False)
    assert error() < 0.25 * before
    assert bottleneck.coefficient_scale.min() > 1.05 or bottleneck.coefficient_scale.max() < 0.95  # it was set
    torch.testing.assert_close(bottleneck.dictionary.norm(dim=0), torch.ones(12))

    # items of an iterable, twice as many passes in two calls
    other = DictionaryBottleneck(latent_channels=4, num_atoms=12, sparsity=2, patch_size=patch_size)
    items = list(latents.split(64, dim=3))
    step = other.fit(items, passes=1, batch_size=256, progress=False).step
    continued = other.fit(
        items, passes=2, batch_size=256, progress=False, learner=other.fit(items, progress=False, batch_size=256)
    )
    assert continued.step == 2 * step
    with pytest.raises(ValueError, match=r"`learner` must have a dictionary of shape \(\d+, 13\)"):
        DictionaryBottleneck(latent_channels=4, num_atoms=13, sparsity=2, patch_size=patch_size).fit(
            latents, learner=learner, progress=False
        )


# --- scalar quantisation, statistics of channels and fits ------------------------------------------------------------


def test_scalar_cells_are_uniform_and_decode_to_their_means():
    z = latents(64) * torch.tensor([1.0, 3.0, 0.1, 1.0, 1.0, 5.0])[:, None, None]
    bottleneck = ScalarQuantizerBottleneck(6, bits=3)
    with pytest.raises(ValueError, match="is not fitted"):
        bottleneck.encode(z)
    bottleneck.fit(z)
    code = bottleneck.encode(z)
    assert code.levels == (8,) * 6 and bottleneck.bits_per_site == 18 and bottleneck.bits(code[:1]) == 360
    values, decoded = latents_to_signals(z), latents_to_signals(bottleneck.decode(code))
    indices = code.indices.flatten(0, 2)
    for channel in range(6):
        middles = bottleneck.mean[channel] + bottleneck.low[channel] + bottleneck.steps[channel] * torch.arange(8)
        assert torch.equal(indices[:, channel], (values[:, channel, None] - middles).abs().argmin(dim=1))
        for cell in indices[:, channel].unique():
            inside = indices[:, channel] == cell
            torch.testing.assert_close(
                decoded[inside, channel].mean(), values[inside, channel].mean(), rtol=1e-3, atol=1e-4
            )
            assert decoded[inside, channel].std(unbiased=False) < 1e-5
    spread = bottleneck.steps / latents_to_signals(z).std(dim=0)
    assert spread.max() / spread.min() < 1.6  # each channel has a range of its own
    with pytest.raises(ValueError, match="`code` must have 6 slots of 8 cells"):
        bottleneck.decode(ScalarQuantizerBottleneck(6, bits=2)._code(indices.clamp_max(3), z))


@pytest.mark.parametrize("step", [None, 0.5])
def test_each_value_of_a_site_may_have_its_own_bits(step, tmp_path):
    z, bits = latents(64), [4, 0, 2, 7, 1, 4]
    bottleneck = ScalarQuantizerBottleneck(6, bits=bits, step=step)
    bottleneck.fit(z)
    code = bottleneck.encode(z)
    assert code.levels == tuple(2**n for n in bits) and bottleneck.bits_per_site == sum(bits)
    assert all(int(code.indices[..., slot].max()) < 2**n for slot, n in enumerate(bits))
    for channel, n in enumerate(bits):  # each as in a bottleneck whose values all have its bits
        if n:
            alone = ScalarQuantizerBottleneck(6, bits=n, step=step)
            alone.fit(z)
            assert torch.equal(alone.decode(alone.encode(z))[:, channel], bottleneck.decode(code)[:, channel])
    torch.testing.assert_close(bottleneck.decode(code)[:, 1], z[:, 1].mean().expand(64, *z.shape[2:]))
    data = bottleneck.pack(code)
    assert 8 * (len(data) - 37) - sum(bits) * code.num_sites in range(8)
    bottleneck.save_pretrained(tmp_path)
    loaded = ScalarQuantizerBottleneck.from_pretrained(tmp_path)
    assert torch.equal(loaded.decode(loaded.unpack(data)), bottleneck.decode(code))
    prior = FactorizedPrior.from_coder(bottleneck).fit(code)
    chosen = bottleneck.encode(z, 1.0, prior)  # by their bits, too: what a slot does not have is never chosen
    assert (chosen.indices < torch.tensor(code.levels)).all()
    assert prior.bits(chosen).sum() < 0.98 * prior.bits(code).sum()


def test_least_squares_range_beats_the_largest_magnitude():
    z = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    z[0, 0, 0, 0] = 40.0
    bottleneck = ScalarQuantizerBottleneck(1, bits=4)
    bottleneck.fit(z)
    assert (bottleneck(z).latents - z)[1:].square().mean() < 0.05
    assert bottleneck.steps.item() < 1.0  # 5 for the whole range


def test_klt_decorrelates_and_one_step_bounds_every_error():
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).Q
    z = torch.einsum("kl,blhw->bkhw", turn, latents(64) * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2, 0.1])[:, None, None])
    bottleneck = ScalarQuantizerBottleneck(6, bits=8, transform="klt", step=0.25)
    bottleneck.fit(z)
    torch.testing.assert_close(bottleneck.basis.t() @ bottleneck.basis, torch.eye(6), atol=1e-5, rtol=0)
    turned = (latents_to_signals(z) - bottleneck.mean) @ bottleneck.basis
    covariance = turned.t() @ turned / len(turned)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    assert (covariance.diag().diff() <= 0).all() and covariance[0, 0] > 10
    error = (latents_to_signals(bottleneck(z).latents) - latents_to_signals(z)) @ bottleneck.basis
    assert error.abs().max() <= 0.25 and error.square().mean() < 0.25**2 / 12 * 1.2
    rate = CodeRate(bottleneck)
    rate.update(bottleneck.encode(z), num_pixels=64 * 20)
    assert rate.compute()["entropy_bits_per_site"] < 0.6 * bottleneck.bits_per_site


@pytest.mark.parametrize(
    "arguments, sentence",
    [({"bits": 0}, "`bits`"), ({"bits": 13}, "from 1 to 12, or one or more .* from 0 to 16.*, got 13"),
        ({"bits": [3, 2]}, "one number or 6.*, got 2"), ({"bits": [17] * 6}, "`bits`"),
        ({"transform": "dct"}, "`transform`"), ({"step": -1.0}, "`step`")],
)  # fmt: skip
def test_wrong_arguments_of_scalar_quantisation(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ScalarQuantizerBottleneck(6, **arguments)


@pytest.mark.parametrize("name", sorted(CODED))
def test_statistics_shift_and_scale_the_latents_and_nothing_else(name):
    z = latents(16, seed=7)
    shift, scale = torch.linspace(-3, 3, 6), torch.linspace(0.5, 4, 6)
    torch.manual_seed(0)
    plain = CODED[name]()
    torch.manual_seed(0)
    shifted = CODED[name]()
    shifted.set_latent_statistics(shift, scale)
    moved = z * scale[:, None, None] + shift[:, None, None]
    for bottleneck, given in ((plain, z), (shifted, moved)):
        bottleneck.initialize(given, generator=torch.Generator().manual_seed(0))
        bottleneck.eval()
    agree = (shifted.encode(moved).indices == plain.encode(z).indices).float().mean()
    assert agree > 0.99
    expected = plain(z).latents * scale[:, None, None] + shift[:, None, None]
    assert (shifted(moved).latents - expected).abs().flatten(1).mean() < 1e-2
    moved.requires_grad_()
    if not isinstance(shifted, DictionaryBottleneck):
        shifted(moved).latents.sum().backward()
        assert torch.isfinite(moved.grad).all()
    for wrong in ((torch.full((6,), float("nan")), 1.0), (shift, 0.0)):
        with pytest.raises(ValueError, match="`shift` and `scale` must be finite"):
            shifted.set_latent_statistics(*wrong)


def test_a_beam_lowers_the_error_of_residual_codes():
    z = latents(64)
    errors = []
    for beam_size in (1, 8):
        bottleneck = ResidualVQBottleneck(6, num_codewords=16, depth=4, beam_size=beam_size)
        bottleneck.fit(z, iterations=20, progress=False)
        errors.append((bottleneck.eval()(z).latents - z).square().mean())
        signals, quantized = latents_to_signals(z), latents_to_signals(bottleneck(z).latents)
        torch.testing.assert_close(latents_to_signals(bottleneck.decode(bottleneck.encode(z))), quantized)
        assert (signals - quantized).square().mean() < 0.3
    assert errors[1] < 0.97 * errors[0]
    with pytest.raises(ValueError, match="`beam_size`"):
        ResidualVQBottleneck(6, beam_size=0)


@pytest.mark.parametrize("name", ["vq", "residual_vq", "fsq", "entropy_scalar"])
def test_no_codes_are_made_from_nan(name):
    bottleneck, z = CODED[name](), latents()
    z[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="`latents` must be finite"):
        bottleneck.encode(z)


def test_no_scalar_codes_from_nan_and_a_constant_channel_is_kept():
    z = latents(32)
    z[:, 2] = 1.5
    bottleneck = ScalarQuantizerBottleneck(6, bits=6)
    bottleneck.fit(z)
    torch.testing.assert_close(bottleneck(z).latents[:, 2], z[:, 2], rtol=1e-3, atol=1e-3)
    z[0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="`latents` must be finite"):
        bottleneck.encode(z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CODED))
def test_a_bottleneck_loaded_in_half_precision_stays_in_float32(name, dtype, tmp_path):
    torch.manual_seed(0)
    bottleneck = CODED[name]().eval()
    bottleneck.save_pretrained(tmp_path)
    loaded = type(bottleneck).from_pretrained(tmp_path, dtype=dtype)
    for key, value in loaded.state_dict().items():
        expected = bottleneck.state_dict()[key]
        assert value.dtype == expected.dtype and torch.equal(value, expected), key


def test_sparse_codes_are_refused_with_a_sentence():
    code = DictionaryBottleneck(6, num_atoms=24, sparsity=3).encode(latents())
    for bottleneck in (VectorQuantizerBottleneck(6), FSQBottleneck(6, levels=(5,) * 6), ScalarQuantizerBottleneck(6)):
        with pytest.raises(ValueError, match="`code` must have .* got SparseCode"):
            bottleneck.decode(code)


def test_statistics_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"must have shape \(6,\), got \(5,\)"):
        VectorQuantizerBottleneck(6).set_latent_statistics(torch.zeros(5))
