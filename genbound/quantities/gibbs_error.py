r"""The training error of a noisy network, and how far its noise is from a prior that did not see the samples.

.. math:: \hat R(Q) = \frac1n \sum_i P_{U \sim N(0, \Sigma)}[f_{W+U}(x_i) \ne y_i]

for Gaussian noise on *every* coordinate that training changed: weights, biases, norm layers, running statistics
(:mod:`genbound.posterior.groups`). Prior and noise of every tensor come from its Gauss-Newton curvature and from how
far it moved (:mod:`genbound.posterior.gaussian`); τ, which weighs the divergence against the rise of the loss, is
tried on a pilot, and what comes close to the best on a larger one. All of that is free: the posterior may depend on the
training sample in any way. Noise on a large weight is drawn as what it does to each sample
(:mod:`genbound.posterior.acting_noise`).

What the certificate rests on is the final Monte Carlo alone: fresh draws, every sample the same number of times, an
independent draw for every trial, none weighted and none left out. How many is decided before. Where a linear head with
two classes is all that moved, every sample's probability is known and nothing is drawn
(:mod:`genbound.posterior.linear_head`). A noisy network that gives no number counts as wrong.

With a prior that saw some of the samples, trials and n are those of the others (:mod:`genbound.network.prior`).

``loss`` is the same for the loss divided by its range, where it has one of its own (``--loss-range``).

Cost: forward passes over all samples, one for each pass of the Monte Carlo and a part of one for each τ, and the
curvature: as many backward passes to the moved tensors as there are outputs. A whole covariance of d coordinates takes
2d² multiplications a draw, and d² for each of those backward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genbound.data.samples import Batch
from genbound.estimators.kl_inverse import kl_inverse
from genbound.network.problem import Problem
from genbound.posterior.curvature import MOST_COLUMNS, SIGNS, Curvature, measure_curvature
from genbound.posterior.gaussian import LAMBDAS, Width, width_of
from genbound.posterior.groups import Group, changed_groups, choice_nats, factor_groups, unseen, why_no_posterior
from genbound.posterior.linear_head import LinearHead, find_linear_head
from genbound.posterior.moved_network import MovedNetwork, batches_of_one_size, worst_if_not_finite
from genbound.posterior.noise import Posterior
from genbound.posterior.prior_widths import best_widths
from genbound.quantities.base import Context, Measured, Part, data_shards, stack, stream
from genbound.quantities.decompositions import in_gradients
from genbound.quantities.unlabelled import on_unlabelled

# The failure probability that the number of passes is planned with; the bound is told its own.
PLANNED_BOUND, PLANNED_MONTE_CARLO = 0.045, 0.005
Tried = tuple[float, float, Posterior, float]  # promised, τ, posterior, its error in the pilot
MOST_BYTES = 1 << 28  # of the tensors of one batch of draws
CLOSE, AGAIN = 0.03, 4  # what promises that much more than the least is tried on so many times the pilot
NOISY_PASS = 1.5  # gradients that a forward pass with noise of its own for each sample mostly takes, draws and all
ENOUGH_TRIALS = 20_000  # with which the Monte Carlo error mostly costs the certificate less than 0.01
MANY, FEW_SAMPLES = 100_000, 1024  # coordinates above which the curvature is that of fewer samples


def applies_to(problem: Problem) -> str | None:
    """The whole training set is there, and all that may have moved has a start."""
    return why_no_posterior(problem)


def forecast(problem: Problem, options: Any) -> float:
    """In gradients over the measured samples.

    Half of the τ come to a pilot, and there are as many trials as mostly keep their error small. What whole covariances
    take besides is the same for any network around them: much beside a gradient of a small one.
    """
    groups = factor_groups(problem, changed_groups(problem))
    num, outputs = len(unseen(problem)), min(problem.num_outputs, MOST_COLUMNS)
    pilot = (len(options.taus) + 2) / 2 * min(options.num_pilot, num)
    if problem.num_outputs == 2 and find_linear_head(problem, groups) is not None:
        return (pilot + num + min(options.num_curvature, num) * outputs) / 3 / max(1, problem.num_samples)
    pilot += 2 * min(AGAIN * options.num_pilot, num)
    draws = pilot + min(options.max_passes, math.ceil(ENOUGH_TRIALS / num)) * num
    most = min(options.num_curvature, FEW_SAMPLES) if sum(g.size for g in groups) > MANY else options.num_curvature
    seen = min(most, num)
    gradients = (NOISY_PASS * draws + seen * (1 + 2 / 3 * outputs)) / max(1, problem.num_samples)
    of_draw, of_direction = _of_covariances(problem, groups, options)
    return gradients + in_gradients(problem, draws * of_draw + seen * outputs * of_direction)


def _of_covariances(problem: Problem, groups: Sequence[Group], options: Any) -> tuple[float, float]:
    """Multiplications that a draw takes for them, and a direction in a sample's output for the curvature they are of.

    A draw goes to the axes and back. Of a weight whose noise may act on results the draws are counted with the pass.
    """
    if options.covariance != "full":
        return 0.0, 0.0
    tables = {layer.name for layer in problem.layers if layer.kind == "embedding"}
    whole = float(sum(group.size**2 for group in groups if group.size <= options.most_full))
    acting = [
        min(len(group.tuned), SIGNS) * (group.size / len(group.tuned)) ** 2
        for group in groups
        if group.size > options.most_full
        and group.tuned.dim() > 1
        and group.name in problem.params
        and group.name not in tables
    ]
    return 2 * whole, whole + sum(acting)


def measure(problem: Problem, context: Context) -> Measured:
    """The Gibbs error of the best posterior that was found."""
    gibbs = _Gibbs(problem, context)
    if problem.loss.error is None and not math.isfinite(problem.loss.range):
        return Measured({"error": None, "loss": None, "reason": "the loss has neither a 0-1 error nor a range"})
    normals = 0 if gibbs.head is not None else gibbs.network.numbers * gibbs.num
    if normals > context.options.most_normals:
        return Measured(
            {
                "error": None, "loss": None,
                "reason": f"a pass would draw {normals:.2g} random numbers; allow it with --set "
                f"gibbs_error.most_normals={normals:.1e}",
            }
        )  # fmt: skip
    return Measured(gibbs.summary())


@dataclass
class _Gibbs:
    """The measurement of one problem."""

    problem: Problem
    context: Context

    def __post_init__(self) -> None:
        self.groups = factor_groups(self.problem, changed_groups(self.problem))
        self.indices = unseen(self.problem)
        self.num = len(self.indices)
        self.head: LinearHead | None = find_linear_head(self.problem, self.groups)
        if self.problem.num_outputs != 2 or not self.problem.loss.classes:
            self.head = None

    @cached_property
    def network(self) -> MovedNetwork:
        """As a function of the groups; noise on those without a whole covariance acts on results where it can."""
        large = [group.name for group in self.groups if group.name not in self._full and self.head is None]
        return MovedNetwork(self.problem, self.groups, large)

    @cached_property
    def _full(self) -> frozenset[str]:
        """Groups whose noise has a covariance of its own between all coordinates."""
        options = self.context.options
        if options.covariance != "full":
            return frozenset()
        return frozenset(group.name for group in self.groups if group.size <= options.most_full)

    def summary(self) -> dict:
        """What is stored: the trials, the divergence, and what they belong to."""
        tau, posterior, pilot = self._chosen()
        exact = self.head is not None
        ranged = math.isfinite(self.problem.loss.range)
        passes = 0 if exact and not ranged else self._passes(posterior, pilot)
        trials = self._trials(posterior, passes) if passes else {}
        num = passes * self.num
        error = self._exact(posterior) if exact else trials["error"] / num if "error" in trials else None
        return {
            "error": error,
            "error_sem": 0.0 if exact or error is None else math.sqrt(max(error * (1 - error), 0.0) / num),
            "exact": exact,
            "loss": trials["loss"] / num if ranged else None,
            "loss_range": self.problem.loss.range if ranged else None,
            "num_trials": num,
            "num_pilot": min(AGAIN * self.context.options.num_pilot, self.num),
            "num_data": self.num,
            **self._disagreement(posterior),
            "num_prior": len(self.problem.data) - self.num,
            "kl": posterior.kl,
            "log_union": posterior.log_union + choice_nats(self.problem),
            "num_lambdas": len(LAMBDAS),
            "num_groups": len(self.groups),
            "num_coordinates": posterior.size,
            "tau": tau,
            "groups": {
                group.name: {
                    "size": group.size,
                    "displacement": math.sqrt(group.square),
                    "prior": posterior.widths[group.name].prior,
                    "deviation": posterior.deviation(group),
                    "kl": posterior.widths[group.name].kl,
                    "full": group.name in self._full,
                }
                for group in self.groups
            },
        }

    # -- the posterior, which may look at everything ------------------------------------------------------------------

    def _chosen(self) -> tuple[float, Posterior, float]:
        """:meth:`_best`, found once: trials of two posteriors, on other machines or before a break, are none of one."""

        def part(_: int) -> Part:
            tau, best, pilot = self._best()
            priors = [best.widths[group.name].prior for group in self.groups]
            return {"found": np.array([tau, best.log_union, pilot]), "priors": np.array(priors)}

        kept = self.context.map("posterior", [0], part)[0]
        tau, nats, pilot = kept["found"].tolist()
        widths = [
            width_of(prior, group.square, self._curvatures[group.name].spectrum, self.num / tau)
            for prior, group in zip(kept["priors"].tolist(), self.groups, strict=True)
        ]
        return tau, self._posterior(widths, nats), pilot

    def _best(self) -> tuple[float, Posterior, float]:
        """``(tau, posterior, its error in the pilot)`` of the least certificate that the pilot promises."""
        found: list[Tried] = []
        taus = sorted(self.context.options.taus, reverse=True)
        # The shortest divergence first: a longer one that promises nothing even without errors need not be tried.
        for tau in taus:
            self._try(tau, found)
        around = taus.index(min(found, key=lambda entry: entry[:2])[1])
        for one, other in pairwise(taus[max(0, around - 1) : around + 2]):
            self._try(math.sqrt(one * other), found)
        least = min(found, key=lambda entry: entry[:2])
        close = [entry for entry in found if entry[0] <= least[0] + CLOSE]
        if self.head is None and len(close) > 1:
            again = [(tau, q, self._pilot(q, AGAIN * self.context.options.num_pilot)) for _, tau, q, _ in close]
            least = min(((self._promised(q, pilot), tau, q, pilot) for tau, q, pilot in again), key=lambda e: e[:2])
        return least[1:]

    def _try(self, tau: float, found: list[Tried]) -> None:
        """Add what the posterior of τ promises, if it can be the least."""
        spectra = [self._curvatures[group.name].spectrum for group in self.groups]
        posterior = self._posterior(*best_widths([group.square for group in self.groups], spectra, self.num / tau))
        if not found or self._promised(posterior, 0.0) < min(entry[0] for entry in found):
            pilot = self._pilot(posterior, self.context.options.num_pilot)
            found.append((self._promised(posterior, pilot), tau, posterior, pilot))

    def _posterior(self, widths: Sequence[Width], nats: float) -> Posterior:
        """With these widths of each group, whose choice costs so much."""
        named = {group.name: width for group, width in zip(self.groups, widths, strict=True)}
        return Posterior.of(self.groups, self._curvatures, named, self.network.acting, nats)

    @cached_property
    def _curvatures(self) -> dict[str, Curvature]:
        most = self.context.options.num_curvature
        if sum(group.size for group in self.groups) > MANY:
            most = min(most, FEW_SAMPLES)
        order = _shuffled(self.indices, stream(self.context, "gibbs_error", "curvature"))
        columns, by_row = stream(self.context, "gibbs_error", "columns"), self.context.options.covariance == "full"
        return measure_curvature(self.problem, self.network, self.groups, order[:most], self._full, columns, by_row)

    def _pilot(self, posterior: Posterior, num: int) -> float:
        """The error (or the loss over its range) on a few samples, one draw each: the same normals for every τ."""
        some = _shuffled(self.indices, stream(self.context, "gibbs_error", "pilot"))[:num]
        if self.head is not None:
            return float(self._probabilities(posterior, some).mean())
        parts = list(self._draw(posterior, some, ("pilot",)))
        key = "loss" if self.problem.loss.error is None else "error"
        return float(stack(parts, key).mean())

    def _promised(self, posterior: Posterior, error: float) -> float:
        nats = posterior.kl + posterior.log_union + choice_nats(self.problem)
        nats += math.log(2 * math.sqrt(self.num) / PLANNED_BOUND)
        return kl_inverse(error, nats / self.num)

    def _passes(self, posterior: Posterior, pilot: float) -> int:
        """The least number of passes whose Monte Carlo error costs little, by what the pilot says."""
        num, most = self.num, self.context.options.max_passes
        known = self._promised(posterior, pilot)
        for passes in range(1, most):
            seen = kl_inverse(pilot, -math.log(PLANNED_MONTE_CARLO) / (passes * num))
            if self._promised(posterior, seen) - known <= self.context.options.cost:
                return passes
        return most

    def _shards(self) -> list[list[int]]:
        """The samples that the prior did not see, in runs whose statistics are stored together."""
        return [[self.indices[i] for i in shard] for shard in data_shards(self.num)]

    # -- the trials: fresh draws, each sample alike -------------------------------------------------------------------

    def _trials(self, posterior: Posterior, passes: int) -> dict[str, float]:
        """Sums over all trials: ``error``, where there is one, and ``loss`` over its range, where it has one."""
        items = [(number, shard) for number in range(passes) for shard in self._shards()]

        def part(item: tuple[int, list[int]]) -> Part:
            number, shard = item
            parts = list(self._draw(posterior, shard, ("final", number)))
            return {key: stack(parts, key).sum(keepdims=True) for key in parts[0]}

        parts = self.context.map("trials", items, part)
        return {key: float(stack(parts, key).sum()) for key in parts[0]}

    def _draw(self, posterior: Posterior, indices: Sequence[int], key: tuple[str | int, ...]) -> Iterator[Part]:
        """Error and loss of every sample at its own draw, batch by batch."""
        loss, width = self.problem.loss, self._width()
        for batch in batches_of_one_size(self.problem.data, indices, width):
            moved = self.problem.to_device(batch)
            keys = [("gibbs_error", *key, index) for index in batch.indices]
            outputs = self._noisy(posterior, moved, keys)
            found = {}
            if loss.error is not None:
                found["error"] = worst_if_not_finite(loss.error(outputs, moved.targets), outputs, 1.0)
            if math.isfinite(loss.range):
                found["loss"] = (
                    worst_if_not_finite(loss.per_sample(outputs, moved.targets), outputs, loss.range) / loss.range
                )
            yield found

    def _noisy(self, posterior: Posterior, batch: Batch, keys: Sequence[tuple[str | int, ...]]) -> Tensor:
        """Scores of a batch on the device, each sample with the draw of its own key."""
        seed = self.context.seed
        noise = posterior.draw(seed, keys) | posterior.normals(seed, keys, self.network.actions(batch.inputs))
        return self.network.outputs(batch.inputs, noise, posterior.roots)

    def _width(self) -> int:
        if not self.network.vectorised:
            return 1
        return max(1, min(self.problem.batch_size, MOST_BYTES // (8 * self.network.numbers)))

    def _disagreement(self, posterior: Posterior) -> dict[str, Any]:
        """How often the noisy network disagrees with the fine-tuned one, a draw for each unlabelled input."""
        width = self.problem.batch_size if self.head is not None else self._width()

        def probability(batch: Batch) -> Tensor:
            if self.head is not None:
                return self.head.error_probability(batch, posterior)
            keys = [("gibbs_error", "unlabelled", i) for i in batch.indices]
            outputs = self._noisy(posterior, batch, keys)
            return torch.as_tensor(worst_if_not_finite((outputs.argmax(-1) != batch.targets).double(), outputs, 1.0))

        return on_unlabelled(self.problem, self.context, width, probability)

    # -- the closed form ----------------------------------------------------------------------------------------------

    def _exact(self, posterior: Posterior) -> float:
        """The Gibbs error of a linear head with two classes."""
        parts = self.context.map("exact", self._shards(), lambda s: {"error": self._probabilities(posterior, s)})
        return float(stack(parts, "error").mean())

    def _probabilities(self, posterior: Posterior, indices: Sequence[int]) -> np.ndarray:
        found = []
        assert self.head is not None
        for batch in self.problem.data.batches(sorted(indices, key=self.problem.data.size), self.problem.batch_size):
            found.append(self.head.error_probability(self.problem.to_device(batch), posterior).cpu().numpy())
        return np.concatenate(found)


def _shuffled(indices: Sequence[int], source: torch.Generator) -> list[int]:
    return [indices[i] for i in torch.randperm(len(indices), generator=source).tolist()]
