"""Registers this package as a library whose components diffusers can load, without importing diffusers' pipelines.

diffusers writes a component of a pipeline to `model_index.json` as `[library, class]`. On loading, it accepts only the
libraries that are keys of `diffusers.pipelines.pipeline_loading_utils.LOADABLE_CLASSES`. Its `AutoModel` and its
generic `DiffusionPipeline` look up classes in the `diffusers` namespace. Its `AutoPipelineForText2Image` and
`AutoPipelineForImage2Image` have their own tables. Three registrations make this package a plug-in:

1. A row in `LOADABLE_CLASSES`. The module with the table takes seconds to import. If it is already imported, the row is
   added at once. Otherwise a finder on `sys.meta_path` adds it right after the module was executed. So the row is there
   before any code uses the table, whichever of the two packages is imported first.
2. Rows in the tables of `diffusers.pipelines.auto_pipeline`, in the same way. This module imports all pipelines of
   diffusers, and then ours too.
3. The names of our classes as attributes of the module `diffusers`. Names of diffusers itself are not changed, and a
   class is imported when its name is first used.

The tables are not public API of diffusers. So `setup.py` pins the minor version, and `tests/plugin` tests them.
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
    Adds the row of one library to diffusers' table of libraries whose components it loads.

    Args:
        table (`dict`): diffusers' `LOADABLE_CLASSES`, which is changed in place. An existing row is kept.
        library (`str`): Importable name of the library. It must have `ModelMixin`, `SchedulerMixin` and
            `DiffusionPipeline`, by which diffusers finds the loading method of a class.
    """
    table.setdefault(library, {base: ["save_pretrained", "from_pretrained"] for base in LOADABLE_BASES})


def add_auto_pipelines(
    module: ModuleType, pipelines: Mapping[str, Mapping[str, str]], resolve: Callable[[str], Any]
) -> None:
    """
    Adds pipelines to the tables of diffusers' `AutoPipelineFor…`.

    Args:
        module (`ModuleType`): `diffusers.pipelines.auto_pipeline`. Its tables are changed in place, and existing rows
            are kept.
        pipelines (`dict[str, dict[str, str]]`): For each task, named as in the tables, e.g. `"TEXT2IMAGE"`, the name of
            the class for each family. Pipelines of one family can be converted to each other.
        resolve (`Callable[[str], Any]`): Returns the class of a name.
    """
    for task, names in pipelines.items():
        table = getattr(module, f"AUTO_{task}_PIPELINES_MAPPING")
        for family, name in names.items():
            try:
                table.setdefault(family, resolve(name))
            except ImportError:
                return  # without transformers there are no such pipelines, here or in diffusers


def after_import(module_name: str, callback: Callable[[ModuleType], None]) -> None:
    """
    Calls `callback(module)` each time after a module was executed, and at once if that has happened already.

    Args:
        module_name (`str`): Full name of the module. It is not imported here.
        callback (`Callable[[ModuleType], None]`): Receives the executed module before any importer does.
    """
    sys.meta_path.insert(0, _AfterImportFinder(module_name, callback))
    if module_name in sys.modules:
        # `import_module` waits if another thread is still executing the module
        callback(importlib.import_module(module_name))


class _AfterImportFinder(MetaPathFinder):
    """Finds one module with the finders behind it, and wraps its loader."""

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
    """Executes a module with its own loader, restores that loader in the module, and calls the callback."""

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
    Adds attributes to a module, each of which is resolved when it is first used.

    The module gets a subclass of its own type as `__class__`, which Python allows for modules. So lazy modules keep
    their behaviour. Attributes that the module has itself do not change, and errors in their import are not hidden.

    Args:
        module (`ModuleType`): The module to extend, e.g. `diffusers`.
        names (`Iterable[str]`): Names of the attributes.
        resolve (`Callable[[str], Any]`): Returns the object of a name. It is then stored in the module.
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
    Registers a library and its loadable classes in diffusers. It is called once, when the package is imported.

    Args:
        library (`str`): Importable name of the library, `"diffusers_lasers"`.
        class_names (`Iterable[str]`): The models, schedulers and pipelines that become available as `diffusers.<name>`.
        auto_pipelines (`dict[str, dict[str, str]]`): See [`add_auto_pipelines`].
    """
    import diffusers

    def resolve(name: str) -> Any:
        return getattr(importlib.import_module(library), name)

    after_import(PIPELINE_LOADING_MODULE, lambda module: add_loadable_library(module.LOADABLE_CLASSES, library))
    after_import(AUTO_PIPELINE_MODULE, lambda module: add_auto_pipelines(module, auto_pipelines, resolve))
    extend_namespace(diffusers, class_names, resolve)
