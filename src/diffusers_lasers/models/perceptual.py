r"""Learned perceptual image patch similarity (LPIPS 0.1; Zhang et al., CVPR 2018), without torchvision.

A frozen classifier maps both images to features \(f_l(x), f_l(y)\) at a few depths l. Each is normalised over channels
at each position, and a calibrated non-negative head \(w_l\) weighs the squared differences (their eq 1):

    d(x, y) = Σ_l 1/(H_l W_l) Σ_{h,w} ‖ √w_l ⊙ (f̂_l(x) − f̂_l(y)) ‖²,     f̂ = f / √(ε + ‖f‖²),  ε = 1e-8.

What we change: ε is inside the root, so that a position without activation has a finite gradient (the original adds it
outside); everything runs in fp32, also under autocast and with half-precision weights; images are declared to lie in
[-1, 1]; the three classifiers are written here with torchvision's parameter names, so that torchvision's files load
and torchvision is not needed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from safetensors.torch import load_file
from torch import nn

from ..utils.config_checks import Word
from ..utils.model_loading import LasersModelMixin


__all__ = ["PerceptualSimilarity", "PerceptualSimilarityOutput"]

# Normalisation of the classifiers' input, for images in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Network: (torchvision's name, layers whose outputs are compared, their channels, smallest image side).
NETWORKS = {
    "squeeze": ("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12), (64, 128, 256, 384, 384, 512, 512), 17),
    "alex": ("alexnet", (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31),
    "vgg": ("vgg16", (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16),
}
SUFFIXES = (".safetensors", ".pth", ".pt")


class Conv2d(nn.Conv2d):
    """Convolution in fp32, whatever the dtype of its weights."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.conv2d(hidden, self.weight.float(), bias, self.stride, self.padding)


class Fire(nn.Module):
    """SqueezeNet's block (Iandola et al., 2016): a 1×1 squeeze, then 1×1 and 3×3 expansions side by side."""

    def __init__(self, in_channels: int, squeeze_channels: int, expand_channels: int):
        super().__init__()
        self.squeeze = Conv2d(in_channels, squeeze_channels, 1)
        self.expand1x1 = Conv2d(squeeze_channels, expand_channels, 1)
        self.expand3x3 = Conv2d(squeeze_channels, expand_channels, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.squeeze(hidden).relu()
        return torch.cat([self.expand1x1(hidden), self.expand3x3(hidden)], dim=1).relu()


def squeezenet_features() -> nn.Sequential:
    """Feature layers of SqueezeNet 1.1."""

    def pool() -> nn.MaxPool2d:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *(Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool()),
        *(Fire(128, 32, 128), Fire(256, 32, 128), pool()),
        *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
    )


def alexnet_features() -> nn.Sequential:
    """Feature layers of AlexNet (the one-tower version), up to the last that is compared."""
    return nn.Sequential(
        *(Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(Conv2d(192, 384, 3, padding=1), nn.ReLU(), Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


def vgg_features() -> nn.Sequential:
    """Feature layers of VGG-16, up to the last that is compared."""
    layers: list[nn.Module] = []
    channels = 3
    for block, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        if block > 0:
            layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers += [Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


FEATURES = {"squeeze": squeezenet_features, "alex": alexnet_features, "vgg": vgg_features}


def _read(file: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict from a safetensors file or a pickled one (weights only)."""
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _find(folder: Path, patterns: list[str]) -> Path | None:
    """The first file of `folder` that matches one of `patterns`, in their order."""
    for pattern in patterns:
        for suffix in SUFFIXES:
            found = sorted(folder.glob(pattern + suffix))
            if found:
                return found[0]
    return None


def _trunk_weights(network: str, folder: Path | None, file: Path | None) -> dict[str, torch.Tensor]:
    name = NETWORKS[network][0]
    if file is None and folder is not None:
        file = _find(folder, [f"{name}*"])
        if file is None:
            raise FileNotFoundError(f"`path` {str(folder)!r} holds no {name}* file of {' or '.join(SUFFIXES)}.")
    if file is not None:
        return _read(file)
    try:
        from torchvision import models
    except Exception as error:  # a torchvision that does not fit torch raises RuntimeError
        raise ImportError(
            f"The {name} weights of LPIPS come from torchvision, which does not import here: install the torchvision "
            f"that fits this torch, or pass `path`, a folder that holds {name}*.pth or {name}*.safetensors."
        ) from error
    return getattr(models, name)(weights="DEFAULT").state_dict()


def _head_weights(network: str, folder: Path | None) -> dict[str, torch.Tensor]:
    file = _find(folder, [f"lpips*{network}*lin*", network]) if folder is not None else None
    if file is None:
        torchmetrics = importlib.util.find_spec("torchmetrics")  # located, not imported
        if torchmetrics is not None:
            root = Path(torchmetrics.origin).parent
            file = _find(root / "functional" / "image" / "lpips_models", [network])
    if file is None:
        raise FileNotFoundError(
            f"The linear heads of LPIPS ({network!r}) were found neither in `path` (lpips*{network}*lin.safetensors "
            f"or {network}.pth) nor in torchmetrics: `pip install torchmetrics` brings them."
        )
    return _read(file)


@dataclass
class PerceptualSimilarityOutput(BaseOutput):
    """
    Output of [`PerceptualSimilarity`].

    Args:
        distances (`torch.Tensor` of shape `(B,)`): fp32, 0 for identical images.
    """

    distances: torch.Tensor


class PerceptualSimilarity(LasersModelMixin, ModelMixin, ConfigMixin):
    r"""
    Creates an LPIPS 0.1 distance: a frozen classifier and calibrated heads, in fp32, in evaluation mode.

    A freshly created network has random features and heads of equal weights; [`~PerceptualSimilarity.from_weights`]
    puts the published weights together, and `save_pretrained` / `from_pretrained` keep the result in one folder.

    Source: Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", CVPR 2018.

    Args:
        network (`str`, defaults to `"squeeze"`): Classifier: `"squeeze"` (SqueezeNet 1.1, the smallest), `"alex"`
            (AlexNet, the authors' choice for evaluation) or `"vgg"` (VGG-16, the usual training loss).

    Raises:
        ValueError: If `network` is none of the three.
    """

    _no_split_modules: list[str] = []
    _keep_in_fp32_modules = ["features", "heads"]
    _config_fields = {"network": Word(*NETWORKS)}

    @register_to_config
    def __init__(self, network: str = "squeeze"):
        super().__init__()
        self.features = FEATURES[network]()
        self.heads = nn.ModuleList(Conv2d(channels, 1, 1, bias=False) for channels in NETWORKS[network][2])
        for head in self.heads:
            nn.init.constant_(head.weight, 1 / head.in_channels)
        self.register_buffer("shift", torch.tensor(SHIFT, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_weights(cls, network: str = "squeeze", path: str | Path | None = None) -> PerceptualSimilarity:
        """
        Puts the published weights together: the classifier's (torchvision's files) and the heads of LPIPS 0.1.

        Args:
            network (`str`, defaults to `"squeeze"`): `"squeeze"`, `"alex"` or `"vgg"`.
            path (`str` or `Path`, *optional*): File with the classifier's weights, or folder with `squeezenet1_1*`,
                `alexnet*` or `vgg16*` (`.safetensors`, `.pth` or `.pt`). Heads are looked for beside it
                (`lpips*{network}*lin.*` or `{network}.pth`), then in an installed torchmetrics. Without `path` the
                classifier comes from torchvision, which downloads it.

        Returns:
            [`PerceptualSimilarity`]: The network, in fp32.

        Raises:
            ValueError: If `network` is unknown or a file does not hold the network's parameters.
            FileNotFoundError: If `path` or the weights in it do not exist.
            ImportError: If `path` is not given and torchvision cannot be imported.
        """
        model = cls(network)
        path = None if path is None else Path(path)
        if path is not None and not path.exists():
            raise FileNotFoundError(
                f"`path` must be a file or a folder with LPIPS weights, {str(path)!r} does not exist."
            )
        file = path if path is not None and path.is_file() else None
        folder = path.parent if file is not None else path
        trunk, heads = _trunk_weights(network, folder, file), _head_weights(network, folder)
        state = {}
        for key, own in model.state_dict().items():
            kind, rest = key.split(".", 1)
            index = rest.split(".", 1)[0]
            source = trunk.get(key) if kind == "features" else heads.get(f"lin{index}.model.1.weight")
            if source is None or source.shape != own.shape:
                found = "nothing" if source is None else f"shape {tuple(source.shape)}"
                raise ValueError(
                    f"The weights at `path` {str(path)!r} must hold {key!r} of shape {tuple(own.shape)} for network "
                    f"{network!r}, got {found}."
                )
            state[key] = source.float()
        model.load_state_dict(state)
        return model

    def train(self, mode: bool = True) -> PerceptualSimilarity:
        """Does nothing: the network stays in evaluation mode."""
        return super().train(False)

    def _normalized_features(self, images: torch.Tensor) -> list[torch.Tensor]:
        hidden = (images.float() - self.shift.float()) / self.scale.float()
        taps, outputs = NETWORKS[self.config.network][1], []
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in taps:
                outputs.append(hidden * torch.rsqrt(hidden.square().sum(dim=1, keepdim=True) + 1e-8))
        return outputs

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, check_range: bool = False, return_dict: bool = True
    ) -> PerceptualSimilarityOutput | tuple[torch.Tensor]:
        """
        Distances between two batches of images.

        Args:
            x (`torch.Tensor` of shape `(B, 3, H, W)`): Images in [-1, 1], floating point. A training reconstruction
                may overshoot.
            y (`torch.Tensor` of shape `(B, 3, H, W)`): Images in [-1, 1], floating point.
            check_range (`bool`, defaults to `False`): Whether values outside [-1, 1] are an error. Measuring should
                ask for it (our `LPIPS` metric does); it synchronises with the device.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`PerceptualSimilarityOutput`] or `tuple`: Distances `(B,)`, fp32, 0 for identical images.

        Raises:
            ValueError: If shapes differ, images have not three channels or are smaller than the network allows (17
                pixels for `"squeeze"`, 31 for `"alex"`, 16 for `"vgg"`), are of an integer dtype, or leave [-1, 1]
                where that is checked.
        """
        smallest = NETWORKS[self.config.network][3]
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"`x` and `y` must both be (B, 3, H, W), got {tuple(x.shape)} and {tuple(y.shape)}.")
        if min(x.shape[-2:]) < smallest:
            raise ValueError(
                f"`x` must be at least {smallest}×{smallest} for network {self.config.network!r}, got "
                f"{x.shape[-2]}×{x.shape[-1]}."
            )
        for name, images in (("x", x), ("y", y)):
            if not images.is_floating_point():
                raise ValueError(f"`{name}` must be floating point in [-1, 1], got {images.dtype}.")
            if check_range and images.numel() > 0:
                low, high = images.detach().aminmax()
                if not (low >= -1 and high <= 1):  # also refuses NaN
                    raise ValueError(f"`{name}` must lie in [-1, 1], got values from {low:.4g} to {high:.4g}.")
        with torch.autocast(x.device.type, enabled=False):
            distance = torch.zeros(x.shape[0], device=x.device)
            pairs = zip(self.heads, self._normalized_features(x), self._normalized_features(y))
            for head, features_x, features_y in pairs:
                distance = distance + head((features_x - features_y).square()).mean(dim=(1, 2, 3))
        return PerceptualSimilarityOutput(distances=distance) if return_dict else (distance,)
