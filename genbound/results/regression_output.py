"""What a regression check tells machines: JUnit XML for CI servers, workflow commands for GitHub's annotations."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from genbound.errors import printable
from genbound.files import write_atomically
from genbound.results.judgement import Row
from genbound.results.regression import Check


def write_junit(check: Check, path: str | Path) -> None:
    """One test case a measure; a failure lists what regressed, expected and obtained."""
    measures: dict[str, list[Row]] = {}
    for row in check.rows:
        measures.setdefault(printable(row.measure), []).append(row)
    failed = sum(any(row.failed for row in rows) for rows in measures.values())
    suite = ElementTree.Element(
        "testsuite", name="genbound check", tests=str(len(measures)), failures=str(failed), errors="0"
    )
    for measure, rows in measures.items():
        case = ElementTree.SubElement(suite, "testcase", classname="genbound.check", name=measure)
        bad = [row for row in rows if row.failed]
        if bad:
            failure = ElementTree.SubElement(case, "failure", message=_sentence(bad[0]), type="regression")
            failure.text = "\n".join(_sentence(row) for row in bad)
        elif all(row.status in ("skipped", "new", "absent") for row in rows):
            ElementTree.SubElement(case, "skipped", message=printable(rows[0].note or rows[0].status))
    root = ElementTree.Element("testsuites", name="genbound")
    root.append(suite)
    ElementTree.indent(root)
    data = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(data + b"\n"))


def github_annotations(check: Check, baseline: str, most: int = 10) -> list[str]:
    """``::error`` commands, one a measure; GitHub shows ten of a step."""
    measures: dict[str, list[Row]] = {}
    for row in check.failures:
        measures.setdefault(row.measure, []).append(row)
    lines = []
    for measure, rows in list(measures.items())[:most]:
        text = "\n".join(_sentence(row) for row in rows[:5]) + (f"\nand {len(rows) - 5} more" if len(rows) > 5 else "")
        lines.append(f"::error file={_property(baseline)},title={_property(f'genbound: {measure}')}::{_data(text)}")
    return lines


def _sentence(row: Row) -> str:
    where = f" of {row.where}" if row.where else ""
    change = f" ({row.difference})" if row.difference else ""
    return printable(
        f"{row.measure}{where}: expected {row.expected}, obtained {row.obtained}{change}: {row.note or row.status}"
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
