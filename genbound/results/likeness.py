"""Whether runs were measured alike, so that their numbers can be set side by side; if not, which differ in what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from genbound.errors import GenboundError
from genbound.formatting import digits, few
from genbound.results.results import Results


def conditions(results: Results) -> dict[str, Any]:
    """What two runs must have in common for their numbers to be comparable, each in a word or two."""
    config = results.config
    loss_range = config.get("loss_range") or {}
    kind = loss_range.get("kind")
    return {
        "loss": config.get("loss"),
        "n": config.get("num_data"),
        # An observed C belongs to the checkpoint, not to how it was measured: that it differs is a doubt, no refusal.
        "C": kind if kind in ("observed", None) else f"{kind} = {digits(loss_range['value'])}",
        "convention": config.get("convention"),
        "data": results.data.get("sha256") or results.data.get("spec"),
        "test data": results.data.get("test_sha256"),
        "number of samples": config.get("num_samples"),
        "head policy": config.get("head"),
        "layer partition": tuple((row["name"], tuple(row["shape"])) for row in results.layer_rows),
        "delta": config.get("delta"),
    }


def unlike(runs: Mapping[str, Results]) -> dict[str, dict[str, Any]]:
    """The conditions that differ: condition -> run -> value."""
    found = {name: conditions(results) for name, results in runs.items()}
    differing = {}
    for key in next(iter(found.values())):
        # Runs without test data, and those of before the digest was stored, are like any other.
        known = {n: values[key] for n, values in found.items() if key != "test data" or values[key] is not None}
        if any(value != next(iter(known.values())) for value in known.values()):
            differing[key] = known
    return differing


def of_one_network(one: Results, other: Results) -> bool:
    """Whether two runs measured the same weights, as far as is known.

    By their digests; of networks in memory, which have none, by how far their layers lie from where they started.
    """
    digests = [run.checkpoint.get("sha256") for run in (one, other)]
    if any(digests):
        return digests[0] == digests[1]
    moved, moved_other = (run.quantities.get("displacement_norm", {}).get("layers", {}) for run in (one, other))
    shared = moved.keys() & moved_other.keys()
    return all(math.isclose(moved[name]["value"], moved_other[name]["value"], rel_tol=1e-5) for name in shared)


def refuse_unlike(runs: Mapping[str, Results], differing: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise with every condition that differs and the runs that have which value."""
    if differing:
        found = "; ".join(culprits(key, values, runs) for key, values in differing.items())
        raise GenboundError(f"these runs are not alike: {found}. Measure them alike, or give --allow-mixed")


def culprits(key: str, values: Mapping[str, Any], runs: Mapping[str, Results]) -> str:
    """A condition that differs, with its values and the runs that have which."""
    if key == "layer partition":
        return f"layer partition ({_first_difference(values)})"
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        text = str(value)[:8] if key in ("data", "test data") else str(value)
        text = f"{runs[name].data.get('spec') or '?'} ({text})" if key == "data" else text
        groups.setdefault(text, []).append(name)
    return f"{key} ({', '.join(f'{value} in {few(names)}' for value, names in groups.items())})"


def _first_difference(partitions: Mapping[str, tuple[tuple[str, tuple[int, ...]], ...]]) -> str:
    """What tells the first run's layers from those of the first run that has others."""
    (reference, layers), *others = partitions.items()
    name, other = next((name, other) for name, other in others if other != layers)
    lost = [n for n, _ in layers if n not in dict(other)]
    more = [n for n, _ in other if n not in dict(layers)]
    what = [f"{name} lacks {n}" for n in lost[:1]] + [f"{reference} lacks {n}" for n in more[:1]]
    return f"{', '.join(what) or 'their shapes or order differ'}; {len(layers)} and {len(other)} layers"
