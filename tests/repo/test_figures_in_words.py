"""Figures that sentences quote are those of the tables that they come from."""

import re
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = ROOT / "docs/source/en/conceptual"
MEASURED = ROOT / "docs/source/en/reproduction"


def rows(page, first_cell):
    """Cells of the table rows whose first cell matches."""
    lines = [
        line.strip("| ").split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    return [cells for cells in lines if re.fullmatch(first_cell, cells[0])]


def test_the_readme_compares_ols_with_ols():
    """SPAMS' `omp` is OLS: what stands beside it is our `ols`, over all cases of both machines."""
    tables = rows(MEASURED / "sparse_coding.md", r"\*\*ols, fused\*\*")
    shares = [float(cell) for cells in tables for cell in cells[1:]]
    assert len(shares) == 10
    said = f"{1 / max(shares):.1f} to {1 / min(shares):.0f} times as fast as the `omp` of SPAMS"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"OLS is {said}" in " ".join(readme.split())
    assert len(re.findall(r"times as fast as[^.]{0,20} SPAMS", readme)) == 1  # no other figure beside it


def test_the_fault_of_the_printed_psnrs_has_one_size():
    table = rows(MEASURED / "patch_codec.md", r"\w+-\{[\d-]+\}")
    table = [[float(cell) for cell in cells[1:10]] for cells in table if len(cells) == 11]
    assert len(table) == 4
    faults = [cells[paper] - cells[true] for cells in table for true, paper in ((1, 4), (5, 8))]
    said = f"{min(faults):.1f} to {max(faults):.1f} dB"
    concepts = [CONCEPTS / f"{name}.md" for name in ("patch_codec", "errata", "design")]
    for page in [*concepts, MEASURED / "patch_codec.md", ROOT / "src/diffusers_lasers/metrics/image.py"]:
        assert said in " ".join(page.read_text(encoding="utf-8").split()), page.name
