r"""Online dictionary learning without a learning rate (Mairal et al., 2010; LASERS, 2024, supplement 8).

From the codes γ of a batch of signals z, the statistics A and B and the atoms are updated by

    A ← β A + γ γᵀ,    B ← β B + z γᵀ                                   (eqs 23, 24)
    β = (θ + 1 − ξ) / (θ + 1),  θ = t ξ if t < ξ else ξ² + t − ξ         (eqs 25, 26)
    d_j ← (b_j − D a_j) / A_jj + d_j,    d_j ← d_j / ‖d_j‖₂               (eqs 27, 28)

which decreases the surrogate ½ Tr(Dᵀ D A) − Tr(Dᵀ B). What we change:

* γγᵀ and zγᵀ are means over the batch, not sums. The atoms do not depend on this, and A keeps its scale when ξ changes.
* Eq 27 runs over j in sequence and uses the atoms that are already updated. Otherwise it need not decrease the
  surrogate.
* An atom that no code used stays as it is. There A_jj = 0, and eq 27 would divide by zero.
* β is at least 0.

As in eq 28, atoms have norm 1; in Mairal's paper they have norm at most 1. Given the other atoms, the result is still
the exact minimiser on the sphere.

Half-precision input is computed and returned in float32. Nothing is decided on the host that depends on a value.
"""

from __future__ import annotations

import torch

from ..kernels.operators import fused_block_update, fused_synthesis_gradients, uses_fused
from ..operands import check_indices, check_operands, is_integer


__all__ = ["accumulate_statistics", "block_coordinate_update", "forgetting_factor"]

# The statistics of an atom are usable in float32 if its mean squared coefficient is above this share of the largest.
_RELATIVE_ENERGY = 1e-10
# Number of atoms whose residuals come from one matrix product. From 48 to 128 the time differs by a few percent only.
_BLOCK = 64
# Products of signals and coefficients that are held at a time. On the CPU they fit into the cache.
_BLOCK_ELEMENTS = {"cpu": 2**18, "accelerator": 2**26}


def forgetting_factor(step: int, batch_size: int) -> float:
    r"""
    Weight β of the past in online dictionary learning (LASERS, 2024, eqs 25 and 26; Mairal et al., 2010).

    For `step < batch_size` it is about 1 − 1/t, so that the weight of a batch grows linearly with its number t. Early
    codes, which were made with a poor dictionary, are thus forgotten. With \(ξ = BHW\) latent positions, `step` stays
    below `batch_size` in practice.

    Args:
        step (`int`): Number t of the batch, from 1. At 0 the formulas give a negative number for `batch_size > 1`, and
            0 is returned.
        batch_size (`int`): Number ξ of signals in a batch, at least 1.

    Returns:
        `float`: β in `[0, 1)`: \((θ + 1 - ξ) / (θ + 1)\).

    Raises:
        ValueError: If `step` is negative or `batch_size` is below 1.
    """
    if step < 0:
        raise ValueError(f"`step` must not be negative, got {step}.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    theta = step * batch_size if step < batch_size else batch_size**2 + step - batch_size
    return max(0, theta + 1 - batch_size) / (theta + 1)


@torch.no_grad()
def accumulate_statistics(
    A: torch.Tensor,
    B: torch.Tensor,
    signals: torch.Tensor,
    indices: torch.Tensor,
    coefficients: torch.Tensor,
    forgetting: float = 1.0,
    *,
    weight: float | None = None,
    in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Adds a batch of codes to the statistics of online dictionary learning (eqs 23 and 24, as means over the batch).

    The codes stay sparse: the cost is \(N S (S + L)\), and no N × K matrix is formed. On CUDA the sums are atomic, so
    that their rounding varies between runs unless `torch.use_deterministic_algorithms(True)` is set.

    Args:
        A (`torch.Tensor` of shape `(atoms, atoms)`): Statistics of the codes so far, zeros at first.
        B (`torch.Tensor` of shape `(features, atoms)`): Statistics of signals and codes so far, zeros at first.
        signals (`torch.Tensor` of shape `(N, features)`): The signals of the batch.
        indices (`torch.Tensor` of shape `(N, sparsity)`): Their atoms, int64; −1 marks an unused slot.
        coefficients (`torch.Tensor` of shape `(N, sparsity)`): Their coefficients; ignored in unused slots.
        forgetting (`float`, *optional*, defaults to 1.0): Weight β of the statistics so far ([`forgetting_factor`]).
        weight (`float`, *optional*): Weight w of the sums over the batch. Defaults to `None`: 1/N.
        in_place (`bool`, *optional*, defaults to `False`): Whether to overwrite A and B and return them, which saves a
            copy of K² numbers. Both must have the same dtype, float32 or float64, and A must be contiguous. It is
            fastest if the transpose of B is contiguous too.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: New A and B, \(βA + wγγ^⊤\) and \(βB + wzγ^⊤\). The given ones do not
        change unless `in_place`.

    Raises:
        ValueError: If the shapes, types or devices do not fit, if A and B cannot be overwritten, or if on the CPU an
            index is out of range.
    """
    check_operands(mixed=True, B=(B, "features atoms"), A=(A, "rows columns"), signals=(signals, "N length"))
    check_operands(coefficients=(coefficients, "N sparsity"))
    if not is_integer(indices):
        raise ValueError(f"`indices` must be a tensor of integers, got {getattr(indices, 'dtype', type(indices))}.")
    features, atoms = B.shape
    if A.shape != (atoms, atoms):
        raise ValueError(f"`A` must have the shape (atoms, atoms) = {(atoms, atoms)}, got {tuple(A.shape)}.")
    if signals.ndim != 2 or signals.shape[1] != features:
        raise ValueError(f"`signals` must have the shape (N, {features}) to fit `B`, got {tuple(signals.shape)}.")
    if indices.ndim != 2 or indices.shape != coefficients.shape or len(indices) != len(signals):
        raise ValueError(
            f"`indices` and `coefficients` must share one shape ({len(signals)}, sparsity), got "
            f"{tuple(indices.shape)} and {tuple(coefficients.shape)}."
        )
    if not A.device == signals.device == indices.device == coefficients.device:
        raise ValueError(
            f"`signals`, `indices` and `coefficients` must be on the device of `A` ({A.device}), got {signals.device}, "
            f"{indices.device} and {coefficients.device}."
        )
    dtype = torch.promote_types(A.dtype, torch.float32)
    if in_place and not (A.dtype == B.dtype == dtype and A.is_contiguous()):
        raise ValueError(
            "`in_place` needs a contiguous `A`, and `A` and `B` both of float32 or of float64, got "
            f"{'a contiguous' if A.is_contiguous() else 'a non-contiguous'} `A` of {A.dtype} and `B` of {B.dtype}."
        )
    signals, weights = signals.to(dtype), torch.where(indices >= 0, coefficients, 0.0).to(dtype)
    scaled = weights * (1 / max(1, len(signals)) if weight is None else weight)
    slots, fused = indices.long().clamp(min=0), uses_fused(scaled)
    if fused:  # Σ z γᵀ is the gradient of Σ zᵀ D γ to D; this checks the indices before anything is written
        to_add = fused_synthesis_gradients(signals, slots, scaled, B.to(dtype), False, True)[1]
    elif slots.device.type == "cpu":
        try:
            A.diagonal().take(slots)  # checks the indices too, without reading a value on the host
        except (IndexError, RuntimeError):
            check_indices("indices", indices, atoms)
            raise
    if not in_place:
        A, B = A.to(dtype, copy=True).contiguous(), B.to(dtype).t().clone(memory_format=torch.contiguous_format).t()
    if forgetting != 1.0:
        A.mul_(forgetting)
        B.mul_(forgetting)
    pairs = A.view(-1)
    if fused:
        B.add_(to_add)
    kind = "cpu" if signals.device.type == "cpu" else "accelerator"
    block = max(1, _BLOCK_ELEMENTS[kind] // (slots.shape[1] * max(features, slots.shape[1]) or 1))
    for y, k, w, scaled_w in zip(*(tensor.split(block) for tensor in (signals, slots, weights, scaled))):
        if not fused:
            B.t().index_add_(0, k.flatten(), (y.unsqueeze(1) * scaled_w.unsqueeze(2)).flatten(0, 1))
        entries = k.unsqueeze(2) * atoms + k.unsqueeze(1)  # (n, sparsity, sparsity): row k_s, column k_t
        pairs.scatter_add_(0, entries.flatten(), (w.unsqueeze(2) * scaled_w.unsqueeze(1)).flatten())
    return A, (B if in_place else B.contiguous())


@torch.no_grad()
def block_coordinate_update(
    dictionary: torch.Tensor, A: torch.Tensor, B: torch.Tensor, iterations: int = 1
) -> torch.Tensor:
    r"""
    Updates the atoms one after the other by block-coordinate descent (eqs 27, 28; Mairal et al., 2010, Algorithm 2).

    Each update is the exact minimiser of ½ Tr(DᵀDA) − Tr(DᵀB) over one unit-norm atom, so that this value never rises.
    Atoms without usable statistics do not change: those with an \(A_{jj}\) of at most 1e-10 of the largest, and those
    whose update has no direction. A common factor of A and B has no effect.

    The residuals \(b_j - D a_j\) of 64 atoms come from one matrix product, for which
    `torch.set_float32_matmul_precision` (TF32 on a GPU) matters. Within the 64 they are corrected for the atoms that
    are already updated.

    Args:
        dictionary (`torch.Tensor` of shape `(features, atoms)`): Unit-norm atoms as columns.
        A (`torch.Tensor` of shape `(atoms, atoms)`): Statistics of eq 23; symmetric.
        B (`torch.Tensor` of shape `(features, atoms)`): Statistics of eq 24.
        iterations (`int`, *optional*, defaults to 1): Passes over all atoms, at least 0.

    Returns:
        `torch.Tensor` of shape `(features, atoms)`: The updated dictionary. The given one does not change.

    Raises:
        ValueError: If the shapes do not fit or `iterations` is negative.
    """
    check_operands(
        mixed=True, dictionary=(dictionary, "features atoms"), A=(A, "rows columns"), B=(B, "length columns")
    )
    features, atoms = dictionary.shape
    if A.shape != (atoms, atoms) or B.shape != (features, atoms):
        raise ValueError(
            f"`A` and `B` must have the shapes {(atoms, atoms)} and {(features, atoms)} to fit `dictionary`, got "
            f"{tuple(A.shape)} and {tuple(B.shape)}."
        )
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise ValueError(f"`iterations` must be an integer, got {iterations!r}.")
    if iterations < 0:
        raise ValueError(f"`iterations` must not be negative, got {iterations}.")
    dtype = torch.promote_types(dictionary.dtype, torch.float32)
    A, targets = A.to(dtype), B.to(dtype).t().contiguous()  # targets: row j is b_j
    energy = A.diagonal()
    usable = energy > _RELATIVE_ENERGY * energy.amax()
    inverse = torch.where(usable, 1 / torch.where(usable, energy, 1.0), 0.0)
    rows = dictionary.to(dtype).t().clone(memory_format=torch.contiguous_format)  # (atoms, features)
    with torch.autocast(rows.device.type, enabled=False):
        for _ in range(iterations):
            for start in range(0, atoms, _BLOCK):
                block = slice(start, start + _BLOCK)
                residual = torch.addmm(targets[block], A[block], rows, alpha=-1.0)
                _update_block(rows[block], residual, A[block, block], inverse[block], usable[block])
    return rows.t().contiguous()


def _update_block(
    rows: torch.Tensor, residual: torch.Tensor, coupling: torch.Tensor, inverse: torch.Tensor, usable: torch.Tensor
) -> None:
    r"""
    Applies eqs 27 and 28 to the b atoms of one block in sequence; overwrites `rows`.

    Let \(E_j = b_j - D a_j\) be the residual before the block. The target of atom j is \(d_j + (E_j - \sum_{i<j} A_{ji}
    δ_i) / A_{jj}\), where \(δ_i\) is the change of atom i. The target of an atom without usable statistics is 0. A
    target that cannot be normalised, such as 0, leaves its atom as it is.

    Args:
        rows (`torch.Tensor` of shape `(b, features)`): The atoms as rows, contiguous.
        residual (`torch.Tensor` of shape `(b, features)`): E, one row for each atom.
        coupling (`torch.Tensor` of shape `(b, b)`): The block of A on the diagonal. The stride of its rows may exceed
            b.
        inverse (`torch.Tensor` of shape `(b,)`): 1 / A_jj, and 0 where an atom is not usable.
        usable (`torch.Tensor` of shape `(b,)`): Which atoms have usable statistics; bool.
    """
    if uses_fused(rows):
        fused_block_update(rows, residual, coupling, inverse)
        return
    targets = torch.where(usable.unsqueeze(1), torch.addcmul(rows, residual, inverse.unsqueeze(1)), 0.0)
    weights = coupling * inverse.unsqueeze(1)
    changes = torch.zeros_like(rows)  # δ; still 0 for the atoms to come
    columns, limits = changes.t(), torch.finfo(rows.dtype)
    updated = []
    for row, target, weight, change in zip(rows.unbind(), targets.unbind(), weights.unbind(), changes.unbind()):
        atom = torch.addmv(target, columns, weight, alpha=-1.0)
        norm = torch.linalg.vector_norm(atom)
        unit = torch.where(norm.clamp(limits.tiny, limits.max) == norm, atom / norm, row)  # else 0, infinite or NaN
        torch.sub(unit, row, out=change)
        updated.append(unit)
    torch.stack(updated, out=rows)
