"""`import diffusers_lasers` loads no model code, and makes the package known to diffusers.

The row in `LOADABLE_CLASSES` is tested here where the table is imported last; `test_loading` has the order package,
pipelines and `test_hub` pipelines, package.
"""

SCRIPT = """
import pickle, sys
import diffusers
before = set(sys.modules)
import diffusers_lasers
result["new"] = sorted(set(sys.modules) - before)
result["version"] = diffusers_lasers.__version__

# the names of the package, lazily
result["listed"] = sorted(dir(diffusers_lasers))
table = "diffusers.pipelines.pipeline_loading_utils"
result["heavy"] = [name for name in (table, "diffusers.models", "transformers") if name in sys.modules]

# the namespace of diffusers
from diffusers import AutoencoderDL
result["same"] = AutoencoderDL is diffusers_lasers.AutoencoderDL
result["stock"] = diffusers.VQModel.__module__
result["unknown"] = hasattr(diffusers, "AutoencoderOfNobody") or hasattr(diffusers, "SparseCode")
result["pickled"] = pickle.loads(pickle.dumps(diffusers)) is diffusers

# the table of libraries, whose module is imported only now
import diffusers.pipelines.pipeline_loading_utils as utils
result["row"] = utils.LOADABLE_CLASSES.get("diffusers_lasers")
result["loader"] = type(utils.__loader__).__name__
import importlib
result["row after reload"] = importlib.reload(utils).LOADABLE_CLASSES.get("diffusers_lasers")

# every public name, and the submodules
names = [name for names in diffusers_lasers._import_structure.values() for name in names]
result["missing"] = [name for name in names if getattr(diffusers_lasers, name, None) is None]
submodules = ("functional", "coding", "models", "training", "metrics")
result["modules"] = [getattr(diffusers_lasers, name).__name__ for name in submodules]
bases = utils.LOADABLE_CLASSES["diffusers_lasers"]
result["bases"] = [getattr(diffusers_lasers, base) is getattr(diffusers, base) for base in bases]
"""

METHODS = ["save_pretrained", "from_pretrained"]
ROW = {"ModelMixin": METHODS, "SchedulerMixin": METHODS, "DiffusionPipeline": METHODS}


def test_import_in_a_fresh_process(fresh, tmp_path):
    result = fresh(SCRIPT, tmp_path)
    # only the light part of the package itself, and nothing of diffusers beyond what `import diffusers` loads
    assert all(name.startswith("diffusers_lasers") for name in result["new"])
    assert {name.split(".")[1] for name in result["new"] if "." in name} == {"utils"}
    assert result["heavy"] == []
    assert result["version"] == "0.1.0.dev0"
    assert {"AutoencoderDL", "SparseCode", "functional", "ModelMixin"} <= set(result["listed"])

    assert result["same"] and result["pickled"]
    assert result["stock"].startswith("diffusers.") and not result["unknown"]
    assert result["row"] == result["row after reload"] == ROW
    assert result["loader"] == "SourceFileLoader"  # the module is left as it would be without us

    assert result["missing"] == []
    assert result["modules"] == [
        f"diffusers_lasers.{name}" for name in ("functional", "coding", "models", "training", "metrics")
    ]
    assert result["bases"] == [True, True, True]


def test_the_models_package_has_every_model_of_the_root():
    import diffusers_lasers
    from diffusers_lasers import _import_structure, models

    offered = {name for module, names in _import_structure.items() if module.startswith("models.") for name in names}
    assert offered and offered == set(models.__all__)
    assert all(getattr(models, name) is getattr(diffusers_lasers, name) for name in offered)
