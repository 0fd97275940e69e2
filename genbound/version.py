"""Which version of genbound this is; a module of its own, so that everything may ask."""

__version__ = "0.1.0"
