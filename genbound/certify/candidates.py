"""What is tried around the prior, and what each choice costs.

The bound holds for all posteriors at once, so a candidate may be chosen by its certificate on the training samples for
nothing, as long as the prior is the same. Radius, rank and noise are such choices. Which part of the network moves is
not: tensors that stay have no noise, which is another prior. That choice is from a list fixed here, and the certificate
pays the logarithm of its length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from genbound.finetune.settings import Settings

FORMS = ("all", "head")  # fixed before any sample is seen
# Radius of each layer's ball around the prior, as a share of how far the prior's training moved the layer.
SHARES = (1.0, 0.3, 0.1)
# Certificates, and errors, that are alike: of such candidates the better network is taken, then the better noisy one.
ALIKE = 0.01


@dataclass(frozen=True)
class Candidate:
    """One way to go on from the prior.

    Attributes:
        form: which part of the network moves.
        share: the radius of every layer's ball, as a share of how far it moved before.
        noise: standard deviation of the noise on the weights in training.
    """

    form: str
    share: float
    noise: float = 0.0

    @property
    def name(self) -> str:
        """For its folder and the record."""
        return f"{self.form}-{self.share:g}" + (f"-noise{self.noise:.3g}" if self.noise else "")

    def settings(self, recipe: Settings, distances: dict[str, float]) -> Settings:
        """The recipe with this candidate's choices.

        Args:
            recipe: of the user.
            distances: how far each layer moved before the prior, in the recipe's norm.
        """
        radius = ",".join(f"{name}={self.share * moved:.9g}" for name, moved in distances.items())
        return replace(
            recipe, radius=radius, radius_scale=1.0, head_radius=None, norm_layers=None, trained=self.form, lora=0,
            sam=0.0, noise_stability=self.noise or recipe.noise_stability, distance_penalty=0.0,
        )  # fmt: skip


def first_candidates(recipe: Settings) -> list[Candidate]:
    """Every form with every radius, without noise. Where the recipe trains the head alone, nothing else is tried."""
    forms = FORMS if recipe.trained == "all" else ("head",)
    return [Candidate(form, share) for form in forms for share in SHARES]


@dataclass(frozen=True)
class Tried:
    """A candidate that was trained, and what its certificates are.

    Attributes:
        candidate: it.
        value: the lesser of its certificates, ``None`` where it has none.
        noisy: that of the noisy network; infinite where there is none.
        error: training error of the network itself.
        deviation: root mean square of its posterior's noise on a coordinate; 0 where there is none.
        note: of its first certificate.
    """

    candidate: Candidate
    value: float | None
    noisy: float
    error: float
    deviation: float
    note: str

    @classmethod
    def of(
        cls, candidate: Candidate, rows: Sequence[Mapping[str, Any]], quantities: Mapping[str, Mapping[str, Any]]
    ) -> Tried:
        """From the results of a measurement; the first row is that of the noisy network."""
        values = [row["value"] for row in rows if row["value"] is not None]
        groups = quantities.get("gibbs_error", {}).get("groups", {}).values()
        total = sum(group["size"] for group in groups)
        square = sum(group["size"] * group["deviation"] ** 2 for group in groups) / max(1, total)
        error = quantities["losses"]["train_error"]
        noisy = math.inf if rows[0]["value"] is None else rows[0]["value"]
        return cls(candidate, min(values, default=None), noisy, error, math.sqrt(square), rows[0]["note"])


def least(tried: Sequence[Tried]) -> Tried | None:
    """The best candidate.

    Of those whose certificate is the least or alike, and then of those whose training error is the least or alike, the
    one whose noisy network has the least certificate.
    """
    certified = [(one.value, one) for one in tried if one.value is not None]
    if not certified:
        return None
    limit = min(value for value, _ in certified) + ALIKE
    close = [one for value, one in certified if value <= limit]
    error = min(one.error for one in close) + ALIKE
    return min((one for one in close if one.error <= error), key=lambda one: one.noisy)
