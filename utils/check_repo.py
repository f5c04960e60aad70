"""Checks that every public name is exported, documented and tested, and counts them; and that files have names of their
own.

    python utils/check_repo.py [--root .]

Public is what the lazy root offers, and the `__all__` of each package right below it, such as `functional`. What other
modules and packages hold can be imported from there, without promise. Every package states an `__all__`, and

* exported: a name of an `__all__` is bound in that module; a class that diffusers can load (a `ModelMixin`,
  `SchedulerMixin` or `DiffusionPipeline`) is offered by the lazy root, without which `model_index.json` could not name
  it; what the lazy root offers is bound in the module that it names;
* documented: `[[autodoc]] …Name` stands on a page of docs/source/en, or `NAME` in code style for a constant;
* tested: the name stands, as a word, in a Python file under tests/;
* files: no two modules or packages below src/diffusers_lasers have one name, but for `__init__.py` and the
  `pipeline_output.py` that diffusers' convention gives each pipeline.

Reads the source with `ast` and imports nothing. Exit code 0: clean; 1: what is missing, one a line.
"""

import ast
import re
import sys
from pathlib import Path

from check_floors import PACKAGE, CommandParser, lazy_structure


# The root offers these for diffusers' loader; diffusers documents and tests them.
LOADABLE_BASES = {"ModelMixin", "SchedulerMixin", "DiffusionPipeline"}
SHARED_NAMES = {"__init__", "pipeline_output"}  # of files


def literal_all(tree: ast.Module) -> list[str] | None:
    """The `__all__` of a module, or None where it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", None) == "__all__" for target in node.targets):
            return ast.literal_eval(node.value)
    return None


def bound_names(tree: ast.Module) -> set[str]:
    """Names that the top level of a module binds."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
            if "_import_structure" in [getattr(target, "id", None) for target in targets]:  # a lazy package
                names.update(name for found in ast.literal_eval(node.value).values() for name in found)
    return names


def loadable_classes(trees: dict[Path, ast.Module]) -> dict[str, Path]:
    """Public classes that descend, within the package, from a base that diffusers loads; each with its file."""
    classes = {
        node.name: (path, {getattr(base, "id", getattr(base, "attr", None)) for base in node.bases})
        for path, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    loadable: dict[str, Path] = {}
    grown = True
    while grown:
        new = {
            name: path
            for name, (path, bases) in classes.items()
            if name not in loadable and bases & (LOADABLE_BASES | set(loadable))
        }
        loadable.update(new)
        grown = bool(new)
    return {name: path for name, path in loadable.items() if not name.startswith("_")}


def equal_names(root: Path) -> list[str]:
    """One line for each file or folder of the package that has the name of another one."""
    package, found, lines = root / "src" / PACKAGE, {}, []
    folders = {path.parent for path in package.rglob("*.py")} - {package}
    for path in sorted([*package.rglob("*.py"), *folders]):
        where = path.relative_to(root).as_posix()
        if path.stem in found:
            lines.append(f"{where}: has the name of {found[path.stem]}")
        elif path.stem not in SHARED_NAMES:
            found[path.stem] = where
    return lines


def public_names(root: Path) -> tuple[dict[str, str], list[str]]:
    """
    Public names, each with the file that makes it public, and what is wrong with the exports.

    Args:
        root (`Path`): Root of the repository.

    Returns:
        `tuple[dict[str, str], list[str]]`: Name -> file, and one line for each violation.
    """
    package = root / "src" / PACKAGE
    root_init = package / "__init__.py"
    structure = lazy_structure(root_init)
    offered = {name for names in structure.values() for name in names}
    trees = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in sorted(package.rglob("*.py"))}

    def where(path: Path) -> str:
        return path.relative_to(root).as_posix()

    public, problems = dict.fromkeys(offered, where(root_init)), []
    for path, tree in trees.items():
        if path == root_init:
            continue
        names = literal_all(tree)
        if names is None and path.name == "__init__.py":
            problems.append(f"{where(path)}: states no `__all__`")
        promised = path.name == "__init__.py" and path.parent.parent == package
        submodules = {file.stem for file in path.parent.iterdir()} if path.name == "__init__.py" else set()
        for name in sorted(set(names or ()) - submodules):
            if promised:
                public.setdefault(name, where(path))
            if name not in bound_names(tree):
                problems.append(f"{where(path)}: `{name}` is in `__all__` but the module does not bind it")
    for name, path in sorted(loadable_classes(trees).items()):
        if name not in offered:
            problems.append(f"{where(path)}: `{name}` is loadable but not in the lazy root's `_import_structure`")
    for module, names in structure.items():
        path = package.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path not in trees:
            problems.append(f"{where(root_init)}: there is no module `{module}`")
            continue
        for name in sorted(set(names) - bound_names(trees[path])):
            problems.append(f"{where(root_init)}: `{module}` does not bind `{name}`")
    return {name: file for name, file in public.items() if name not in LOADABLE_BASES}, problems


def violations(root: Path) -> list[str]:
    """
    Everything that is not exported, documented or tested.

    Args:
        root (`Path`): Root of the repository.

    Returns:
        `list[str]`: One line each, `file: what`.
    """
    public, found = public_names(root)
    found += equal_names(root)
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (root / "docs/source/en").rglob("*.md"))
    documented = {name.split(".")[-1] for name in re.findall(r"\[\[autodoc\]\]\s+([\w.]+)", pages)}
    documented |= {name for name in re.findall(r"`(\w+)`", pages) if name.isupper()}
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py"))
    tested = set(re.findall(r"\w+", tests))
    for name, where in sorted(public.items()):
        if name not in documented:
            found.append(f"{where}: `{name}` has no [[autodoc]] on a page of docs/source/en")
        if name not in tested:
            found.append(f"{where}: `{name}` stands in no file under tests/")
    return found


def main() -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[1], help="root of the repository"
    )
    root = parser.parse_args().root
    found = violations(root)
    print("\n".join(found) if found else f"{len(public_names(root)[0])} public names: exported, documented, tested")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
