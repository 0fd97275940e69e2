"""Text as samples: tokenised by the checkpoint's own tokenizer, padded to the longest of each batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from genbound.data.kept_tokens import KeptTokens, Row
from genbound.data.sample_parts import IGNORED
from genbound.data.samples import Batch, Samples
from genbound.data.spec import Reader
from genbound.errors import GenboundError, first_line

Tokens = dict[str, list[int]]
AT_ONCE = 1024  # texts that are tokenised together for a digest


class TokenSamples(Samples):
    """Tokenised sequences of different lengths, padded to the longest of their batch; sequences of labels too.

    Args:
        rows: one dict a sample: ``input_ids`` and what else the model takes, each a list with one number a token.
        labels: one label a sample, or a list with one a token (-100 marks tokens that do not count).
        padding: the number that each input is padded with, 0 where it is not named.
        side: where the padding goes, ``right`` or ``left``.
        next_token: each token is the label of the one before it, as in a causal language model, but for those that the
            ``attention_mask`` of a row leaves out; ``labels`` given for it
            stand beside the tokens they label (the convention of transformers) and are shifted here.
    """

    def __init__(
        self, rows: Sequence[Tokens], labels: Any, padding: dict[str, int] | None = None, side: str = "right",
        next_token: bool = False, spec: str = "",
    ):  # fmt: skip
        super().__init__(len(rows), spec)
        self._rows, self._labels, self._padding = rows, labels, padding or {}
        self._side, self._next_token = side, next_token

    def _tokens(self, indices: list[int]) -> list[Tokens]:
        for i in indices:
            row, where = self._rows[i], f"sample {i} of {self.spec or 'the tokens'}"
            odd = next((name for name, values in row.items() if not hasattr(values, "__len__")), None)
            if odd is not None:
                raise GenboundError(f"{where} has no list of tokens in {odd!r}; tokenise it again")
            lengths = {name: len(values) for name, values in row.items()}
            if len(set(lengths.values())) > 1:
                raise GenboundError(f"{where} has inputs of different lengths {lengths}; tokenise it again")
            if not all(lengths.values()):
                raise GenboundError(
                    f"{where} has no token (an empty text?): the network has nothing to read; remove it"
                )
        return [self._rows[i] for i in indices]

    def size(self, i: int) -> int:
        """How many tokens the sample has."""
        return len(next(iter(self._tokens([i])[0].values())))

    def _label(self, i: int, row: Tokens) -> Any:
        label = self._labels[i] if self._labels is not None else None
        where = f"sample {i} of {self.spec or 'the texts'}"
        if self._next_token:
            label = label.tolist() if isinstance(label, Tensor) else label
            label = (
                label if isinstance(label, list) else _own_labels(row)
            )  # a class of the whole text says nothing here
            if len(label) < 2:
                raise GenboundError(f"{where} has one token and so no next one to predict; remove it")
            label = [*label[1:], IGNORED]
        if isinstance(label, list) and len(label) != len(row["input_ids"]):
            raise GenboundError(
                f"{where} has {len(row['input_ids'])} tokens and {len(label)} labels; give one label a token"
            )
        if isinstance(label, list) and all(number == IGNORED for number in label):
            raise GenboundError(f"{where} has no labelled token, so no loss is defined for it; remove it")
        return label

    def batch(self, indices: Iterable[int]) -> Batch:
        """The samples at ``indices``, padded to the longest of them."""
        indices = [int(i) for i in indices]
        rows = self._tokens(indices)
        names = list(rows[0])
        inputs = {name: self._pad([row[name] for row in rows], self._padding.get(name, 0)) for name in names}
        labels = [self._label(i, row) for i, row in zip(indices, rows, strict=True)]
        if isinstance(labels[0], list):
            return Batch(inputs, self._pad(labels, IGNORED), indices)
        return Batch(inputs, torch.stack([torch.as_tensor(label) for label in labels]), indices)

    def _pad(self, rows: list[list[int]], value: int) -> Tensor:
        # By hand, because tokenizer.pad refuses the many causal models that have no padding token.
        width = max(len(row) for row in rows)
        fill = [[value] * (width - len(row)) for row in rows]
        left = self._side == "left"
        try:
            return torch.tensor([blank + row if left else row + blank for blank, row in zip(fill, rows, strict=True)])
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise GenboundError(
                f"the tokens of {self.spec or 'the samples'} are no whole numbers ({first_line(error)[:200]}); "
                "tokenise them again"
            ) from error

    def digest(self) -> str:
        """SHA-256 of the tokens and the labels."""
        sha = hashlib.sha256(f"tokens|{self._next_token}|".encode())
        for i in range(len(self)):
            label = None if self._labels is None else torch.as_tensor(self._labels[i]).tolist()
            sha.update(json.dumps([self._rows[i], label], sort_keys=True).encode())
        return sha.hexdigest()

    def content_digest(self) -> str:
        """SHA-256 of the tokens as a pass is given them, whatever tokenizer they are from, and the labels."""
        sha = hashlib.sha256(f"{self._next_token}|{self._side}|{sorted(self._padding.items())}|".encode())
        for start in range(0, len(self), AT_ONCE):
            indices = list(range(start, min(start + AT_ONCE, len(self))))
            rows = self._tokens(indices)
            labels = [torch.as_tensor(self._label(i, row)).tolist() for i, row in zip(indices, rows, strict=True)]
            sha.update(json.dumps([rows, labels], sort_keys=True).encode())
        return sha.hexdigest()


def _own_labels(row: Tokens) -> list[int]:
    """A row's tokens as labels; what the data have padded is neither predicted nor predicted from."""
    tokens, mask = row["input_ids"], row.get("attention_mask", ())
    if all(mask):
        return tokens
    pairs = zip(tokens, mask, [1, *mask[:-1]], strict=True)
    return [token if here and before else IGNORED for token, here, before in pairs]


class TextSamples(TokenSamples):
    """Sentences, pairs of them, or lists of words, tokenised once each when they are first read.

    Args:
        texts: the sentences; or lists of words. Where each has a list of labels, a word's first token bears the label
            and the others none.
        pairs: second sentences, or ``None``.
        labels: one label a text; ``None`` with ``next_token``.
        tokenizer: a transformers tokenizer. One without a padding token pads with its end-of-text token.
        max_length: longest sequence in tokens, longer ones are cut; by default what the tokenizer
            says the model takes, and 512 where it says nothing.
        next_token: see :class:`TokenSamples`.
        pad: the token that the model takes for padding, where it is another than the tokenizer's.
    """

    def __init__(
        self, texts: Sequence[Any], pairs: Sequence[Any] | None, labels: Any, tokenizer: Any,
        max_length: int | None = None, spec: str = "", next_token: bool = False, pad: int | None = None,
    ):  # fmt: skip
        if tokenizer is None:
            raise GenboundError(
                "text needs a tokenizer and none lies beside the checkpoint: copy tokenizer.json and "
                "tokenizer_config.json into its directory"
            )
        for what, column in (("second texts", pairs), ("labels", labels)):
            if column is not None and len(column) != len(texts):
                raise GenboundError(f"{len(texts)} texts but {len(column)} {what}: give one for each text")
        padding = {
            "input_ids": Reader(tokenizer, padding=pad).padding_token,
            "token_type_ids": tokenizer.pad_token_type_id,
        }
        super().__init__([{}] * len(texts), labels, padding, tokenizer.padding_side, next_token, spec)
        known = tokenizer.model_max_length
        self.max_length = max_length or (known if known and known < 1_000_000 else 512)
        self._texts, self._pairs, self._tokenizer = texts, pairs, tokenizer
        self._words = bool(len(texts)) and isinstance(texts[0], list)
        self._of_words = self._words and isinstance(labels, list) and isinstance(labels[0], list)
        self._kept, self._sizes = KeptTokens(), dict[int, int]()

    def _tokens(self, indices: list[int]) -> list[Tokens]:
        missing = [i for i in dict.fromkeys(indices) if i not in self._kept]
        if missing:
            encoded = self._encoded(missing, truncation=True, max_length=self.max_length)
            for place, i in enumerate(missing):
                row = {name: values[place] for name, values in encoded.items()}
                if not row["input_ids"]:
                    raise GenboundError(f"sample {i} of {self.spec or 'the texts'} has no tokens; remove empty texts")
                self._kept[i] = Row(row, self._first_tokens(encoded, place, i) if self._of_words else None)
        found = [self._kept[i].tokens for i in indices]
        self._kept.let_go(least=len(indices))
        return found

    def _encoded(self, indices: list[int], **how: Any) -> Any:
        """What the tokenizer makes of these texts."""
        texts = [self._texts[i] for i in indices]
        pairs = None if self._pairs is None else [self._pairs[i] for i in indices]
        split = {"is_split_into_words": True} if self._words else {}
        return self._tokenizer(texts, pairs, padding=False, **split, **how)

    def num_cut(self, indices: Iterable[int]) -> int:
        """How many of the samples at ``indices`` lack what goes beyond ``max_length`` tokens."""
        full = [i for i in indices if self.size(i) >= self.max_length]
        runs = (full[start : start + AT_ONCE] for start in range(0, len(full), AT_ONCE))
        whole = (row for run in runs for row in self._encoded(run, truncation=False, verbose=False)["input_ids"])
        return sum(len(row) > self.max_length for row in whole)

    def size(self, i: int) -> int:
        """How many tokens the text has."""
        if i not in self._sizes:
            self._sizes[i] = super().size(i)
        return self._sizes[i]

    def shown(self, i: int) -> str:
        """The text, or both."""
        texts = [self._texts[i], *([] if self._pairs is None else [self._pairs[i]])]
        return " / ".join(" ".join(text) if isinstance(text, list) else str(text) for text in texts)

    def _first_tokens(self, encoded: Any, place: int, i: int) -> list[int]:
        if not getattr(self._tokenizer, "is_fast", False):
            raise GenboundError("labels of words need a fast tokenizer: copy tokenizer.json beside the checkpoint")
        given, before, labels = self._labels[i], None, []
        if len(given) != len(self._texts[i]):
            raise GenboundError(
                f"sample {i} of {self.spec or 'the texts'} has {len(self._texts[i])} words and {len(given)} labels; "
                "give one a word"
            )
        for word in encoded.word_ids(place):
            labels.append(IGNORED if word is None or word == before else int(given[word]))
            before = word
        return labels

    def _label(self, i: int, row: Tokens) -> Any:
        of_words = self._kept[i].labels
        if of_words is None:
            return super()._label(i, row)
        if all(number == IGNORED for number in of_words):
            raise GenboundError(f"sample {i} of {self.spec or 'the texts'} has no labelled token; remove it")
        return of_words

    def digest(self) -> str:
        """SHA-256 of the texts, the labels and how they are tokenised."""
        sha = hashlib.sha256(f"text|{self.max_length}|{self._next_token}|".encode())
        for i in range(len(self)):
            pair = None if self._pairs is None else self._pairs[i]
            label = None if self._labels is None else torch.as_tensor(self._labels[i]).tolist()
            sha.update(json.dumps([self._texts[i], pair, label]).encode())
        return sha.hexdigest()


class NextToken(Samples):
    """Samples of a causal language model whose labels stand beside their tokens, shifted to the token before."""

    def __init__(self, samples: Samples):
        super().__init__(len(samples), samples.spec)
        self._samples = samples

    def shape_key(self, i: int) -> Hashable:
        """That of the sample."""
        return self._samples.shape_key(i)

    def size(self, i: int) -> int:
        """That of the sample."""
        return self._samples.size(i)

    def shown(self, i: int) -> str:
        """As the sample is."""
        return self._samples.shown(i)

    def batch(self, indices: Iterable[int]) -> Batch:
        """The samples at ``indices``, each label moved to the token before its own."""
        batch = self._samples.batch(indices)
        last = torch.full_like(batch.targets[:, :1], IGNORED)
        return Batch(batch.inputs, torch.cat([batch.targets[:, 1:], last], 1), batch.indices)

    def digest(self) -> str:
        """SHA-256 of the samples' own digest."""
        return hashlib.sha256(f"next token|{self._samples.digest()}".encode()).hexdigest()

    def content_digest(self) -> str:
        """That of the samples."""
        return hashlib.sha256(f"next token|{self._samples.content_digest()}".encode()).hexdigest()


def shifted(samples: Samples, next_token: bool) -> Samples:
    """Labels that stand beside their tokens go to the token before, if the model predicts the next token.

    Args:
        samples: of any kind; those whose labels ``[N, T]`` are not one a token ``[N, T]`` stay as they are.
        next_token: the model is a causal language model.
    """
    if not next_token:
        return samples
    first = samples.batch([0])
    tokens = first.inputs.get("input_ids") if isinstance(first.inputs, dict) else first.inputs
    beside = isinstance(tokens, Tensor) and tokens.shape == first.targets.shape and first.targets.ndim == 2
    return NextToken(samples) if beside else samples
