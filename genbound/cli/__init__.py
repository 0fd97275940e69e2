"""The command line: each command is a few lines onto one function of the package."""

from genbound.cli.main import main, run

__all__ = ["main", "run"]
