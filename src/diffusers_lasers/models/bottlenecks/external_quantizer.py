"""Quantisers of `vector-quantize-pytorch` (extra `quantizers`) as bottlenecks.

The library does what is learned: its modules code signals, pass gradients and have losses of their own. Codes, bits,
bytes, statistics of latents and files are those of all bottlenecks here. Models start from data: projections to and
from the quantised space begin as principal axes and as a least-squares fit to the codes, codebooks as k-means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from ...functional.quantisers.codebook import kmeans
from ...learning.principal_axes import affine_fit, standard_axes
from ...utils import config_checks as checks
from ...utils.distributed import broadcast, rank_and_world_size
from ...utils.import_utils import requires
from .bottleneck import BottleneckOutput
from .index_bottleneck import IndexBottleneck


__all__ = ["ExternalQuantizerBottleneck"]

_INITIAL_SIGNALS = 65536  # signals that initialisation looks at


@dataclass(frozen=True)
class _Quantizer:
    """
    How a class of the library is used.

    Args:
        kind (`str`): Name of the class.
        arguments (`dict[str, tuple]`): Default and field of each argument that a configuration may hold.
        slots (`str`, *optional*): The argument that counts the slots of a site. Defaults to `None`: one slot.
        nested (`bool`, defaults to `False`): Whether the first slots are a code.
        binary (`bool`, defaults to `False`): Whether the number of codewords must be a power of two.
        fixed (`dict`): Further arguments.
    """

    kind: str
    arguments: Mapping[str, tuple[Any, checks.Field]]
    slots: str | None = None
    nested: bool = False
    binary: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)


_SIZE = {"codebook_size": (512, checks.Integer(2, 2**16))}
_STAGES = {"num_quantizers": (5, checks.Integer(1, 64))}
_ENTROPY = {
    "entropy_loss_weight": (0.0, checks.WEIGHT),  # 0.01 costs dB where the loss is a squared error of pixels
    "commitment_loss_weight": (0.25, checks.WEIGHT),
    "diversity_gamma": (1.0, checks.WEIGHT),
}
_BINARY = {**_SIZE, "num_codebooks": (1, checks.Integer(1, 64)), **_ENTROPY}
_SIM = {
    **_SIZE,
    "commitment_weight": (1.0, checks.WEIGHT),
    "input_to_quantize_commit_loss_weight": (0.25, checks.WEIGHT),
    "rotation_trick": (True, checks.Flag()),
}
_COSINE = {
    **_SIZE,
    "codebook_dim": (8, checks.Integer(1, 2**14)),
    "decay": (0.99, checks.Number(0.0, 1.0, below=True)),
    "commitment_weight": (0.25, checks.WEIGHT),
    "threshold_ema_dead_code": (2, checks.WEIGHT),
    "rotation_trick": (True, checks.Flag()),
}
_LEVELS = {"levels": ([2] * 9, checks.Sequence(checks.Integer(2, 2**10)))}
_KEEP = {"keep_num_codebooks_dim": True}
QUANTIZERS = {
    "lfq": _Quantizer("LFQ", _BINARY, "num_codebooks", binary=True, fixed=_KEEP),
    "bsq": _Quantizer("LFQ", _BINARY, "num_codebooks", binary=True, fixed={**_KEEP, "spherical": True}),
    "sim_vq": _Quantizer("SimVQ", _SIM),
    "cosine_vq": _Quantizer("VectorQuantize", _COSINE, fixed={"use_cosine_sim": True}),
    "residual_fsq": _Quantizer("ResidualFSQ", _LEVELS | _STAGES, "num_quantizers", nested=True),
    "residual_lfq": _Quantizer("ResidualLFQ", _SIZE | _STAGES | _ENTROPY, "num_quantizers", nested=True, binary=True),
    "residual_sim_vq": _Quantizer("ResidualSimVQ", _SIM | _STAGES, "num_quantizers", nested=True),
}
UNFIT = {
    "random_projection": "RandomProjectionQuantizer gives indices and no way back from them",
    "latent_quantize": "the indices of LatentQuantize do not decode to the values that it learns",
}


class ExternalQuantizerBottleneck(IndexBottleneck):
    """
    Quantises each site with a class of `vector-quantize-pytorch`; `pip install diffusers_lasers[quantizers]`.

    Coding is that of the library in evaluation mode: in float32 and without randomness. A forward pass in training mode
    is the library's own, with its gradients, moving averages and losses.

    | `quantizer` | class | slots of a site | source |
    | --- | --- | --- | --- |
    | `"lfq"` | `LFQ` | `num_codebooks` | lookup-free quantisation (Yu et al., 2024) |
    | `"bsq"` | `LFQ(spherical=True)` | `num_codebooks` | binary spherical quantisation (Zhao et al., 2024) |
    | `"sim_vq"` | `SimVQ` | 1 | Zhu et al., 2024 |
    | `"cosine_vq"` | `VectorQuantize(use_cosine_sim=True)` | 1 | ViT-VQGAN (Yu et al., 2022) |
    | `"residual_fsq"` | `ResidualFSQ` | `num_quantizers`, nested | FSQ (Mentzer et al., 2023) in stages |
    | `"residual_lfq"` | `ResidualLFQ` | `num_quantizers`, nested | LFQ in stages |
    | `"residual_sim_vq"` | `ResidualSimVQ` | `num_quantizers`, nested | SimVQ in stages |

    Args:
        latent_channels (`int`, defaults to 16): Channels L of the latents.
        quantizer (`str`, defaults to `"lfq"`): One of the table.
        quantizer_config (`dict`, *optional*): Arguments of its class, by the library's names: `codebook_size` (512;
            a power of two for the binary ones), `num_codebooks` (1) or `num_quantizers` (5), `levels` (nine times 2),
            `codebook_dim` (8) and `decay` of `"cosine_vq"`, and the weights of the losses. The configuration holds all
            of them, with the defaults of this class. Entropy losses take memory for sites × `codebook_size`.
        patch_size (`int`, defaults to 1): Side p of a site, in latent positions.

    Attributes:
        inner (`torch.nn.Module`): The library's module.

    Raises:
        ImportError: Without the library.
        ValueError: If the quantiser cannot be a bottleneck, or does not have an argument of `quantizer_config`.
    """

    _decoding_config = ("quantizer", "quantizer_config")
    _keep_in_fp32_modules = [*IndexBottleneck._keep_in_fp32_modules, "inner"]
    _config_fields = {
        "latent_channels": checks.CHANNELS,
        "quantizer": checks.Word(*QUANTIZERS, *UNFIT),
        "quantizer_config": checks.Optional(checks.Arguments()),
        "patch_size": checks.Integer(1, 2**10),
    }

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        quantizer: str = "lfq",
        quantizer_config: dict | None = None,
        patch_size: int = 1,
    ):
        super().__init__()
        if quantizer in UNFIT:
            raise ValueError(f"`quantizer` must be one that can decode, got {quantizer!r}: {UNFIT[quantizer]}.")
        recipe = QUANTIZERS[quantizer]
        config = _resolved(quantizer, recipe, quantizer_config or {})
        self.register_to_config(quantizer_config=config)
        size = _codebook_size(config)
        self._levels = (size,) * (config[recipe.slots] if recipe.slots else 1)
        self._nested = recipe.nested
        features = patch_size * patch_size * latent_channels
        binary = size.bit_length() if recipe.binary else 0
        width = binary or len(config.get("levels", ())) or config.get("codebook_dim", features)  # of what is quantised
        checks.check_size(
            2 * len(self._levels) * (size + features) * width,
            quantizer_config=config,
            latent_channels=latent_channels,
            patch_size=patch_size,
        )
        library = requires("vector_quantize_pytorch", "quantizers")
        arguments = {"dim": features, **recipe.fixed, **config}
        if quantizer == "cosine_vq":  # else the library asks once in a process whether there are ranks
            arguments["sync_codebook"] = rank_and_world_size()[1] > 1
        self.inner = getattr(library, recipe.kind)(**arguments).eval()

    @property
    def levels(self) -> tuple[int, ...]:
        """Codewords of each slot."""
        return self._levels

    def train(self, mode: bool = True) -> ExternalQuantizerBottleneck:
        """Sets the mode; the library's module is in training mode only within a forward pass in training mode."""
        super().train(mode)
        self.inner.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> ExternalQuantizerBottleneck:
        """Keeps the library's module in float32, whatever the model is cast to."""
        super()._apply(fn, recurse)
        self.inner.float()
        return self

    def forward(self, latents: torch.Tensor, return_dict: bool = True) -> BottleneckOutput | tuple:
        """
        Codes and decodes latents. In training mode gradients and `loss` are the library's, and its moving averages
        count from the next step on; in evaluation mode gradients are copied straight through, and `loss` is 0.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents.
            return_dict (`bool`, defaults to `True`): Whether to return an output class instead of a tuple.

        Returns:
            [`BottleneckOutput`] or `tuple`: Latents in the dtype of the input, losses in float32 and the [`IndexCode`].
        """
        if not self.training:
            return super().forward(latents, return_dict)
        with torch.autocast(latents.device.type, enabled=False):
            signals = self.signals(latents)
            if self.config.quantizer_config.get("entropy_loss_weight") == 0:
                for layer in getattr(self.inner, "layers", [self.inner]):
                    layer.frac_per_sample_entropy = 1.5 / len(signals)  # of one site: the loss is not wanted
            self.inner.train()
            try:
                quantized, indices, *loss = self.inner(signals.unsqueeze(0))
            finally:
                self.inner.eval()
            quantized = quantized.squeeze(0)
            output = BottleneckOutput(
                latents=self.latents(quantized, latents.shape[-2:], latents.dtype),
                loss=loss[0].float().sum() if loss else signals.new_zeros(()),
                commitment_loss=F.mse_loss(signals, quantized).detach(),
                codebook_loss=signals.new_zeros(()),
                code=self._code(indices.long(), latents),
            )
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def initialize(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """
        Starts from data; the same on all ranks. Signals are projected to their principal axes, with variance 1, and
        back by least squares; codewords of `"cosine_vq"` are k-means, those of SimVQ follow the covariance of what
        they code.

        Args:
            latents (`torch.Tensor` of shape `(B, L, H, W)`): Latents of the untrained encoder.
            generator (`torch.Generator`, *optional*): Source of randomness.
        """
        signals, inner = self.signals(latents)[:_INITIAL_SIGNALS], self.inner
        project_in, project_out = getattr(inner, "project_in", None), getattr(inner, "project_out", None)
        mean, axes, deviation = standard_axes(signals)
        if isinstance(project_in, nn.Linear):
            count = min(len(axes), project_in.out_features)
            project_in.weight[:count] = (axes / deviation).t()[:count]
            project_in.bias.copy_(-project_in.weight @ mean)
        if self.config.quantizer == "cosine_vq":
            inside = F.normalize(inner.project_in(signals), dim=1)
            centres, counts = kmeans(inside, self.num_symbols, generator=generator)
            centres, counts = broadcast(F.normalize(centres, dim=1)), broadcast(counts.clamp_min(1e-3))
            state = {"embed": centres, "embed_avg": centres * counts.unsqueeze(1), "cluster_size": counts}
            inner.load_state_dict({f"_codebook.{name}": part[None] for name, part in state.items()}, strict=False)
        for layer in getattr(inner, "layers", [inner]):
            if hasattr(layer, "code_transform"):  # codewords W e of frozen e ~ N(0, 1/n)
                _, axes, deviation = standard_axes(signals)
                layer.code_transform.weight.copy_(axes * deviation * len(axes) ** 0.5)
                signals = signals - layer(signals.unsqueeze(0))[0].squeeze(0)
        if isinstance(project_out, nn.Linear):
            inner.project_out = nn.Identity()
            codes = inner(signals.unsqueeze(0))[0].squeeze(0)
            inner.project_out = project_out
            weight, bias = affine_fit(codes, signals)
            project_out.weight.copy_(weight)
            project_out.bias.copy_(bias)

    def summary(self) -> dict[str, Any]:
        """That of all bottlenecks, with the quantiser's name; see [`Coder.summary`]."""
        facts = super().summary()
        facts["bottleneck"]["quantizer"] = self.config.quantizer
        return facts

    def _choice(self, rate_weight: float | None = None, prior: Any = None) -> None:
        if rate_weight:
            raise ValueError(
                f"`rate_weight` must be 0 for an ExternalQuantizerBottleneck, whose library chooses without bits, got "
                f"{rate_weight!r}."
            )

    def _quantize(self, signals: torch.Tensor, choice: None = None) -> torch.Tensor:
        indices = self.inner(signals.unsqueeze(0))[1]
        return indices.reshape(len(signals), len(self.levels)).long()

    def _dequantize(self, indices: torch.Tensor) -> torch.Tensor:
        decode = getattr(self.inner, "get_output_from_indices", None) or self.inner.indices_to_codes
        if QUANTIZERS[self.config.quantizer].slots is None:
            indices = indices.squeeze(1)
        else:  # -1 is the library's mark of a stage that is not there
            indices = F.pad(indices, (0, len(self.levels) - indices.shape[1]), value=-1)
        return decode(indices.unsqueeze(0)).squeeze(0)


def _codebook_size(config: Mapping[str, Any]) -> int:
    """Codewords of a slot."""
    return math.prod(config["levels"]) if "levels" in config else config["codebook_size"]


def _resolved(name: str, recipe: _Quantizer, given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a quantiser, checked."""
    unknown = [key for key in given if key not in recipe.arguments]
    if unknown:
        raise ValueError(
            f"`quantizer_config` of {name!r} must hold some of {', '.join(recipe.arguments)}, got "
            f"{checks.shown(unknown[0])}."
        )
    config = {key: given.get(key, default) for key, (default, _) in recipe.arguments.items()}
    checks.check_fields({key: kind for key, (_, kind) in recipe.arguments.items()}, config)
    size = _codebook_size(config)
    if "levels" in config:
        config["levels"] = list(config["levels"])
        if size > 2**16:
            raise ValueError(f"`levels` must have a product of at most {2**16}, got {checks.shown(config['levels'])}.")
    if recipe.binary and size & (size - 1):
        raise ValueError(f"`codebook_size` of {name!r} must be a power of two, got {size}.")
    return config
