"""The repository's own checks: clean here, and they find what is planted."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement


ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("check_floors", "check_repo", "check_doc_toc", "check_lines")

MOST_PUBLIC_NAMES = 127

INIT = """
_import_structure = {"models": [], "models.codec": ["Codec"], "functional": []}
"""
PAGE = "# Page\n\n[[autodoc]] Codec\n\n[[autodoc]] functional.transform\n"


def run(script, *arguments):
    """Exit code and output of a script, as the Makefile calls it."""
    process = subprocess.run(
        [sys.executable, ROOT / "utils" / f"{script}.py", *map(str, arguments)], capture_output=True, text=True
    )
    return process.returncode, process.stdout + process.stderr


@pytest.fixture
def findings(monkeypatch):
    """The lines that a script finds in a repository, without a process of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "utils"))
    yield lambda script, root: importlib.import_module(script).violations(root)
    for script in SCRIPTS:
        sys.modules.pop(script, None)


@pytest.fixture
def repository(tmp_path):
    """A repository that every check finds clean; `write(path, text)` plants something in it."""

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return tmp_path

    write("src/diffusers_lasers/__init__.py", INIT)
    write("src/diffusers_lasers/functional/__init__.py", "from .maths import transform\n__all__ = ['transform']\n")
    write("src/diffusers_lasers/functional/maths.py", "__all__ = ['transform']\ndef transform(): ...\n")
    write("src/diffusers_lasers/models/__init__.py", "from .codec import Codec\n__all__ = ['Codec']\n")
    write(
        "src/diffusers_lasers/models/codec.py",
        "from diffusers import ModelMixin\nfrom ..functional import transform\nclass Codec(ModelMixin): ...\n",
    )
    write("docs/source/en/page.md", PAGE)
    write("docs/source/en/_toctree.yml", "- title: All\n  sections:\n  - local: page\n    title: Page\n")
    write("tests/test_all.py", "Codec, transform\n")
    return write


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script):
    code, output = run(script, "--help")
    assert code == 0 and "usage:" in output


@pytest.mark.parametrize("script", SCRIPTS)
def test_clean_repository_passes(repository, script):
    code, output = run(script, "--root", repository("README.md", ""))
    assert code == 0, output


@pytest.mark.parametrize("script", SCRIPTS)
def test_exit_code_and_lines_of_a_violation(repository, findings, script):
    repository("src/diffusers_lasers/functional/bad.py", "from ..models import Codec\n__all__ = ['Codec', 'no']\n")
    root = repository("docs/source/en/new.md", "# New\n" + "word " * 30 + "\n")
    code, output = run(script, "--root", root)
    assert code == 1
    assert output.splitlines() == findings(script, root) != []


@pytest.mark.parametrize(
    "path, text, found",
    [
        ("functional/bad.py", "from ..models import Codec\n", "functional (floor 0) imports up, models (floor 2)"),
        ("functional/bad.py", "from ..models.codec import Codec\n", "imports up, models"),
        ("functional/bad.py", "import diffusers_lasers.models.codec\n", "imports up, models"),
        ("functional/bad.py", "from diffusers_lasers import Codec\n", "imports up, models"),
        ("functional/bad.py", "from .. import Codec\n", "imports up, models"),
        ("functional/bad.py", "from .. import models\n", "imports up, models"),
        ("functional/deep/bad.py", "from ...models import Codec\n", "imports up, models"),
        ("functional/bad.py", "def later():\n    from ..models import Codec\n", ":2: functional"),
        ("functional/bad.py", "from ..utils import requires\n", "functional imports sideways, utils"),
        ("training/bad.py", "from ..metrics import usage\n", "training imports sideways, metrics (both on floor 3)"),
        (
            "models/__init__.py",
            "from ..training import losses\n__all__ = []\n",
            "models (floor 2) imports up, training",
        ),
        ("surprise/bad.py", "x = 1\n", "`surprise` has no floor"),
        ("models/bad.py", "from ..surprise import x\n", "`surprise` has no floor"),
    ],
)
def test_floors_finds(repository, findings, path, text, found):
    lines = findings("check_floors", repository(f"src/diffusers_lasers/{path}", text))
    assert len(lines) == 1
    assert found in lines[0] and lines[0].startswith(f"src/diffusers_lasers/{path}:")


@pytest.mark.parametrize(
    "text",
    [
        "from ..functional import transform\nfrom .codec import Codec\n",
        "from ..functional.maths import transform\nfrom . import codec\nimport diffusers_lasers.utils\n",
        "import torch\nfrom diffusers.models import ModelMixin\nfrom training import anything\n",
    ],
)
def test_floors_allows(repository, findings, text):
    assert findings("check_floors", repository("src/diffusers_lasers/models/good.py", text)) == []


@pytest.mark.parametrize(
    "files, circles",
    [
        (  # three modules, one of the imports under TYPE_CHECKING and one inside a function
            {
                "models/a.py": "import torch\nfrom .b import x\n",
                "models/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import c\n",
                "models/c.py": "def later():\n    from diffusers_lasers.models.a import y\n",
                "models/outside.py": "from .a import x\nfrom .codec import Codec\n",
            },
            ["models/a.py:2: circle of imports, models.a -> models.b -> models.c -> models.a"],
        ),
        (  # what a module takes from the package that imports it
            {"models/__init__.py": "from .a import x\n__all__ = []\n", "models/a.py": "from . import y\n"},
            ["models/__init__.py:1: circle of imports, models -> models.a -> models"],
        ),
        (  # two folders, though no two modules
            {
                "models/one/__init__.py": "__all__ = []\n",
                "models/one/low.py": "",
                "models/one/high.py": "from ..two.middle import x\n",
                "models/two/middle.py": "from ..one import low\n",
            },
            ["models/one/high.py:1: circle of imports, models.one -> models.two -> models.one"],
        ),
        (  # two circles, and a module that imports itself
            {
                "models/a.py": "from .b import x\n",
                "models/b.py": "from .a import x\n",
                "models/d.py": "from .e import x\nfrom .d import y\n",
                "models/e.py": "from .d import x\n",
            },
            [
                "models/a.py:1: circle of imports, models.a -> models.b -> models.a",
                "models/d.py:2: circle of imports, models.d -> models.d",
                "models/e.py:1: circle of imports, models.e -> models.d -> models.e",
            ],
        ),
        (  # a package offers its modules, and they import each other one way
            {
                "models/__init__.py": "from .a import x\nfrom .b import y\n__all__ = []\n",
                "models/a.py": "from . import b\n",
                "models/b.py": "from ..functional import transform\n",
            },
            [],
        ),
    ],
)
def test_floors_finds_circles(repository, findings, files, circles):
    for path, text in files.items():
        root = repository(f"src/diffusers_lasers/{path}", text)
    assert findings("check_floors", root) == [f"src/diffusers_lasers/{line}" for line in circles]


@pytest.fixture
def imports_of(findings):
    """What the files below a folder of the package import from it: file -> dotted names."""
    floors = importlib.import_module("check_floors")
    package = ROOT / "src/diffusers_lasers"

    def read(folder):
        found = {}
        for path in sorted((package / folder).rglob("*.py")):
            module = path.relative_to(package).with_suffix("").parts
            is_package = module[-1] == "__init__"
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = floors.imported_modules(tree, module[:-1] if is_package else module, is_package, {})
            found[path.relative_to(package).as_posix()] = {".".join(parts) for _, parts in names}
        return found

    return read


def test_kernels_know_nothing_above_them(imports_of):
    allowed = ("functional.kernels.", "functional.operands.", "functional.unit_atoms.")
    found = imports_of("functional/kernels")
    assert "functional/kernels/operators.py" in found
    assert [name for names in found.values() for name in names if not name.startswith(allowed)] == []


@pytest.mark.parametrize("implementation", ["fused_greedy_pursuit", "greedy_pursuit_torch"])
def test_one_file_decides_which_implementation_of_a_pursuit_runs(imports_of, implementation):
    users = [file for file, names in imports_of(".").items() if any(n.endswith(f".{implementation}") for n in names)]
    assert users == ["functional/pursuit/greedy.py"]


def test_constants_are_documented_in_code_style(repository, findings):
    package = "src/diffusers_lasers/functional/__init__.py"
    repository(package, "from .maths import transform\n__all__ = ['transform', 'LIMIT']\nLIMIT = 1\n")
    root = repository("tests/test_all.py", "Codec, transform, LIMIT\n")
    assert ["`LIMIT` has no [[autodoc]]" in line for line in findings("check_repo", root)] == [True]
    repository("docs/source/en/page.md", PAGE + "`LIMIT` is one.\n")
    assert findings("check_repo", root) == []


@pytest.mark.parametrize(
    "path, text, found",
    [
        ("docs/source/en/page.md", "[[autodoc]] Codec\n", ["`transform` has no [[autodoc]]"]),
        ("docs/source/en/page.md", PAGE.replace("Codec", "Codec2"), ["`Codec` has no [[autodoc]]"]),
        ("tests/test_all.py", "Codecs, transform\n", ["`Codec` stands in no file under tests/"]),
        (
            "src/diffusers_lasers/functional/__init__.py",
            "from .maths import transform\n__all__ = ['transform', 'hidden']\ndef hidden(): ...\n",
            ["`hidden` has no [[autodoc]]", "`hidden` stands in no file"],
        ),
        (
            "src/diffusers_lasers/functional/maths.py",
            "__all__ = ['transform']\n",
            ["`transform` is in `__all__` but the module does not bind it"],
        ),
        (  # what a module or a deeper package offers is no promise
            "src/diffusers_lasers/functional/maths.py",
            "__all__ = ['transform', 'other']\ndef transform(): ...\ndef other(): ...\n",
            [],
        ),
        (
            "src/diffusers_lasers/functional/deep/__init__.py",
            "from ..maths import transform\n__all__ = ['other']\ndef other(): ...\n",
            [],
        ),
        (
            "src/diffusers_lasers/models/deep/maths.py",
            "",
            ["has the name of src/diffusers_lasers/functional/maths.py"],
        ),
        (
            "src/diffusers_lasers/functional/codec/other.py",
            "",
            ["models/codec.py: has the name of src/diffusers_lasers/f"],
        ),
        ("src/diffusers_lasers/models/pipeline_output.py", "", []),
        ("src/diffusers_lasers/models/__init__.py", "from .codec import Codec\n", ["states no `__all__`"]),
        (
            "src/diffusers_lasers/models/second.py",
            "from .codec import Codec\nclass Second(Codec): ...\nclass _Private(Codec): ...\nclass Other: ...\n",
            ["`Second` is loadable but not in the lazy root"],
        ),
        (
            "src/diffusers_lasers/__init__.py",
            INIT.replace('"functional": []', '"functional": [], "training": []'),
            ["there is no module `training`"],
        ),
        (
            "src/diffusers_lasers/__init__.py",
            INIT.replace('["Codec"]', '["Codec", "Output"]'),
            ["`models.codec` does not bind `Output`", "`Output` has no [[autodoc]]", "`Output` stands in no file"],
        ),
    ],
)
def test_repo_finds(repository, findings, path, text, found):
    lines = findings("check_repo", repository(path, text))
    assert len(lines) == len(found)
    for words in found:
        assert any(words in line for line in lines), lines


def test_there_are_no_more_public_names_than_a_user_needs(findings):
    """A new one needs another to go, or this number to be raised for a reason; the check prints the number."""
    names, problems = importlib.import_module("check_repo").public_names(ROOT)
    assert problems == [] and len(names) <= MOST_PUBLIC_NAMES
    assert run("check_repo")[1].startswith(f"{len(names)} public names")


@pytest.mark.parametrize(
    "path, text, found",
    [
        ("docs/source/en/api/new.md", "# New\n", "docs/source/en/api/new.md is not in _toctree.yml"),
        (
            "docs/source/en/_toctree.yml",
            "- title: All\n  sections:\n  - local: page\n  - local: gone\n",
            "names `gone`, which is not there",
        ),
        (
            "docs/source/en/_toctree.yml",
            "- local: page\n- title: More\n  sections:\n  - title: Inner\n    sections:\n    - local: page\n",
            "names `page` 2 times",
        ),
    ],
)
def test_doc_toc_finds(repository, findings, path, text, found):
    assert any(found in line for line in findings("check_doc_toc", repository(path, text)))


LINKED = "# Page\n\n## Two words, and more\n\n[[autodoc]] Codec\n\n[[autodoc]] functional.transform\n\n"


@pytest.mark.parametrize(
    "text, found",
    [
        ("[other](gone)", "docs/source/en/page.md links to `gone`, which is not there"),
        ("[other](gone.md#here)", "links to `gone.md#here`, which is not there"),
        ("![picture](images/gone.png)", "links to `images/gone.png`, which is not there"),
        ("[heading](#two-words)", "links to `#two-words`, which has no such heading"),
        ("[heading](page#three)", "links to `page#three`, which has no such heading"),
        ("[code](../../../tests/test_all.py)", "links to `../../../tests/test_all.py`, which is outside the docs"),
        ("[heading](#two-words-and-more), [page](page), [page](page.md#page), [site](https://example.org/gone)", None),
        ("`[code](gone)` and [a picture](images/there.png)\n```py\nrows[0](gone)\n# heading\n```", None),
    ],
)
def test_doc_links(repository, findings, text, found):
    repository("docs/source/en/images/there.png", "")
    lines = findings("check_doc_toc", repository("docs/source/en/page.md", LINKED + text))
    assert len(lines) == (found is not None)
    assert found is None or found in lines[0]


def test_the_readme_may_link_to_any_file_that_is_there(repository, findings):
    root = repository(
        "README.md", "[page](docs/source/en/page.md#page) [test](tests/test_all.py) [gone](docs/gone.md)"
    )
    assert findings("check_doc_toc", root) == ["README.md links to `docs/gone.md`, which is not there"]


def test_setup_and_constraints_name_the_same_packages():
    """Each dependency of setup.py has a tested version, within its own bounds; and there is no other."""
    statements = ast.parse((ROOT / "setup.py").read_text()).body
    table = next(s.value for s in statements if isinstance(s, ast.Assign) and s.targets[0].id == "_deps")
    requirements = map(Requirement, ast.literal_eval(table))
    bounds = {requirement.name.lower(): requirement.specifier for requirement in requirements}
    pins = {}
    for line in (ROOT / "requirements/constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower()] = version
    assert set(bounds) == set(pins)
    for name, version in pins.items():
        assert bounds[name].contains(version), f"{name}: {version} is not in {bounds[name]}"
