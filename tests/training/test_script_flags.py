"""Flags that the scripts share: where images come from, and what steps them."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_lasers.training import (
    UnreadableImageError,
    adam_optimizer,
    add_data_flags,
    add_hub_flags,
    check_data_flags,
    check_held_out_images,
    open_images,
    scaled_learning_rate,
)
from diffusers_lasers.utils.command_line import CommandParser


@pytest.fixture
def parse(tmp_path):
    for name in ("train", "held_out"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.fromarray(np.full((8, 8, 3), index, dtype=np.uint8)).save(tmp_path / name / f"{index}.png")
    parser = CommandParser()
    add_data_flags(parser, max_validation_samples=2)
    add_hub_flags(parser.add_argument_group("output"))
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--scale_lr", action="store_true")
    parser.add_argument("--use_8bit_adam", action="store_true")
    for name, value in {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6, "weight_decay": 0.1}.items():
        parser.add_argument(f"--adam_{name}", type=float, default=value)
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


def test_the_learning_rate_is_scaled_as_in_the_examples_of_diffusers(parse):
    args = parse("--scale_lr")
    args.gradient_accumulation_steps = 3
    assert scaled_learning_rate(args, 2) == pytest.approx(1e-3 * 4 * 3 * 2)
    assert scaled_learning_rate(args, 2, rate=0.5) == pytest.approx(0.5 * 4 * 3 * 2)
    assert scaled_learning_rate(parse(""), 2) == 1e-3 and scaled_learning_rate(parse(""), 2, rate=0.5) == 0.5


def test_adam_has_the_flags_and_8_bits_come_from_an_extra(parse, monkeypatch):
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = adam_optimizer(parameters, parse(""), learning_rate=0.5)
    group = optimizer.param_groups[0]
    assert type(optimizer) is torch.optim.AdamW and group["lr"] == 0.5 and group["betas"] == (0.8, 0.9)
    assert group["eps"] == 1e-6 and group["weight_decay"] == 0.1
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"diffusers_lasers\[8bit\]"):
        adam_optimizer(parameters, parse("--use_8bit_adam"))

    class Adam8(torch.optim.AdamW):
        pass

    fake = types.SimpleNamespace(optim=types.SimpleNamespace(AdamW8bit=Adam8))
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    assert type(adam_optimizer(parameters, parse("--use_8bit_adam"))) is Adam8


def test_some_moments_stay_floats(parse):
    pytest.importorskip("bitsandbytes")
    parameters = [torch.nn.Parameter(torch.zeros(64, 128)) for _ in range(2)]
    optimizer = adam_optimizer(parameters, parse("--use_8bit_adam"), full_precision=parameters[1:])
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    kinds = [
        {moment.dtype for moment in optimizer.state[parameter].values() if getattr(moment, "shape", None) == (64, 128)}
        for parameter in parameters
    ]
    assert kinds == [{torch.uint8}, {torch.float32}]
