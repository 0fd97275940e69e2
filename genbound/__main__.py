"""``python -m genbound …``: the same commands as ``genbound …``."""

from genbound.cli.main import run

run()
