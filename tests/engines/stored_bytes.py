"""What must be the same however a run was computed."""

import json


def stored(out):
    """All of results.json but what it cost, and the table of the samples byte by byte."""
    content = json.loads((out / "results.json").read_text())
    return {key: value for key, value in content.items() if key != "cost"}, (out / "samples.parquet").read_bytes()
