r"""The largest :math:`v_i^\top H_i^+ v_i` found among all training samples, for ``maximum="found"``.

1. One pass over all n samples has, for every layer, the exact Gauss-Newton part :math:`v_i^\top G_i v_i`, and the norm
   of the loss's gradient in the output, which the size of the remainder :math:`v_i^\top R_i v_i` grows with. Where
   there are many outputs that part is estimated, or left out and the norm alone decides who gets the next look.
2. The samples with the larger gradients, and those with the largest Gauss-Newton parts, have products for all layers at
   once, which tell something of each layer's remainder (:mod:`genbound.quantities.promising_samples`). Of each curved
   layer the most promising ones get a product of their own: first those that are the largest in some respect, then, by
   what these turn out to have, the most promising of the others, in two rounds.
3. So do a few random ones of the others. How many of those exceed the largest of the promising ones says how many of
   all others may: an exact binomial limit.
4. The largest are refined as in the certified maximum, until no sample *that was looked at* can be larger by more than
   the tolerance, or the layer's products are spent.

``lower`` is certain: a sample has that much, and so the maximum over all n is at least that. ``upper`` holds for the
samples that had products. Where a block is positive semidefinite by structure and the Gauss-Newton part exact, nothing
was passed over: the maximum over all n is exact.

Cost:
    A pass over all n samples with a backward pass to the activations for each output coordinate (one fewer for
    cross-entropy; ``num_draws`` where there are more than ``exact_outputs``, and a forward pass alone where that is 0).
    ``num_joint`` double backward passes over a quarter of them. Then for each curved layer ``num_promising +
    num_checked + layer_products`` products on single samples at most, whatever n.

References:
    Clopper & Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial, Biometrika,
    1934.
"""

from __future__ import annotations

import math
from itertools import zip_longest

import numpy as np
import torch

from genbound.curvature.traces import gauss_newton_forms
from genbound.estimators.binomial_tail import binomial_upper
from genbound.estimators.disk_table import Table
from genbound.estimators.random import row_of, row_signs
from genbound.network.problem import Problem
from genbound.network.tape import Tape
from genbound.quantities.base import Context, Measured, Part, plain, stacked, stream
from genbound.quantities.catalogue.max_quadratic_form import MaxQuadraticFormOptions
from genbound.quantities.promising_samples import SHARE, closer, look_closer, scores
from genbound.quantities.quadratic_brackets import Refinement, is_closed, screen
from genbound.quantities.remainder_probes import tapes_by_column

NAME = "max_quadratic_form"
ALONE = 0.75  # of a gradient: what a product takes longer whose sample is alone in its pass
CONFIDENCE = 0.95
SHARD = 64  # samples of a closer look that are stored together
SURE = 2  # samples of an exact maximum that are bracketed: the largest, and one that rounding may have swapped it for


def measure_found(problem: Problem, context: Context) -> Measured:
    """The largest of every layer among all samples of the data."""
    whole = problem.over_all()
    look = _look if _is_exact(whole, context.options) or context.options.num_draws else _look_at_sizes
    looked = stacked(context, "look", whole.shards(), lambda shard: look(whole, context, shard))
    forms, sizes = looked["forms"], looked["sizes"]
    search = _Search(whole, context, forms, sizes, _closer(whole, context, forms, sizes))
    found = context.map("search", list(range(len(whole.layers))), search.layer)
    rows = {layer.name: _row(part, context.options) for layer, part in zip(whole.layers, found, strict=True)}
    return Measured(
        {
            "layers": rows, "convention": "theorem", "maximum": "found", "num_samples": whole.num_samples,
            "note": _note(whole.num_samples, rows),
        }
    )  # fmt: skip


def _row(part: Part, options: MaxQuadraticFormOptions) -> dict:
    """What is reported of one layer."""
    row = {
        "value": plain(part["upper"][()]), "lower": plain(part["lower"][()]), "upper": plain(part["upper"][()]),
        "sample": int(part["sample"]), "exact": bool(part["exact"]), "num_products": int(part["products"]),
        "num_measured": int(part["measured"]), "exceed_at_most": plain(part["exceed"][()]),
    }  # fmt: skip
    if not is_closed(part["lower"], part["upper"], options.tolerance):
        row["note"] = f"not closed to {options.tolerance:g} within {options.layer_products} products"
    return row


def _note(num: int, rows: dict[str, dict]) -> str:
    """Over which samples the maximum is, and how safe it was to pass over the others."""
    searched = [row for row in rows.values() if not row["exact"]]
    if not searched:
        return f"max over all {num:,}"
    said = f"max over all {num:,} (largest found)"
    known = [row["exceed_at_most"] for row in searched if row["exceed_at_most"] < 1]
    if not known:
        return f"{said}; how many of the others exceed it is not known from the samples and products spent"
    others, unknown = num - max(row["num_measured"] for row in searched), len(searched) - len(known)
    if others == 0 or (max(known) == 0 and not unknown):
        return f"{said}; all of them were looked at"
    said += (
        f"; of the {others:,} others at most {100 * max(known):.2g} % exceed a layer's, at {CONFIDENCE:.0%} confidence"
    )
    return said if not unknown else f"{said} ({unknown} of {len(searched)} layers left out, of which it is not known)"


# -- the pass over all samples ----------------------------------------------------------------------------------------


def _look(whole: Problem, context: Context, shard: range) -> Part:
    """``forms [n, L]`` and ``sizes [n]``: Gauss-Newton parts, and norms of the loss's gradient in the output."""
    forms, sizes = np.zeros((len(shard), len(whole.layers))), np.zeros(len(shard))
    moved = whole.displacement.moved
    for tape, columns in tapes_by_column(whole)(shard):
        rows = np.array([p - shard[0] for p in tape.positions])
        sizes[rows] = tape.output_gradient().flatten(1).norm(dim=1).double().cpu().numpy()
        kept = [(name, i) for name, i in zip(tape.layers, columns, strict=True) if name in moved and tape.uses[name]]
        if kept:
            found = gauss_newton_forms(
                tape, whole.displacement.of([name for name, _ in kept]), _cotangents(tape, context)
            )
            forms[np.ix_(rows, [i for _, i in kept])] = found.cpu().numpy()
    return {"forms": forms, "sizes": sizes}


def _look_at_sizes(whole: Problem, context: Context, shard: range) -> Part:
    """As :func:`_look`, from a forward pass: the Gauss-Newton parts are not known and zero."""
    sizes = np.zeros(len(shard))
    for run in whole.batches(shard):
        batch = whole.batch(run)
        with torch.no_grad():
            outputs = whole.forward(whole.params, batch.inputs)
        size = whole.loss.output_gradient(outputs, batch.targets).flatten(1).norm(dim=1)
        sizes[[p - shard[0] for p in run]] = size.double().cpu().numpy()
    return {"forms": np.zeros((len(shard), len(whole.layers))), "sizes": sizes}


def _is_exact(problem: Problem, options: MaxQuadraticFormOptions) -> bool:
    """Whether the Gauss-Newton parts of all samples are exact."""
    return problem.num_outputs <= options.exact_outputs


def _cotangents(tape: Tape, context: Context) -> list[torch.Tensor] | None:
    """Random combinations of the outputs, ``[N, *output]`` each; ``None`` where there are few of them."""
    like = tape.outputs.detach()
    if like[0].numel() <= context.options.exact_outputs:
        return None
    *places, width = like.shape[1:]
    num = context.options.num_draws
    return [
        row_signs(
            [row_of(f"{NAME} look", p, draw, num) for p in tape.positions],
            context.seed, "output", math.prod(places), width, like,
        ).view(like.shape)
        for draw in range(num)
    ]  # fmt: skip


def _closer(whole: Problem, context: Context, forms: Table, sizes: np.ndarray) -> dict[str, Table]:
    """``positions [n]`` of the samples that have a closer look, and what it tells, ``[n, L]`` each; empty without.

    Their Gauss-Newton parts are among it where they are not known yet.
    """
    draws, layers = context.options.num_joint, len(whole.layers)
    if not draws or all(layer.positive_semidefinite for layer in whole.layers):
        return {}
    positions = closer(forms, sizes)
    signs = torch.randint(0, 2, (draws, layers), generator=stream(context, NAME, "signs")) * 2.0 - 1
    runs = [positions[i : i + SHARD] for i in range(0, len(positions), SHARD)]
    known = _is_exact(whole, context.options) or context.options.num_draws
    found = stacked(context, "closer", runs, lambda run: look_closer(whole, run, signs, not known))
    for i in range(layers if known else 0):
        found["form"][:, i] = forms[:, i][positions]
    return {"positions": np.array(positions), **found}


# -- one layer after the other ----------------------------------------------------------------------------------------


class _Search:
    """The search for every layer's largest sample.

    Args:
        whole: the problem with all N samples measured.
        context: of the measurement.
        forms: Gauss-Newton parts ``[N, L]``.
        sizes: norms of the loss's gradient in the output ``[N]``.
        near: what a closer look tells of some samples (:func:`_closer`).
    """

    def __init__(self, whole: Problem, context: Context, forms: Table, sizes: np.ndarray, near: dict[str, Table]):
        self._whole, self._options, self._forms, self._sizes = whole, context.options, forms, sizes
        self._near, self._exact = near, _is_exact(whole, context.options)
        order = torch.randperm(whole.num_samples, generator=stream(context, NAME, "checked")).tolist()
        self._random = order[: self._options.num_checked]

    def layer(self, number: int) -> Part:
        """The largest sample of one layer."""
        layer = self._whole.layers[number]
        if layer.positive_semidefinite and self._exact:
            brackets = _Brackets(self._whole, number)
            brackets.add(_largest(self._forms[:, number], SURE))
            return self._part(brackets, 0, 0.0, True)
        return self._search(number)

    def _search(self, number: int) -> Part:
        brackets = _Brackets(self._whole, number)
        self._add_promising(brackets, number)
        promising = sorted(brackets.measured)
        checked = [p for p in self._random if p not in brackets.measured]
        brackets.add(checked)
        products = len(brackets.measured) + brackets.refine(self._options)
        best = brackets.lower[promising].max()
        exceeding = int((brackets.upper[checked] > best / (1 - self._options.tolerance)).sum())
        others = self._whole.num_samples - len(promising)
        return self._part(brackets, products, _limit(exceeding, len(checked), others), False)

    def _add_promising(self, brackets: _Brackets, number: int) -> None:
        """Bracket the most promising samples, in rounds: what was measured says what makes the others promising."""
        num = min(self._options.num_promising, len(self._sizes))
        known_of = self._features(number)
        leading = [positions[_largest(each, num)] for positions, known in known_of[::-1] for each in known.values()]
        first = list(dict.fromkeys(int(p) for ranks in zip_longest(*leading) for p in ranks if p is not None))
        brackets.add(first[: -(-2 * num // 5)])
        for until in (-(-7 * num // 10), num):
            promise = np.full(len(self._sizes), -np.inf)
            for positions, known in known_of:
                rows = np.flatnonzero(np.isin(positions, list(brackets.measured)))
                promise[positions] = scores(known, rows, brackets.upper[positions[rows]])
            measured = sorted(brackets.measured)
            promise[measured] = -np.inf
            brackets.add(_largest(promise, until - len(measured)))

    def _features(self, number: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """What is known in a layer of all samples, and of those with a closer look: positions ``[n]``, features."""
        forms = self._forms[:, number]
        every = np.arange(len(forms)), {"form": forms, "size": self._sizes}
        near = self._near.get("positions", np.zeros(0, int))
        known = {key: self._near[key][:, number] for key in ("form", "remainder", "norm") if len(near)}
        return [every, (near, known)] if len(near) else [every]

    def _part(self, brackets: _Brackets, products: int, exceed: float, exact: bool) -> Part:
        best = max(brackets.measured, key=lambda p: (brackets.lower[p], brackets.upper[p], -p))
        return {
            "lower": np.array(brackets.lower.max()), "upper": np.array(brackets.upper.max()),
            "sample": np.array(self._whole.indices[best]), "exact": np.array(exact),
            "products": np.array(products), "measured": np.array(len(brackets.measured)), "exceed": np.array(exceed),
        }  # fmt: skip


class _Brackets:
    """Brackets of one layer's samples; those of samples that had no product yet are zero.

    Attributes:
        lower, upper: of every sample ``[N]``.
        measured: positions of those that had one.
    """

    def __init__(self, whole: Problem, number: int):
        self._whole, self._layer = whole, whole.layers[number]
        self.lower, self.upper = np.zeros(whole.num_samples), np.zeros(whole.num_samples)
        self.measured: set[int] = set()

    def add(self, positions: list[int]) -> None:
        """A product of each of these samples."""
        new = sorted(p for p in positions if p not in self.measured)
        if new:
            part = screen(self._whole, new, [self._layer])
            self.lower[new], self.upper[new] = part["lower"][:, 0], part["upper"][:, 0]
            self.measured |= set(new)

    def refine(self, options: MaxQuadraticFormOptions) -> int:
        """Narrow the largest ones; the products that took."""
        if self._layer.positive_semidefinite or is_closed(self.lower, self.upper, options.tolerance):
            return 0
        refinement = Refinement(self._whole, options, self._layer, self.lower, self.upper, most=options.layer_products)
        part = refinement.run()
        self.lower, self.upper = part["lower"], part["upper"]
        return int(part["products"])


def _largest(values: np.ndarray, num: int) -> list[int]:
    """Positions of the largest values, the largest first; of equal ones the first."""
    return [int(p) for p in np.argsort(-values, kind="stable")[: max(num, 0)]]


def _limit(exceeding: int, checked: int, others: int) -> float:
    """The share of the others that may exceed the promising ones, when so many of those checked do.

    The random ones are drawn without replacement, for which the binomial limit is a safe one.
    """
    if checked >= others:
        return exceeding / others if others else 0.0
    return 1.0 if checked == 0 else binomial_upper(exceeding, checked, math.log(1 - CONFIDENCE))


def forecast_found(problem: Problem, options: MaxQuadraticFormOptions, look: float = 1.0) -> float:
    """Gradients over the measured samples.

    Counted are the passes over all and over those that are looked at closer, ``look`` of a sample for a first look at
    it and a layer, and 0.7 for each further product.
    """
    every, exact = len(problem.data), _is_exact(problem, options)
    passes = max(1, problem.num_outputs - 1) if exact else options.num_draws
    pass_over_all = 0.5 + 0.4 * passes if passes else 1 / 3
    curved = sum(not layer.positive_semidefinite for layer in problem.layers)
    closer = 0.0
    if curved and options.num_joint:
        closer = every / SHARE * (0.5 + 1.2 * options.num_joint + (0.4 if passes == 0 else 0.0))
    looked = min(every, options.num_promising + options.num_checked)
    refined = min(options.layer_products, looked * options.max_products)
    searched = look * looked * (curved if exact else len(problem.layers)) + 0.7 * refined * curved
    return (every * pass_over_all + closer + searched) / problem.num_samples


def usual_found(problem: Problem, options: MaxQuadraticFormOptions) -> float:
    """Likewise by time: a sample that shares its pass with no other takes 1.75 for a first look, before more products.

    Measured on two transformers. The promising samples are looked at in three rounds; those of one shape share passes.
    """
    some = range(0, problem.num_samples, max(1, problem.num_samples // 8))
    together = len(some) / sum(1 for _ in problem.batches(some))
    return forecast_found(problem, options, 1 + ALONE / max(1.0, min(together, options.num_promising / 3)))
