"""Models of transformers: the class behind a ``config.json``, and weights through its own key conversions."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genbound.checkpoints.config_limits import check_config, read_json
from genbound.checkpoints.names import common_prefix, strip_prefixes, unwrapped
from genbound.errors import GenboundError, first_line
from genbound.optional import import_optional

IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")


def import_transformers() -> Any:
    """transformers, or one line on how to get it."""
    return import_optional("transformers", "this checkpoint needs transformers", "genbound[hf]")


@dataclass(frozen=True)
class HubClass:
    """A model class of transformers with the config that builds it.

    Attributes:
        cls: the class, one of ``torch.nn.Module``.
        config: its config; ``num_labels`` is set to what the head in the file has.
        choice: a sentence that says what decided.
    """

    cls: Any
    config: Any
    choice: str

    def build(self) -> nn.Module:
        """A new model with weights drawn at random."""
        return self.cls(self.config)


def resolve_class(
    folder: Path, auto: str = "", trust_remote_code: bool = False, tensors: Mapping[str, Tensor] | None = None
) -> HubClass:
    """The model class of a directory with ``config.json``.

    Args:
        folder: where ``config.json`` lies.
        auto: ``AutoModelFor…`` or a class name; by default ``architectures[0]`` of the config.
        trust_remote_code: allow a class whose code lies in the directory.
        tensors: the weights that the config has to fit.

    Raises:
        GenboundError: no usable config, quantised weights, or a class that this version of transformers does not have.
    """
    config = _read_config(folder, trust_remote_code, tensors or {})
    if getattr(config, "quantization_config", None):
        raise GenboundError(
            f"{str(folder)!r} holds quantised weights, whose distance from the start is mostly rounding; "
            "dequantise the model (model.dequantize()) and save it in full"
        )
    written = getattr(config, "architectures", None)
    name = auto or (written[0] if isinstance(written, list) and written and isinstance(written[0], str) else "")
    if not name:
        raise GenboundError(
            f"{str(folder / 'config.json')!r} names no architecture; say --model "
            "hf:AutoModelForSequenceClassification or what the model is for"
        )
    own = _class_in_folder(folder, config, name) if trust_remote_code else None
    if own is not None:
        return HubClass(own, config, f"code of the checkpoint, {name}")
    cls = _class_of_library(folder, config, name)
    return HubClass(
        cls, config, f"transformers {cls.__name__}" + (f" ({auto})" if auto else ", config.json architectures")
    )


def _read_config(folder: Path, trust_remote_code: bool, tensors: Mapping[str, Tensor]) -> Any:
    transformers = import_transformers()
    if not (folder / "config.json").is_file():
        raise GenboundError(f"{str(folder)!r} has no config.json; give a Hugging Face directory or another --model")
    if isinstance(said := read_json(folder / "config.json"), dict):
        check_config(said, tensors, folder / "config.json")
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
            _pin_kernels(config)
            return config
    except Exception as error:
        hint = (
            ""
            if trust_remote_code
            else "; a model with code of its own needs --trust-remote-code (read that code first)"
        )
        raise GenboundError(
            f"transformers {transformers.__version__} does not understand {str(folder / 'config.json')!r}: "
            f"{first_line(error)}{hint}"
        ) from error


def _pin_kernels(config: Any) -> None:
    """Take out what would fetch and run compiled code: kernels of the hub by name, for attention or for experts.

    What transformers ships is left as it is, also where the config says nothing.
    """
    for name in ("_attn_implementation", "_experts_implementation"):
        if getattr(config, name, None) not in (None, "eager", "sdpa", "grouped_mm", "batched_mm"):
            setattr(config, name, None)
    for name in getattr(config, "sub_configs", None) or {}:
        if (part := getattr(config, name, None)) is not None:
            _pin_kernels(part)


def _class_in_folder(folder: Path, config: Any, name: str) -> type[nn.Module] | None:
    """The class of that name whose code lies beside the weights; ``None`` where there is none."""
    remote = getattr(config, "auto_map", None) or {}
    reference = next((ref for key, ref in remote.items() if name in (key, str(ref).rpartition(".")[2])), None)
    if not reference:
        return None
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module(reference, str(folder))


def _class_of_library(folder: Path, config: Any, name: str) -> type[nn.Module]:
    """The class of that name in transformers; of an ``AutoModel`` the class that it stands for."""
    transformers = import_transformers()
    try:
        found = getattr(transformers, name)
        if not name.startswith("AutoModel"):
            if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
                raise TypeError(f"{name} is no model")  # the name comes out of a file, and calling it runs it
            return found
        with quiet(), torch.device("meta"):  # the mapping is private; without storage this costs nothing
            return type(found.from_config(config, trust_remote_code=False))  # left open, it would ask on the terminal
    except Exception as error:
        raise GenboundError(
            f"transformers {transformers.__version__} has no {name} for {str(folder)!r}: {first_line(error)}"
        ) from error


def load_through(hub: HubClass, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]:
    """Load tensors through a class of transformers, which renames and fuses what older versions wrote.

    A base checkpoint without the class's prefix loads as well. What the file does not have is drawn at random
    by transformers; it is *not* part of the returned tensors, so nobody can take it for weights.

    Args:
        hub: the class and its config.
        tensors: a state dict, values of any shape.

    Returns:
        The model; its state by the model's names, with shape-only tensors for those that did not fit; and the
        names in the file that were not used.

    Raises:
        GenboundError: config and file do not belong together, or transformers cannot load them.
    """
    tensors = _known_names(hub, tensors)
    model, info = _from_pretrained(hub, tensors)
    absent = set(info["missing_keys"])
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in absent}
    prefix = f"{model.base_model_prefix}." if getattr(model, "base_model_prefix", "") else ""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, shape, _ in info["mismatched_keys"]:
        # Weights tied to one that did not fit hold random numbers as well, though no key of theirs is missing.
        for other in [other for other in state if parameters.get(other, 0) is parameters.get(name)]:
            del state[other]
        own = next((tensors[key] for key in strip_prefixes(tensors, [name], prefix)), None)
        fits = own is not None and tuple(own.shape) == tuple(shape)
        state[name] = own if own is not None and fits else torch.empty(tuple(shape), device="meta")
    return model.eval(), state, tuple(sorted(info["unexpected_keys"]))


def _from_pretrained(hub: HubClass, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    """The model in the widest precision that the tensors have, and the report of transformers on the names."""
    floating = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    dtype = max(floating, key=lambda kind: torch.finfo(kind).bits, default=torch.float32)
    try:
        with quiet():
            return hub.cls.from_pretrained(
                None,
                config=hub.config,
                state_dict=dict(tensors),
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise GenboundError(
            f"transformers cannot load the checkpoint as {hub.cls.__name__}: {first_line(error)}"
        ) from error


def _known_names(hub: HubClass, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what wrappers and training classes put before their names.

    Names that transformers itself renames stay as they are: only a prefix that most names have is taken off.
    """
    empty = skeleton(hub, tensors)
    own = set(empty.state_dict())
    base = f"{getattr(empty, 'base_model_prefix', '')}."
    expected = own | {name.removeprefix(base) for name in own if len(base) > 1}
    plain = {unwrapped(name): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        plain = dict(tensors)
    if 4 * len(expected & set(plain)) >= min(len(plain), len(expected)):
        return plain
    prefix = common_prefix(plain, own) or common_prefix(plain, expected)
    return {name.removeprefix(prefix): tensor for name, tensor in plain.items()}


def skeleton(hub: HubClass, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model without storage; refuses a config that describes far more numbers than the file has."""
    _check_config(hub.config, len(tensors))
    try:
        with quiet(), torch.device("meta"):  # without storage: a wrong config must not allocate
            empty = hub.build()
    except Exception as error:
        raise GenboundError(
            f"transformers cannot build {hub.cls.__name__} from config.json: {first_line(error)}"
        ) from error
    asked, given = (sum(t.numel() for t in group.values()) for group in (empty.state_dict(), tensors))
    if asked > 4 * given + 50_000_000:
        raise GenboundError(
            f"config.json describes a model of {asked:,} numbers and the file has {given:,}: they do not belong "
            "together; restore config.json from the original"
        )
    return empty


def _check_config(config: Any, num_tensors: int) -> None:
    """Refuse sizes that no file of so many tensors can have, before anything is built with them."""
    for name, value in config.to_dict().items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if "layer" in name and "num" in name and value > 2 * num_tensors + 100:
            raise GenboundError(
                f"config.json has {name} = {value} and the file {num_tensors} tensors; restore the original"
            )
        if abs(value) > 1 << 40 and "length" not in name and name not in ("rope_theta",):
            raise GenboundError(f"config.json has {name} = {value}, which is no size of a model; restore the original")


def load_finetuned(
    hub: HubClass, tensors: Mapping[str, Tensor], head: Callable[[nn.Module], Iterable[str]]
) -> tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]:
    """:func:`load_through`, with as many classes as the head in the file has.

    A config may not tell them: transformers writes no ``id2label`` for two classes, and a state dict saved
    beside the config of its base model has classes that this config does not know.

    Args:
        hub: the class and its config, whose ``num_labels`` is corrected.
        tensors: a state dict, values of any shape.
        head: model -> names of the head's parameters.
    """
    model, state, unused = load_through(hub, tensors)
    rows = {tensor.shape[0] for name, tensor in state.items() if tensor.is_meta and name in head(model)}
    if len(rows) == 1 and hub.config.num_labels != (count := rows.pop()):
        hub.config.num_labels = count
        model, state, unused = load_through(hub, tensors)
    return model, state, unused


def tied_as(hub: HubClass, said: Any) -> HubClass:
    """The class with its word embeddings tied, where a config says that they were: a file has tied weights once.

    Args:
        hub: of the fine-tuned model, which may have been untied since.
        said: content of INIT's ``config.json``, if there is one.
    """
    config = hub.config
    same = isinstance(said, dict) and said.get("model_type") == config.model_type
    if not same or getattr(config, "tie_word_embeddings", True):
        return hub
    if not type(config).from_dict(said).tie_word_embeddings:
        return hub
    config = copy.deepcopy(config)
    config.tie_word_embeddings = True
    return dataclasses.replace(hub, config=config)


def head_parameters(model: nn.Module) -> tuple[str, ...] | None:
    """Parameters outside the base model; ``None`` for what has no base model inside."""
    prefix = getattr(model, "base_model_prefix", None)
    if not isinstance(prefix, str) or not prefix or not isinstance(getattr(model, prefix, None), nn.Module):
        return None
    return tuple(name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}."))


def predicts_next_token(model: Any) -> bool:
    """It is a causal language model of transformers: each token is the label of the one before it."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def tokenizer_folder(*folders: Path) -> Path | None:
    """The first directory that holds a tokenizer."""
    return next((folder for folder in folders if any((folder / name).is_file() for name in TOKENIZER_FILES)), None)


def image_folder(*folders: Path) -> Path | None:
    """The first directory that holds the settings of an image processor."""
    return next((folder for folder in folders if any((folder / name).is_file() for name in IMAGE_FILES)), None)


def load_image_processor(folder: Path, trust_remote_code: bool = False) -> Any:
    """The image processor of a directory, resizing by Pillow.

    Left to itself transformers resizes by torchvision where that is installed, to other pixels.
    """
    # transformers 4 understands the first of the two, and transformers 5 the second.
    by_pillow = {"use_fast": False, "backend": "pil"}
    return _load("AutoImageProcessor", "image processor", folder, trust_remote_code, **by_pillow)


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a directory."""
    return _load("AutoTokenizer", "tokenizer", folder, trust_remote_code)


def _load(auto: str, what: str, folder: Path, trust_remote_code: bool, **more: Any) -> Any:
    transformers = import_transformers()
    if not trust_remote_code:
        _refuse_dictionaries(folder)
    try:
        with quiet():
            return getattr(transformers, auto).from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code, **more
            )
    except Exception as error:
        raise GenboundError(
            f"the {what} in {str(folder)!r} cannot be loaded: {first_line(error)}; save it again"
        ) from error


def _refuse_dictionaries(folder: Path) -> None:
    """Refuse settings of analysers of Japanese, which load dictionaries and plugins from any path."""
    file = folder / "tokenizer_config.json"
    said = read_json(file) if file.is_file() else None
    for name in ("mecab_kwargs", "sudachi_kwargs", "jumanpp_kwargs"):
        if isinstance(said, dict) and said.get(name):
            raise GenboundError(
                f"{str(file)!r} has {name}, which load other files as they like: read them, then allow it with "
                "--trust-remote-code"
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the reports and progress bars of transformers; genbound writes its own.

    Nothing is asked on the terminal, and nothing is downloaded.
    """
    import huggingface_hub.constants
    from transformers import dynamic_module_utils
    from transformers.utils import logging

    asks, online = dynamic_module_utils.TIME_OUT_REMOTE_CODE, huggingface_hub.constants.HF_HUB_OFFLINE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE, huggingface_hub.constants.HF_HUB_OFFLINE = 0, True

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their deprecations among themselves are no news to the user
            yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE, huggingface_hub.constants.HF_HUB_OFFLINE = asks, online
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
