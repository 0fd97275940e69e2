r"""The largest :math:`v_i^\top H_i^+ v_i` found among all training samples, for ``maximum="found"``.

1. One pass over all n samples has, for every layer, the exact Gauss-Newton part :math:`v_i^\top G_i v_i`, and the norm
   of the loss's gradient in the output, which the size of the remainder :math:`v_i^\top R_i v_i` grows with. Where
   there are many outputs that part is estimated, or left out and the norm alone decides who gets the next look. A
   trained classifier has large parts where that gradient is large: :math:`\mathrm{Var}_p(u) \le (1 - p_y) \max_k (u_k -
   u_y)^2`. Of many samples, some random ones are *scouts*: if the fifth of them with the larger gradients has the
   largest parts of the layers, the pass has the norm alone, and of the layers whose block is positive semidefinite by
   structure the parts.
2. The samples with the larger gradients (and those with the largest Gauss-Newton parts, where these are known) have a
   closer look: their Gauss-Newton parts, and products for all layers at once, which tell something of each layer's
   remainder (:mod:`genbound.quantities.promising_samples`). Of each curved layer the most promising ones get a product
   of their own: first those that are the largest in some respect, then, by what these turn out to have, the most
   promising of the others, in two rounds.
3. A few random samples have products with all layers. How many of those that were not promising exceed the largest of
   the promising ones says how many of all others may: an exact binomial limit.
4. The largest are refined as in the certified maximum, until no sample *that was looked at* can be larger by more than
   the tolerance, or the layer's products are spent.

``lower`` is certain: a sample has that much, and so the maximum over all n is at least that. ``upper`` holds for the
samples that had products. Where a block is positive semidefinite by structure and the Gauss-Newton part exact, nothing
was passed over: the maximum over all n is exact.

Cost:
    A pass over all n samples with a backward pass to the activations for each output coordinate (one fewer for
    cross-entropy; ``num_draws`` where there are more than ``exact_outputs``), or a forward pass alone where that is 0
    or the scouts say so. ``num_joint`` double backward passes over a fifth of them. Then for each curved layer
    ``num_promising + num_checked + layer_products`` products on single samples at most, whatever n.

References:
    Clopper & Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial, Biometrika,
    1934.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import zip_longest

import numpy as np
import torch

from genbound.estimators.binomial_tail import binomial_upper
from genbound.estimators.disk_table import Table
from genbound.network.problem import Problem
from genbound.quantities.base import Context, Measured, Part, plain, stack, stacked, stream
from genbound.quantities.catalogue.max_quadratic_form import MaxQuadraticFormOptions
from genbound.quantities.look_at_all import (
    NAME,
    SHARD,
    Look,
    columns_looked_at,
    combinations,
    has_scouts,
    is_exact,
    look_at,
)
from genbound.quantities.promising_samples import SHARE, closer, look_closer, scores
from genbound.quantities.quadratic_brackets import Refinement, is_closed, screen

ALONE = 0.75  # of a gradient: what a product takes longer whose sample is alone in its pass
CONFIDENCE = 0.95
SURE = 2  # samples of an exact maximum that are bracketed: the largest, and one that rounding may have swapped it for


def measure_found(problem: Problem, context: Context) -> Measured:
    """The largest of every layer among all samples of the data."""
    whole = problem.over_all()
    columns = columns_looked_at(whole, context)
    look = Look(
        columns, stacked(context, "look", whole.shards(), lambda shard: look_at(whole, context, columns, shard))
    )
    search = _Search(whole, context, look, _closer(whole, context, look))
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


def _closer(whole: Problem, context: Context, look: Look) -> dict[str, Table]:
    """``positions [n]`` of the samples that have a closer look, and what it tells, ``[n, L]`` each; empty without."""
    draws, layers = context.options.num_joint, len(whole.layers)
    curved = [i for i, layer in enumerate(whole.layers) if not layer.positive_semidefinite]
    if not draws or not curved:
        return {}
    known = [form for i in curved if (form := look.form(i)) is not None]
    positions = closer(look.sizes, known)
    signs = torch.randint(0, 2, (draws, layers), generator=stream(context, NAME, "signs")) * 2.0 - 1
    runs = [positions[i : i + SHARD] for i in range(0, len(positions), SHARD)]
    cotangents = None if known else lambda tape: combinations(tape, context)
    found = stacked(context, "closer", runs, lambda run: look_closer(whole, run, signs, cotangents))
    for i in range(layers):
        if (form := look.form(i)) is not None:
            found["form"][:, i] = form[positions]
    return {"positions": np.array(positions), **found}


class _Search:
    """The search for every layer's largest sample.

    Args:
        whole: the problem with all N samples measured.
        context: of the measurement.
        look: what is known of all samples.
        near: what a closer look tells of some samples (:func:`_closer`).
    """

    def __init__(self, whole: Problem, context: Context, look: Look, near: dict[str, Table]):
        self._whole, self._options, self._look, self._near = whole, context.options, look, near
        exact = is_exact(whole, context.options)
        self._searched = [i for i, layer in enumerate(whole.layers) if not (layer.positive_semidefinite and exact)]
        order = torch.randperm(whole.num_samples, generator=stream(context, NAME, "checked")).tolist()
        self._random = sorted(order[: self._options.num_checked] if self._searched else [])
        self._checked = self._check(context)

    def _check(self, context: Context) -> dict[str, np.ndarray]:
        """Brackets of the random samples, of all layers that are searched: they share a pass; ``[n, layers]`` each."""
        layers = [self._whole.layers[i] for i in self._searched]
        runs = list(self._whole.batches(self._random))
        parts = context.map("checked", runs, lambda run: screen(self._whole, run, layers))
        return {key: stack(parts, key) for key in ("lower", "upper") if parts}

    def layer(self, number: int) -> Part:
        """The largest sample of one layer."""
        if number not in self._searched:
            brackets = _Brackets(self._whole, number)
            form = self._look.form(number)
            assert form is not None  # that is how its maximum is exact
            brackets.add(_largest(form, SURE))
            return self._part(brackets, 0, 0.0, True)
        return self._search(number)

    def _search(self, number: int) -> Part:
        place = self._searched.index(number)
        known = {
            p: (float(self._checked["lower"][row, place]), float(self._checked["upper"][row, place]))
            for row, p in enumerate(self._random)
        }
        brackets = _Brackets(self._whole, number, known)
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
        """Bracket the most promising samples, in rounds: what was measured says what makes the others promising.

        What the random samples have tells nothing before they are promising themselves: they stand for the others.
        """
        every = self._whole.num_samples
        num = min(self._options.num_promising, every)
        known_of = self._features(number)
        leading = [positions[_largest(each, num)] for positions, known in known_of[::-1] for each in known.values()]
        first = list(dict.fromkeys(int(p) for ranks in zip_longest(*leading) for p in ranks if p is not None))
        brackets.add(first[: -(-2 * num // 5)])
        for until in (-(-7 * num // 10), num):
            promise = np.full(every, -np.inf)
            for positions, known in known_of:
                rows = np.flatnonzero(np.isin(positions, list(brackets.measured)))
                promise[positions] = scores(known, rows, brackets.upper[positions[rows]])
            measured = sorted(brackets.measured)
            promise[measured] = -np.inf
            brackets.add(_largest(promise, until - len(measured)))

    def _features(self, number: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """What is known in a layer of all samples, and of those with a closer look: positions ``[n]``, features."""
        form, sizes = self._look.form(number), self._look.sizes
        told = {"size": sizes} if form is None else {"form": form, "size": sizes}
        every = np.arange(len(sizes)), told
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

    Args:
        whole: the problem with all N samples measured.
        number: of the layer.
        known: position -> lower and upper side, of samples that need no product when they are added.

    Attributes:
        lower, upper: of every sample ``[N]``.
        measured: positions of those that had one.
    """

    def __init__(self, whole: Problem, number: int, known: Mapping[int, tuple[float, float]] | None = None):
        self._whole, self._layer, self._known = whole, whole.layers[number], known or {}
        self.lower, self.upper = np.zeros(whole.num_samples), np.zeros(whole.num_samples)
        self.measured: set[int] = set()

    def add(self, positions: list[int]) -> None:
        """A product of each of these samples."""
        added = sorted(p for p in positions if p not in self.measured)
        new = [p for p in added if p not in self._known]
        for run in self._whole.even_batches(new):
            part = screen(self._whole, run, [self._layer])
            self.lower[run], self.upper[run] = part["lower"][:, 0], part["upper"][:, 0]
        for p in added:
            if p in self._known:
                self.lower[p], self.upper[p] = self._known[p]
        self.measured |= set(added)

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


def forecast_found(problem: Problem, options: MaxQuadraticFormOptions, look: float = 1.0, told: float = 0.0) -> float:
    """Gradients over the measured samples.

    Counted are the passes over all and over those that are looked at closer, ``look`` of a sample for a first look at
    it and a layer, and 0.7 for each further product, and for each of the random samples, which share their passes.
    ``told`` is how likely scouts say that a forward pass over all will do.
    """
    every, exact = len(problem.data), is_exact(problem, options)
    passes = max(1, problem.num_outputs - 1) if exact else options.num_draws
    curved = sum(not layer.positive_semidefinite for layer in problem.layers)
    told = (told if has_scouts(problem, options) else 0.0) if passes else 1.0
    pass_over_all = (1 - told) * (0.5 + 0.4 * passes) + told / 3
    closer = 0.0
    if curved and options.num_joint:
        closer = every / SHARE * (0.5 + 1.2 * options.num_joint + told * 0.4 * max(1, passes))
    promising = min(every, options.num_promising)
    checked = min(every - promising, options.num_checked)
    refined = min(options.layer_products, (promising + checked) * options.max_products)
    searched = curved if exact else len(problem.layers)
    products = (look * promising + 0.7 * checked) * searched + 0.7 * refined * curved
    return (every * pass_over_all + closer + products) / problem.num_samples


def usual_found(problem: Problem, options: MaxQuadraticFormOptions) -> float:
    """Likewise by time: a sample that shares its pass with no other takes 1.75 for a first look, before more products.

    Measured on two transformers. The promising samples are looked at in three rounds; those of one shape share passes.
    What scouts will say is not known: one as likely as the other.
    """
    some = range(0, problem.num_samples, max(1, problem.num_samples // 8))
    together = len(some) / sum(1 for _ in problem.batches(some))
    look = 1 + ALONE / max(1.0, min(together, options.num_promising / 3))
    return forecast_found(problem, options, look, 0.5)
