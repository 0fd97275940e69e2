"""From a data SPEC to samples."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from genbound.data.columns import file_samples
from genbound.data.hf_datasets import hub_samples
from genbound.data.images import folder_samples
from genbound.data.npz import npz_samples
from genbound.data.run_folder import inner_spec, relabelled
from genbound.data.samples import Samples, as_samples
from genbound.data.spec import FUNCTION, DataSpec, Reader
from genbound.data.tar_shards import shard_samples
from genbound.data.texts import shifted
from genbound.user_code import call_user


def function_samples(spec: DataSpec, reader: Reader) -> Samples:
    """The samples that a function of the user returns."""
    found = call_user(spec.place, spec.base_dir, "data function")
    return shifted(as_samples(found, spec.text, spec.samples), reader.next_token)


def run_samples(spec: DataSpec, reader: Reader) -> Samples:
    """The samples that a run of ``genbound finetune`` trained on, with the labels that it saw."""
    # Runs read images as the SPEC alone says.
    inner, reader = inner_spec(spec, replace(reader, images=None, image_settings=None))
    return relabelled(spec, SCHEMES[inner.scheme](inner, reader)).head(spec.samples)


SCHEMES: dict[str, Callable[[DataSpec, Reader], Samples]] = {
    "npz": npz_samples,
    "imagefolder": folder_samples,
    "csv": file_samples,
    "jsonl": file_samples,
    "parquet": file_samples,
    "hf": hub_samples,
    "webdataset": shard_samples,
    "run": run_samples,
    FUNCTION: function_samples,
}


def load_data(spec: Any, reader: Reader | None = None, base_dir: str | os.PathLike = ".") -> Samples:
    """Read the samples that a data SPEC names.

    Args:
        spec: ``npz:FILE[?x=NAME&y=NAME]``; ``imagefolder:DIR``;
            ``csv:|jsonl:|parquet:FILE?text=COL[&text_pair=COL]&label=COL``; ``hf:DIR`` or ``hf:NAME[/CONFIG]`` with
            ``?split=NAME`` and columns likewise; ``webdataset:DIR`` of tar files; ``run:DIR`` of ``genbound finetune``;
            ``FILE.py:function`` or ``pkg.mod:function``; each also with
            ``samples=N`` for the first N. docs/data.md has all options. What is no string goes to
            :func:`~genbound.data.samples.as_samples`.
        reader: what the checkpoint says about its data.
        base_dir: what relative paths start from.

    Raises:
        GenboundError: the SPEC, the file or its content cannot be used; the message names the mend.
    """
    reader = reader or Reader()
    if not isinstance(spec, str):
        return shifted(as_samples(spec), reader.next_token)
    said = DataSpec.parse(spec, base_dir)
    return SCHEMES[said.scheme](said, reader)
