"""Makes this package a library that diffusers loads components from, without importing diffusers' pipelines.

diffusers writes a component of a pipeline to `model_index.json` as `[library, class]` and, on loading, accepts only the
libraries that are keys of `diffusers.pipelines.pipeline_loading_utils.LOADABLE_CLASSES`; its `AutoModel` and its
generic `DiffusionPipeline` look classes up in the `diffusers` namespace. Its `AutoPipelineForText2Image` and
`AutoPipelineForImage2Image` have tables of their own. Three registrations make a plug-in of this package:

1. a row in `LOADABLE_CLASSES`. The module that holds the table takes seconds to import, so the row is added at once
   only where the module is already there, and otherwise by a finder on `sys.meta_path` right after the module has run.
   Whichever of the two packages is imported first, nobody sees the table without the row;
2. rows in the tables of `diffusers.pipelines.auto_pipeline`, in the same way. Whoever imports that module imports all
   pipelines of diffusers, and then ours too;
3. an answer of the module `diffusers` to the names of our classes. Only names that diffusers does not know itself are
   answered, and a class is imported when it is asked for.

The tables are not public API of diffusers: `setup.py` pins the minor version, and `tests/plugin` tests them.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any, Callable, Iterable, Mapping


PIPELINE_LOADING_MODULE = "diffusers.pipelines.pipeline_loading_utils"
AUTO_PIPELINE_MODULE = "diffusers.pipelines.auto_pipeline"
LOADABLE_BASES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")


def add_loadable_library(table: dict[str, dict[str, list[str]]], library: str) -> None:
    """
    Adds the row of one library to diffusers' table of libraries that components are loaded from.

    Args:
        table (`dict`): Diffusers' `LOADABLE_CLASSES`; changed in place. A row that is already there is kept.
        library (`str`): Importable name of the library; it must expose `ModelMixin`, `SchedulerMixin` and
            `DiffusionPipeline`, through which diffusers finds the loading method of a class.
    """
    table.setdefault(library, {base: ["save_pretrained", "from_pretrained"] for base in LOADABLE_BASES})


def add_auto_pipelines(
    module: ModuleType, pipelines: Mapping[str, Mapping[str, str]], resolve: Callable[[str], Any]
) -> None:
    """
    Adds pipelines to the tables that diffusers' `AutoPipelineFor…` read.

    Args:
        module (`ModuleType`): `diffusers.pipelines.auto_pipeline`; its tables are changed in place, rows that are
            already there are kept.
        pipelines (`dict[str, dict[str, str]]`): Task, as in the tables' names, e.g. `"TEXT2IMAGE"` → family → name of
            the class. Tasks of one family turn into each other.
        resolve (`Callable[[str], Any]`): Gives the class of a name.
    """
    for task, names in pipelines.items():
        table = getattr(module, f"AUTO_{task}_PIPELINES_MAPPING")
        for family, name in names.items():
            try:
                table.setdefault(family, resolve(name))
            except ImportError:
                return  # without transformers there is no such pipeline, and diffusers' own are only placeholders


def after_import(module_name: str, callback: Callable[[ModuleType], None]) -> None:
    """
    Calls `callback(module)` each time that a module has been executed, and at once if it was before.

    Args:
        module_name (`str`): Full name of the module to wait for. It is not imported here.
        callback (`Callable[[ModuleType], None]`): Receives the executed module before any importer does.
    """
    sys.meta_path.insert(0, _AfterImportFinder(module_name, callback))
    if module_name in sys.modules:
        # `import_module` waits where another thread is still executing it
        callback(importlib.import_module(module_name))


class _AfterImportFinder(MetaPathFinder):
    """Finds one module as the finders behind it do, and wraps its loader."""

    def __init__(self, module_name: str, callback: Callable[[ModuleType], None]):
        self.module_name = module_name
        self.callback = callback

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.module_name:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _AfterImportLoader(spec.loader, self.callback)
                return spec
        return None


class _AfterImportLoader(Loader):
    """Executes a module with its own loader, leaves that loader in the module, and calls back."""

    def __init__(self, loader: Loader, callback: Callable[[ModuleType], None]):
        self.loader = loader
        self.callback = callback

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.callback(module)


def extend_namespace(module: ModuleType, names: Iterable[str], resolve: Callable[[str], Any]) -> None:
    """
    Lets a module answer further names, each resolved when it is first asked for.

    The module gets a subclass of its own type as `__class__` (Python allows it for modules), so that lazy modules keep
    their behaviour. A name that the module knows itself is never changed, and an error in importing it is not hidden.

    Args:
        module (`ModuleType`): The module to extend, e.g. `diffusers`.
        names (`Iterable[str]`): Names to answer.
        resolve (`Callable[[str], Any]`): Gives the object of a name; its result is stored in the module.
    """
    base, names = type(module), frozenset(names)
    known = getattr(base, "__getattr__", None)

    class ExtendedModule(base):
        def __getattr__(self, name):
            try:
                if known is None:
                    raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
                return known(self, name)
            except AttributeError:
                if name not in names:
                    raise
            value = resolve(name)
            setattr(self, name, value)
            return value

        def __reduce__(self):
            return importlib.import_module, (self.__name__,)

    module.__class__ = ExtendedModule


def register_in_diffusers(
    library: str, class_names: Iterable[str], auto_pipelines: Mapping[str, Mapping[str, str]]
) -> None:
    """
    Registers a library and its loadable classes in diffusers; called once, when the package is imported.

    Args:
        library (`str`): Importable name of the library, `"diffusers_lasers"`.
        class_names (`Iterable[str]`): The models, schedulers and pipelines that `diffusers.<name>` shall answer.
        auto_pipelines (`dict[str, dict[str, str]]`): See [`add_auto_pipelines`].
    """
    import diffusers

    def resolve(name: str) -> Any:
        return getattr(importlib.import_module(library), name)

    after_import(PIPELINE_LOADING_MODULE, lambda module: add_loadable_library(module.LOADABLE_CLASSES, library))
    after_import(AUTO_PIPELINE_MODULE, lambda module: add_auto_pipelines(module, auto_pipelines, resolve))
    extend_namespace(diffusers, class_names, resolve)
