"""Flags in, config out; errors in, one sentence and an exit code out."""

import sys

import pytest

from flamscale import command_line
from flamscale.config import FlamConfig
from flamscale.errors import ConfigError, DataError


def test_flags_change_the_default_they_name():
    config = command_line.parse(FlamConfig, ["--num-slots", "3"], description="", default=FlamConfig(width=64))
    assert config == FlamConfig(num_slots=3, width=64)


def test_a_setting_the_config_refuses_is_raised_in_the_configs_own_words(capsys):
    with pytest.raises(ConfigError, match=r"^flam.num-slots \(K\) must be at least 1, got 0\.$"):
        command_line.parse(FlamConfig, ["--num-slots", "0"], description="")
    assert capsys.readouterr() == ("", "")


def test_an_unknown_flag_is_named_on_stderr_with_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.parse(FlamConfig, ["--slots", "3"], description="")
    assert stop.value.code == 2
    assert "--slots" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("Wrong."), 2, "error: Wrong.\n"),
        (DataError("Gone."), 1, "error: Gone.\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_one_sentence_and_an_exit_code(error, code, said, capsys, monkeypatch):
    def command(arguments):
        raise error

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as stop:
        command_line.run(command)
    assert stop.value.code == code
    assert capsys.readouterr().err == said
