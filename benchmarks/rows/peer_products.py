"""What a product with the whole Hessian takes by each peer: what all their estimators are made of."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import torch

from benchmarks import models, peers
from benchmarks.clock import gradient, seconds, typical
from benchmarks.rows.peer_probes import AT_ONCE
from benchmarks.rows.row import Row, row


def minilm_products(num: int = 32) -> Iterator[Row]:
    """Products of one probe by each peer; they must agree, and a difference of gradients need not."""
    problem = models.minilm(num)
    unit = typical(gradient(problem), 2)
    size = sum(layer.num_weights for layer in problem.layers)
    probes = torch.randint(0, 2, (size, AT_ONCE), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    found: dict[str, tuple[float, torch.Tensor]] = {}

    def take(name: str, product, count: int = 1) -> None:
        image: list[torch.Tensor] = []
        spent = seconds(lambda: image.append(product()))
        found[name] = spent / count / unit, image[0][:, 0] if image[0].dim() > 1 else image[0]

    with peers.plain_attention():
        together = peers.curvlinops_hessian(problem)
        take(f"curvlinops {version('curvlinops-for-pytorch')}, {AT_ONCE} at once", lambda: together @ probes, AT_ONCE)
        take("curvlinops alone", lambda: together @ probes[:, 0])
        for method in ("autograd", "finite_difference"):
            operator = peers.eigenthings_hessian(problem, method)
            name = (
                f"hessian-eigenthings {version('hessian-eigenthings')}" if method == "autograd" else "its differences"
            )
            take(name, lambda operator=operator: operator.matvec(probes[:, 0]))
    alone = seconds(lambda: peers.pyhessian_trace(problem, 1)) / unit
    first = next(iter(found.values()))[1]
    forms = {name: float(probes[:, 0] @ image) for name, (_, image) in found.items()}
    away = {name: float((image - first).norm() / first.norm()) for name, (_, image) in found.items()}
    least = min([alone] + [each for name, (each, _) in found.items() if name != "its differences"])
    told = ", ".join(f"{name} {each:.1f}" for name, (each, _) in found.items())
    yield row(
        f"a product with the Hessian by the peers: MiniLM/SST-2, {num} samples", f"{least:.1f} gradients",
        "agree to 1e-5", max(value for name, value in away.items() if name != "its differences") < 1e-5,
        f"{told}, PyHessian {version('pyhessian')} {alone:.1f}; relative distance from the first: "
        + ", ".join(f"{name} {value:.1g}" for name, value in list(away.items())[1:])
        + f". A probe's form is {list(forms.values())[0]:.4g}, by differences {forms['its differences']:.4g}",
        gradients={name: each for name, (each, _) in found.items()} | {"pyhessian": alone}, away=away, forms=forms,
    )  # fmt: skip
