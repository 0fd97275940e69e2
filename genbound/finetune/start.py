"""Where fine-tuning starts: the pretrained weights in a network with a head for the task's classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from genbound.checkpoints import huggingface
from genbound.checkpoints.alignment import Signature, align
from genbound.checkpoints.config_limits import read_json
from genbound.checkpoints.heads import by_name, head_names
from genbound.checkpoints.huggingface import HubClass
from genbound.checkpoints.padding_token import name_padding, padding_token
from genbound.checkpoints.pair_spec import PairSpec
from genbound.checkpoints.sidecar import located
from genbound.checkpoints.state_file import StateFile, read_state
from genbound.checkpoints.vision import LIBRARIES, vision_model
from genbound.data.sample_parts import map_tensors
from genbound.data.spec import Reader
from genbound.errors import GenboundError
from genbound.network.forward import call_arguments, evaluation_mode, scores
from genbound.structure.scoring import scoring_of
from genbound.user_code import call_user, rng_untouched


@dataclass
class Start:
    """A network before its fine-tuning.

    Attributes:
        model: with the pretrained weights, and a seeded random head where INIT has none that fits.
        head: parameters of the output head.
        new: those that INIT did not give.
        spec: the model SPEC that builds it again; ``None`` for a directory that describes itself.
        rule: what chose the architecture.
        tokenizer_dir: directory with a tokenizer.
        sha256: of INIT.
        trust_remote_code: code that INIT's own files name may be run.
    """

    model: nn.Module
    head: tuple[str, ...]
    new: tuple[str, ...]
    spec: str | None
    rule: str
    tokenizer_dir: Path | None
    sha256: str
    trust_remote_code: bool = False

    def tokenizer(self) -> Any:
        """The tokenizer that lies beside INIT, if there is one."""
        folder = self.tokenizer_dir
        return None if folder is None else huggingface.load_tokenizer(folder, self.trust_remote_code)


def text_reader(init: str | os.PathLike, trust_remote_code: bool = False) -> Reader:
    """INIT's tokenizer, if there is one, and what it pads with: text can then be read before the model is built."""
    path = Path(init).expanduser()
    path = path if path.is_dir() else path.parent
    folder, file = huggingface.tokenizer_folder(path), path / "config.json"
    tokenizer = None if folder is None else huggingface.load_tokenizer(folder, trust_remote_code)
    said = read_json(file) if file.is_file() else None
    config = SimpleNamespace(**said) if isinstance(said, dict) else None
    padding = padding_token(config, tokenizer)
    return Reader(tokenizer, trust_remote_code=trust_remote_code, padding=padding)


def build_start(
    init: str | os.PathLike,
    model: Any,
    num_classes: int,
    label2id: Mapping[str, int] | None,
    images: bool,
    seed: int,
    trust_remote_code: bool = False,
    head_weights: str | None = None,
    inputs: Any = None,
) -> Start:
    """Build the network that ``model``, a sidecar or INIT itself names and put INIT's weights in.

    Args:
        init: pretrained checkpoint.
        model: model SPEC, a factory, or ``None``.
        num_classes: of the task; a head of another size is drawn anew.
        label2id: names of the classes, for the config of a transformers model.
        images: the inputs are images, not text; decides which head a base transformers model gets.
        seed: of the head.
        trust_remote_code: allow code that INIT's own files name: in its directory, or in its ``genbound.yaml``.
        head_weights: patterns of the weights that form the head, as one text with commas.
        inputs: of one sample; a pass of it says which weights give the scores, if nothing else says what the head is.

    Raises:
        GenboundError: no architecture, or INIT does not fit it.
    """
    said = PairSpec(init, model=model, head_weights=head_weights, trust_remote_code=trust_remote_code).completed()
    file = read_state(init, said.entry, said.ignore or ())
    with rng_untouched():
        torch.manual_seed(seed)  # draws the head
        if said.hub_class is not None:
            hub = _hub_class(file, said.hub_class, num_classes, label2id, images, trust_remote_code)
            network, new = _of_hub_class(file, hub)
            head = find_head(network, said.head_weights or (), inputs)
            rule, spec = hub.choice, None
        else:
            network = _of_factory(file, said.model, num_classes)
            head = find_head(network, said.head_weights or (), inputs)
            new = _filled(network, file, head)
            # A function's name, not its address: the same call must find the same run again.
            named = said.model if isinstance(said.model, str) else None
            rule = f"--model {named or getattr(said.model, '__qualname__', type(said.model).__name__)}"
            spec = None if named is None else located(named, Path.cwd())
    sharing = huggingface.tokenizer_folder(file.directory)
    name_padding(network, sharing, trust_remote_code)
    stray = [name for name in new if name not in head]
    if stray:
        raise GenboundError(
            f"INIT {str(init)!r} lacks {len(stray)} weights of the model that are not its head "
            f"({', '.join(stray[:3])}): is it a checkpoint of this architecture? --head-weights says what the head is"
        )
    return Start(network.float(), head, new, spec, rule, sharing, file.sha256, trust_remote_code)


def _hub_class(
    file: StateFile,
    auto: str,
    num_classes: int,
    label2id: Mapping[str, int] | None,
    images: bool,
    trust_remote_code: bool,
) -> HubClass:
    """The transformers class for the task, with a config that knows the task's classes."""
    if file.config is None:
        raise GenboundError(f"{str(file.path)!r} does not say which network it belongs to: add --model FILE.py:factory")
    written = (file.config.get("architectures") or [""])[0]
    if not auto and not written.endswith("Classification"):
        auto = "AutoModelForImageClassification" if images else "AutoModelForSequenceClassification"
    hub = huggingface.resolve_class(file.directory, auto, trust_remote_code, file.tensors)
    if hub.config.num_labels != num_classes or label2id:
        hub.config.num_labels = num_classes
        names = label2id or {f"LABEL_{i}": i for i in range(num_classes)}
        if len(names) == num_classes:
            hub.config.label2id, hub.config.id2label = dict(names), {i: name for name, i in names.items()}
    return hub


def _of_hub_class(file: StateFile, hub: HubClass) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with INIT's weights, and the parameters that INIT did not give."""
    network, state, _ = huggingface.load_through(hub, file.tensors)
    given = {name for name, value in state.items() if not value.is_meta}
    return network, tuple(name for name, _ in network.named_parameters() if name not in given)


def find_head(network: nn.Module, patterns: Iterable[str], inputs: Any) -> tuple[str, ...]:
    """The head as patterns, transformers or a pass of a sample say; by names where the network cannot read it."""
    if inputs is None or patterns or by_name(network)[0] is not None:
        return head_names(network, patterns)
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    inputs = map_tensors(inputs, lambda t: t.to(dtype) if t.is_floating_point() else t)
    args, kwargs = call_arguments(inputs)
    try:
        with evaluation_mode(network):
            scoring = scoring_of(dict(network.named_parameters()), inputs, lambda: scores(network(*args, **kwargs)))
    except torch.OutOfMemoryError:
        raise
    except (GenboundError, RuntimeError, IndexError, TypeError, ValueError):
        scoring = None  # what is wrong is said before training
    return head_names(network, scoring=scoring)


def _of_factory(file: StateFile, spec: Any, num_classes: int) -> nn.Module:
    """The network that a factory or a library makes."""
    library, _, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if library in LIBRARIES and name:
        network, _ = vision_model(library, name, file.tensors, num_classes=num_classes)
    else:
        network = spec() if callable(spec) else call_user(spec, ".", "model factory")
    if not isinstance(network, nn.Module):
        raise GenboundError(f"model {spec!r} returns {type(network).__name__}; a factory must return a torch.nn.Module")
    return network


def _filled(network: nn.Module, file: StateFile, head: tuple[str, ...]) -> tuple[str, ...]:
    """Put INIT's weights into the network; the parameters that INIT did not give."""
    fresh = network.state_dict()
    alignment = align(Signature.of(network), fresh, file.tensors, head)
    with torch.no_grad():
        for name, value in fresh.items():
            if name in alignment.init and name not in alignment.new_head:
                source: Tensor = file.tensors[alignment.init[name]]
                if source.shape == value.shape:
                    value.copy_(source)
    return alignment.new_head
