"""The documentation names objects that exist, and its examples run."""

import re
from pathlib import Path

import pytest

import diffusers_lasers
from diffusers_lasers import AutoencoderDL


ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/source/en").rglob("*.md"))]
EXAMPLES = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```py\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    if "path/to" not in block
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_autodoc_names_exist(page):
    for name in re.findall(r"\[\[autodoc\]\] ([\w.]+)", page.read_text(encoding="utf-8")):
        owner = diffusers_lasers
        for part in name.split("."):
            owner = getattr(owner, part)
        assert owner.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            path = page.parent / target
            assert path.exists() or path.with_suffix(".md").exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("block", EXAMPLES)
def test_examples_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AutoencoderDL(block_out_channels=(8, 8, 16), bottleneck_config={"num_atoms": 64}).save_pretrained(
        "outputs/demo/dl"
    )
    exec(compile(block, "example", "exec"), {})
