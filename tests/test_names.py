"""Names of modules tell them apart."""

from collections import defaultdict
from pathlib import Path

import genbound

PACKAGE = Path(genbound.__file__).parent

SHARED = {
    "__init__.py": "a package has one each",
    "base.py": "what the files of a catalogue share, one for the quantities and one for the bounds",
}


def test_no_two_modules_have_one_name():
    """But for a quantity's row in the catalogue: it has the quantity's name, as the file that measures it has."""
    found = defaultdict(list)
    for path in sorted(PACKAGE.glob("**/*.py")):
        if path.parent.name == "catalogue" and path.name != "__init__.py":
            assert (path.parents[1] / path.name).exists(), f"nothing measures {path.stem}"
        else:
            found[path.name].append(str(path.relative_to(PACKAGE)))
    several = {name: places for name, places in found.items() if len(places) > 1}
    assert several.keys() == SHARED.keys(), several
