"""Where the study is."""

from pathlib import Path

import genbound

ROOT = Path(genbound.__file__).parent.parent
STUDY = ROOT / "examples" / "study"
PAGE = ROOT / "docs" / "study.md"
