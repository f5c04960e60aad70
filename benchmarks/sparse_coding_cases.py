"""The problems that `benchmark_sparse_coding.py` and `benchmark_sparse_coding_gpu.py` solve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from safetensors import safe_open

from diffusers_lasers.functional import normalize_atoms, random_dictionary
from diffusers_lasers.functional.dictionary import dictionary_from_signals


@dataclass(frozen=True)
class Case:
    """A problem: N `signals` of L `features`, K `atoms`, S = `sparsity`; drawn, or read from `file`."""

    name: str
    signals: int
    features: int
    atoms: int
    sparsity: int
    seed: int = 0
    file: str | None = None

    def scaled(self, factor: float) -> Case:
        """The case with fewer signals (at least 64) and atoms (at least 32)."""
        signals, atoms = max(64, round(self.signals * factor)), max(32, round(self.atoms * factor))
        return replace(self, signals=min(signals, self.signals), atoms=min(atoms, self.atoms))

    def load(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Signals `(N, L)` and unit atoms `(L, K)`, float32, both contiguous."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.file is None:
            dictionary = random_dictionary(self.features, self.atoms, generator)
            return torch.randn(self.signals, self.features, generator=generator), dictionary
        with safe_open(self.file, "pt") as file:
            signals = file.get_tensor("signals")[: self.signals].float().contiguous()
            if "dictionary" in file.keys():
                return signals, normalize_atoms(file.get_tensor("dictionary").float()).contiguous()
        return signals, dictionary_from_signals(signals, self.atoms, generator=generator)


CASES = {
    "A": Case("A", 65536, 16, 512, 5),
    "B": Case("B", 16384, 64, 1024, 8),
    "C": Case("C", 4096, 256, 4096, 16),
    "D": Case("D", 1048576, 4, 64, 2),
}
