"""The study runs, continues and reports, on its smallest task."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import genbound

pytest.importorskip("accelerate", reason="needs accelerate")
pytest.importorskip("sklearn", reason="needs the digits of scikit-learn")
ROOT = Path(genbound.__file__).parent.parent
STUDY = ROOT / "examples" / "study"


def call(script, *arguments):
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(STUDY / script), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_small_study(tmp_path):
    out = tmp_path / "study"
    first = call("run.py", "--out", out, "--cells", "ci")
    cells = sorted(out.glob("*/*/cell.json"))
    assert len(cells) == first.count("test") == 11
    stamps = [file.stat().st_mtime_ns for file in cells]
    call("run.py", "--out", out, "--cells", "ci")  # nothing is left to do
    assert [file.stat().st_mtime_ns for file in cells] == stamps
    names = ("digits symmetric40", "digits stability", "digits loss", "digits noise of another kind")
    page = tmp_path / "page.md"
    page.write_text("\n".join(f"<!-- {name} -->\nold\n<!-- end -->\nkept" for name in names))
    call("report.py", out, "--results", tmp_path / "kept", "--images", tmp_path / "images", "--page", page)
    tables = page.read_text()
    figures = {path.name for path in (tmp_path / "images").glob("*.png")}
    assert {"study_noise.png", "study_stability.png", "study_gap.png"} <= figures
    for words in ("| both ", "Relative RSS", "| hessian_distance ", "*Not run yet.*", "kept"):
        assert words in tables
    assert "old" not in tables
    call("report.py", "--results", tmp_path / "kept", "--images", tmp_path / "images", "--page", page)
    assert page.read_text() == tables  # what is kept is enough
    rows = {file.parent.name: json.loads(file.read_text()) for file in cells}
    both, plain = (rows[f"symmetric40-{method}-seed0"] for method in ("both", "plain"))
    assert plain["noise_rate"] == both["noise_rate"] > 0.3
    assert both["distance"] < plain["distance"]


def test_the_cells_of_the_core():
    sys.path.insert(0, str(STUDY))
    try:
        from cells import chosen

        core = chosen("core")
    finally:
        sys.path.remove(str(STUDY))
    assert len({(cell.task, cell.name) for cell in core}) == len(core)
    for task in ("cifar10", "sst2"):
        clean = [cell for cell in core if cell.task == task and cell.group == "clean"]
        assert len(clean) >= 24 and len({cell.method for cell in clean}) >= 7
