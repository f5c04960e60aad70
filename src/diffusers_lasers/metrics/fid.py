r"""rFID: the Fréchet distance between features of images and of their reconstructions (Heusel et al., 2017).

With μ, Σ the mean and covariance of a feature network's outputs over n references (r) and n reconstructions (t),

    FID = ‖μ_r − μ_t‖² + Tr(Σ_r + Σ_t − 2 (Σ_r Σ_t)^{1/2}).

torchmetrics accumulates and computes it. The network, the resize, 8-bit rounding and n change published values more
than most methods do. So the protocol is recorded with the value, including the hash of the network's file. FID is
biased upwards for small n, and rank-deficient for n below the number of features: compare values of equal n.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..utils.import_utils import requires
from .image import as_images
from .states import keep_apart


requires("torchmetrics", extra="metrics")

from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: E402


__all__ = ["RFID"]


class FeatureNetwork(nn.Module):
    """
    Wraps a network of float images so that it takes uint8 images `(B, 3, H, W)`.

    Images are resized (bilinear, antialiased) and then moved to the range of the network.

    Args:
        network (`torch.nn.Module`): Maps `(B, 3, h, w)` to features `(B, d)`, to maps `(B, d, h', w')` that are
            averaged, or to a tuple that starts with one of them.
        input_range (`tuple[float, float]`): The network's inputs for the values 0 and 255.
        resize (`int`, *optional*): Side to which images are resized, in pixels. `None` means that the network resizes.
    """

    def __init__(self, network: nn.Module, input_range: tuple[float, float], resize: int | None):
        super().__init__()
        self.network = network
        self.input_range = input_range
        self.resize = resize

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.float() / 255
        if self.resize is not None:
            size = (self.resize, self.resize)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        low, high = self.input_range
        features = self.network(low + (high - low) * images)
        features = features[0] if isinstance(features, (tuple, list)) else features
        return features.float().mean(dim=(2, 3)) if features.ndim == 4 else features.float()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.network, torch.jit.ScriptModule):  # pickle cannot write these
            torch.jit.save(self.network, buffer := io.BytesIO())
            state["_modules"] = {**self._modules, "network": buffer.getvalue()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        network = state["_modules"]["network"]
        if isinstance(network, bytes):
            network = torch.jit.load(io.BytesIO(network))
        super().__setstate__({**state, "_modules": {**state["_modules"], "network": network}})


class RFID(FrechetInceptionDistance):
    r"""
    Creates a reconstruction FID: `update(reconstructions, references)`, uint8 or floats in [-1, 1], rounded to 8 bits.

    Args:
        features (`str`, `Path` or `torch.nn.Module`, defaults to `"inception"`): The feature network: a TorchScript
            file, a module, or `"inception"`. The last is torchmetrics' default, the 2048 pool features of the
            TensorFlow Inception v3. It needs the package torch-fidelity, which downloads the weights.
        input_range (`tuple[float, float]`, defaults to `(-1, 127/128)`): Inputs of a given network for the values 0 and
            255. The default is that of the TensorFlow Inception, (v − 128) / 128. Use `(0, 255)` for networks that
            normalise themselves.
        resize (`int`, *optional*, defaults to 299): Side in pixels to which images are resized for a given network
            (bilinear, antialiased). `None` if the network resizes itself.
        kwargs: Passed on to `torchmetrics.image.fid.FrechetInceptionDistance`.

    Raises:
        ImportError: If `features` is `"inception"` and torch-fidelity is not installed.
        FileNotFoundError: If `features` is a path that does not exist.
        ValueError: If a file is not a TorchScript module.
    """

    def __init__(
        self,
        features: str | Path | nn.Module = "inception",
        input_range: tuple[float, float] = (-1.0, 127 / 128),
        resize: int | None = 299,
        **kwargs: Any,
    ):
        card: dict[str, Any] = {"reference": "the images that were reconstructed", "rounding": "8 bits"}
        if isinstance(features, str) and features == "inception":
            if importlib.util.find_spec("torch_fidelity") is None:
                raise ImportError(
                    "rFID with features='inception' needs the package torch-fidelity (`pip install torch-fidelity`), "
                    "which is not installed; otherwise give the path of a TorchScript feature network."
                )
            card |= {"features": "torch-fidelity inception-v3-compat, 2048 pool features", "resize": 299}
            super().__init__(feature=2048, normalize=False, **kwargs)
        else:
            card |= {"resize": resize, "interpolation": "bilinear, antialiased", "input_range": list(input_range)}
            if isinstance(features, nn.Module):
                network, card["features"] = features, type(features).__name__
            else:
                network = self._load(Path(features))
                card["features"] = Path(features).name
                card["features_sha256"] = hashlib.sha256(Path(features).read_bytes()).hexdigest()
            wrapped = FeatureNetwork(network, tuple(input_range), resize).eval().requires_grad_(False)
            super().__init__(feature=wrapped, normalize=False, **kwargs)
        self.card = card
        keep_apart(self)

    @staticmethod
    def _load(file: Path) -> nn.Module:
        if not file.is_file():
            raise FileNotFoundError(
                f"`features` must be 'inception' or a TorchScript file, got {str(file)!r}, which does not exist."
            )
        try:
            return torch.jit.load(file, map_location="cpu")
        except RuntimeError as error:
            raise ValueError(f"`features` must be a TorchScript file, got {str(file)!r}, which is not one.") from error

    def update(self, reconstructions: torch.Tensor | None, references: torch.Tensor | None) -> None:
        """
        Adds a batch of pairs. One of the two may be `None`: with `reset_real_features=False`, references are added once
        for several models.

        Args:
            reconstructions (`torch.Tensor` of shape `(B, 3, H, W)`): Reconstructions, uint8 or floats in [-1, 1].
            references (`torch.Tensor` of shape `(B, 3, H, W)`): Original images, uint8 or floats in [-1, 1].

        Raises:
            ValueError: If a batch has another shape, type or range.
        """
        for images, name, real in ((references, "references", True), (reconstructions, "reconstructions", False)):
            if images is None:
                continue
            pixels = (as_images(images, name) * 127.5 + 127.5).round().to(torch.uint8)
            super().update(pixels, real=real)

    def protocol(self) -> dict[str, Any]:
        """How the value was computed, for JSON; `n` images of each kind and `num_features` features."""
        count = {"n": int(self.real_features_num_samples), "num_features": self.real_features_sum.numel()}
        return self.card | count
