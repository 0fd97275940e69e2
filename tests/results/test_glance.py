"""The verdict in a few words: is it a guarantee, how does it stand to the gap, did it get worse?"""

from handmade import bound, run

from genbound.results.glance import change, in_short
from genbound.results.verdict import DRIVER, GAP, GUARANTEE


def other(**bounds):
    """The run of another checkpoint."""
    results = run({"hessian_distance": bound(0.5), "li2021": bound(700.0)} | bounds)
    results.checkpoint["sha256"] = "d" * 64
    return results


BEFORE = run({"hessian_distance": bound(0.5), "li2021": bound(700.0)})


def test_a_measure_is_no_guarantee():
    assert in_short(BEFORE) == {GUARANTEE: "No", GAP: "2.5 × the measured gap", DRIVER: "a.weight (50 %)"}


def test_a_certificate_is_rounded_up():
    row = bound(0.12341, unit="error") | {"kind": "certificate"}
    assert in_short(run({"c": row}))[GUARANTEE] == "Yes: error ≤ 0.124"
    assert in_short(run({"c": row | {"vacuous": True}}))[GUARANTEE] == "None that says anything"


def test_a_certificate_of_another_network_says_so():
    row = bound(0.12341, unit="error", note="bounds the error of the quantised network, the checkpoint …")
    said = in_short(run({"c": row | {"kind": "certificate"}}))[GUARANTEE]
    assert said == "Yes: error of the quantised network ≤ 0.124"


def test_did_it_get_worse():
    assert change(other(), BEFORE) == ("No", "The same within the errors: 2 bounds.")
    short, said = change(other(hessian_distance=bound(0.6)), BEFORE)
    assert short == "Yes" and said.startswith("Worse: hessian_distance (+20 %).") and said.endswith("errors: 1 bound.")
    assert change(other(hessian_distance=bound(0.4)), BEFORE)[0] == "No, better"


def test_what_cannot_be_told():
    results = other()
    results.config["num_samples"] = 128
    assert change(results, BEFORE) == ("Not to be told", "They were measured differently: number of samples.")
    results = other()
    results.config["seed"] = 1
    results.quantities["max_quadratic_form"]["convention"] = "theorem"
    short, said = change(results, BEFORE)
    assert short == "Not to be told" and said.startswith("hessian_distance: other samples were measured")


def test_a_bound_that_is_gone_is_worse():
    short, said = change(other(li2021=bound(None, note="no structure")), BEFORE)
    assert short == "Yes" and said.startswith("Worse: li2021 (has no value any more: no structure)")


def test_what_fell_is_not_worse():
    """Of networks in memory, which have no digest, and of one checkpoint that was measured twice."""
    before, after = (run({"hessian_distance": bound(value)}) for value in (0.5, 0.4))
    assert change(after, before) == (
        "Not to be told", "Lower, of one checkpoint as far as is known: hessian_distance (-20 %)."
    )  # fmt: skip
    before.checkpoint, after.checkpoint = ({"path": None, "sha256": None} for _ in range(2))
    assert change(after, before)[0] == "Not to be told"
    after.quantities["displacement_norm"]["layers"]["a.weight"]["value"] = 0.7
    assert change(after, before) == ("No, better", "Better: hessian_distance (-20 %).")
    assert change(before, after)[0] == "Yes"
