"""Whether stored parts belong to the network at hand: the digest of what it is made of, and what it answers.

The digest sees the code that is the user's, the versions of libraries, and values. What it cannot see (a library's
function that was replaced deep inside, a kernel that computes otherwise) shows in the answers to a few samples. They
are compared up to rounding, so that a machine that adds up in another order does not lose a run.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

from genbound.errors import tell
from genbound.estimators.measured import Part
from genbound.evaluation.sealed import Damaged, digest_of, read_part, write_part
from genbound.files import write_atomically
from genbound.network.identity import agree
from genbound.network.weights import BaseProblem


def identities(problem: BaseProblem, out: Path) -> dict[bool, str]:
    """Digests under which the parts of this problem are found again: without and with the held-out samples.

    Args:
        problem: what is measured.
        out: directory of the results, where earlier answers lie.
    """
    digests = problem.digests()
    number = _number(problem, digests[False], out)
    return {test_data: digest_of(digest, number) for test_data, digest in digests.items()}


def _number(problem: BaseProblem, digest: str, out: Path) -> int:
    """Which of the networks with this digest it is, those that answered differently counted from 0."""
    found = problem.answers()
    if not found:
        return 0
    for number in itertools.count():
        path, place = out / "parts" / f"answers-{digest[:16]}-{number}.npz", f"{digest}/{number}"
        before = _read(path, place)
        if before is not None and not agree(before, found, problem.dtype):
            continue
        if before is None:
            if number:
                tell(f"the network answers otherwise than it did when parts in {out} were stored: they are not used")
            write_atomically(path, partial(write_part, part=found, place=place))
        return number
    raise AssertionError


def _read(path: Path, place: str) -> Part | None:
    try:
        return read_part(path, place)[0]
    except FileNotFoundError:
        return None
    except Damaged as error:
        tell(f"{error}: it is written again")
        return None
