"""``losses``, measured in :mod:`genbound.quantities.losses`."""

from __future__ import annotations

from genbound.formatting import digits, percent
from genbound.quantities.base import Quantity, later
from genbound.quantities.summary import Reading, Summary


def _headline(losses: Summary) -> str:
    text = f"Training loss {digits(losses['train_loss'])}"
    if losses.get("train_loss_per_token") is not None:
        text += f" (every token alike: {digits(losses['train_loss_per_token'])})"
    if losses["train_error"] is not None:
        text += f", error {percent(losses['train_error'])}"
    if losses["test_loss"] is not None:
        text += "; " + _held_out(losses)
    return text + "."


def _held_out(losses: Summary) -> str:
    text = f"test loss {digits(losses['test_loss'])}"
    if losses["test_error"] is not None:
        text += f", error {percent(losses['test_error'])}"
    text += f"; generalization gap {digits(losses['generalization_gap'])} in the loss"
    if losses["error_gap"] is not None:
        text += f", {percent(losses['error_gap'])} in the error"
    return text


QUANTITY = Quantity(
    "losses",
    "training and test loss and error, and the generalization gap",
    later("genbound.quantities.losses:measure"),
    reads_test_data=lambda options: True,
    reads_confusion=True,
    over_all=True,
    gradients=lambda problem, options: 0.33 * len(problem.data) / problem.num_samples,
    unit="forward",
    reading=Reading(
        fixed=True,
        headline=_headline,
        how=("smallest_seen_loss",),  # where an observed range begins; of a loss near zero it is rounding
        fall_when_better=("train_*", "test_*", "largest_*", "generalization_gap", "error_gap"),
    ),
)
