"""Damaged and hostile files, from seeds, for every reader of genbound, in one process with little memory and time.

``python tests/attack/mutations.py --cases 500 --seed 0 [--kinds safetensors yaml]`` prints what went wrong as JSON. A
case goes wrong where a reader raises anything else than one line, takes more than its time, or where code of a file is
run. What kills the interpreter is found by the case whose name was written last.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from genbound.errors import GenboundError

SECONDS, BYTES = 20, 1 << 30  # of one case; the memory is that beside what the libraries take
NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, -1e-320, float("nan"), float("inf"), True, None]
VALUES = [*NUMBERS, "", "x", "../x", "\x00\x1b[31m", [], {}, [[]], {"a": 1}, "9" * 50, ["x"] * 3, "hf", "x.py:f"]


CALL = b"cposix\nmkdir\n(X\x06\x00\x00\x00canarytR0"  # of a pickle: it leaves a mark where it is run


class TookTooLong(BaseException):
    """A case has spent its time; no reader may catch it."""


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        make: writes good files into a directory, and gives the name of the one that is damaged.
        read: reads the directory as genbound does.
        damage: bytes and a stream to other bytes.
    """

    make: Callable[[Path], str]
    read: Callable[[Path], object]
    damage: Callable[[bytes, random.Random], bytes]


# -- damage ------------------------------------------------------------------------------------------------------------


def any_bytes(data: bytes, stream: random.Random) -> bytes:
    """Bits turned, bytes set, parts cut out, doubled or put elsewhere, the end cut off."""
    found = bytearray(data)
    for _ in range(stream.choice([1, 1, 1, 2, 5, 20])):
        at, size = stream.randrange(len(found) + 1), stream.choice([1, 2, 4, 8, 64])
        how = stream.randrange(8)
        if how == 0 and found:
            found[at % len(found)] ^= 1 << stream.randrange(8)
        elif how == 1 and found:
            found[at % len(found)] = stream.choice([0, 1, 127, 128, 255])
        elif how == 2:
            del found[at : at + size]
        elif how == 3:
            found[at:at] = found[at : at + size]
        elif how == 4:
            found[at : at + 8] = struct.pack("<q", stream.choice([0, -1, 2**31, 2**62, -(2**63), 4 << 30]))
        elif how == 5:
            start = stream.randrange(len(found) + 1)
            found[at : at + size] = found[start : start + size]
        elif how == 6:
            found[at:at] = CALL
        elif stream.random() < 0.3:
            del found[at:]
    return bytes(found)


def inside_archive(data: bytes, stream: random.Random) -> bytes:
    """A member of a zip archive damaged, its checksum right; now and then the archive itself."""
    if stream.random() < 0.3:
        return any_bytes(data, stream)
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    names = source.namelist()
    hit = stream.choice(names)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            content = source.read(name)
            if name == hit and stream.random() < 0.1:
                continue
            archive.writestr(name, any_bytes(content, stream) if name == hit else content)
    return target.getvalue()


def in_header(data: bytes, stream: random.Random) -> bytes:
    """The header of safetensors with other values and its right length; now and then any bytes."""
    if stream.random() < 0.4:
        return any_bytes(data, stream)
    (size,) = struct.unpack("<Q", data[:8])
    header = in_json(data[8 : 8 + size], stream)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def in_json(data: bytes, stream: random.Random) -> bytes:
    """Values of JSON put in place of others, entries taken away or added; now and then any bytes."""
    if stream.random() < 0.2:
        return any_bytes(data, stream)
    content = json.loads(data)
    for _ in range(stream.choice([1, 1, 2, 4])):
        places = list(_places(content))
        if not places:
            break
        node, key = stream.choice(places)
        how = stream.random()
        if how < 0.2:
            del node[key]
        elif how < 0.3 and isinstance(node, dict):
            node[stream.choice(["", "x", "a.b", "__class__", "\x1b"])] = node.pop(key)
        elif how < 0.4:
            other, place = stream.choice(places)
            node[key] = copy.deepcopy(other[place])
        else:
            node[key] = copy.deepcopy(stream.choice(VALUES))
    return json.dumps(content).encode()


def _places(node):
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key
        yield from _places(value)


def in_text(data: bytes, stream: random.Random) -> bytes:
    """Words put in place of others, lines doubled; now and then any bytes."""
    if stream.random() < 0.5:
        return any_bytes(data, stream)
    lines = data.decode().split("\n")
    at = stream.randrange(len(lines))
    words = [
        "*a",
        "&a",
        "!!python/object/apply:os.system [touch canary]",
        "<<:",
        "- ",
        "'",
        '"',
        "{",
        "\t",
        "null",
        "9" * 400,
    ]
    place = stream.randrange(len(lines[at]) + 1)
    lines[at] = lines[at][:place] + stream.choice(words) + lines[at][place:]
    if stream.random() < 0.3:
        lines.insert(at, lines[stream.randrange(len(lines))])
    return "\n".join(lines).encode()


def in_lines(data: bytes, stream: random.Random) -> bytes:
    """A line of JSON damaged, or the text."""
    if stream.random() < 0.3:
        return in_text(data, stream)
    lines = data.splitlines()
    at = stream.randrange(len(lines))
    lines[at] = in_json(lines[at], stream)
    return b"\n".join(lines)


# -- good files --------------------------------------------------------------------------------------------------------


def state() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.arange(12.0).reshape(3, 4), "0.bias": torch.ones(3), "1.weight": torch.ones(2, 3).half()}


def _torch(form: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        content: dict = {"state_dict": state(), "epoch": 3, "args": {"lr": 0.1}}
        if form == "sparse":
            csr = torch.eye(3).to_sparse_csr()
            content = {"0.weight": torch.eye(4).to_sparse(), "1.weight": csr, "2.weight": torch.eye(4).to_sparse_csc()}
        torch.save(content, folder / "a.pt", _use_new_zipfile_serialization=form != "legacy")
        return "a.pt"

    return make


def _safetensors(folder: Path) -> str:
    from safetensors.torch import save_file

    save_file(state(), folder / "a.safetensors", {"format": "pt"})
    return "a.safetensors"


def _weights(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from genbound.checkpoints.state_file import read_state

        found = read_state(folder / name).tensors
        assert all(torch.isfinite(t).all() for t in found.values() if t.is_floating_point())
        return found

    return read


def _npz(folder: Path) -> str:
    np.savez(folder / "a.npz", x=np.ones((5, 2), np.float32), y=np.array([0, 1, 0, 1, 2]))
    return "a.npz"


def _data(spec: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from genbound.data import load_data

        samples = load_data(spec, base_dir=folder)
        return samples.batch(range(min(2, len(samples)))).targets.tolist()

    return read


def _table(form: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        import pandas as pd

        rows = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]]
        table = pd.DataFrame({"input_ids": rows, "label": [0, 1, 1, 0]})
        if form == "parquet":
            table.to_parquet(folder / "a.parquet")
        elif form == "jsonl":
            table.to_json(folder / "a.jsonl", orient="records", lines=True)
        else:
            pd.DataFrame({"image": ["a/i.png"] * 4, "label": [0, 1, 1, 0]}).to_csv(folder / "a.csv", index=False)
            _image(folder)
        return f"a.{form}"

    return make


def _image(folder: Path) -> str:
    from PIL import Image

    for name in ("a", "b"):
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(folder / name / "i.png")
    return "a/i.png"


def _yaml(folder: Path) -> str:
    torch.save(state(), folder / "a.pt")
    lines = [
        "init: a.pt",
        "data: npz:a.npz?x=x&y=y",
        "model: timm:resnet18",
        "head: zero",
        "entry: model",
        "num_data: 5",
    ]
    (folder / "genbound.yaml").write_text("\n".join(lines) + "\n")
    return "genbound.yaml"


def _read_yaml(folder: Path) -> object:
    from genbound.evaluation.loading import EvaluationSpec

    return EvaluationSpec(folder / "a.pt").completed()


SIZES = {
    "vocab_size": 20, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4,
    "max_position_embeddings": 8, "num_labels": 2,
}  # fmt: skip


def _bert(folder: Path) -> str:
    import transformers

    torch.manual_seed(0)
    transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)).save_pretrained(folder)
    (folder / "x.py").write_text("import os\nos.mkdir('canary')\ndef f(*_): pass\n")
    return "config.json"


def _read_pair(folder: Path) -> object:
    from genbound.checkpoints.architecture import build_pair

    return build_pair(folder, folder).rule


def _adapter(folder: Path) -> str:
    from safetensors.torch import save_file

    (folder / "base").mkdir()
    _bert(folder / "base")
    layer = "base_model.model.bert.encoder.layer.0.attention.self.query"
    weights = {f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)}
    save_file(weights, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"], "rank_pattern": {"query": 2}}
    (folder / "adapter_config.json").write_text(
        json.dumps(said | {"task_type": None, "bias": "none", "use_dora": False})
    )
    return "adapter_config.json"


def _read_adapter(folder: Path) -> object:
    from genbound.checkpoints.architecture import build_pair

    return build_pair(folder, folder / "base").rule


def _tokenizer(folder: Path) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "model_max_length": 8}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return "tokenizer.json"


def _read_tokenizer(folder: Path) -> object:
    from genbound.checkpoints.huggingface import load_tokenizer

    return type(load_tokenizer(folder)).__name__


def _results(folder: Path) -> str:
    from handmade import bound, run

    run({"hessian_distance": bound(0.6, 0.5, 0.7), "other": bound(None, log10=400.0)}).save(folder / "run")
    run().save(folder / "other")
    return "run/results.json"


def _read_results(folder: Path) -> object:
    from genbound.results.comparison import compare
    from genbound.results.export import tidy
    from genbound.results.results import load_results

    found = load_results(folder / "run")
    compared = compare([folder / "run", folder / "other"], allow_mixed=True)
    return (
        found.to_markdown(),
        found.summary(),
        compared.to_markdown(),
        compared.to_latex(),
        len(tidy([folder / "run"])),
    )


def _read_baseline(folder: Path) -> object:
    from genbound.results.regression import check

    return check(folder / "other", folder / "run" / "results.json").to_markdown()


KINDS = {
    "safetensors": Kind(_safetensors, _weights("a.safetensors"), in_header),
    "torch": Kind(_torch("zip"), _weights("a.pt"), inside_archive),
    "legacy": Kind(_torch("legacy"), _weights("a.pt"), any_bytes),
    "sparse": Kind(_torch("sparse"), _weights("a.pt"), inside_archive),
    "npz": Kind(_npz, _data("npz:a.npz"), inside_archive),
    "csv": Kind(_table("csv"), _data("csv:a.csv?image=image&label=label"), in_text),
    "jsonl": Kind(_table("jsonl"), _data("jsonl:a.jsonl?label=label"), in_lines),
    "parquet": Kind(_table("parquet"), _data("parquet:a.parquet?label=label"), any_bytes),
    "image": Kind(_image, _data("imagefolder:."), any_bytes),
    "yaml": Kind(_yaml, _read_yaml, in_text),
    "config": Kind(_bert, _read_pair, in_json),
    "adapter": Kind(_adapter, _read_adapter, in_json),
    "tokenizer": Kind(_tokenizer, _read_tokenizer, in_json),
    "results": Kind(_results, _read_results, in_json),
    "baseline": Kind(_results, _read_baseline, in_json),
}


# -- the walk ----------------------------------------------------------------------------------------------------------


def walk(kind: str, numbers: range, seed: int) -> tuple[int, list[dict[str, str]]]:
    """How many cases of a kind were read to the end, and what went wrong."""
    known, failures, read = KINDS[kind], [], 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.chdir(folder)
        file = folder / known.make(folder)
        good = file.read_bytes()
        known.read(folder)  # what is not damaged is read, and the libraries are loaded
        for number in numbers:
            print(f"{kind} {number}", file=sys.stderr, flush=True)
            file.write_bytes(known.damage(good, random.Random(f"{seed} {kind} {number}")))
            trouble = outcome(lambda: known.read(folder))
            read += trouble == ""
            if trouble.startswith("!") or (folder / "canary").exists():
                failures.append({"case": f"{kind} {number}", "seed": str(seed), "what": trouble or "code was run"})
        os.chdir("/")
    return read, failures


def outcome(read: Callable[[], object]) -> str:
    """Nothing where a file is read; the one line with which it is refused; else what went wrong, after a ``!``."""
    limit, begin = resource.getrlimit(resource.RLIMIT_AS), time.monotonic()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limit[1]))
    signal.alarm(SECONDS)
    try:
        read()
    except GenboundError as error:
        line = str(error)
        return line if "\n" not in line and len(line) < 1100 else f"! {line[:300]}"
    except TookTooLong:
        return "! more than its time"
    except BaseException as error:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f" at {where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else ""
        return f"! {type(error).__name__}: {str(error)[:200]}{place}"
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limit)
    return "" if time.monotonic() - begin < SECONDS else "! more than its time"


def _too_long(*_: object) -> None:
    raise TookTooLong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    faulthandler.enable()
    signal.signal(signal.SIGALRM, _too_long)
    each, found = -(-given.cases // len(given.kinds)), {}
    for kind in given.kinds:
        read, failures = walk(kind, range(each), given.seed)
        found[kind] = {"cases": each, "read": read, "failures": failures}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
