"""What the shell completes."""

import pytest
from click.shell_completion import BashComplete

from genbound.cli.main import cli


def completed(*words):
    """What bash offers for the last word."""
    complete = BashComplete(cli, {}, "genbound", "_GENBOUND_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


def test_commands_and_options():
    assert completed("eva") == ["evaluate"]
    assert "--measures" in completed("evaluate", "--mea")


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_measures_by_the_last_name(command):
    assert completed(command, "--measures", "hessian_tr") == ["hessian_trace"]
    assert completed(command, "--measures", "losses,trace_d") == ["losses,trace_distance"]
    assert "losses,losses" not in completed(command, "--measures", "losses,l")
    assert completed(command, "--measures", "hesian") == []
