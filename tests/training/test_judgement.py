"""A figure that fails is reported after the model is saved, and never instead of it."""

import pytest

from diffusers_lasers.training.run.judgement import Judgement
from diffusers_lasers.training.run.run_folder import check_output_folder


def test_failures_are_reported_with_their_reason_and_end_in_exit_code_1(caplog, tmp_path):
    judgement, done = Judgement(tmp_path, secret="hf_a"), []
    with judgement.of("the held-out images"):
        raise RuntimeError("two\nlines of hf_a.")
    with judgement.of("the picture"):
        done.append(1)
    assert "hf_a" not in caplog.text
    assert done and judgement.failures == ["the held-out images: two lines of ***"]
    assert str(tmp_path) in caplog.text and "the held-out images: two lines of ***" in caplog.text
    with pytest.raises(SystemExit) as caught:
        judgement.end()
    assert caught.value.code == 1
    Judgement(tmp_path).end()
    with Judgement(tmp_path, saved="The results are").of("the picture"):
        raise OSError("no space")
    assert f"no space. The results are in {tmp_path}." in caplog.text


def test_an_interruption_is_no_failed_figure(tmp_path):
    with pytest.raises(KeyboardInterrupt), Judgement(tmp_path).of("the held-out images"):
        raise KeyboardInterrupt


def test_a_folder_that_is_written_once(tmp_path):
    check_output_folder(tmp_path / "new")
    (tmp_path / "a").mkdir()
    check_output_folder(tmp_path / "a")
    (tmp_path / "a" / "mine").write_text("x")
    with pytest.raises(ValueError, match="is not empty.*--overwrite_output_dir"):
        check_output_folder(tmp_path / "a")
    check_output_folder(tmp_path / "a", overwrite=True)
    with pytest.raises(ValueError, match="--output_dir must be a folder"):
        check_output_folder(tmp_path / "a" / "mine", overwrite=True)
