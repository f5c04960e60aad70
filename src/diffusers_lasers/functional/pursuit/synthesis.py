r"""From sparse codes back to signals, with both gradients.

`synthesize` is the linear map \(\hat y = \sum_s c_s d_{k_s}\) (LASERS, 2024, eq 12), with its gradients to the
coefficients and the atoms. Its forward pass is an `embedding_bag`, which is as fast as a kernel of our own. In the
backward pass, the compiled kernel sums the gradient of the atoms. Where the kernel does not apply, it is summed slot by
slot. `embedding_bag`'s own gradient takes several times as long.

`projection_synthesis` has the same value as a function of the *signal*. For a fixed support τ the least-squares
reconstruction is the orthogonal projection \(\hat y = D_τ (D_τ^⊤ D_τ)^{-1} D_τ^⊤ y\). So its Jacobian has a closed
form. With \(g = ∂ℓ/∂\hat y\) and \(a = (D_τ^⊤ D_τ)^{-1} D_τ^⊤ g\),

    ∂ℓ/∂y = D_τ a,        ∂ℓ/∂d_{k_s} += (g − D_τ a) c_s + (y − D_τ c) a_s .

It replaces the paper's straight-through estimate (eq 7), which sends g itself to y and nothing to D.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..kernels.operators import fused_synthesis_gradients, uses_fused
from ..operands import as_tensor, check_indices, check_operands, is_integer


__all__ = ["projection_synthesis", "synthesize"]


def synthesize(indices: torch.Tensor, coefficients: torch.Tensor, dictionary: torch.Tensor) -> torch.Tensor:
    r"""
    Sums the chosen atoms with their coefficients, \(\hat y_n = \sum_s c_{ns} d_{k_{ns}}\) (LASERS, 2024, eq 12).

    Args:
        indices (`torch.Tensor` or `numpy.ndarray` of shape `(N, sparsity)`): Atom of each slot, integers; −1 marks an
            unused slot. N and sparsity may be 0.
        coefficients (`torch.Tensor` or `numpy.ndarray` of shape `(N, sparsity)`): Their coefficients.
        dictionary (`torch.Tensor` or `numpy.ndarray` of shape `(features, atoms)`): Atoms as columns.

    Returns:
        `torch.Tensor` of shape `(N, features)`: The signals, in the dtype of `dictionary`; differentiable with respect
        to `coefficients` and `dictionary`.

    Raises:
        ValueError: If `indices` and `coefficients` are not of one shape `(N, sparsity)`, if a type or device does not
            fit, or if on the CPU an index is below −1 or not below the number of atoms. In `torch.compile` such an
            index raises torch's own RuntimeError. On a GPU, a too large index is an assertion on the device, and an
            index below −1 counts as unused.
    """
    indices, coefficients = as_tensor("indices", indices), as_tensor("coefficients", coefficients)
    dictionary = as_tensor("dictionary", dictionary)
    _check_codes(indices, coefficients, dictionary)
    if indices.dtype not in (torch.int32, torch.int64):
        indices = indices.long()
    weights = coefficients.to(dictionary.dtype) * (indices >= 0)
    if indices.numel() == 0:
        return weights.sum(dim=1, keepdim=True) * dictionary.t()[:1]
    if torch.compiler.is_compiling():
        return _Synthesis.apply(indices, weights, dictionary)
    try:
        return _Synthesis.apply(indices, weights, dictionary)
    except (IndexError, RuntimeError):  # raised by `embedding_bag` on a CPU; only now are values read
        check_indices("indices", indices, dictionary.shape[1], least=-1)
        raise


def _check_codes(indices, coefficients, dictionary):
    check_operands(dictionary=(dictionary, "features atoms"))
    if not is_integer(indices):
        raise ValueError(f"`indices` must be integers, got {indices.dtype}.")
    if indices.ndim != 2 or indices.shape != coefficients.shape:
        raise ValueError(
            f"`indices` and `coefficients` must share one shape (N, sparsity), got {tuple(indices.shape)} and "
            f"{tuple(coefficients.shape)}."
        )
    if not coefficients.is_floating_point():
        raise ValueError(f"`coefficients` must be floating point, got {coefficients.dtype}.")
    if not indices.device == coefficients.device == dictionary.device:
        raise ValueError(
            f"`indices` and `coefficients` must be on the device of `dictionary` ({dictionary.device}), got "
            f"{indices.device} and {coefficients.device}."
        )


class _Synthesis(torch.autograd.Function):
    @staticmethod
    def forward(ctx, indices, weights, dictionary):
        ctx.save_for_backward(indices, weights, dictionary)
        rows = dictionary.t().contiguous()  # `embedding_bag` is fast on contiguous rows only
        # −1 becomes 0, with weight 0; on a CPU a smaller index stays and is refused
        slots = indices + (indices == -1) if indices.device.type == "cpu" else indices.clamp_min(0)
        return F.embedding_bag(slots, rows, per_sample_weights=weights, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return None, *_synthesis_gradients(gradient, *ctx.saved_tensors, *ctx.needs_input_grad[1:])


def _synthesis_gradients(gradient, indices, weights, dictionary, wants_weights, wants_dictionary):
    """∂ℓ/∂c_ns = gᵀ_n d_{k_ns}, and ∂ℓ/∂d_k = Σ c_ns g_n over the slots of atom k. `None` where not wanted."""
    if uses_fused(gradient):
        return fused_synthesis_gradients(gradient, indices, weights, dictionary, wants_weights, wants_dictionary)
    slots, used = indices.clamp_min(0), indices >= 0
    to_weights = to_dictionary = None
    if wants_weights:  # slot by slot, which needs no array (N, S, L) of gathered atoms
        rows = dictionary.t()
        products = [(gradient * rows[slots[:, s]]).sum(dim=1) for s in range(slots.shape[1])]
        to_weights = torch.stack(products, dim=1) * used
    if wants_dictionary:
        to_rows = gradient.new_zeros(dictionary.shape[1], dictionary.shape[0])
        for s in range(slots.shape[1]):
            to_rows.index_add_(0, slots[:, s], gradient * weights[:, s : s + 1])
        to_dictionary = to_rows.t()
    return to_weights, to_dictionary


class _ProjectionSynthesis(torch.autograd.Function):
    @staticmethod
    def forward(ctx, signals, dictionary, indices, coefficients):
        reconstruction = synthesize(indices, coefficients, dictionary)
        ctx.save_for_backward(signals, dictionary, indices, coefficients, reconstruction)
        return reconstruction

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        with torch.autocast(gradient.device.type, enabled=False):
            return *_projection_gradients(gradient, *ctx.saved_tensors, ctx.needs_input_grad[1]), None, None


def _projection_gradients(gradient, signals, dictionary, indices, coefficients, reconstruction, wants_dictionary):
    """The two formulas of the module's text, in float32 at least: gradients to `signals` and to `dictionary` (or
    `None`)."""
    dtype = torch.promote_types(dictionary.dtype, torch.float32)
    g, y, c = gradient.to(dtype), signals.to(dtype), coefficients.to(dtype)
    used, slots = indices >= 0, indices.clamp_min(0)
    atoms = dictionary.t()[slots].to(dtype) * used.unsqueeze(-1)  # (N, S, L), unused slots zero
    # Elementwise: products in TF32 could make the Gram matrix indefinite.
    gram = (atoms.unsqueeze(2) * atoms.unsqueeze(1)).sum(dim=-1)  # (N, S, S)
    # Unused slots get a unit diagonal; the ridge keeps nearly dependent atoms solvable in the working precision.
    ridge = torch.finfo(dtype).eps * atoms.shape[1]
    diagonal = gram.diagonal(dim1=1, dim2=2)
    diagonal.copy_(torch.where(used, diagonal * (1 + ridge), 1.0))
    factor, _ = torch.linalg.cholesky_ex(gram)
    dual = torch.cholesky_solve((atoms * g.unsqueeze(1)).sum(dim=-1, keepdim=True), factor).squeeze(-1)  # a: (N, S)
    projected = (atoms * dual.unsqueeze(-1)).sum(dim=1)  # D_τ a: (N, L)
    if not wants_dictionary:
        return projected.to(signals.dtype), None
    wanted = {"wants_weights": False, "wants_dictionary": True}  # the two terms are those of `synthesize`
    _, first = _synthesis_gradients(g - projected, indices, c * used, dictionary.to(dtype), **wanted)
    _, second = _synthesis_gradients(y - reconstruction.to(dtype), indices, dual, dictionary.to(dtype), **wanted)
    return projected.to(signals.dtype), (first + second).to(dictionary.dtype)


def projection_synthesis(
    signals: torch.Tensor, dictionary: torch.Tensor, indices: torch.Tensor, coefficients: torch.Tensor
) -> torch.Tensor:
    r"""
    Reconstructs signals from their least-squares codes, with the exact gradient for a fixed support.

    The value equals that of [`synthesize`]. The gradients to `signals` and `dictionary` are those of the orthogonal
    projection of `signals` on their chosen atoms (see the text of the module).

    Args:
        signals (`torch.Tensor` of shape `(N, features)`): The coded signals.
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Atoms as columns. Their squared lengths must not
            overflow.
        indices (`torch.Tensor` of shape `(N, sparsity)`): Support found by a pursuit, −1 in unused slots.
        coefficients (`torch.Tensor` of shape `(N, sparsity)`): Least-squares coefficients on that support.

    Returns:
        `torch.Tensor` of shape `(N, features)`: The reconstructed signals.

    Raises:
        ValueError: As in [`synthesize`], or if `signals` does not fit.
    """
    signals, dictionary = as_tensor("signals", signals), as_tensor("dictionary", dictionary)
    indices, coefficients = as_tensor("indices", indices), as_tensor("coefficients", coefficients)
    _check_codes(indices, coefficients, dictionary)
    shape = (len(indices), dictionary.shape[0])
    if signals.shape != shape or not signals.is_floating_point() or signals.device != dictionary.device:
        raise ValueError(
            f"`signals` must be floating point of shape {tuple(shape)} on {dictionary.device}, got {signals.dtype} of "
            f"shape {tuple(signals.shape)} on {signals.device}."
        )
    return _ProjectionSynthesis.apply(signals, dictionary, indices, coefficients)
