"""The two registrations on throw-away modules: every order, and what must not change."""

import importlib
import pickle
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

import pytest

from diffusers_lasers.utils.import_utils import requires
from diffusers_lasers.utils.registration import add_loadable_library, after_import, extend_namespace


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of an importable module `table = {}` that is not imported yet."""
    name = "throwaway_module"
    (tmp_path / f"{name}.py").write_text("table = {}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield name
    sys.modules.pop(name, None)


def test_row_is_added_once():
    table = {"mine": {"Base": ["load"]}}
    add_loadable_library(table, "mine")
    add_loadable_library(table, "other")
    assert table["mine"] == {"Base": ["load"]}  # a row that is there is kept
    assert table["other"]["ModelMixin"] == ["save_pretrained", "from_pretrained"]


def test_callback_before_and_after_import(module):
    calls = []
    after_import(module, lambda loaded: calls.append(("early", loaded.table)))
    assert calls == [] and module not in sys.modules

    loaded = importlib.import_module(module)
    assert calls == [("early", {})]
    assert type(loaded.__spec__.loader) is type(loaded.__loader__) is SourceFileLoader  # its own, not our wrapper

    after_import(module, lambda loaded: calls.append(("late", loaded.table)))
    assert [name for name, _ in calls] == ["early", "late"]
    importlib.reload(loaded)  # a new table is registered again, by both
    assert sorted(name for name, _ in calls) == ["early", "early", "late", "late"]


def test_other_modules_are_found_as_before(module):
    after_import(module, lambda loaded: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("throwaway_module_that_is_not_there")


def test_error_in_the_module_is_raised(module, tmp_path):
    (tmp_path / f"{module}.py").write_text("raise ZeroDivisionError\n")
    calls = []
    after_import(module, calls.append)
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(module)
    assert calls == []


class LazyModule(ModuleType):
    """As diffusers' lazy module: knows `known`, and fails in importing `broken`."""

    def __getattr__(self, name):
        if name == "known":
            return "its own"
        if name == "broken":
            raise RuntimeError("failed to import")
        raise AttributeError(f"module {self.__name__} has no attribute {name}")


@pytest.mark.parametrize("kind", [ModuleType, LazyModule])
def test_namespace(kind):
    module, resolved = kind("some_module"), []
    module.there = "its own"
    extend_namespace(module, ["there", "known", "broken", "new"], lambda name: resolved.append(name) or f"our {name}")

    assert isinstance(module, kind)
    assert module.there == "its own" and resolved == []
    assert module.new == "our new" and module.new == "our new" and resolved == ["new"]  # resolved once
    with pytest.raises(AttributeError, match="some_module.* has no attribute .*absent"):
        module.absent
    if kind is LazyModule:
        assert module.known == "its own"
        with pytest.raises(RuntimeError):
            module.broken


def test_extended_module_is_pickled_by_name(monkeypatch):
    module = ModuleType("some_module")
    extend_namespace(module, ["new"], str)
    monkeypatch.setitem(sys.modules, "some_module", module)
    assert pickle.loads(pickle.dumps(module)) is module


def test_requires(tmp_path, monkeypatch):
    assert requires("json", "training").loads("1") == 1
    with pytest.raises(ImportError, match=r"`no_such_package` .*diffusers_lasers\[codec\]"):
        requires("no_such_package", "codec")
    with pytest.raises(ImportError, match=r"`no_such_package.image` .*diffusers_lasers\[metrics\]"):
        requires("no_such_package.image", "metrics")

    # a package that is there but lacks a dependency of its own says so itself
    (tmp_path / "package_with_a_need.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        requires("package_with_a_need", "codec")
