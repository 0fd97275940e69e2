"""Libraries that not everybody needs: imported when they are, or one line on how to get them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from genbound.errors import GenboundError, first_line


def import_optional(module: str, need: str, install: str) -> Any:
    """The module.

    Args:
        module: its dotted name.
        need: what needs which library, as the beginning of the message: ``images need Pillow``.
        install: what to give to ``pip install``: ``genbound[images]``.

    Raises:
        GenboundError: it is not installed, or does not import.
    """
    try:
        return import_module(module)
    except Exception as error:  # a build for another torch fails with more than an ImportError
        # In quotes, because zsh takes brackets for a pattern.
        quoted = f"'{install}'" if "[" in install else install
        raise GenboundError(f"{need} ({first_line(error)}): pip install {quoted}") from error
