"""Results of examples/app.py for several visitors: each is computed once while it is kept, and never changed."""

import io
import threading
from collections import OrderedDict

import numpy as np
from app_results import (
    Encoded,
    File,
    Picture,
    Point,
    codec_file,
    controls,
    encode,
    flip,
    jpeg_curve,
    jpeg_file,
    reconstruct,
)
from PIL import Image

from diffusers_lasers import AutoencoderDL, FactorizedPrior, ModelBasedVQCodec
from diffusers_lasers.visualization import rate_distortion


def draw_rates(series: dict[str, list[tuple[float, float]]], here: tuple[float, float] | None) -> Image.Image:
    """PSNR over rate as a picture, on a logarithmic axis, with a ring around the point that is shown."""
    points = [point for label, found in series.items() if label != "JPEG" for point in found]
    if "JPEG" in series and points:  # as far as the others reach
        most = 1.5 * max(rate for rate, _ in points)
        series = series | {"JPEG": [point for point in series["JPEG"] if point[0] <= most]}
    finite = {label: [point for point in found if np.isfinite(point).all()] for label, found in series.items()}
    figure = rate_distortion(finite, log_rate=True)
    axis = figure.axes[0]
    if here is not None and np.isfinite(here).all():
        axis.plot(*here, "o", markersize=15, markerfacecolor="none", markeredgecolor="black", label="shown here")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(lambda rate, _: f"{rate:g}" if f"{rate:e}"[0] in "25" else "")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


class Cache:
    """The latest values of a function, shared by threads; a value is never changed once it is in."""

    def __init__(self, size: int):
        self.size, self.values, self.lock = size, OrderedDict(), threading.Lock()

    def get(self, key, make):
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        value = make()
        with self.lock:
            self.values[key] = value
            while len(self.values) > self.size:
                self.values.popitem(last=False)
        return value


class CachedResults:
    """All results for pictures under named models and codecs, each computed once while it is kept."""

    def __init__(
        self,
        models: dict[str, AutoencoderDL],
        codecs: dict[str, ModelBasedVQCodec],
        priors: dict[AutoencoderDL | ModelBasedVQCodec, FactorizedPrior] | None = None,
    ):
        self.models, self.codecs, self.priors = models, codecs, priors or {}
        self._encoded, self._points, self._flips = Cache(16), Cache(48), Cache(48)
        self._curves, self._files, self._jpeg_curves = Cache(256), Cache(32), Cache(64)

    def encoded(self, picture: Picture, name: str) -> Encoded:
        return self._encoded.get((picture.key, name), lambda: encode(self.models[name], picture))

    def _setting(self, name: str, sparsity: int | None, bits: int | None) -> tuple[int | None, int | None]:
        """The choice, with the model's own in the place of what cannot be chosen."""
        own = controls(self.models[name])
        sparsity = own.sparsity if own.no_sparsity or sparsity is None else max(1, min(sparsity, own.sparsity))
        return sparsity, None if own.no_bits else bits

    def point(self, picture: Picture, name: str, sparsity: int | None, bits: int | None) -> Point:
        (sparsity, bits), model = self._setting(name, sparsity, bits), self.models[name]
        return self._points.get(
            (picture.key, name, sparsity, bits),
            lambda: reconstruct(model, picture, self.encoded(picture, name), sparsity, bits, self.priors.get(model)),
        )

    def flip(self, picture: Picture, name: str, sparsity: int | None, bits: int | None) -> tuple[float, Image.Image]:
        sparsity, bits = self._setting(name, sparsity, bits)
        return self._flips.get(
            (picture.key, name, sparsity, bits),
            lambda: flip(self.point(picture, name, sparsity, bits).sample, picture),
        )

    def curve(self, picture: Picture, name: str, bits: int | None) -> list[dict[str, float]]:
        """Rates, by what they are, and PSNR of every sparsity that one code holds; of one where there is no choice."""
        own, (_, bits) = controls(self.models[name]), self._setting(name, None, bits)

        def make():
            sparsities = [own.sparsity] if own.no_sparsity else range(1, own.sparsity + 1)
            points = [self.point(picture, name, sparsity, bits) for sparsity in sparsities]
            return [
                {
                    **({"files by its prior": point.rate} if point.by_prior else {}),
                    "nominal": point.bits_per_pixel,
                    "entropy": point.entropy_bits_per_pixel,
                    "psnr": point.psnr,
                }
                for point in points
            ]

        return self._curves.get((picture.key, name, bits), make)

    def files(self, picture: Picture, codec: str) -> dict[str, tuple[File, float, Image.Image]]:
        """The patch codec's file and JPEG's of at most its bytes, each with mean FLIP and map."""

        def make():
            model = self.codecs[codec]
            packed = codec_file(model, picture, self.priors.get(model))
            found = {"codec": packed, "jpeg": jpeg_file(picture, packed.size)}
            return {kind: (file, *flip(file.sample, picture)) for kind, file in found.items()}

        return self._files.get((picture.key, codec), make)

    def rates(self, picture: Picture, name: str, sparsity: int | None, bits: int | None) -> Image.Image:
        """The picture's rate-distortion curve under a model, beside the other models, the codecs and JPEG."""
        series = {}
        curve = self.curve(picture, name, bits)
        for kind in list(curve[0])[:-1]:
            series[f"{name}, {kind}"] = [(rates[kind], rates["psnr"]) for rates in curve if rates[kind] > 0]
        for other in self.models:
            if other != name:
                own = controls(self.models[other])
                point = self.point(picture, other, own.sparsity, own.bits)
                kind = "file by its prior" if point.by_prior else "nominal"
                series[f"{other}, {kind}"] = [(point.rate, point.psnr)]
        for codec in self.codecs:
            file = self.files(picture, codec)["codec"][0]
            series[f"{codec}, bytes"] = [(file.bits_per_pixel, file.psnr)]
        series["JPEG"] = self._jpeg_curves.get(picture.key, lambda: jpeg_curve(picture))
        point = self.point(picture, name, sparsity, bits)
        return draw_rates(series, (point.rate, point.psnr))
