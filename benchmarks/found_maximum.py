r"""How often and by how much the largest found falls short of the certified maximum over the same samples.

Both runs are of one checkpoint, on all of the same samples::

    genbound evaluate … --measures max_quadratic_form --maximum certified \
        --set max_quadratic_form.tolerance_of=layer --out runs/certified
    genbound evaluate … --measures max_quadratic_form --maximum found --out runs/found
    python -m benchmarks.found_maximum runs/certified runs/found

A layer is *short* by what the lower side that was found lacks of the certified maximum's: one sample has at least that
much. It is *open* where the samples looked at are not refined to the tolerance, so that its upper side is too large.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from genbound.results.results import load_results

NEAR = 0.02  # by which a layer may be short


@dataclass(frozen=True)
class Shortfall:
    """The found maxima of L layers against the certified ones.

    Attributes:
        names: of the layers.
        short: what each lacks, relative to the certified one ``[L]``.
        open: whether the samples looked at are not refined to the tolerance ``[L]``.
        same: whether it is the same sample's ``[L]``.
        products: Hessian products on single samples that each took, found and certified ``[L, 2]``.
    """

    names: list[str]
    short: np.ndarray
    open: np.ndarray
    same: np.ndarray
    products: np.ndarray

    @property
    def cost(self) -> float:
        """Products that all layers took, over those of the certified maximum; 0 where none were taken."""
        found, certified = self.products.sum(0)
        return float(found / certified) if certified else 0.0


def shortfall(certified: Mapping[str, Any], found: Mapping[str, Any]) -> Shortfall:
    """Compare the rows of two runs' ``max_quadratic_form``; layers that did not move are left out."""
    pairs = {name: (row, found[name]) for name, row in certified.items() if row["value"]}
    return Shortfall(
        list(pairs),
        np.array([1 - two["lower"] / one["lower"] for one, two in pairs.values()]),
        np.array(["note" in two for _, two in pairs.values()]),
        np.array([one["sample"] == two["sample"] for one, two in pairs.values()]),
        np.array([[two["num_products"], one["num_products"]] for one, two in pairs.values()]),
    )


def main() -> None:
    """Print the layers and what they say together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("certified", help="directory of the run with --maximum certified")
    parser.add_argument("found", help="directory of the run with --maximum found")
    given = parser.parse_args()
    results = [load_results(path, with_samples=False) for path in (given.certified, given.found)]
    runs = [run.quantities["max_quadratic_form"] for run in results]
    one = shortfall(*(run["layers"] for run in runs))
    rows = zip(one.names, one.short, one.open, one.same, one.products[:, 0], one.products[:, 1], strict=True)
    print(tabulate(rows, ["layer", "short by", "open", "same sample", "products", "certified"], tablefmt="github"))
    said = [
        f"{int(np.sum(one.short <= NEAR))} of {len(one.names)} layers within {NEAR:.0%}, the worst short by "
        f"{one.short.max():.2%}",
        f"the same sample in {int(one.same.sum())}", f"{int(one.open.sum())} open",
        f"{one.cost:.1%} of the products", runs[1]["note"],
    ]  # fmt: skip
    print("; ".join(said))


if __name__ == "__main__":
    main()
