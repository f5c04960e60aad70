"""Files that are whole or the old ones."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from diffusers_lasers import DictionaryBottleneck
from diffusers_lasers.utils.files import (
    atomic_file,
    fill_folder,
    image_format,
    save_image,
    write_bytes,
    write_json,
    write_text,
)


def test_contents_come_back_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a.md", "ᾱ\n")
    write_json(tmp_path / "b.json", {"inf": float("inf"), "list": [1, float("nan")], "path": Path("x"), "c̄": 1.5})
    save_image(tmp_path / "c.png", Image.new("RGB", (3, 2), "red"))
    write_bytes(tmp_path / "d.code", b"\x00\r\n")
    assert (tmp_path / "d.code").read_bytes() == b"\x00\r\n"
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "ᾱ\n"
    expected = {"inf": "inf", "list": [1, "nan"], "path": "x", "c̄": 1.5}
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8")) == expected
    assert Image.open(tmp_path / "c.png").getpixel((2, 1)) == (255, 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.md", "b.json", "c.png", "d.code"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {(1, 2): "a key that JSON has not"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_links_are_followed_and_modes_kept(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.json", tmp_path / "link.json"
    write_json(target, {"old": 1})
    target.chmod(0o600)
    link.symlink_to(target)
    write_json(link, {"new": 1})
    assert link.is_symlink() and json.loads(target.read_text()) == {"new": 1}
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    (tmp_path / "dangling.json").symlink_to(tmp_path / "real" / "b.json")
    write_json(tmp_path / "dangling.json", 1)
    assert (tmp_path / "real" / "b.json").read_text() == "1\n"


def test_the_umask_decides_the_mode_of_new_files(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/null")
    else:
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe"
        if kind.startswith("link"):
            path = tmp_path / "link"
            path.symlink_to(tmp_path / "pipe")
    before = os.stat(path).st_mode
    with pytest.raises(ValueError, match="must be a regular file or new"):
        write_bytes(path, b"x")
    assert os.stat(path).st_mode == before


def test_an_old_tmp_or_a_link_in_its_place_is_not_touched(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a.json.tmp").symlink_to(victim)
    write_json(tmp_path / "a.json", 1)
    assert victim.read_text() == "mine" and (tmp_path / "a.json.tmp").is_symlink()


def test_errors_name_the_file_and_leave_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing/a.json"):
        write_json(tmp_path / "missing" / "a.json", 1)

    with pytest.raises(OSError, match="b.bin") as caught:
        with atomic_file(tmp_path / "b.bin") as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")
    assert caught.value.errno == 28 and not any(tmp_path.iterdir())


def test_two_writers_at_once_leave_one_whole_file(tmp_path):
    def write(text):
        for _ in range(50):
            write_text(tmp_path / "a", text * 10000)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write, "abcd"))
    text = (tmp_path / "a").read_text()
    assert len(text) == 10000 and len(set(text)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["a.psd", "a.xyz", "a", "a.svg"])
def test_pictures_that_cannot_be_written_are_refused_first(tmp_path, name):
    assert image_format("a.JPG") == "JPEG"
    with pytest.raises(ValueError, match="must have the suffix of a picture that Pillow can write"):
        image_format(name)
    with pytest.raises(ValueError, match="must have the suffix of a picture that Pillow can write"):
        save_image(tmp_path / name, Image.new("RGB", (3, 2)))
    assert not any(tmp_path.iterdir())


class Part:
    """What `fill_folder` is given: a configuration in two pieces, then weights, as diffusers does it."""

    def __init__(self, name, fail=False):
        self.name, self.fail = name, fail

    def save_pretrained(self, folder):
        with open(f"{folder}/config.json", "w") as file:
            file.write(f'{{"name": "{self.name}", ')
            file.write('"whole": true}')
        if self.fail:
            raise OSError(28, "No space left on device")
        Path(folder, "unet").mkdir()
        Path(folder, "weights").write_text(self.name)
        Path(folder, "unet", "config.json").write_text(self.name)


def test_a_model_is_saved_over_another_or_not_at_all(tmp_path):
    (tmp_path / "notes").write_text("mine")
    fill_folder(tmp_path, Part("old").save_pretrained)
    with pytest.raises(OSError, match="No space"):
        fill_folder(tmp_path, Part("new", fail=True).save_pretrained)
    assert (tmp_path / "weights").read_text() == "old" and json.loads((tmp_path / "config.json").read_text())
    fill_folder(tmp_path, Part("new").save_pretrained)
    assert (tmp_path / "weights").read_text() == "new" and (tmp_path / "unet" / "config.json").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "notes", "unet", "weights"]


WRITERS = {
    "write_json": (
        "from diffusers_lasers.utils.files import write_json\nimport json",
        """
def prepare(folder): (folder / "a.json").write_text('{"value": "old"}')
def write(folder): write_json(folder / "a.json", {"value": "new" * 1000})
def check(folder, ended):
    value = json.loads((folder / "a.json").read_text())["value"]
    assert value == "new" * 1000 if ended else value in ("old", "new" * 1000)
""",
    ),
    "save_image": (
        "from diffusers_lasers.utils.files import save_image\nfrom PIL import Image\nImage.init()",
        """
def prepare(folder): Image.new("RGB", (40, 30), "red").save(folder / "a.png")
def write(folder): save_image(folder / "a.png", Image.new("RGB", (40, 30), "blue"))
def check(folder, ended):
    pixel = Image.open(folder / "a.png").getpixel((39, 29))
    assert pixel == (0, 0, 255) if ended else pixel in ((255, 0, 0), (0, 0, 255))
""",
    ),
    "save_pretrained": (
        "import json\nimport torch\n"
        "from diffusers_lasers import DictionaryBottleneck\ntorch.set_num_threads(1)\n"
        "models = {n: DictionaryBottleneck(latent_channels=4, num_atoms=n, sparsity=1) for n in (8, 9)}",
        """
def prepare(folder): models[8].save_pretrained(folder)
def write(folder): models[9].save_pretrained(folder)
def check(folder, ended):
    if not (folder / "config.json").exists():
        assert not ended
        return  # in between: nothing that could be loaded
    atoms = json.loads((folder / "config.json").read_text())["num_atoms"]
    assert atoms == 9 if ended else atoms in (8, 9)
    from safetensors.torch import load_file
    assert load_file(folder / "diffusion_pytorch_model.safetensors")["dictionary"].shape == (4, atoms)
""",
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_at_any_system_call_leaves_the_old_file_or_the_new_one(killed_everywhere, tmp_path, name):
    imports, write = WRITERS[name]
    assert killed_everywhere(imports, write, tmp_path) > 10


def test_a_model_that_finds_no_room_is_one_sentence_and_leaves_the_old_one(tmp_path):
    class Model:
        def __init__(self, error=None):
            self.error = error

        def save_pretrained(self, folder):
            write_json(Path(folder) / "config.json", {"failed": self.error is not None})
            if self.error is not None:
                raise self.error

    fill_folder(tmp_path / "model", Model().save_pretrained)
    for error in (OSError(28, "No space left", str(tmp_path / "x")), SafetensorError("I/O\nerror (os error 28)")):
        with pytest.raises(OSError, match="/model.*I/O error|No space left.*/model'$"):
            fill_folder(tmp_path / "model", Model(error).save_pretrained)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {"failed": False}


def test_one_file_of_weights_takes_the_place_of_several(tmp_path):
    model = DictionaryBottleneck(latent_channels=4, num_atoms=64, sparsity=1)
    model.save_pretrained(str(tmp_path), max_shard_size=100)
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").exists()
    with torch.no_grad():
        model.dictionary.neg_()
    model.save_pretrained(tmp_path)
    assert torch.equal(DictionaryBottleneck.from_pretrained(tmp_path).dictionary, model.dictionary)
    model.save_pretrained(tmp_path, max_shard_size=100)
    assert torch.equal(DictionaryBottleneck.from_pretrained(tmp_path).dictionary, model.dictionary)


def test_a_saved_model_keeps_modes_and_refuses_what_is_no_file(tmp_path):
    model = DictionaryBottleneck(latent_channels=4, num_atoms=8, sparsity=1)
    model.save_pretrained(tmp_path)
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    model.save_pretrained(tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    weights = (tmp_path / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with torch.no_grad():
        model.dictionary.neg_()
    with pytest.raises(ValueError, match="must be a regular file or new"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
