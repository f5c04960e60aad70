"""Checks that no import of the package runs upwards, or sideways between two packages of one floor.

    python utils/check_floors.py [--root .]

Reads the source with `ast` and imports nothing. All import statements count, also those inside functions and under
`TYPE_CHECKING`. The root `__init__.py` is exempt: it offers all floors, lazily. Exit code 0: clean; 1: violations, one a line.
"""

import ast
import sys
from pathlib import Path


sys.path.append(str(Path(__file__).resolve().parents[1] / "src/diffusers_lasers/utils"))  # the file, not the package

from command_line import CommandParser  # noqa: E402


PACKAGE = "diffusers_lasers"
FLOORS = {
    "functional": 0,
    "utils": 0,
    "coding": 1,
    "learning": 1,
    "visualization": 1,
    "models": 2,
    "schedulers": 2,
    "pipelines": 3,
    "training": 3,
    "metrics": 3,
    "commands": 4,
    "__main__": 5,
}


def lazy_structure(init: Path) -> dict[str, list[str]]:
    """The literal `_import_structure` of an `__init__.py`: submodule -> names."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", None) == "_import_structure" for t in node.targets):
            return ast.literal_eval(node.value)
    raise ValueError(f"{init} assigns no `_import_structure`.")


def imported_modules(tree: ast.Module, module: tuple[str, ...], is_package: bool, exports: dict[str, str]):
    """Yields (line, dotted path inside the package) of everything that a module imports from the package."""
    here = module if is_package else module[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == PACKAGE:
                    yield node.lineno, tuple(parts[1:])
        elif isinstance(node, ast.ImportFrom):
            parts = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                parts = here[: len(here) - node.level + 1] + parts
            elif parts[0] == PACKAGE:
                parts = parts[1:]
            else:
                continue
            for alias in node.names:
                if parts:
                    yield node.lineno, parts
                else:  # from the root: a subpackage, or a name that the lazy root takes from one
                    yield node.lineno, tuple(exports.get(alias.name, alias.name).split("."))


def violations(root: Path) -> list[str]:
    """
    All imports in the package that break the rule.

    Args:
        root (`Path`): Root of the repository.

    Returns:
        `list[str]`: One line each, `file:line: what`.
    """
    package = root / "src" / PACKAGE
    structure = lazy_structure(package / "__init__.py")
    exports = {name: module for module, names in structure.items() for name in names}
    found = []
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).with_suffix("").parts
        is_package = module[-1] == "__init__"
        module = module[:-1] if is_package else module
        if not module:
            continue
        where = path.relative_to(root).as_posix()
        own = module[0]
        if own not in FLOORS:
            found.append(f"{where}:1: `{own}` has no floor; enter it in FLOORS of {Path(__file__).name}")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for line, parts in imported_modules(tree, module, is_package, exports):
            other = parts[0] if parts else PACKAGE
            if other == own:
                continue
            if other not in FLOORS:
                found.append(f"{where}:{line}: `{other}` has no floor")
            elif FLOORS[other] > FLOORS[own]:
                found.append(
                    f"{where}:{line}: {own} (floor {FLOORS[own]}) imports up, {other} (floor {FLOORS[other]})"
                )
            elif FLOORS[other] == FLOORS[own]:
                found.append(f"{where}:{line}: {own} imports sideways, {other} (both on floor {FLOORS[own]})")
    return found


def main() -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[1], help="root of the repository"
    )
    found = violations(parser.parse_args().root)
    print("\n".join(found) if found else "floors: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
