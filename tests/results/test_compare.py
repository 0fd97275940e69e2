"""Bounds × checkpoints: what is refused, what the digits and the doubts say, and that every format can be read back."""

import io
import re

import pandas as pd
import pytest
from handmade import bound, run
from html_cells import cells_of_html

import genbound
from genbound.cli.main import main
from genbound.errors import GenboundError
from genbound.formatting import value_text
from genbound.results.latex import latex_number, latex_text
from genbound.results.runs import as_results

BOUNDS = {
    "first": bound(28.696, 26.881, 30.371, vacuous=True, note="a lower estimate"),
    "second": bound(8.277e36, unit="error", vacuous=True),
    "third": bound(None, note="needs a|b"),
    "fourth": bound(None, log10=412.34, vacuous=True),
}


@pytest.fixture
def pair():
    other = dict(BOUNDS, first=bound(14.348, 13.0, 15.0), third=bound(0.5))
    return [run(BOUNDS, name="one"), run(other, name="two")]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (bound(28.696, 26.881, 30.371), "29 [26, 31]"),
        (bound(0.62158, 0.62065, 0.62158), "0.6216 [0.6206, 0.6216]"),
        (bound(0.62158, 0.62157, 0.62158), "0.622"),
        (bound(894026.1), "8.94e+05"),
        (bound(894026.1, 880000.0, 900000.0), "8.9e+05 [8.8e+05, 9.0e+05]"),
        (bound(2.2644, 2.2551, 2.2644), "2.265 [2.255, 2.265]"),
        (bound(-0.15, -0.26, 0.049), "-0.1 [-0.3, 0.1]"),
        (bound(123456.0, 99949.0, 123456.0), "1.3e+05 [9e+04, 1.3e+05]"),
        (bound(0.0), "0"),
        (bound(None), "/"),
        (bound(None, log10=412.34), "1e412.3"),
    ],
)
def test_digits_follow_the_error(row, text):
    assert value_text(row) == text


def test_the_table(pair):
    head, body = genbound.compare(pair).cells()
    assert head == ["bound", "of", "one.safetensors", "two.safetensors", "doubt"]
    assert body[0] == [
        "first",
        "loss",
        "29 [26, 31]",
        "14 [13, 15]",
        "vacuous (one.safetensors); a lower estimate (one.safetensors)",
    ]
    assert body[1] == ["second", "error", "8.28e+36", "8.28e+36", "vacuous"]
    assert body[2] == ["third", "loss", "/", "0.5", "needs a|b (one.safetensors)"]
    assert body[3][2] == "1e412.3"
    assert body[-2:] == [
        ["measured generalization gap", "loss", "0.2", "0.2", ""],
        ["measured generalization gap", "error", "5 %", "5 %", ""],
    ]


def test_a_bound_that_only_one_run_has(pair):
    del pair[1].bounds["first"]
    row = genbound.compare(pair).cells()[1][0]
    assert row[3] == "/" and "not computed (two.safetensors)" in row[-1]


def test_reference(pair):
    frame = genbound.compare(pair, reference=pair[0]).to_frame()
    factor = frame["two.safetensors / one.safetensors"]
    assert factor["first"] == pytest.approx(0.5) and factor["second"] == pytest.approx(1)
    assert pd.isna(factor["third"]) and factor["fourth"] == pytest.approx(1)
    assert list(genbound.compare(pair[1:], reference=pair[0]).runs) == ["one.safetensors", "two.safetensors"]
    head, body = genbound.compare(pair, reference=pair[0]).cells()
    place = head.index("two.safetensors / one.safetensors")
    assert {row[0]: row[place] for row in body[:4]} == {"first": "0.5", "second": "1", "third": "/", "fourth": "1"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": "squared_error"}, "loss (cross_entropy in one.safetensors, squared_error in two.safetensors)"),
        ({"num_data": 999}, "n (1000 in one"),
        ({"loss_range": {"value": 3.0, "kind": "clip:3"}}, "C (observed in one"),
        ({"convention": "paper-code"}, "convention (theorem in one"),
        ({"num_samples": 128}, "number of samples (256 in one"),
        ({"head": "zero"}, "head policy (init in one"),
        ({"delta": 0.01}, "delta (0.05 in one"),
    ],
)
def test_unlike_is_refused_with_the_culprits(change, words):
    pair = [run(name="one"), run(name="two", **change)]
    with pytest.raises(GenboundError) as error:
        genbound.compare(pair)
    assert words in str(error.value) and "--allow-mixed" in str(error.value)
    remarks = genbound.compare(pair, allow_mixed=True).remarks()
    assert remarks[0].startswith(f"Compared although not alike: {words.split('(')[0]}")


def test_another_partition_or_other_data_is_refused():
    with pytest.raises(GenboundError, match=r"layer partition \(two.safetensors lacks b.weight; 2 and 1 layers\)"):
        genbound.compare([run(name="one"), run(name="two", layers=("a.weight",))])
    other = run(name="two")
    other.data = {"spec": "npz:other.npz", "sha256": "d" * 64}
    with pytest.raises(
        GenboundError, match=r"data \(npz:train.npz \(cccccccc\) in one.* npz:other.npz \(dddddddd\) in two"
    ):
        genbound.compare([run(name="one"), other])


def test_an_observed_range_that_differs_is_a_doubt():
    pair = [run(name="one"), run(name="two", loss_range={"value": 3.0, "kind": "observed"})]
    remarks = genbound.compare(pair, allow_mixed=True).remarks()
    assert remarks == ["C is the largest loss seen and differs: 2 in one.safetensors, 3 in two.safetensors."]


def test_bounds_are_put_on_the_largest_observed_range():
    """C = 2 and 8: the Hessian distance of the first doubles, and 1.24 of a gap of 0.2 is vacuous from 1.5 on."""
    pair = [run(name="one"), run(name="two", loss_range={"value": 8.0, "kind": "observed"})]
    table = genbound.compare(pair)
    frame = table.to_frame().loc["hessian_distance"]
    assert frame["one.safetensors"] == pytest.approx(1.244) and frame["two.safetensors"] == 0.622
    assert frame["one.safetensors gap_ratio"] == pytest.approx(6.22) and frame["two.safetensors gap_ratio"] > 3
    assert table.remarks() == [
        "C is the largest loss seen in any of the runs, 8 (2 in one.safetensors, 8 in two.safetensors); "
        "what contains C is rescaled to it: hessian_distance."
    ]
    assert ["measured with loss range C", "loss", "2", "8", ""] in table.cells()[1]
    assert pair[0].bounds["hessian_distance"].value == 0.622  # the run itself stays as it is
    assert genbound.compare(pair, allow_mixed=True).to_frame().loc["hessian_distance", "one.safetensors"] == 0.622
    larger = run({"hessian_distance": bound(0.8)}, name="one")
    assert genbound.compare([larger, pair[1]]).runs["one.safetensors"].bounds["hessian_distance"].vacuous
    for value, below, vacuous in ((0.05, None, None), (0.8, False, True)):  # of some samples: twice is 0.1 and 1.6
        some = run({"hessian_distance": bound(value) | {"at_least": True, "upper": None}}, name="one")
        row = genbound.compare([some, pair[1]]).runs["one.safetensors"].bounds["hessian_distance"]
        assert row.value == pytest.approx(2 * value) and (row.below_gap, row.vacuous) == (below, vacuous)


def test_a_reweighted_row_is_held_against_the_reweighted_losses():
    """The constant predictor leaves it 4.5, and 1.5 of the plain losses: 2 sqrt(1.44) = 2.4 is below and above."""
    own = {"reweighted_train_loss": -0.5, "reweighted_constant_loss": 4.0, "reweighted_gap": -0.1}
    pair = [
        run({"noisy_label_distance": bound(2.0) | {"gap_ratio": None, "below_gap": False}}, name=name,
            loss_range={"value": 2.0 * c, "kind": "observed"})
        for name, c in (("one", 1.0), ("two", 1.44))
    ]  # fmt: skip
    for results, c in zip(pair, (1.0, 1.44), strict=True):
        results.quantities["losses"] |= own | {"reweighted_range": 3.0 * c}
    row = genbound.compare(pair).runs["one.safetensors"].bounds["noisy_label_distance"]
    assert row["value"] == pytest.approx(2.4) and row["vacuous"] is False
    assert row["gap_ratio"] is None and row["below_gap"] is False


def test_markdown_has_as_many_cells_in_every_row(pair):
    lines = [line for line in genbound.compare(pair).to_markdown().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}


def test_a_line_a_bound_and_each_doubt_once(pair):
    for name in ("first", "second"):
        for results in pair:
            results.bounds[name]["note"] = "a long assumption that nobody can verify for this network"
    text = genbound.compare(pair).to_markdown()
    assert text.count("a long assumption") == 1 and max(map(len, text.split("\n\n")[0].splitlines())) <= 120
    rows = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if "|" in line}
    told = dict(re.findall(r"^(\[\d+\]) (.*?)(?:  )?$", text, re.M))
    assert [told[mark] for mark in rows["first"].split()] == [
        "vacuous (one.safetensors)", "a long assumption that nobody can verify for this network"
    ]  # fmt: skip
    assert rows["second"].split()[1] == rows["first"].split()[1]
    assert genbound.compare(pair).to_latex().count("a long assumption") == 1


def test_csv_reads_back_in_full(pair):
    table = genbound.compare(pair)
    read = pd.read_csv(io.StringIO(table.to_csv()), index_col="bound", keep_default_na=True)
    assert list(read.index) == list(BOUNDS)
    assert read.loc["first", "one.safetensors"] == 28.696 and read.loc["first", "one.safetensors upper"] == 30.371
    assert read.loc["fourth", "one.safetensors log10"] == 412.34


def test_runs_with_the_names_of_columns(tmp_path):
    names = ("bound", "bounds", "kind", "doubt")
    paths = [run({"first": bound(1.0 + i)}).save(tmp_path / name) for i, name in enumerate(names)]
    read = pd.read_csv(io.StringIO(genbound.compare(paths).to_csv()), index_col="bound")
    assert list(read.loc["first", ["bounds", "kind"]]) == ["loss", "measure"]
    assert [read.loc["first", f"run {name}"] for name in names] == [1, 2, 3, 4]


def test_html_has_the_same_cells(pair):
    head, body = genbound.compare(pair).cells()
    assert cells_of_html(genbound.compare(pair).to_html()) == [head, *body]
    pair[0].bounds["first"]["note"] = "<script>alert(1)</script>"
    assert "<script>" not in genbound.compare(pair)._repr_html_()


def test_latex(pair):
    text = genbound.compare(pair).to_latex()
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {4}
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1 and text.count(r"\midrule") == 2
    assert latex_number("8.28e+36") == r"$8.28 \times 10^{36}$" and latex_number("1e-07") == r"$1 \times 10^{-7}$"
    assert latex_number("1e412.3") == r"$1 \times 10^{412.3}$" and latex_number("/") == "/"
    assert latex_text("a_b & 5 %") == r"a\_b \& 5 \%"
    assert latex_text("give --confusion") == "give -{}-confusion"


def test_names_tell_runs_apart(tmp_path):
    for place in ("a/run", "b/run"):
        run().save(tmp_path / place)
    assert list(as_results([tmp_path / "a/run", tmp_path / "b/run"])) == ["a/run", "b/run"]
    assert list(as_results([tmp_path / "a/run", tmp_path / "b/run/results.json"])) == ["a/run", "b/run"]
    assert list(as_results([tmp_path / "a/run"])) == ["run"]
    assert len(as_results([tmp_path / "a/run"] * 2)) == 2


def test_the_command(pair, tmp_path, capsys):
    paths = [str(r.save(tmp_path / name)) for r, name in zip(pair, ("one", "two"), strict=True)]
    assert main(["compare", *paths, "--format", "csv", "--reference", paths[1]]) == 0
    assert "one / two" in capsys.readouterr().out.splitlines()[0]
    run(num_data=999).save(tmp_path / "three")
    assert main(["compare", paths[0], str(tmp_path / "three")]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("genbound: error: these runs are not alike: n (") and err.count("\n") == 1
    assert main(["compare", paths[0], str(tmp_path / "three"), "--allow-mixed"]) == 0
    assert main(["compare", str(tmp_path / "absent")]) == 2
    assert main(["compare"]) == 2


def test_did_it_get_worse():
    """By the arithmetic of the rows, the first run's name last."""
    before, after = run({"hessian_distance": bound(0.5)}), run({"hessian_distance": bound(0.6)}, name="later")
    found = genbound.compare([before, after])
    first, last = found.runs
    assert found.summary() == f"{last} against {first}, the first given: Yes. Worse: hessian_distance (+20 %)."
    assert genbound.compare([before]).summary() == ""
