"""The record of a run: means over windows of steps, and a file of JSON lines that survives interruptions.

`training_log.jsonl` holds one JSON object a line, each with its `step`; when a run resumes at step N, lines after N are
dropped. Between two lines a [`Window`] only adds tensors: nothing waits for the device until its `summary`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...coding import Code
from ...functional.rates import entropy
from ...utils.distributed import all_reduce_sum
from ...utils.files import write_text


__all__ = ["TrainingLog"]


class Window:
    """
    Creates the sums of losses and symbol counts between two lines of the log.

    Args:
        num_processes (`int`, defaults to 1): Processes that train together; `summary` sums over them.
    """

    def __init__(self, num_processes: int = 1):
        self.num_processes = num_processes
        self.reset()

    def reset(self) -> None:
        """Starts a new window."""
        self.sums: dict[str, torch.Tensor] = {}
        self.numbers: dict[str, int] = {}
        self.totals: dict[str, torch.Tensor] = {}
        self.images, self.counts = 0, None
        self.start = time.perf_counter()

    def add(
        self,
        parts: dict[str, torch.Tensor],
        code: Code | None,
        images: int,
        totals: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """
        Adds a micro-batch.

        Args:
            parts (`dict[str, torch.Tensor]`): Losses, 0-dim and detached; a name counts in the micro-batches that have
                it, the same ones on all processes.
            code ([`SparseCode`], [`IndexCode`] or `None`): Its symbols are counted over all slots.
            images (`int`): Images of the micro-batch on this process.
            totals (`dict[str, torch.Tensor]`, *optional*): Counts, 0-dim, that are summed instead of averaged.
        """
        for name, value in parts.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.numbers[name] = self.numbers.get(name, 0) + 1
        for name, value in (totals or {}).items():
            self.totals[name] = self.totals[name] + value if name in self.totals else value
        self.images += images
        if code is not None:
            counts = code.usage_counts()
            self.counts = counts if self.counts is None else self.counts + counts

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in this context (validation, saving) does not count as training."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """
        Closes the window, on all processes at once.

        Returns:
            `dict[str, float]`: Mean of each loss over batches and processes; the totals over all of them; with codes,
            `perplexity` of the shares of slots (for several codebooks 2 to the mean of their entropies, as in
            [`AtomUsage`]) and `dead_atoms` (symbols unused in this window, over all codebooks); `images_per_second` of
            all processes.
        """
        record = {}
        if self.sums:
            sums = all_reduce_sum(torch.stack([value.float() for value in self.sums.values()])).tolist()
            numbers = [self.numbers[name] * self.num_processes for name in self.sums]
            record = {name: round(value / number, 7) for name, value, number in zip(self.sums, sums, numbers)}
        if self.totals:
            totals = all_reduce_sum(torch.stack(list(self.totals.values()))).tolist()
            record.update(zip(self.totals, totals))
        if self.counts is not None:
            counts = all_reduce_sum(self.counts)
            record["perplexity"] = round(2 ** (sum(float(entropy(row)) for row in counts) / len(counts)), 3)
            record["dead_atoms"] = int((counts == 0).sum())
        elapsed = max(time.perf_counter() - self.start, 1e-9)
        record["images_per_second"] = round(self.images * self.num_processes / elapsed, 1)
        self.reset()
        return record


class TrainingLog:
    """
    Creates the record of a run, a file of JSON lines, each with a `step`.

    Args:
        path (`str` or `os.PathLike`):
            The file. Lines after `resume_step`, and lines cut short by a crash, are dropped.
        resume_step (`int`, defaults to 0): The step at which the run goes on; 0 starts an empty file.
    """

    def __init__(self, path: str | os.PathLike, resume_step: int = 0):
        self.path = Path(path)
        kept = [line for line in self.read(path) if line["step"] <= resume_step] if resume_step else []
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, record: dict[str, Any]) -> None:
        """
        Appends one line.

        Args:
            record (`dict[str, Any]`): What JSON can hold; it must have a `step`.
        """
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    @staticmethod
    def read(path: str | os.PathLike) -> list[dict[str, Any]]:
        """
        Reads a record.

        Args:
            path (`str` or `os.PathLike`): The file; it need not exist.

        Returns:
            `list[dict[str, Any]]`: Its whole lines that have a `step`.
        """
        records = []
        if Path(path).is_file():
            for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    records.append(record)
        return records
