"""Checks that no import of the package runs upwards, sideways between two packages of one floor, or in a circle.

    python utils/check_floors.py [--root .]

Inside a package neither modules nor folders may import each other in a circle; one circle is named for each module,
or folder, that is in any. Reads the source with `ast` and imports nothing. All import statements count, also those
inside functions and under `TYPE_CHECKING`. The root `__init__.py` is exempt: it offers all floors, lazily. Exit code
0: clean; 1: violations, one a line.
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
COMPILED = {("functional", "kernels", "_kernels")}  # modules without Python source, which import nothing


def lazy_structure(init: Path) -> dict[str, list[str]]:
    """The literal `_import_structure` of an `__init__.py`: submodule -> names."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", None) == "_import_structure" for t in node.targets):
            return ast.literal_eval(node.value)
    raise ValueError(f"{init} assigns no `_import_structure`.")


def imported_modules(tree: ast.Module, module: tuple[str, ...], is_package: bool, exports: dict[str, str]):
    """
    Yields (line, path inside the package with the name that is taken) of everything that a module imports from it.
    """
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
                    yield node.lineno, (*parts, alias.name)
                else:  # from the root: a subpackage, or a name that the lazy root takes from one
                    yield node.lineno, tuple(exports.get(alias.name, alias.name).split("."))


def circles(imports: dict[str, dict[str, str]]) -> list[list[str]]:
    """
    Circles in a graph of imports.

    Args:
        imports (`dict[str, dict[str, str]]`): Who imports whom, and where: importer -> imported -> `file:line`.

    Returns:
        `list[list[str]]`: For each name that is in a circle and in none of those before, its shortest one, from itself
        to itself.
    """
    found, named = [], set()
    for start in sorted(imports):
        paths = [] if start in named else [[start]]
        reached = set()
        for path in paths:  # breadth first: grows while it is read
            for other in sorted(imports.get(path[-1], ())):
                if other == start:
                    found.append([*path, start])
                    named.update(path)
                    break
                if other not in reached:
                    reached.add(other)
                    paths.append([*path, other])
            else:
                continue
            break
    return found


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
    files = {}  # module -> file
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        files[parts[:-1] if parts[-1] == "__init__" else parts] = path
    files.pop((), None)
    found = []
    by_module: dict[str, dict[str, str]] = {}
    by_folder: dict[str, dict[str, str]] = {}
    for module, path in files.items():
        where = path.relative_to(root).as_posix()
        own = module[0]
        if own not in FLOORS:
            found.append(f"{where}:1: `{own}` has no floor; enter it in FLOORS of {Path(__file__).name}")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for line, parts in imported_modules(tree, module, path.name == "__init__.py", exports):
            other = parts[0] if parts else PACKAGE
            if parts in COMPILED:
                continue
            if other == own:
                while parts not in files:  # a name in a module
                    parts = parts[:-1]
                place = f"{where}:{line}"
                by_module.setdefault(".".join(module), {}).setdefault(".".join(parts), place)
                if len(module) > 1 < len(parts) and module[:2] != parts[:2]:
                    by_folder.setdefault(".".join(module[:2]), {}).setdefault(".".join(parts[:2]), place)
            elif other not in FLOORS:
                found.append(f"{where}:{line}: `{other}` has no floor")
            elif FLOORS[other] > FLOORS[own]:
                found.append(
                    f"{where}:{line}: {own} (floor {FLOORS[own]}) imports up, {other} (floor {FLOORS[other]})"
                )
            elif FLOORS[other] == FLOORS[own]:
                found.append(f"{where}:{line}: {own} imports sideways, {other} (both on floor {FLOORS[own]})")
    for graph in (by_module, by_folder):
        for circle in circles(graph):
            line = f"{graph[circle[0]][circle[1]]}: circle of imports, {' -> '.join(circle)}"
            folders = [name for name in circle if (package / name.replace(".", "/")).is_dir()]
            if line not in found and (folders or graph is by_module):  # single modules are in the first graph too
                found.append(line)
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
