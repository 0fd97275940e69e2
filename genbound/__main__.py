"""``python -m genbound …``: the same commands as ``genbound …``."""

import sys

# ``-m`` puts the current directory first on the path. It may be a checkpoint's: a yaml.py in it would be imported.
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

from genbound.cli.main import run  # noqa: E402

run()
