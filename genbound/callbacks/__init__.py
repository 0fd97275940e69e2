"""Callbacks that write ``genbound.yaml`` while a model trains, and can measure it at the end.

:class:`genbound.callbacks.transformers.GenboundCallback` is for the Trainer of transformers,
:class:`genbound.callbacks.lightning.GenboundCallback` for Lightning. Each module imports its library.
"""
