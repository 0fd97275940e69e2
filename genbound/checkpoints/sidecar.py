"""``genbound.yaml`` beside a checkpoint: what a training script knew, so that a later evaluation needs no flags."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from genbound.checkpoints.trust import DATA_SCHEMES, code_in, is_remembered, remember
from genbound.errors import GenboundError
from genbound.files import read_yaml

SIDECAR = "genbound.yaml"
INIT_FILE = "genbound_init.safetensors"
# Name -> kind of its value. The names are those of the command line's options.
SETTINGS: dict[str, tuple[type, ...]] = {
    "model": (str,), "init": (str,), "data": (str,), "test_data": (str,), "loss": (str,), "num_data": (int,),
    "head": (str,),
    "loss_range": (str,), "head_weights": (str,), "ignore": (str,), "entry": (str,), "layers": (str,),
    "confusion": (str,), "prior": (str,), "prior_samples": (str,),
    "prior_choices": (int,),
}  # fmt: skip
PATHS = ("init", "confusion", "prior", "prior_samples")
SPECS = ("model", "data", "test_data", "loss")


def save_spec(checkpoint: str | os.PathLike, *, init: Any = None, **settings: Any) -> Path:
    """Write ``genbound.yaml`` beside a checkpoint: ``genbound evaluate CKPT`` then needs no flags.

    Args:
        checkpoint: the checkpoint's directory, or its file.
        init: the weights that training started from: a path, or the module or state dict itself *before training*,
            which is then saved beside the checkpoint (with the head's random initialisation, which nothing else keeps).
        settings: ``model`` (``FILE.py:factory``, ``hf:AutoModelFor…``), ``data``, ``test_data``, ``loss``,
            ``num_data``, ``head``, ``loss_range``, ``head_weights``, ``ignore``, ``entry``, ``layers``, ``confusion``,
            ``prior``, ``prior_samples``, ``prior_choices``: as on the command line. Relative paths count from the
            checkpoint's directory.

    Code that is named here may be run later without ``--trust-remote-code``, on this machine and as long as neither the
    checkpoint moves nor the code's file changes: a digest is kept in the user's cache (``GENBOUND_CACHE``).

    Returns:
        The file written. An earlier one keeps the settings that are not given anew.

    Raises:
        GenboundError: an unknown setting or a value of the wrong kind.

    Example:
        >>> import tempfile, torch, genbound
        >>> folder, net = tempfile.mkdtemp(), torch.nn.Linear(2, 2)
        >>> path = genbound.save_spec(folder, init=net, data="npz:train.npz", loss="cross_entropy")
        >>> print(path.read_text())
        init: genbound_init.safetensors
        data: npz:train.npz
        loss: cross_entropy
        <BLANKLINE>
    """
    return _write(checkpoint, init, settings, lasting=True)


def write_sidecar(checkpoint: str | os.PathLike, *, init: Any = None, **settings: Any) -> Path:
    """:func:`save_spec` for genbound's own commands, which write nothing outside the directory that they are given.

    Code that is named here may be run in this process; another one wants ``--trust-remote-code``.
    """
    return _write(checkpoint, init, settings, lasting=False)


def drop_settings(folder: Path, names: Iterable[str]) -> None:
    """Forget what an earlier run has said here."""
    import yaml

    said = _load(folder / SIDECAR)
    if left_out := [name for name in names if name in said]:
        kept = {name: value for name, value in said.items() if name not in left_out}
        (folder / SIDECAR).write_text(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), encoding="utf-8")


def copy_sidecar(source: Path, target: Path) -> None:
    """The same settings beside another checkpoint and no others, with the trust that they have and no more."""
    if said := read_sidecar(source.resolve()):
        (target / SIDECAR).unlink(missing_ok=True)  # of an earlier run, whose checkpoint lay there
        known = {name: spec for name, spec in code_in(said).items() if is_remembered(spec, source)}
        _save(target, said)
        remember(known, target, lasting=True)


def _write(checkpoint: str | os.PathLike, init: Any, settings: Mapping[str, Any], lasting: bool) -> Path:
    path = Path(checkpoint)
    folder = path.parent if path.suffix and not path.is_dir() else path
    folder.mkdir(parents=True, exist_ok=True)
    if init is not None and not isinstance(init, str | os.PathLike):
        init = _save_init(init, folder)
    given = {"init": None if init is None else str(init), **settings}
    given = _checked({name: value for name, value in given.items() if value is not None}, "save_spec")
    file = _save(folder, given)
    # Only what is given here: an earlier file may have come with the checkpoint.
    remember({name: located(spec, folder) for name, spec in code_in(given).items()}, folder, lasting)
    return file


def _save(folder: Path, given: Mapping[str, Any]) -> Path:
    import yaml

    content = {**_load(folder / SIDECAR), **given}
    (folder / SIDECAR).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder / SIDECAR


def _save_init(init: Any, folder: Path) -> str:
    from safetensors.torch import save_file
    from torch import nn

    state = init.state_dict() if isinstance(init, nn.Module) else init
    # Cloned: safetensors refuses tied weights, and reading them back ties them again by their equal values.
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in state.items()}, folder / INIT_FILE)
    return INIT_FILE


def folder_of(checkpoint: str | os.PathLike) -> Path:
    """The directory of a checkpoint, where its sidecar lies."""
    path = Path(checkpoint).expanduser()
    return path if path.is_dir() else path.parent


def read_sidecar(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """The settings beside a checkpoint, with paths that count from where they lie; empty if there are none."""
    folder = folder_of(checkpoint)
    content = _load(folder / SIDECAR)
    for name in SPECS:
        if name in content:
            content[name] = located(content[name], folder)
    for name in PATHS:
        if name in content:
            content[name] = str(folder / Path(content[name]).expanduser())
    return content


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    return _checked(read_yaml(file, repr(str(file)), "settings", may_be_empty=True), str(file))


def _checked(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = {}
    for name, value in content.items():
        key = str(name).replace("-", "_")
        if key not in SETTINGS:
            raise GenboundError(f"{where!r} has an unknown setting {name!r}; settings are {', '.join(SETTINGS)}")
        if isinstance(value, os.PathLike):
            value = str(value)
        if not isinstance(value, SETTINGS[key]) or isinstance(value, bool):
            kind = "a whole number" if SETTINGS[key] == (int,) else "a text"
            example = " such as nets.py:factory" if key == "model" else ""
            raise GenboundError(f"{where!r}: {key}: must be {kind}{example}, not {value!r}")
        found[key] = value
    return found


def located(spec: str, folder: Path) -> str:
    """The spec with a path that counts from ``folder``, if it has a path."""
    scheme, colon, rest = spec.partition(":")
    if not colon:
        return spec
    if scheme.endswith(".py"):
        return f"{folder / Path(scheme).expanduser()}:{rest}"
    if scheme in DATA_SCHEMES - {"hf"}:
        return f"{scheme}:{folder / Path(rest).expanduser()}"
    if scheme == "hf" and (folder / rest.partition("?")[0]).exists():
        return f"hf:{folder / rest}"
    return spec
