"""The lower bounds in ``setup.cfg`` are the versions that ``make lowest`` tests."""

import configparser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_lower_bound_is_the_version_that_is_tested():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    bounds = {
        tuple(line.split(">="))
        for text in lists
        for line in text.splitlines()
        if ">=" in line and not line.startswith("#")
    }
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints-lowest.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    for name, least in bounds:
        parts = least.split(".")
        assert pinned[name].split(".")[: len(parts)] == parts, f"{name}: {least} is allowed, {pinned[name]} is tested"
        assert not any(int(part) for part in pinned[name].split(".")[len(parts) :]), name
    assert (
        len(dict(bounds)) == len(bounds) and {"torch", "transformers", "peft", "timm", "numpy"} <= dict(bounds).keys()
    )
