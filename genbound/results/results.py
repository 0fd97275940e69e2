"""Results of one evaluation: tidy tables, provenance and a schema version, to JSON and back."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from genbound.errors import GenboundError
from genbound.estimators.disk_table import Table
from genbound.files import write_atomically, write_json
from genbound.formatting import digits, gap_text, value_text, yes_no
from genbound.quantities.base import later
from genbound.quantities.catalogue import reading_of, with_present_names
from genbound.results.cells import markdown_table, write_csv
from genbound.results.checksums import remove_checksums, tell_if_changed, write_checksums
from genbound.results.footnotes import footnotes
from genbound.results.network_files import remove_networks, save_network
from genbound.results.rows import Row, bound_row
from genbound.results.sample_rows import SampleRows, is_large, write_samples
from genbound.results.sample_table import read_sample_table
from genbound.results.schema import MEND, check_content, read_json, readable
from genbound.results.verdict import WORSE, answers, short_rows, verdict

SCHEMA_VERSION = 1
HEAD = ["bound", "value", "of", "kind", "vacuous", "value / gap", "note"]
RESULT = ("value", "sem", "lower", "upper")  # of a layer: the number that a quantity is named after, and its errors
ONE_RUN = "One run alone does not say; `genbound compare EARLIER THIS` does."
SHOWN = 18  # bounds that fit a screen


@dataclass(repr=False)
class Results:
    """What ``evaluate`` found. Fields are those of results.json; ``samples`` holds per-sample values.

    Attributes:
        samples: one row for each measured sample and layer, or ``None`` if there is none. What was measured just now
            on very many samples is a :class:`~genbound.results.sample_rows.SampleRows`, whose ``frame()`` is the table.
        networks: networks that quantities made of the fine-tuned one: name of the checkpoint -> its whole state.
        network_config: what ``config.json`` beside their weights says, where they are of transformers and the
            checkpoint that was measured does not have one.
        path: the directory or file that the results were read from or saved to; tables name the run after it.
    """

    config: dict[str, Any]
    checkpoint: dict[str, Any]
    init: dict[str, Any]
    data: dict[str, Any]
    layer_rows: list[dict[str, Any]]
    quantities: dict[str, dict[str, Any]]
    bounds: dict[str, Row]
    cost: dict[str, Any]
    notes: dict[str, str] = field(default_factory=dict)
    genbound: str = ""
    schema_version: int = SCHEMA_VERSION
    samples: pd.DataFrame | SampleRows | None = None
    networks: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, compare=False)
    network_config: dict[str, Any] | None = field(default=None, compare=False)
    path: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        losses = self.quantities.get("losses", {})
        self.bounds = {name: bound_row(name, row, losses) for name, row in self.bounds.items()}

    def __repr__(self) -> str:
        """What was measured, and the first bounds."""
        head, of = self.headline()[:2]
        lines = [f"  {name}: {value_text(row)} ({row.kind})" for name, row in list(self.bounds.items())[:SHOWN]]
        more = [f"  and {len(self.bounds) - SHOWN} more"] if len(self.bounds) > SHOWN else []
        return "\n".join([f"Results of {head}:", f"  {of}", *lines, *more])

    # -- tables -----------------------------------------------------------------------------------------------

    def to_frame(self) -> pd.DataFrame:
        """One row a bound."""
        columns = ["value", "lower", "upper", "log10", "bounds", "kind", "vacuous", "gap_ratio", "below_gap"]
        columns += ["note", "reference"]
        rows = [{"bound": name} | {c: row[c] for c in columns} for name, row in self.bounds.items()]
        return pd.DataFrame(rows, columns=["bound", *columns]).set_index("bound")

    def layers(self, every: bool = False) -> pd.DataFrame:
        """One row a layer, one column (with its error or interval) a quantity.

        Args:
            every: all that is known of a layer, as in ``layers.csv``: quantities with several numbers too, what else
                was found there, and how it was measured.
        """
        table = pd.DataFrame(self.layer_rows).set_index("name")
        table["shape"] = [" x ".join(map(str, shape)) for shape in table["shape"]]
        columns: dict[str, dict[str, float]] = {}
        for quantity, summary in self.quantities.items():
            for name, row in summary.get("layers", {}).items():
                for key, value in row.items():
                    wanted = key not in ("num_samples", "data_sem") if every else "value" in row and key in RESULT
                    if isinstance(value, int | float) and wanted:
                        column = quantity if key == "value" else f"{quantity}_{key}"
                        columns.setdefault(column, {})[name] = value
        for column, values in columns.items():
            words = any(isinstance(value, bool) for value in values.values())  # True and False stay what they are
            table[column] = pd.Series(values, dtype=object if words else float)
        return table

    # -- files ------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Everything but the per-sample table, as ``results.json`` stores it."""
        return {
            "schema_version": self.schema_version,
            "genbound": self.genbound,
            "config": self.config,
            "checkpoint": self.checkpoint,
            "init": self.init,
            "data": self.data,
            "layers": self.layer_rows,
            "quantities": self.quantities,
            "bounds": self.bounds,
            "notes": self.notes,
            "cost": self.cost,
        }

    def save(self, directory: str | Path) -> Path:
        """Write results.json, layers.csv, samples.parquet, table.md and networks that were made into a directory."""
        folder = self.path = Path(directory)
        earlier = remove_checksums(folder)
        write_json(folder / "results.json", to_plain(self.to_json()))
        write_atomically(folder / "layers.csv", lambda path: write_csv(self.layers(every=True), path))
        write_atomically(folder / "table.md", lambda path: path.write_text(self.to_markdown() + "\n", encoding="utf-8"))
        samples = self.samples
        if samples is None:
            (folder / "samples.parquet").unlink(missing_ok=True)  # of an earlier run
        else:
            write_atomically(folder / "samples.parquet", lambda path: write_samples(samples, path))
        networks = [
            f"{name}/{file}"
            for name, tensors in self.networks.items()
            for file in save_network(folder / name, tensors, self._described_in(), self.network_config)
        ]
        remove_networks(folder, earlier.difference(networks))
        tables = ["results.json", "layers.csv", "table.md", *["samples.parquet"][: samples is not None]]
        write_checksums(folder, [*tables, *networks])
        return folder

    def _described_in(self) -> list[str]:
        """Directories with what a network is loaded with: of the fine-tuned one, and of its start."""
        return [entry["path"] for entry in (self.checkpoint, self.init) if entry.get("path")]

    # -- plots ------------------------------------------------------------------------------------------------

    def plots(self) -> list[str]:
        """Names of the plots that these results have the numbers for."""
        return list(later("genbound.figures.one_run:drawings_of")(self))

    def plot(self, name: str, ax: Any = None) -> Any:
        """Draw a plot and return its axes; a notebook shows ``results.plot(name).figure``.

        Args:
            name: one of :meth:`plots`: ``bounds_loss``, ``bounds_error``, ``layers``, ``samples``, ``noise_stability``,
                ``loss_path`` …
            ax: matplotlib axes to draw on; ``None`` makes a figure.

        Raises:
            GenboundError: there is no such plot, or its numbers were not measured.
        """
        return later("genbound.figures.one_run:draw")(self, name, ax)

    def save_plots(self, directory: str | Path, suffix: str = "png") -> list[Path]:
        """Draw every one of :meth:`plots` into ``directory/NAME.suffix`` (``png``, ``pdf`` or ``svg``)."""
        return later("genbound.figures.one_run:save_plots")(self, directory, suffix)

    def summary(self) -> str:
        """The verdict: guarantee or not, how the measure stands to the gap, what drives it, how sure it is."""
        return "\n".join(verdict(self))

    def to_markdown(self, every: bool = True) -> str:
        """What was measured, the verdict, the bounds and what the quantities say.

        Args:
            every: all rows; otherwise those of the short table that ``genbound evaluate`` prints.
        """
        title, *lines = self.headline()
        said = [f"> **{question}** {line}  " for question, line in answers(self).items()]
        said += [f"> **{WORSE}** {ONE_RUN}"] * bool(said)
        rows = list(self.bounds) if every else short_rows(self) or list(self.bounds)
        below = self._left_out(len(self.bounds) - len(rows)) if len(rows) < len(self.bounds) else self._below()
        blocks = [[f"# {title}"], lines, said, *self._bounds_table(rows), below]
        return "\n\n".join("\n".join(block) for block in blocks if block).rstrip()

    def headline(self) -> list[str]:
        """What was measured, and what its quantities say above the table, a sentence each; the title is the first."""
        config = self.config
        lines = [
            f"{self.checkpoint.get('path') or 'model'} against {self.init.get('path') or 'its initialisation'}",
            f"{len(self.layer_rows)} layers, {config['num_samples']} of n = {config['num_data']} training samples"
            f" measured ({config['convention']} convention, seed {config['seed']}).",
            *(reading_of(name).headline(summary) for name, summary in self.quantities.items()),
            self._loss_range(),
        ]
        if config.get("head_note"):
            lines.append(config["head_note"][0].upper() + config["head_note"][1:] + ".")
        lines += [f"{remark[0].upper()}{remark[1:]}." for remark in config.get("remarks", ())]
        return [line for line in lines if line]

    def _loss_range(self) -> str:
        value, kind = self.config["loss_range"]["value"], self.config["loss_range"]["kind"]
        if kind == "observed":
            kind = f"observed: {observed_over(self.config['loss_range'])}, so it depends on the data"
            if "least" in self.config["loss_range"]:
                kind += f"; counted from the smallest, {digits(self.config['loss_range']['least'])}"
        return "" if value is None else f"Loss range C = {digits(value)} ({kind})."

    def _bounds_table(self, names: Sequence[str]) -> list[list[str]]:
        """The bounds, where there are any; their notes stand below."""
        marks, below = footnotes([self.bounds[name]["note"] for name in names])
        rows = [[*_cells(name, self.bounds[name]), mark] for name, mark in zip(names, marks, strict=True)]
        return [[markdown_table(rows, HEAD)] if rows else [], [f"{line}  " for line in below]]

    def _left_out(self, num: int) -> list[str]:
        """What the short form does not show, and where it is."""
        missing = [f"Not measured: {', '.join(self.notes)}."] if self.notes else []
        more = f"{num} more rows: --all, or `table.md` in the run's directory (--out); each quantity has its say there."
        return [*missing, more]

    def _below(self) -> list[str]:
        """What the quantities say below the table, tables before single lines, and what could not be measured."""
        said = [list(reading_of(name).describe(summary)) for name, summary in self.quantities.items()]
        lines = [line for text in sorted(said, key=lambda text: len(text) == 1) for line in text]
        return [*lines, *(f"{name}: {note}" for name, note in self.notes.items())]

    def _repr_html_(self) -> str:
        """What a notebook shows: the headline, and the bounds with their doubts."""
        title, *lines = self.headline()
        rows = [[*_cells(name, row), row["note"]] for name, row in self.bounds.items()]
        table = tabulate(rows, HEAD, tablefmt="html", disable_numparse=True)
        return (
            f"<h4>{html.escape(title)}</h4>"
            + "".join(f"<p>{html.escape(line)}</p>" for line in [*lines, *verdict(self)])
            + table
        )


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    """A bound's line of the table as text, without its note."""
    return [name, value_text(row), row["bounds"], row["kind"], yes_no(row["vacuous"]), gap_text(row)]


def observed_over(loss_range: Mapping[str, Any]) -> str:
    """Which samples an observed C is the largest loss of. Runs that do not say looked at their training samples."""
    if loss_range.get("over") == "training and test":
        return "the largest loss of all training and test samples"
    return (
        "the largest training loss, for there are no test samples"
        if "over" in loss_range
        else ("the largest training loss")
    )


def load_results(path: str | Path, with_samples: bool = True) -> Results:
    """Read a run's directory, or its results.json.

    Args:
        path: the directory or the file.
        with_samples: read the per-sample table too, which takes most of the time and of the memory.

    Raises:
        GenboundError: it is not there, is no results.json, or is one of another schema version.
    """
    path = Path(path)
    file = path / "results.json" if path.is_dir() else path
    if not file.exists():
        raise GenboundError(f"{file} does not exist: give a directory that `genbound evaluate --out` wrote")
    content = read_json(file)
    if "schema_version" not in content:
        raise GenboundError(f"{file} is not a results.json (it has no schema_version): {MEND}")
    version = content["schema_version"]
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        mend = "update genbound" if newer else f"no migration is known; {MEND}"
        raise GenboundError(f"{file} has schema version {version}, this genbound reads {SCHEMA_VERSION}: {mend}")
    check_content(content, file)
    tell_if_changed(file)
    # A baseline of another name may lie beside another run's samples.
    samples = file.parent / "samples.parquet" if file.name == "results.json" and with_samples else None
    with readable(str(file)):
        found = Results(
            layer_rows=content["layers"],
            samples=None if samples is None else read_sample_table(samples),
            quantities=with_present_names(content["quantities"]),
            **{k: content[k] for k in ("config", "checkpoint", "init", "data", "bounds", "cost")},
            notes=content.get("notes", {}),
            genbound=content["genbound"],
            schema_version=version,
            path=path,
        )
        found.to_markdown()  # what one quantity's own lines read is in no table of entries
    return found


def read_samples(results: Results) -> Results:
    """The run with its per-sample table, where it lies beside its results.json."""
    if results.samples is not None or results.path is None:
        return results
    return replace(results, samples=load_results(results.path).samples)


def samples_frame(
    indices: list[int], layers: list[str], arrays: dict[str, dict[str, Table]]
) -> pd.DataFrame | SampleRows | None:
    """Per-sample arrays of all quantities as one long table.

    Args:
        indices: of the N measured samples in the data.
        layers: names of the L layers.
        arrays: quantity -> name -> values of the samples ``[N]`` or of the samples and layers ``[N, L]``, in the unit
            of the quantity; others are left out. One that was measured on others has their indices as ``sample``.

    Returns:
        L rows with ``sample`` and ``layer`` for every sample that any was measured on, with a column for each array,
        NaN where it was not measured; ``None`` if there is none. Of very many samples it is not made yet.
    """
    own = [named["sample"].tolist() for named in arrays.values() if "sample" in named]
    every = list(dict.fromkeys([*indices, *(i for numbers in own for i in numbers)]))
    if is_large(every, layers):
        return SampleRows.of(every, indices, layers, arrays)
    table = pd.DataFrame(index=pd.MultiIndex.from_product([every, layers], names=["sample", "layer"]))
    for quantity, named in arrays.items():
        numbers = named["sample"].tolist() if "sample" in named else indices
        rows = pd.MultiIndex.from_product([numbers, layers], names=["sample", "layer"])
        for key, values in named.items():
            column = quantity if key == "value" else f"{quantity}_{key}"
            if key != "sample" and values.shape == (len(numbers), len(layers)):
                table[column] = pd.Series(values.reshape(-1), rows)
            elif key != "sample" and values.shape == (len(numbers),):
                table[column] = pd.Series(np.repeat(values, len(layers)), rows)
    return table.reset_index() if len(table.columns) else None


def to_plain(value: Any) -> Any:
    """Numbers that JSON knows; a value that is not finite becomes null (its reason stands in a note)."""
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
