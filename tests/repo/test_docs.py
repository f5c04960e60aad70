"""The documentation names objects, files, tests and flags that exist, its examples run, and its links lead
somewhere."""

import argparse
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

import diffusers_lasers
from diffusers_lasers import AutoencoderDL
from diffusers_lasers.commands.cli import build_parser


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


# Files of the code released with LASERS, which the errata name.
RELEASED = {"models/dictlearn.py", "models/dlgan.py", "models/quantize.py"}
# Files that have moved since the commit of a run whose command the page of a reproduction records.
MOVED = {"utils/plot_codebook_order.py": "benchmarks/plot_codebook_order.py"}


def load(path):
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_lead_somewhere():
    assert load(ROOT / "utils/check_doc_toc.py").broken_links(ROOT) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_files_and_tests_exist(page):
    text = page.read_text(encoding="utf-8")
    names = re.findall(r"`([\w/.]+\.(?:py|yaml|yml|sh))(?:::(\w+))?`", text) + re.findall(
        r"(?:python|launch|torchrun)(?: --\S+(?: \S+)?)*? ((?:examples|benchmarks|utils)/\w+\.py)()", text
    )
    places = [ROOT, ROOT / "tests", ROOT / "src/diffusers_lasers", ROOT / "src/diffusers_lasers/functional"]
    for name, test in names:
        if "/" in name and name not in RELEASED:
            name = MOVED.get(name, name) if "reproduction" in page.parts else name
            files = [place / name for place in places if (place / name).is_file()]
            assert files, f"{page.name} names {name}"
            assert not test or f"def {test}(" in files[0].read_text(), f"{page.name} names {name}::{test}"
    defined = {
        test
        for file in (ROOT / "tests").rglob("test_*.py")
        for test in re.findall(r"def (test_\w+)", file.read_text())
    }
    for test in re.findall(r"`(?:[\w/]+\.py)?(?:::)?(test_\w+)`", text):
        assert test in defined, f"{page.name} names {test}"


SCRIPTS = {"train_dlgan": [], "train_categorical_ddpm": ["--codec", "opq"], "train_refiner": ["--codec", "opq"]}


def defaults(module, words):
    """Defaults of a script by flag; where it has none of its own, those of the model that it builds."""
    args = module.parse_args(words)
    values = {name: value for name, value in vars(args).items() if value is not None}
    model = {}
    if hasattr(module, "build_model"):
        built = module.build_model(args)
        model = {**built.config, **built.bottleneck.config}
    return {name: values.get(name, model.get(name)) for name in vars(args)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_tables_of_flags_are_those_of_the_scripts(script):
    """Every flag stands in a table of the training page and nothing else does; what the table begins with is the
    default."""
    module, words = load(ROOT / "examples" / f"{script}.py"), SCRIPTS[script]
    given = {"default": defaults(module, words)}
    if script == "train_dlgan":
        given |= {preset: defaults(module, [*words, "--preset", preset]) for preset in ("paper", "corrected")}
    text = (ROOT / "docs/source/en/training.md").read_text(encoding="utf-8")
    named, compared = set(), 0
    for table in re.findall(rf"^\| `{script}.py` \|.*(?:\n\|.*)+", text, flags=re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for first, *cells in rows:
            flags = re.findall(r"`(\w+)`", first)
            named.update(flags)
            for column, cell in zip(head[1:], cells):
                value = given[column][flags[0]] if len(flags) == 1 and column in given else None
                if value is None or cell == "required":
                    continue
                if isinstance(value, (list, tuple)):
                    assert cell == " ".join(map(str, value)), (flags[0], column)
                elif isinstance(value, bool):
                    assert cell == ("on" if value else "off"), (flags[0], column)
                elif isinstance(value, str):
                    assert cell == value.replace("_", "-"), (flags[0], column)
                else:
                    assert float(cell.split(",")[0]) == value, (flags[0], column)
                compared += 1
    assert named == set(given["default"])
    assert compared > 10


def commands(page):
    """The commands in the shell blocks of a page, as words; `…` stands for more of the same."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield [word for word in shlex.split(line, comments=True) if word != "…"]


WITH_COMMANDS = [page for page in [*PAGES, ROOT / "examples/reproduce/README.md"] if any(commands(page))]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_the_scripts_understand_the_commands(page, monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)

    class UnderstoodError(Exception):
        pass

    def parse_and_stop(parser, *args):
        assert not parse(parser, *args)[1]
        raise UnderstoodError

    parse = argparse.ArgumentParser.parse_known_args
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), str(ROOT / "examples"), *sys.path])
    for words in commands(page):
        place = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
        if words[:1] == ["diffusers-lasers"]:
            build_parser().parse_args(words[1:])
        elif place is not None:
            module, rest = load(ROOT / words[place]), words[place + 1 :]
            if hasattr(module, "parse_args"):
                module.parse_args(rest)
                continue
            with monkeypatch.context() as patch, pytest.raises(UnderstoodError):
                patch.setattr(sys, "argv", [words[place], *rest])
                patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
                module.main()


@pytest.mark.parametrize("block", EXAMPLES)
def test_examples_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AutoencoderDL(block_out_channels=(8, 8, 16), bottleneck_config={"num_atoms": 64}).save_pretrained(
        "outputs/demo/dictionary"
    )
    exec(compile(block, "example", "exec"), {})
