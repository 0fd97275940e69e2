"""Margins and input norms by hand."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from genbound import GenboundError, Problem
from genbound.cli.main import main
from genbound.evaluation.loop import evaluate

D = torch.float64
SCORES = torch.tensor([[3.0, 1, 0], [0, 2, 5], [1, 1, 1], [-1, 4, 0], [2, 0, 7]], dtype=D)
LABELS = torch.tensor([0, 1, 2, 1, 2])
MARGINS = [2, -3, 0, 4, 5]


class Shift(nn.Module):
    """Returns its input: the scores are the data."""

    def __init__(self, num: int = 3):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(num, dtype=D))

    def forward(self, x):
        return x @ self.weight.T


def problem(scores=SCORES, labels=LABELS, **arguments) -> Problem:
    return Problem(
        Shift(scores.shape[-1]),
        {"weight": torch.zeros(scores.shape[-1], scores.shape[-1])},
        (scores, labels),
        **arguments,
    )


def margin(found, **options):
    return evaluate(found, ["margin"], options={"margin": options}).quantities["margin"]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_margins_by_hand(batch_size):
    found = margin(problem(batch_size=batch_size), percentile=50.0)
    assert found == {
        "percentile": 50, "value": 2, "margin_loss": 0.6, "minimum": -3, "median": 2, "num_samples": 5,
        "inverse_square": 0.25,
    }  # fmt: skip
    low = margin(problem(batch_size=batch_size))
    assert low["value"] == pytest.approx(np.percentile(MARGINS, 5)) == pytest.approx(-2.4)
    assert (low["margin_loss"], low["inverse_square"]) == (0.2, None)


def test_all_training_samples_count_however_few_are_measured():
    assert margin(problem(num_samples=2)) == margin(problem())
    assert evaluate(problem(num_samples=1), ["input_norm"]).quantities["input_norm"]["num_samples"] == 5


@pytest.mark.parametrize("percentile", [-1, 101, float("nan"), "5"])
def test_percentiles_outside_the_range_are_refused(percentile):
    with pytest.raises(GenboundError, match="percentile"):
        margin(problem(), percentile=percentile)


def test_where_there_is_no_margin_the_results_say_why():
    regression = problem(SCORES, SCORES, loss="squared_error")
    assert "class scores" in evaluate(regression, ["margin"]).notes["margin"]
    single = problem(SCORES[:, :1], torch.zeros(5).long())  # one score is binary cross-entropy
    assert "class scores" in evaluate(single, ["margin"]).notes["margin"]

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 3, dtype=D)

        def forward(self, x):
            return self.a(x)

    model = Tokens()
    init = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    rows = Problem(model, init, (torch.randn(4, 5, 2, dtype=D), torch.zeros(4, 5).long()))
    assert "every position" in evaluate(rows, ["margin"]).notes["margin"]


def test_input_norms_by_hand():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False, dtype=D)
            self.a.weight.data = torch.tensor([[1.0, 0], [0, 2]], dtype=D)

        def forward(self, x):
            return self.a(x.mean((2, 3)))

    x = torch.zeros(3, 2, 1, 4, dtype=D)
    x[0, :, 0, 0] = torch.tensor([3, 4])  # one pixel of norm 5
    x[1, 0] = -4  # four pixels of norm 4: norm 8
    x[2, 1, 0, 2] = 1
    found = evaluate(Problem(Mean(), {"a.weight": torch.zeros(2, 2)}, (x, torch.tensor([0, 1, 0]))), ["input_norm"])
    assert found.quantities["input_norm"] == {
        "max_l2": 8, "rms_l2": pytest.approx((90 / 3) ** 0.5), "max_abs": 4, "max_pixel_l2": 5, "dimension": 8,
        "resolution": 2, "num_samples": 3, "max_output_l2": 4, "output_dimension": 2,
    }  # fmt: skip


def test_the_command_line_has_the_percentile(tmp_path):
    torch.save({"weight": torch.eye(3)}, tmp_path / "trained.pt")
    torch.save({"weight": torch.zeros(3, 3)}, tmp_path / "init.pt")
    np.savez(tmp_path / "data.npz", x=SCORES.float().numpy(), y=LABELS.numpy())
    (tmp_path / "net.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(3, 3, bias=False)\n", encoding="utf-8"
    )
    arguments = [
        "evaluate", str(tmp_path / "trained.pt"), str(tmp_path / "init.pt"), "--model", f"{tmp_path}/net.py:build",
        "--data", f"npz:{tmp_path}/data.npz", "--measures", "margin", "--out", str(tmp_path / "out"),
        "--margin-percentile",
    ]  # fmt: skip
    assert main([*arguments, "50"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["quantities"]["margin"]
    assert (found["percentile"], found["value"]) == (50, 2)
    assert main([*arguments, "200"]) == 2
