"""What is tried around the prior, and what each choice costs.

The bound holds for all posteriors at once, so a candidate may be chosen by its certificate on the training samples for
nothing, as long as the prior is the same. Radius, rank and noise are such choices. Which part of the network moves is
not: tensors that stay have no noise, which is another prior. That choice is from a list fixed here, and the certificate
pays the logarithm of its length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from genbound.finetune.settings import Settings

FORMS = ("all", "head")  # fixed before any sample is seen
# Radius of each layer's ball around the prior, as a share of how far the prior's training moved the layer.
SHARES = (1.0, 0.3, 0.1)


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
