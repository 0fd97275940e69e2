r"""The training error of a quantised network, and the length of its description.

What moved is rounded, tensor by tensor, in one of a few forms: to nothing, to a grid, to pieces of low rank
(:mod:`genbound.posterior.coded_tensor`). Per tensor that is taken which makes

.. math:: \text{nats} + \frac{n h}{2\tau} \, \|v - \hat v\|^2

least, with h the mean Gauss-Newton curvature along its coordinates; the second term is what the loss rises by to second
order, in units of :math:`\tau/n`. Every τ, and all tensors on a grid for every step, are tried on the first few samples
of a pilot, the same for all. Those that may still be better than the best by more than a hundredth, at two standard
errors of the difference of both on these samples, go on to four times as many, and so forth. The network that promises
most is run on all samples. None of these choices costs anything: the length of the description has paid for them.
Nothing is random in the result.

The network itself is stored as a checkpoint beside the results: the certificate is about it, not about the fine-tuned
one.

Cost: forward passes over all samples and, for each τ and step, over the first samples of the pilot, for few of them
over all of it; the curvature of a few samples, and a singular value decomposition of every matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.data.samples import Batch
from genbound.estimators.kl_inverse import kl_inverse
from genbound.network.problem import Problem
from genbound.network.weights import as_array
from genbound.posterior.coded_forms import best_choice, gridded, length
from genbound.posterior.coded_tensor import FORMS, Coded, TensorCode
from genbound.posterior.curvature import MOST_COLUMNS, Curvature, measure_curvature
from genbound.posterior.groups import (
    SIDES,
    Group,
    centre,
    changed_groups,
    choice_nats,
    factor_groups,
    unseen,
    why_no_posterior,
)
from genbound.posterior.moved_network import MovedNetwork, worst_if_not_finite
from genbound.quantities.base import Context, Measured, Part, data_shards, stack, stream
from genbound.quantities.unlabelled import on_unlabelled

FEWEST, GROWTH = 64, 4  # samples of the pilot's first round, and how many times as many the next one has in all
CLOSE, SURE = 0.01, 2.0  # what a network that goes on may be better by, and at how many standard errors
GRIDS, TRIED, AGAIN = 12, 0.7, 3  # networks on one grid; tried of all at most, and one of so many goes on to the next
MOSTLY = 0.4  # tried of all on four small networks, of which a quarter and at last one goes on
USELESS = 4.0  # nats a sample: the certificate of a network without errors is 0.98 there


def applies_to(problem: Problem) -> str | None:
    """The whole training set is there, and all that may have moved has a start."""
    return why_no_posterior(problem)


def forecast(problem: Problem, options: Any) -> float:
    """In gradients over the measured samples, at most.

    Most of the τ and of the networks on one grid come to the pilot's first samples, and a third of them to each next
    round.
    """
    return _forecast(problem, options, TRIED, AGAIN, 2.0)


def usual(problem: Problem, options: Any) -> float:
    """Likewise what it mostly takes."""
    return _forecast(problem, options, MOSTLY, AGAIN + 1, 1.0)


def _forecast(problem: Problem, options: Any, part: float, again: int, least: float) -> float:
    """With this part of the networks tried, of which one of so many goes on, or ``least`` in all."""
    num, outputs = len(unseen(problem)), min(problem.num_outputs, MOST_COLUMNS)
    tried, passes = part * (len(options.taus) + GRIDS), float(num)
    for first, last in _rounds(min(options.num_pilot, num)):
        passes += max(tried, least) * (last - first)
        tried /= again
    curvature = min(options.num_curvature, num) * (1 + 2 * outputs)
    return (passes + curvature) / 3 / max(1, problem.num_samples)


def measure(problem: Problem, context: Context) -> Measured:
    """The quantised network that promises the least certificate."""
    if problem.loss.error is None and not math.isfinite(problem.loss.range):
        return Measured({"error": None, "loss": None, "reason": "the loss has neither a 0-1 error nor a range"})
    search = _Search(problem, context)
    tau, choice, weights = search.chosen()
    shards = [[search.indices[i] for i in shard] for shard in data_shards(search.num)]
    parts = context.map("final", shards, lambda shard: _errors(problem, weights, shard))
    found = {key: stack(parts, key) for key in parts[0]}
    error, loss = (found[key] if key in found else None for key in ("error", "loss"))
    return Measured(
        {
            "error": None if error is None else float(error.mean()),
            "right_or_wrong": error is not None and bool(np.isin(error, (0.0, 1.0)).all()),
            "loss": None if loss is None else float(loss.mean()),
            "loss_range": problem.loss.range if loss is not None else None,
            "nats": length(choice) + choice_nats(problem),
            "num_data": search.num,
            **_disagreement(problem, context, weights),
            "num_prior": len(problem.data) - search.num,
            "num_groups": len(search.groups),
            "num_coordinates": sum(group.size for group in search.groups),
            "tau": tau,
            "groups": {
                name: {"form": coded.form, "step": coded.step, "rank": coded.rank, "nats": coded.nats}
                for name, coded in choice.items()
            },
        },
        weights={name: as_array(tensor) for name, tensor in weights.items()},
    )


@dataclass
class _Search:
    """For the description that promises most."""

    problem: Problem
    context: Context

    def __post_init__(self) -> None:
        self.groups: Sequence[Group] = changed_groups(self.problem)
        # Factors of a weight whose start is known; of others the product is rounded, which has pieces of low rank.
        if self.problem.prior is not None and self.problem.prior.factors:
            self.groups = factor_groups(self.problem, self.groups)
        self.indices = unseen(self.problem)
        self.num = len(self.indices)

    @cached_property
    def _codes(self) -> dict[str, TensorCode]:
        return {group.name: self._code(group) for group in self.groups}

    def chosen(self) -> tuple[float | None, dict[str, Coded], dict[str, Tensor]]:
        """:meth:`best` and its tensors, found once: errors of two networks, elsewhere or before a break, are of none.

        The descriptions are without their integers, which the tensors hold.
        """

        def part(_: int) -> Part:
            tau, choice = self.best()
            rows = [(FORMS.index(c.form), c.nats, c.error, c.step, c.rank) for c in choice.values()]
            made = {f"weight {i}": as_array(tensor) for i, tensor in enumerate(self.weights(choice).values())}
            return {"tau": np.array([math.nan if tau is None else tau]), "choice": np.array(rows), **made}

        kept = self.context.map("network", [0], part)[0]
        choice = {
            group.name: Coded(FORMS[int(form)], float(nats), float(error), float(step), int(rank))
            for group, (form, nats, error, step, rank) in zip(self.groups, kept["choice"], strict=True)
        }
        likes = {group.weight or group.name: group.tuned for group in self.groups}  # in the order of the weights
        weights = {name: torch.as_tensor(kept[f"weight {i}"]).to(like) for i, (name, like) in enumerate(likes.items())}
        return None if math.isnan(kept["tau"][0]) else float(kept["tau"][0]), choice, weights

    def best(self) -> tuple[float | None, dict[str, Coded]]:
        """``(tau, descriptions)`` of the least certificate that the pilot promises; no tau of those on one grid."""
        found: list[tuple[float | None, dict[str, Coded]]] = [
            (tau, self._choice(self.num / (2 * tau))) for tau in self.context.options.taus
        ]
        found += [(None, choice) for choice in gridded(self._codes, {name: self._mean(name) for name in self._codes})]
        pilot = self._shuffled("pilot")[: self.context.options.num_pilot]
        runners: list[_Runner] = []
        for first, last in _rounds(len(pilot)):
            samples = pilot[first:last]
            if not first:
                runners = self._tried(found, samples)
            elif len(runners := _in_reach(runners)) > 1:
                runners = [runner.further(self._errors(runner.choice, samples)) for runner in runners]
        best = min(runners, key=lambda runner: runner.promised)
        return best.tau, best.choice

    def _tried(
        self, found: Sequence[tuple[float | None, dict[str, Coded]]], samples: Sequence[int]
    ) -> list[_Runner]:  # fmt: skip
        """The shortest first: a longer one that promises nothing even without errors need not be run."""
        tried: list[_Runner] = []
        for tau, choice in sorted(found, key=lambda entry: length(entry[1])):
            least = min((runner.promised for runner in tried), default=math.inf)
            if not tried or (
                kl_inverse(0.0, length(choice) / self.num) < least and choice not in [one.choice for one in tried]
            ):
                tried.append(_Runner(tau, choice, length(choice) / self.num, self._errors(choice, samples)))
        return tried

    def _errors(self, choice: Mapping[str, Coded], samples: Sequence[int]) -> np.ndarray:
        """What a network is chosen by, of each of these samples in an order of their own ``[m]``, between 0 and 1."""
        return np.asarray(next(iter(_errors(self.problem, self.weights(choice), samples).values())), float)

    def weights(self, choice: Mapping[str, Coded]) -> dict[str, Tensor]:
        """The quantised tensors, by parameter and buffer, in the network's type."""
        found, problem = {}, self.problem
        own = {group.name: _centre(problem, group).cpu() + self._codes[group.name].tensor(choice[group.name])
               for group in self.groups}  # fmt: skip
        for group in self.groups:
            if group.factors is None:
                found[group.name] = own[group.name].to(group.tuned)
                continue
            left, right = (own.get(f"{group.weight}.{side}", factor.double().cpu())
                           for side, factor in zip(SIDES, group.factors, strict=True))  # fmt: skip
            found[group.weight] = (problem.init[group.weight].double().cpu() + left @ right).to(group.tuned)
        return found

    def _choice(self, scale: float) -> dict[str, Coded]:
        """The best description of every tensor; ``scale`` times curvature weighs what is left out, in nats."""
        return best_choice(self._codes, {name: scale * self._mean(name) for name in self._codes})

    def _code(self, group: Group) -> TensorCode:
        curvature, metric = self._curvatures[group.name], None
        if curvature.axes is not None and (mean := self._mean(group.name)) > 0:
            axes = curvature.axes.double().cpu().numpy()
            metric = (axes * (curvature.spectrum.values / mean)) @ axes.T
        most = USELESS * self.num
        return TensorCode(_moved(self.problem, group), self._is_common(group), most, metric)

    def _mean(self, name: str) -> float:
        """Mean curvature along the coordinates of a group."""
        spectrum = self._curvatures[name].spectrum
        return float(spectrum.values @ spectrum.counts / spectrum.counts.sum())

    @cached_property
    def _curvatures(self) -> dict[str, Curvature]:
        """Of every group: the whole block where few coordinates moved."""
        options = self.context.options
        small = sum(group.size for group in self.groups) <= options.most_full
        order = self._shuffled("curvature")
        indices = order[: options.num_full if small else options.num_curvature]
        columns = stream(self.context, "quantized_error", "columns")
        names = [group.name for group in self.groups]
        network = MovedNetwork(self.problem, self.groups, () if small else names)
        return measure_curvature(
            self.problem, network, self.groups, indices, names if small else (), columns, by_row=False
        )

    def _shuffled(self, name: str) -> list[int]:
        order = torch.randperm(self.num, generator=stream(self.context, "quantized_error", name))
        return [self.indices[i] for i in order.tolist()]

    def _is_common(self, group: Group) -> bool:
        """Whether moving all entries of the first axis alike moves all class scores alike, tried on a few samples."""
        problem = self.problem
        if not problem.loss.classes or group.name not in problem.params or group.tuned.dim() == 0:
            return False
        if group.tuned.shape[0] != problem.num_classes:
            return False
        batch = problem.batch(problem.shared_run(4))
        generator = torch.Generator().manual_seed(0)
        shift = torch.randn(group.tuned.shape[1:], generator=generator).to(group.tuned) * group.tuned.abs().mean()
        with torch.no_grad():
            before = problem.forward(problem.params, batch.inputs)
            after = problem.forward({**problem.params, group.name: group.tuned + shift}, batch.inputs)
        moved = after - before
        rest = moved - moved.mean(-1, keepdim=True)
        return bool(rest.abs().max() <= 1e-4 * moved.abs().max())


@dataclass(frozen=True)
class _Runner:
    """A description, and the errors of its network on the samples of the pilot that it came to.

    Attributes:
        tau: that it was chosen by; ``None`` of those on one grid.
        choice: its tensors' descriptions.
        rate: their length over n, in nats.
        errors: of the same samples in the same order as those of others ``[m]``.
    """

    tau: float | None
    choice: dict[str, Coded]
    rate: float
    errors: np.ndarray

    @property
    def promised(self) -> float:
        """The certificate, if all samples were like those of the pilot."""
        return kl_inverse(float(self.errors.mean()), self.rate)

    def further(self, errors: np.ndarray) -> _Runner:
        """With more samples."""
        return replace(self, errors=np.concatenate([self.errors, errors]))

    def least(self, other: _Runner) -> float:
        """The certificate that it may have beside another one's as it is: what samples differ in tells the error.

        One more difference is counted than was seen: none of few samples does not mean that there is none.
        """
        apart = self.errors - other.errors
        error = math.sqrt(float(np.square(apart - apart.mean()).sum()) + 1) / len(apart)
        return kl_inverse(max(0.0, float(self.errors.mean()) - SURE * error), self.rate)


def _in_reach(runners: Sequence[_Runner]) -> list[_Runner]:
    """The best one, and those that may be better by more than :data:`CLOSE`."""
    best = min(runners, key=lambda runner: runner.promised)
    return [one for one in runners if one is best or one.least(best) < best.promised - CLOSE]


def _rounds(num: int) -> list[tuple[int, int]]:
    """First and last places in a pilot of so many samples of those of each round."""
    ends = [0, min(FEWEST, num)]
    while ends[-1] < num:
        ends.append(min(GROWTH * ends[-1], num))
    return list(zip(ends, ends[1:], strict=False))


def _centre(problem: Problem, group: Group) -> Tensor:
    """Of the prior, in float64."""
    return (centre(problem, group.name) if group.start is None else group.start).double()


def _moved(problem: Problem, group: Group) -> Tensor:
    return group.tuned.double() - _centre(problem, group)


def _errors(problem: Problem, weights: Mapping[str, Tensor], indices: Sequence[int]) -> Part:
    """Error, and loss over its range, of these samples with other weights, in any order."""
    params, buffers = _all(problem, weights)

    def batches() -> Iterator[Part]:
        loss = problem.loss
        for batch in problem.data.batches(sorted(indices, key=problem.data.size), problem.batch_size):
            moved = problem.to_device(batch)
            with torch.no_grad():
                outputs = problem.forward(params, moved.inputs, buffers)
                found = {}
                if loss.error is not None:
                    found["error"] = worst_if_not_finite(loss.error(outputs, moved.targets), outputs, 1.0)
                if math.isfinite(loss.range):
                    values = worst_if_not_finite(loss.per_sample(outputs, moved.targets), outputs, loss.range)
                    found["loss"] = values / loss.range
            yield found

    parts = list(batches())
    return {key: stack(parts, key) for key in parts[0]}


def _disagreement(problem: Problem, context: Context, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """How often the quantised network disagrees with the fine-tuned one on unlabelled inputs."""
    params, buffers = _all(problem, weights)

    def differs(batch: Batch) -> Tensor:
        with torch.no_grad():
            outputs = problem.forward(params, batch.inputs, buffers)
        wrong = (outputs.argmax(-1) != batch.targets).double()
        return torch.as_tensor(worst_if_not_finite(wrong, outputs, 1.0))

    return on_unlabelled(problem, context, problem.batch_size, differs)


def _all(problem: Problem, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers with these tensors in place of the fine-tuned ones."""
    params = {**problem.params, **{name: t for name, t in weights.items() if name in problem.params}}
    return params, {**problem.buffers, **{name: t for name, t in weights.items() if name in problem.buffers}}
