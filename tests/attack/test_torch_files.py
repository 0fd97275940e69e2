"""Small files of ``torch.save`` that would corrupt memory or allocate it: each is refused in one line, and in time."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from genbound.checkpoints.state_file import read_state
from genbound.errors import GenboundError

# Some of these kinds are announced as unfinished, or as going away, where they are made.
pytestmark = pytest.mark.filterwarnings("ignore")
LIMIT = 1 << 30  # of memory, above what the libraries take

GUARD = """
import resource, signal, sys
from genbound.checkpoints.state_file import read_state
from genbound.errors import GenboundError
import torch, warnings
warnings.simplefilter("ignore")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {limit}, -1))
signal.alarm(40)
for file in sys.argv[1:]:
    try:
        read_state(file)
        print("read", file)
    except GenboundError as error:
        print(str(error))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def outcomes(*files: Path) -> list[str]:
    """What reading each says, in a process with little memory and little time."""
    done = subprocess.run(
        [sys.executable, "-c", GUARD.format(limit=LIMIT), *map(str, files)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(files)
    return lines


class Call:
    """Pickles as a call of whatever it is given."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save(file: Path, content) -> Path:
    with torch.sparse.check_sparse_tensor_invariants(False):
        torch.save(content, file)
    return file


def sparse(layout: str, break_it):
    """A sparse 4 x 4 tensor, with its parts changed."""
    dense = torch.eye(4)
    if layout == "coo":
        found = dense.to_sparse()
        indices, values, size = found._indices().clone(), found._values().clone(), (4, 4)
        parts = break_it([indices, values, size])
        return torch.sparse_coo_tensor(*parts[:3], check_invariants=False, is_coalesced=(parts[3:] or [None])[0])
    made = getattr(dense, f"to_sparse_{layout}")(*([2] if layout.startswith("b") else []))
    row = layout in ("csr", "bsr")
    outer = made.crow_indices() if row else made.ccol_indices()
    inner = made.col_indices() if row else made.row_indices()
    outer, inner, values = (part.clone() for part in (outer, inner, made.values()))
    outer, inner, values, size = break_it([outer, inner, values, (4, 4)])[:4]
    return torch.sparse_compressed_tensor(outer, inner, values, size, layout=made.layout, check_invariants=False)


def at(place, value):
    def change(parts):
        parts[place].view(-1)[-1] = value
        return parts

    return change


def swapped(parts):
    return [torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]), *parts[1:], True]


BROKEN = {
    **{f"coo {value}": ("coo", at(0, value)) for value in (4, 1 << 40, -1, -(1 << 62))},
    "coo coalesced": ("coo", swapped),
    **{f"{kind} outer {v}": (kind, at(0, v)) for kind in ("csr", "csc", "bsr", "bsc") for v in (3, 9, 1 << 40, -1)},
    **{f"{kind} inner {v}": (kind, at(1, v)) for kind in ("csr", "csc", "bsr", "bsc") for v in (4, 1 << 40, -1)},
}  # fmt: skip


def test_no_sparse_index_leaves_its_tensor(tmp_path):
    files = [save(tmp_path / f"{i}.pt", {"w": sparse(*BROKEN[name])}) for i, name in enumerate(BROKEN)]
    for name, said in zip(BROKEN, outcomes(*files), strict=True):
        assert "is no readable torch file" in said, (name, said)


@pytest.mark.parametrize("kind", ["coo", "csr", "csc", "bsr", "bsc"])
def test_whole_sparse_weights_are_read(kind, tmp_path):
    file = save(tmp_path / "a.pt", {"w": sparse(kind, lambda parts: parts)})
    assert torch.equal(read_state(file).tensors["w"], torch.eye(4))


def huge(rows: int, columns: int):
    return torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (rows, columns), check_invariants=True)


ORDINARY = torch._utils
ALLOCATING = {
    "sparse": {"w": huge(20000, 10000)},
    "sparse, shared": {f"w{i}": value for value in [huge(4000, 4000)] for i in range(100)},
    "sparse, many": {f"w{i}": huge(4000, 4000) for i in range(100)},
    "bytearray": {"w": torch.ones(2), "x": Call(bytearray, 4 << 30)},
    "storage": {"w": Call(torch.FloatStorage, 1 << 31)},
    "untyped storage": {"w": Call(torch.UntypedStorage, 4 << 30)},
    "tensor class": {"w": Call(torch.FloatTensor, 1 << 30)},
    "behind its storage": {
        "w": Call(ORDINARY._rebuild_tensor_v2, torch.ones(2).untyped_storage(), 0, (1 << 30,), (1,), False, {})
    },
    "offset": {
        "w": Call(ORDINARY._rebuild_tensor_v2, torch.ones(2).untyped_storage(), 1 << 29, (2,), (1,), False, {})
    },
    "negative": {"w": Call(ORDINARY._rebuild_tensor_v2, torch.ones(2).untyped_storage(), 0, (2,), (-1,), False, {})},
    "expanded bytes": {"w": torch.ones(1).to(torch.float8_e4m3fn).expand(1 << 30)},
    "expanded": {"w": torch.ones(1).expand(1 << 30)},
    "meta": {"w": torch.empty(1 << 40, device="meta")},
}  # fmt: skip


def test_no_small_file_takes_gigabytes(tmp_path):
    files = [save(tmp_path / f"{i}.pt", ALLOCATING[name]) for i, name in enumerate(ALLOCATING)]
    assert all(file.stat().st_size < 60_000 for file in files)
    for name, said in zip(ALLOCATING, outcomes(*files), strict=True):
        assert not said.startswith("read") and 20 < len(said) < 1000, (name, said)


def zipped(file: Path, content: bytes) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", content), archive.writestr("a/version", "3")
    return file


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


STREAMS = {
    "memo index": opcodes(b"}r\xff\xff\xff\x7f"),
    "bytes longer than the file": opcodes(b"\x8e" + (1 << 40).to_bytes(8, "little")),
    "bytearray of protocol 5": opcodes(b"\x96" + (1 << 33).to_bytes(8, "little")),
    "copies": opcodes(
        b"(", b"K\x01" * 50_000, b"lq\x00", b"".join(b"cbuiltins\nset\nh\x00\x85R0" for _ in range(2000))
    ),
    "extension": opcodes(b"\x84\xff\xff\xff\x7f"),
    "deep": opcodes(b"]" * 200_000, b"a" * 199_999),
    "an encoding": opcodes(b"c_codecs\nencode\nX\x04\x00\x00\x00abcdX\x04\x00\x00\x00idna\x86R"),
}


def test_no_stream_of_opcodes_hangs_or_allocates(tmp_path):
    files = [zipped(tmp_path / f"{i}.pt", STREAMS[name]) for i, name in enumerate(STREAMS)]
    for name, said in zip(STREAMS, outcomes(*files), strict=True):
        assert not said.startswith("read") and len(said) < 1000, (name, said)


SAVED = {
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.5, 0, torch.qint8),
    "by channel": lambda x: torch.quantize_per_channel(x, torch.full((4,), 0.5), torch.zeros(4), 0, torch.qint8),
    "half": lambda x: x.half(),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "parameter": torch.nn.Parameter,
    "buffer": lambda x: torch.nn.Buffer(x),
    "transposed": lambda x: x.T,
    "negated view": lambda x: torch._neg_view(-x),
    "part of a storage": lambda x: torch.cat([x, x])[4:],
}
REFUSED = {
    "nested": lambda x: torch.nested.nested_tensor([x, x[:2]]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged),
    "meta": lambda x: x.to("meta"),
    "four bits": lambda x: torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
}


@pytest.mark.parametrize("kind", SAVED)
def test_kinds_of_tensors_that_are_read(kind, tmp_path):
    found = read_state(save(tmp_path / "a.pt", {"w": SAVED[kind](torch.eye(4))})).tensors["w"]
    assert torch.equal(found.float(), torch.eye(4))


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_of_tensors_that_are_refused(kind, tmp_path):
    file = save(tmp_path / "a.pt", {"w": REFUSED[kind](torch.eye(4))})
    with pytest.raises(GenboundError, match="save|calls"):
        read_state(file)


def test_a_legacy_file_is_played_through_too(tmp_path):
    with open(tmp_path / "a.pt", "wb") as stream:
        torch.save({"w": torch.ones(2), "x": Call(bytearray, 4 << 30)}, stream, _use_new_zipfile_serialization=False)
    assert "bytearray" in outcomes(tmp_path / "a.pt")[0]


def test_what_training_scripts_save_is_read(tmp_path):
    """Containers, numbers, arguments and arrays beside the weights."""
    import argparse
    import collections

    import numpy as np

    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward(), optimizer.step()
    content = {
        "model": collections.OrderedDict(net.state_dict()), "optimizer": optimizer.state_dict(), "epoch": 3,
        "args": argparse.Namespace(lr=0.1, path=Path("x")), "scores": np.arange(3.0), "best": np.float64(0.5),
        "seen": {1, 2}, "raw": bytearray(b"abc"), "z": complex(1, 2), "counts": collections.defaultdict(int, a=1),
        "rng": torch.get_rng_state(), "size": torch.Size([2, 3]), "dtype": torch.float16, "device": torch.device("cpu"),
    }  # fmt: skip
    for legacy in (False, True):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        if legacy:  # it does not know arguments and arrays
            plain = {name: content[name] for name in ("model", "optimizer", "epoch", "seen", "raw")}
            torch.save(plain, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
        assert torch.equal(read_state(tmp_path / "a.pt").tensors["weight"], net.weight.detach())
