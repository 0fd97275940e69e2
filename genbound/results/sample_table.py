"""The per-sample values of a run as they are stored: read, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pandas.api.types import is_integer_dtype, is_string_dtype

from genbound.errors import GenboundError, first_line
from genbound.results.checksums import NAME, is_changed

MEND = "restore it, or delete it and do without plots of samples"
COLUMNS = {"sample": is_integer_dtype, "layer": is_string_dtype}


def read_sample_table(file: Path) -> pd.DataFrame | None:
    """The per-sample table of a run, a row for each sample and layer; ``None`` if there is none.

    Raises:
        GenboundError: the file is damaged, or is no such table.
    """
    if not file.exists():
        return None
    if is_changed(file):  # nobody edits one by hand
        raise GenboundError(f"{file} is damaged (its checksum in {NAME} beside it is another): {MEND}")
    try:
        table = pd.read_parquet(file)
    except Exception as error:  # whatever the reader meets in a damaged file
        raise GenboundError(f"{file} cannot be read ({type(error).__name__}: {first_line(error)}): {MEND}") from error
    wrong = [name for name, fits in COLUMNS.items() if name not in table or not fits(table[name])]
    if wrong:
        raise GenboundError(f"{file} has no column {wrong[0]} as runs have it: {MEND}")
    return table
