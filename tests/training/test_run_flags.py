"""Flags that training scripts share beside those of images, and what steps a model by them."""

import sys
import types

import pytest
import torch

from diffusers_lasers.training.run.config_flags import add_config_flag, add_replaced_flags, check_config
from diffusers_lasers.training.run.optimizers import (
    adam_optimizer,
    learning_rate_factor,
    learning_rate_schedule,
    scaled_learning_rate,
)
from diffusers_lasers.training.run.run_flags import (
    add_average_flags,
    add_hub_flags,
    add_optimizer_flags,
    add_run_flags,
    check_training_flags,
)
from diffusers_lasers.utils.command_line import CommandParser


@pytest.fixture
def parse():
    parser = CommandParser()
    rates = {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6, "adam_weight_decay": 0.1}
    add_optimizer_flags(parser, train_batch_size=4, learning_rate=1e-3, **rates)
    add_average_flags(parser)
    add_run_flags(parser, output_dir="here")
    add_hub_flags(parser)
    add_config_flag(parser, "config", "Of a part.")
    add_replaced_flags(parser, {"width": "--config width=VALUE"})
    return lambda line: parser.parse_args(line.split())


def test_defaults_are_those_of_the_script_and_of_a_flag():
    args = CommandParser()
    add_run_flags(args, output_dir="here")
    assert args.parse_args([]).output_dir == "here" and args.parse_args([]).log_steps == 50
    with pytest.raises(ValueError, match="`defaults` must be of the flags .*, got output_folder"):
        add_run_flags(CommandParser(), output_folder="here")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--train_batch_size 0", "--train_batch_size must be at least 1, got 0."),
        ("--learning_rate -1", "--learning_rate must be at least 0, got -1.0."),
        ("--seed -1", "--seed must be at least 0, got -1."),
        ("--checkpoints_total_limit 0", "--checkpoints_total_limit must be at least 1, got 0."),
        ("--ema_decay 1", r"--ema_decay must lie in \[0, 1\), got 1.0."),
        ("--report_to nothing", "--report_to nothing is not installed; installed: "),
    ],
)
def test_what_is_out_of_range_is_one_sentence(parse, line, sentence):
    check_training_flags(parse(""))
    with pytest.raises(ValueError, match=sentence):
        check_training_flags(parse(line))


class Part:
    def __init__(self, latent_channels, width=1, names=()):
        pass


def test_a_configuration_is_a_dictionary_of_json_or_text(parse, capsys):
    assert parse("").config is None
    config = parse("--config width=8 names=[1,2] --config width=16 text=a=b empty= none=null").config
    assert config == {"width": 16, "names": [1, 2], "text": "a=b", "empty": "", "none": None}
    for line, sentence in (
        ("--config width", "argument --config: must be NAME=VALUE, got 'width'."),
        ("--config =8", "argument --config: must be NAME=VALUE, got '=8'."),
        ("--width 8", "--width is replaced by --config width=VALUE."),
    ):
        with pytest.raises(SystemExit):
            parse(line)
        assert sentence in capsys.readouterr().err
    check_config("--config", {"width": 1}, Part)
    check_config("--config", None, Part)
    with pytest.raises(ValueError, match="^--config of a part takes width, names, got latent_channels.$"):
        check_config("--config", {"latent_channels": 1}, Part, " of a part")


def test_the_last_group_may_have_a_schedule_that_begins_later(parse):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    last = learning_rate_factor("linear", 0, 4)
    schedule = learning_rate_schedule(optimizer, parse("--lr_scheduler linear --lr_warmup_steps 2"), 6, last, 2)
    rates = [schedule.get_last_lr()]
    for _ in range(6):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr())
    assert [first for first, _ in rates] == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25, 0])
    assert [second for _, second in rates] == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0])


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
