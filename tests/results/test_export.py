"""Results leave as one long table, and to experiment trackers: every number arrives."""

import importlib.util
import math

import pandas as pd
import pytest
from handmade import bound, run
from html_cells import cells_of_html

from genbound.cli.main import main
from genbound.errors import GenboundError
from genbound.results.export import tidy
from genbound.results.loggers import LOGGERS, metrics, parameters

BOUNDS = {
    "small": bound(0.5, 0.4, 0.6, paper={"log10": 2.0}),
    "large": bound(None, log10=412.3),
    "none": bound(None, note="a <b>"),
}


def test_tidy():
    table = tidy([run(BOUNDS, name="one"), run(BOUNDS, name="two")]).set_index(["run", "measure", "where"]).sort_index()
    assert table.index.is_unique
    trace = table.loc[("one.safetensors", "hessian_trace", "b.weight")]
    assert (trace["value"], trace["sem"], trace["data_sem"], trace["kind"]) == (20.0, 0.1, 1.0, "quantity")
    form = table.loc[("two.safetensors", "max_quadratic_form", "a.weight")]
    assert (form["lower"], form["upper"]) == (1.98, 2.0)
    assert table.loc[("one.safetensors", "small", "paper"), "log10"] == 2.0
    assert table.loc[("one.safetensors", "large", ""), "log10"] == 412.3 and math.isnan(
        table.loc[("one.safetensors", "large", ""), "value"]
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_files(tmp_path, suffix):
    run(BOUNDS).save(tmp_path / "run")
    out = tmp_path / f"all.{suffix}"
    assert main(["export", str(tmp_path / "run"), "--out", str(out)]) == 0
    read = {
        "parquet": pd.read_parquet,
        "csv": lambda p: pd.read_csv(p, keep_default_na=True),
        "jsonl": lambda p: pd.read_json(p, lines=True),
    }
    table, found = tidy([tmp_path / "run"]), read[suffix](out)
    assert list(found.columns) == list(table.columns) and len(found) == len(table)
    assert list(found["value"].dropna()) == pytest.approx(list(table["value"].dropna()))
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "all.xlsx")]) == 2


def test_metrics_are_finite_numbers():
    found = metrics(run(BOUNDS))
    assert found["bounds/small"] == 0.5 and found["bounds/large/log10"] == 412.3 and "bounds/large" not in found
    assert found["losses/generalization_gap"] == pytest.approx(0.2) and found["hessian_trace/total"] == 30.0
    assert parameters(run(BOUNDS))["config.loss_range.kind"] == "observed"


@pytest.mark.parametrize("name", LOGGERS)
def test_a_tracker_that_is_not_installed(name, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GenboundError, match=rf"{name} is not installed: pip install 'genbound\[{name}\]'"):
        LOGGERS[name](run(BOUNDS), tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.filterwarnings("ignore")  # the trackers' own
@pytest.mark.parametrize("name", LOGGERS)
def test_trackers(name, tmp_path):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    run(BOUNDS).save(tmp_path / "run")
    assert main(["log", str(tmp_path / "run"), "--to", name, "--out", str(tmp_path / "log")]) == 0
    if name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'log' / 'mlflow.db'}")
        (found,) = client.search_runs([client.get_experiment_by_name("genbound").experiment_id])
        assert found.data.metrics["bounds/small"] == 0.5 and found.data.params["config.seed"] == "0"
        assert [a.path for a in client.list_artifacts(found.info.run_id)] == ["results.json"]
    elif name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "log" / "run")).Reload()
        assert events.Scalars("bounds/small")[0].value == 0.5
    else:
        (folder,) = (tmp_path / "log" / "wandb").glob("offline-run-*")
        assert list(folder.glob("*.wandb"))


def test_in_a_notebook():
    text = run(BOUNDS)._repr_html_()
    rows = cells_of_html(text)
    assert ["small", "0.5 [0.4, 0.6]", "loss", "measure", "no", "2.5", ""] in rows and [
        "none",
        "/",
        "loss",
        "measure",
        "no",
        "",
        "a <b>",
    ] in rows
    assert "2 layers, 256 of n = 1000" in text
