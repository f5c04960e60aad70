"""Flags that the scripts share: where images come from."""

import numpy as np
import pytest
from PIL import Image

from diffusers_lasers.training.data.image_flags import (
    add_data_flags,
    check_data_flags,
    check_held_out_images,
    open_images,
)
from diffusers_lasers.utils.command_line import CommandParser
from diffusers_lasers.utils.image_decoding import UnreadableImageError


@pytest.fixture
def parse(tmp_path):
    for name in ("train", "held_out"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.fromarray(np.full((8, 8, 3), index, dtype=np.uint8)).save(tmp_path / name / f"{index}.png")
    parser = CommandParser()
    add_data_flags(parser, max_validation_samples=2)
    return lambda line: parser.parse_args(line.format(at=tmp_path).split())


def test_images_come_from_where_the_flags_say(parse):
    args = parse("--train_data_dir {at}/train --validation_data_dir {at}/held_out --max_train_samples 1")
    assert len(open_images(args)) == 1 and len(open_images(args, "validation")) == 2
    assert open_images(parse("--train_data_dir {at}/train"), "validation") is None
    assert len(open_images(parse(""))) == 6 and len(open_images(parse(""), "validation")) == 2


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--dataset_name a --train_data_dir b", "not both"),
        ("--validation_split test", "--validation_split names a split of --dataset_name"),
        ("--dataset_name a --validation_split test --validation_data_dir b", "not both"),
    ],
)
def test_contradictions_are_refused(parse, line, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_images(parse(line), "validation")
    with pytest.raises(ValueError, match=sentence):
        check_data_flags(parse(line))


def test_held_out_images_are_read_before_the_work(parse, tmp_path):
    args = parse("--train_data_dir {at}/train --validation_data_dir {at}/held_out")
    check_held_out_images(open_images(args, "validation"), progress=False)
    check_held_out_images(None)
    (tmp_path / "held_out" / "1.png").write_bytes((tmp_path / "held_out" / "1.png").read_bytes()[:45])
    with pytest.raises(UnreadableImageError, match="1.png"):
        check_held_out_images(open_images(args, "validation"), progress=False)


def test_unreadable_images_can_be_left_out(parse, tmp_path, caplog):
    args = parse("--train_data_dir {at}/train")
    assert check_held_out_images(None, skip_unreadable=True) is None
    assert len(check_held_out_images(open_images(args), progress=False, skip_unreadable=True)) == 3
    for name in ("1.png", "2.png", "0.png"):
        path = tmp_path / "train" / name
        path.write_bytes(path.read_bytes()[:45])
        if name != "0.png":
            readable = check_held_out_images(open_images(args), progress=False, skip_unreadable=True)
    assert len(readable) == 1
    assert "1.png" in caplog.text and "It is skipped" in caplog.text
    with pytest.raises(UnreadableImageError, match="None of the images can be read"):
        check_held_out_images(open_images(args), progress=False, skip_unreadable=True)
