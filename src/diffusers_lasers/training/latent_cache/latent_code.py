r"""The code of a latent cache: a bottleneck and, where it pays, a prior; latents to bytes, row by row, and back.

At a signal-to-noise ratio of 20 dB and more, principal axes with scalar quantisation are the code to take. Its two
forms differ in who spends the bits:

* **small**: one step Δ for all axes, and a prior that writes each cell at its probability;
* **fast**: 2ⁿ cells an axis with the n of each axis following its variance, as bit fields that need no prior. Bits are
  allotted one by one to the axis where one lowers the squared error most. Sites are single positions, whose axes are
  turned back in half the time of those of patches.

Both are fitted to a sample of latents, and their step or bits are the coarsest that reach the asked ratio on a held-out
part of the sample.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...coding import Code
from ...models.bottlenecks import (
    Bottleneck,
    DictionaryBottleneck,
    ResidualVQBottleneck,
    ScalarQuantizerBottleneck,
)
from ...models.priors import FactorizedPrior
from ..dictionaries.retrofit import fit_to_latents


__all__ = ["CODES", "LatentCode", "fit_latent_code", "signal_to_noise"]

CODES = ("klt", "int8", "int4", "dictionary", "residual_vq")
_VALUES = 2**22  # by which steps and bits are chosen
_SITES = 2**17  # that the code is fitted to in the end
_MOST_VALUES = 512  # of a site
_SITES_A_VALUE = 16
_MOST_BITS = 12  # of a value
_TOO_HIGH = f"`target_snr` must be what {_MOST_BITS} bits a value can give to these latents, it is higher."
_ROOM = 1.25  # cells reach so much farther than the sample, for latents that are not in it


@dataclass
class LatentCode:
    """
    Latents as bytes and back.

    Args:
        bottleneck ([`Bottleneck`]): Codes the latents.
        prior ([`FactorizedPrior`], *optional*): Writes the codes' bytes. Defaults to `None`: nominal bits.
    """

    bottleneck: Bottleneck
    prior: FactorizedPrior | None = None

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> tuple[list[bytes], torch.Tensor]:
        """
        The bytes of latents, and what they decode to.

        Args:
            latents (`torch.Tensor` of shape `(B, L, h, w)`): Latents, on the bottleneck's device.

        Returns:
            `tuple[list[bytes], torch.Tensor]`: Bytes of each, and the decoded latents `(B, L, h, w)`, float32.
        """
        code = self.bottleneck.encode(latents)
        write = self.bottleneck.pack if self.prior is None else self.prior.compress
        on_cpu = code.to("cpu")
        return [write(on_cpu[row : row + 1]) for row in range(len(code))], self.bottleneck.decode(code)

    @torch.no_grad()
    def decode(self, rows: Sequence[bytes]) -> list[torch.Tensor]:
        """
        The latents of bytes. Rows of one size are decoded together, on the bottleneck's device.

        Args:
            rows (`Sequence[bytes]`): What `encode` gave.

        Returns:
            `list[torch.Tensor]`: Latents `(L, h, w)` of each, float32.

        Raises:
            ValueError: If bytes are damaged, or of another code.
        """
        read = self.bottleneck.unpack if self.prior is None else self.prior.decompress
        groups: dict[tuple, list[tuple[int, Code]]] = defaultdict(list)
        for place, data in enumerate(rows):
            code = read(data)
            groups[code.latent_size, code.slots].append((place, code))
        found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        for group in groups.values():
            first = group[0][1]
            tensors = {name: torch.cat([getattr(code, name) for _, code in group]) for name in first.tensors}
            latents = self.bottleneck.decode(replace(first, **tensors).to(self.bottleneck.latent_shift.device))
            for (place, _), own in zip(group, latents):
                found[place] = own.contiguous()
        return found

    def save_pretrained(self, folder: Path) -> None:
        """Writes the bottleneck into a folder, and the prior into its folder `prior`."""
        if self.prior is not None:
            self.prior.save_pretrained(folder / "prior")
        self.bottleneck.save_pretrained(folder)


@torch.no_grad()
def signal_to_noise(code: LatentCode, latents: Sequence[torch.Tensor]) -> float:
    """
    10 log₁₀ Σ‖z − m‖² / Σ‖z − ẑ‖² in dB, with the mean m of each channel over all these latents `(B, L, h, w)`.
    """
    bottleneck, count = code.bottleneck, sum(item[:, 0].numel() for item in latents)
    mean = sum(item.double().sum(dim=(0, 2, 3)) for item in latents)[:, None, None] / count
    signal = sum(float((item - mean).square().sum()) for item in latents)
    noise = sum(float((item - bottleneck(item).latents).double().square().sum()) for item in latents)
    return 10 * math.log10(signal / noise) if noise and signal else math.inf


def fit_latent_code(
    latents: Sequence[torch.Tensor], kind: str = "klt", target_snr: float = 30.0, fast: bool = False
) -> LatentCode:
    """
    A code for latents like these.

    Args:
        latents (`Sequence[torch.Tensor]` of shapes `(1, L, h, w)`): Latents of a sample of images, which may differ in
            size. Every fifth is held out to measure the ratio, if there are five.
        kind (`str`, defaults to `"klt"`): One of `CODES`: `klt` is scalar quantisation of principal axes, `int8` and
            `int4` of channels.
        target_snr (`float`, defaults to 30.0): Signal-to-noise ratio to reach with `klt`, in dB, above 0 and at most
            60; the other kinds have the ratio that they have.
        fast (`bool`, defaults to `False`): Whether codes are bit fields, which are read fast, instead of the smallest.

    Returns:
        [`LatentCode`]: The fitted code, on the CPU.

    Raises:
        ValueError: If an argument is out of range, or `klt` cannot reach the ratio with 12 bits a value.
    """
    if kind not in CODES:
        raise ValueError(f"`kind` must be one of {', '.join(CODES)}, got {kind!r}.")
    if not 0 < target_snr <= 60:
        raise ValueError(f"`target_snr` must be above 0 and at most 60 dB, got {target_snr}.")
    held_out = list(latents[4::5]) or list(latents)
    fitted = [item for place, item in enumerate(latents) if place % 5 != 4]
    channels, side = latents[0].shape[1], 1 if fast else _patch_size(latents)

    def scalar(
        bits: int | list[int], step: float | None = None, sites: int = _VALUES // (channels * side**2)
    ) -> LatentCode:
        bottleneck = ScalarQuantizerBottleneck(channels, bits=bits, patch_size=side, transform="klt", step=step)
        return LatentCode(fit_to_latents(bottleneck, fitted, progress=False, max_signals=sites))

    def enough(code: LatentCode) -> bool:
        return signal_to_noise(code, held_out) >= target_snr

    if kind == "klt":
        code = _fast_code(scalar, enough, fitted) if fast else _small_code(scalar, enough, latents, target_snr)
    else:
        bottleneck = {
            "int8": lambda: ScalarQuantizerBottleneck(channels, bits=8),
            "int4": lambda: ScalarQuantizerBottleneck(channels, bits=4),
            "dictionary": lambda: DictionaryBottleneck(channels, num_atoms=1024, sparsity=8, coefficient_bits=6),
            "residual_vq": lambda: ResidualVQBottleneck(channels, num_codewords=256, depth=16),
        }[kind]()
        code = LatentCode(fit_to_latents(bottleneck, list(latents), progress=False))
    return code if fast or kind in ("int8", "int4") else with_prior(code.bottleneck, latents)


def with_prior(bottleneck: Bottleneck, latents: Sequence[torch.Tensor]) -> LatentCode:
    """A bottleneck's code with a prior that is fitted to latents `(1, L, h, w)`; contexts would read slowly."""
    codes = [bottleneck.encode(item) for item in latents]
    return LatentCode(bottleneck, FactorizedPrior.from_coder(bottleneck, contexts=False).fit(codes))


def _patch_size(latents: Sequence[torch.Tensor]) -> int:
    """
    The largest side of sites whose axes a sample can tell. Axes of patches take up what neighbours have in common, as
    contexts of an entropy coder would, and are read more than ten times faster.
    """
    for side in (8, 4, 2):
        values = latents[0].shape[1] * side**2
        fits = all(length % side == 0 for item in latents for length in item.shape[-2:])
        positions = sum(item[0, 0].numel() for item in latents)
        if fits and values <= _MOST_VALUES and positions >= _SITES_A_VALUE * values * side**2:
            return side
    return 1


def _turned(bottleneck: ScalarQuantizerBottleneck, latents: Sequence[torch.Tensor]) -> torch.Tensor:
    """Latents as values in a bottleneck's axes, `(N, L)`."""
    return torch.cat([(bottleneck.signals(item) - bottleneck.mean) @ bottleneck.basis for item in latents])


def _small_code(
    scalar: Callable[..., LatentCode],
    enough: Callable[[LatentCode], bool],
    latents: Sequence[torch.Tensor],
    target_snr: float,
) -> LatentCode:
    """The code of the largest step that is enough."""
    axes = scalar(1).bottleneck
    reach = torch.stack([_turned(axes, [item]).abs().amax(dim=0) for item in latents]).amax(dim=0) * _ROOM

    def of_step(step: float, *sites: int) -> LatentCode:
        bits = [min(_MOST_BITS, math.ceil(math.log2(2 * float(far) / step + 2))) for far in reach]
        return scalar(bits, step, *sites)

    # the statistics make the variance of a value 1 in the mean, and a step's own error is step² / 12 at most
    high = math.sqrt(12 * 10 ** (-target_snr / 10))
    low = high / 4
    if not enough(of_step(low)):
        raise ValueError(_TOO_HIGH)
    high *= 4
    for _ in range(9):  # to 1 % of the step, 0.05 dB
        step = math.sqrt(low * high)
        low, high = (step, high) if enough(of_step(step)) else (low, step)
    return of_step(low, _SITES)


def _fast_code(
    scalar: Callable[..., LatentCode], enough: Callable[[LatentCode], bool], fitted: Sequence[torch.Tensor]
) -> LatentCode:
    """The code of the fewest bits that are enough, each given to the axis whose error it lowers most."""
    errors = []  # of each number of bits, of each axis
    fitted = fitted[:: math.ceil(sum(item.numel() for item in fitted) / (4 * _VALUES))]
    for bits in range(_MOST_BITS + 1):
        bottleneck = scalar(max(1, bits)).bottleneck
        values = _turned(bottleneck, fitted)
        decoded = _turned(bottleneck, [bottleneck(item).latents for item in fitted]) if bits else values * 0
        errors.append((values - decoded).square().mean(dim=0))
    gains = torch.stack(errors).cummin(dim=0).values.diff(dim=0).neg()  # (12, L)
    order = gains.cummin(dim=0).values.flatten().argsort(descending=True, stable=True) % gains.shape[1]

    def of_total(total: int, *sites: int) -> LatentCode:
        return scalar(torch.bincount(order[:total], minlength=gains.shape[1]).tolist(), None, *sites)

    low, high = 0, len(order)
    if not enough(of_total(high)):
        raise ValueError(_TOO_HIGH)
    while low + 1 < high:
        total = (low + high) // 2
        low, high = (low, total) if enough(of_total(total)) else (total, high)
    return of_total(high, _SITES)
