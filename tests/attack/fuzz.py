"""Coverage finds new files for a reader: ``python tests/attack/fuzz.py KIND [options of libFuzzer]``, with atheris.

KIND is one of ``mutations.py``. A file that is neither read nor refused in one line ends the run and is kept.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
with atheris.instrument_imports(include=["genbound"]):
    import mutations


def main() -> None:
    known = mutations.KINDS[sys.argv.pop(1)]
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    file = folder / known.make(folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(file.read_bytes())
    with atheris.instrument_imports(include=["genbound", "yaml"]):  # readers import what they need when they run
        known.read(folder)
    signal.signal(signal.SIGALRM, mutations._too_long)

    def one(data: bytes) -> None:
        file.write_bytes(data)
        trouble = mutations.outcome(lambda: known.read(folder))
        if trouble.startswith("!") or (folder / "canary").exists():
            kept = Path(tempfile.gettempdir(), f"genbound-{file.name}")
            kept.write_bytes(data)
            raise RuntimeError(f"{trouble or 'code was run'}: {kept}")

    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
