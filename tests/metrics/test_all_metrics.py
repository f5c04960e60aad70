"""What torchmetrics asks of a metric, of each of ours: in a collection, over ranks, pickled, saved, cloned, scripted,
with other floats.
"""

import copy
import os
import pickle
import tempfile
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torchmetrics import MetricCollection

from diffusers_lasers import DictionaryBottleneck, IndexCode, PerceptualSimilarity, VectorQuantizerBottleneck, metrics
from diffusers_lasers.metrics import FLIP, LPIPS, PSNR, RFID, SSIM, AtomUsage, CodeRate, LatentNMSE


class Quarters(nn.Module):
    """Means of the four quarters of each channel: 12 features."""

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


class Turned(Quarters):
    """The same of images turned by 180°: equal features of images of one colour."""

    def forward(self, images):
        return super().forward(images.flip(-1))


def scripted():
    """RFID of a TorchScript file that is there no more."""
    with tempfile.TemporaryDirectory() as folder:
        torch.jit.script(Quarters()).save(f"{folder}/features.pt")
        return RFID(f"{folder}/features.pt", resize=None)


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def bottleneck(scale):
    made = seeded(lambda: DictionaryBottleneck(4, num_atoms=8, sparsity=2, coefficient_bits=3))
    made.coefficient_scale.fill_(scale)
    return made


NETWORKS = [seeded(lambda: PerceptualSimilarity("squeeze"), seed) for seed in (0, 1)]
SMALL, LARGE = bottleneck(1.0), bottleneck(3.0)
#: Metrics by what their `update` takes: all of ours, each with other settings beside it.
IMAGE_METRICS = {
    "psnr": PSNR,
    "psnr_dataset": lambda: PSNR(average="dataset"),
    "ssim": SSIM,
    "flip": FLIP,
    "flip_near": lambda: FLIP(pixels_per_degree=20),
    "lpips": lambda: LPIPS(NETWORKS[0]),
    "lpips_other": lambda: LPIPS(NETWORKS[1]),
    "rfid": lambda: RFID(Quarters(), resize=None),
    "rfid_turned": lambda: RFID(Turned(), resize=None),
    "rfid_file": scripted,
}
SPARSE_METRICS = {
    "rate": lambda: CodeRate(SMALL),
    "rate_wide": lambda: CodeRate(LARGE),
    "usage": lambda: AtomUsage(8),
}
INDEX_METRICS = {
    "index_rate": lambda: CodeRate(VectorQuantizerBottleneck(4, num_codewords=8)),
    "index_usage": lambda: AtomUsage([8]),
}
LATENT_METRICS = {"nmse": lambda: LatentNMSE(3), "nmse_again": lambda: LatentNMSE(3)}
FAMILIES = {"images": IMAGE_METRICS, "sparse": SPARSE_METRICS, "index": INDEX_METRICS, "latents": LATENT_METRICS}
ALL = {name: (make, family) for family, found in FAMILIES.items() for name, make in found.items()}


def images(seed, batch=3, like=None):
    generator = torch.Generator().manual_seed(seed)
    if like is None:
        return nn.functional.avg_pool2d(torch.rand(batch, 3, 36, 40, generator=generator), 3, 1) * 2 - 1
    return (like + 0.1 * torch.randn(like.shape, generator=generator)).clamp(-1, 1)


def sparse_code(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in range(12)]).view(1, 3, 4, 2)
    coefficients = scale * (torch.rand(indices.shape, generator=generator) * 2 - 1)
    code = SMALL.encode(torch.zeros(1, 4, 3, 4))
    return type(code)(indices, coefficients, 8, (3, 4), (6, 8))


def batches(family, count=4):
    """Arguments of updates, the first such that as many metrics as possible agree on it."""
    if family == "images":
        grey = torch.full((3, 3, 34, 38), 0.25)
        later = [(images(10 + seed, like=images(seed)), images(seed)) for seed in range(count - 1)]
        return [(grey, grey), *later]
    if family == "sparse":
        first = sparse_code(0, 0.0)
        return [(first,), *((sparse_code(seed, 2.5),) for seed in range(1, count))]
    if family == "index":
        draw = [torch.randint(0, 8, (1, 3, 4, 1), generator=torch.Generator().manual_seed(s)) for s in range(count)]
        return [(IndexCode(indices, (8,), (3, 4), (6, 8)),) for indices in draw]
    latents = [torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    return [(z + 0.1 * seed, z) for seed, z in enumerate(latents)]


def flat(result):
    """A result as floats by name."""
    values = result.items() if isinstance(result, dict) else [("value", result)]
    return {name: float(value) for name, value in values}


def alone(name, updates=None):
    make, family = ALL[name]
    metric = make()
    for update in batches(family) if updates is None else updates:
        metric.update(*update)
    return flat(metric.compute())


def same(result, expected, rel=1e-9):
    return flat(result) == pytest.approx(expected, rel=rel, abs=1e-12, nan_ok=True)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_the_list_holds_all_metrics():
    assert {type(make()).__name__ for make, _ in ALL.values()} == set(metrics.__all__) - {"flip_map"}


def test_no_two_metrics_share_a_state():
    states = {type(make()): set(make()._defaults) for make, _ in ALL.values()}
    assert sum(map(len, states.values())) == len(set().union(*states.values()))


# Collections


@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_collection_each_gives_what_it_gives_alone(family):
    collection = MetricCollection({name: make() for name, make in FAMILIES[family].items()})
    for update in batches(family):
        collection.update(*update)
    assert all(len(group) == 1 for group in collection.compute_groups.values())
    for name, metric in collection.items(keep_base=True, copy_state=False):
        assert same(metric.compute(), alone(name)), name


def test_an_empty_first_batch_merges_nothing():
    """All states are still zero after it."""
    names = [name for name in IMAGE_METRICS if not name.startswith("rfid")]
    empty = torch.zeros(0, 3, 34, 38)
    collection = MetricCollection({name: IMAGE_METRICS[name]() for name in names})
    for update in [(empty, empty), *batches("images")[1:]]:
        collection.update(*update)
    for name, value in collection.compute().items():
        assert same(value, alone(name, batches("images")[1:])), name


@pytest.mark.parametrize("family", ["images", "latents"])
def test_forward_of_a_collection_gives_the_batchs_value(family):
    names = [name for name in FAMILIES[family] if not name.startswith("rfid")]  # a batch has too few images for it
    collection = MetricCollection({name: FAMILIES[family][name]() for name in names})
    for update in batches(family):
        for name, value in collection(*update).items():
            assert same(value, alone(name, [update])), name
    for name, value in collection.compute().items():
        assert same(value, alone(name)), name


# One metric


def halfway(name):
    """A metric that has seen two of its batches, and the other two."""
    make, family = ALL[name]
    metric, updates = make(), batches(family)
    for update in updates[:2]:
        metric.update(*update)
    return metric, updates[2:]


def goes_on(metric, rest, name):
    for update in rest:
        metric.update(*update)
    return same(metric.compute(), alone(name))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("package", ["pickle", "cloudpickle", "copy"])
def test_a_pickled_metric_goes_on(name, package):
    metric, rest = halfway(name)
    module = pickle if package == "pickle" else pytest.importorskip(package)
    again = copy.deepcopy(metric) if package == "copy" else pickle.loads(module.dumps(metric))
    assert goes_on(again, rest, name) and goes_on(metric, rest, name)


@pytest.mark.parametrize("name", ALL)
def test_a_saved_state_goes_on(name):
    metric, rest = halfway(name)
    assert not set(metric._defaults) & set(metric.state_dict())  # as torchmetrics has it: only when it is asked for
    metric.persistent(True)
    state = copy.deepcopy(metric.state_dict())
    assert set(metric._defaults) <= set(state)
    again = ALL[name][0]()
    again.persistent(True)
    again.load_state_dict(state)
    again._update_count = metric._update_count
    assert goes_on(again, rest, name)


@pytest.mark.parametrize("name", ALL)
def test_reset_and_clone_leave_nothing_behind(name):
    metric, rest = halfway(name)
    twin = metric.clone()
    metric.reset()
    for update in batches(ALL[name][1]):
        metric.update(*update)
    assert same(metric.compute(), alone(name)) and goes_on(twin, rest, name)


@pytest.mark.parametrize("name", [*IMAGE_METRICS, *LATENT_METRICS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_count_as_the_floats_that_they_are(name, dtype):
    make, family = ALL[name]
    halves, singles = make(), []
    for update in batches(family):
        update = [values.to(dtype) for values in update]
        halves.update(*update)
        singles.append([values.float() for values in update])
    assert same(halves.compute(), alone(name, singles))


@pytest.mark.parametrize("name", SPARSE_METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_coefficients_count_as_the_floats_that_they_are(name, dtype):
    halves = ALL[name][0]()
    codes = [code for (code,) in batches("sparse")]
    halved = [type(c)(c.indices, c.coefficients.to(dtype), 8, (3, 4), (6, 8)) for c in codes]
    for code in halved:
        halves.update(code)
    singles = [(type(c)(c.indices, c.coefficients.float(), 8, (3, 4), (6, 8)),) for c in halved]
    assert same(halves.compute(), alone(name, singles))


def test_a_network_in_half_precision_still_measures():
    network = copy.deepcopy(NETWORKS[0]).half()
    metric = LPIPS(network)
    metric.update(*batches("images")[1])
    assert same(metric.compute(), alone("lpips", [batches("images")[1]]), rel=0.01)


# torchmetrics' own FID cannot, and no network that is a model of diffusers.
@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith(("rfid", "lpips"))])
def test_a_metric_can_be_scripted(name):
    torch.jit.script(ALL[name][0]())


# Ranks


def _rank(rank, store, folder):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    for name, (make, family) in ALL.items():
        metric = make()
        for update in batches(family)[rank::2]:
            metric.update(*update)
        results[name] = flat(metric.compute())
        metric.update(*batches(family)[1])  # what was summed over ranks for `compute` is not counted again
        metric.reset()
    for family, makes in FAMILIES.items():
        collection = MetricCollection({name: make() for name, make in makes.items()})
        for update in batches(family)[rank::2]:
            collection.update(*update)
        for name, metric in collection.items(keep_base=True, copy_state=False):
            results[f"collected {name}"] = flat(metric.compute())
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="no gloo processes")
def test_two_ranks_give_what_one_gives(tmp_path):
    method = "fork" if "fork" in mp.get_all_start_methods() else "spawn"
    mp.start_processes(_rank, args=(tmp_path / "store", tmp_path), nprocs=2, start_method=method)
    for rank in range(2):
        for name, result in torch.load(tmp_path / f"{rank}.pt").items():
            tolerance = 1e-5 if "rfid" in name else 1e-9  # a root of sums of float32
            assert same(result, alone(name.removeprefix("collected ")), tolerance), name
