"""The random numbers of rows: signs that do not depend on the company, and streams."""

import random

import numpy as np
import pytest
import torch
from cases import D
from seeded import matrix, rng

from genbound.estimators import random as numbers
from genbound.estimators.random import BLOCK, generator, grouped, normal, rademacher, row_of, row_signs

LIKE = torch.zeros(1, dtype=D)


def test_signs_are_signs():
    rows = [row_of("x", p, d, 64) for p in range(3) for d in range(40)]
    signs = row_signs(rows, 0, "layer", 5, 100, LIKE)
    assert signs.shape == (120, 5, 100) and signs.dtype == D
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4.5 / signs.numel() ** 0.5
    # No row, position or column follows another.
    for axes in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        flat = signs.permute(axes).flatten(1)
        gram = (flat @ flat.T / flat.shape[1]).fill_diagonal_(0)
        assert float(gram.abs().max()) < 6 / flat.shape[1] ** 0.5


@pytest.mark.parametrize("width", [1, 63, 64, 65, 200])
def test_more_positions_only_continue_the_earlier_ones(width):
    rows = [row_of("x", p, 0, 4) for p in (3, 40, 5)]
    longer = row_signs(rows, 0, "layer", 9, width, LIKE)
    assert torch.equal(row_signs(rows, 0, "layer", 4, width, LIKE), longer[:, :4])


@pytest.mark.parametrize("num", [1, BLOCK - 1, BLOCK, 50])
def test_rows_do_not_depend_on_their_company(num):
    """A block drawn whole, its rows alone, out of order, repeated, and mixed with those of other blocks."""
    rows = [row_of("x", p, d, num) for p in range(20) for d in range(min(num, 20))]
    whole = row_signs(rows, 1, "layer", 3, 70, LIKE)
    for i in range(0, len(rows), 7):
        assert torch.equal(row_signs([rows[i]], 1, "layer", 3, 70, LIKE), whole[i : i + 1])
    order = random.Random(0).choices(range(len(rows)), k=30)
    assert torch.equal(row_signs([rows[i] for i in order], 1, "layer", 3, 70, LIKE), whole[order])
    assert len({tuple(row.flatten().tolist()) for row in whole}) == len(rows) == len(set(rows))


def test_other_names_seeds_and_keys_give_other_signs():
    drawn = [
        row_signs([row_of(kind, position, draw, num)], seed, name, 2, 64, LIKE).flatten()
        for kind, position, draw, num, seed, name in [
            ("x", 0, 0, 4, 0, "a"), ("y", 0, 0, 4, 0, "a"), ("x", 1, 0, 4, 0, "a"), ("x", BLOCK, 0, 4, 0, "a"),
            ("x", 0, 1, 4, 0, "a"), ("x", 0, 0, BLOCK, 0, "a"), ("x", 0, BLOCK, 2 * BLOCK, 0, "a"),
            ("x", 0, 0, 4, 1, "a"), ("x", 0, 0, 4, 0, "b"),
        ]
    ]  # fmt: skip
    gram = torch.stack(drawn) @ torch.stack(drawn).T / 128
    assert float(gram.fill_diagonal_(0).abs().max()) < 0.5


def test_rows_are_grouped_by_their_stream():
    """Few draws: a sample's 16 neighbours share one; many: 16 draws of one sample. Rows keep their places."""
    few = [row_of("x", p, 2, BLOCK - 1) for p in (15, 16, 0)]
    assert few == [(("x", 0, 2), 15), (("x", 1, 2), 0), (("x", 0, 2), 0)]
    assert grouped(few) == {("x", 0, 2): ([0, 2], [15, 0]), ("x", 1, 2): ([1], [0])}
    many = [row_of("x", 7, d, BLOCK) for d in (0, 15)] + [row_of("x", 7, 16, 40)]
    assert many == [(("x", "many", 7, 0), 0), (("x", "many", 7, 0), 15), (("x", "many", 7, 1), 0)]


def test_variance_of_the_trace_probe_is_its_closed_form():
    """Var(z'Hz) = 2 (||H||_F^2 - sum_j H_jj^2) for independent signs."""
    h, _ = matrix(rng(0).normal(size=12), 1)
    z = rademacher((200_000, 12), generator(0, "closed form"), torch.zeros(1, dtype=D))
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    draws = ((z @ h) * z).sum(1)
    closed = 2 * float((h**2).sum() - (h.diagonal() ** 2).sum())
    assert abs(float(draws.mean() - h.trace())) < 4 * (closed / len(z)) ** 0.5
    assert float(draws.var()) == pytest.approx(closed, rel=0.03)


def test_streams():
    """Equal keys, equal numbers; a difference anywhere in the key, others; global generators are not used."""
    state = torch.get_rng_state()
    keys = [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a", 1, 0), (0, "a", "1")]
    draws = [torch.randint(0, 2**31, (8,), generator=generator(*key)) for key in keys]
    again = [torch.randint(0, 2**31, (8,), generator=generator(*key)) for key in keys]
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    assert len({tuple(d.tolist()) for d in draws}) == len(keys)
    z = normal((100_000,), generator(0, "n"), torch.zeros(1, dtype=D))
    assert z.dtype == D and abs(float(z.mean())) < 0.015 and abs(float(z.var()) - 1) < 0.02
    assert torch.equal(state, torch.get_rng_state())


def test_signs_do_not_depend_on_which_samples_share_a_pass():
    """A block's signs are drawn whole, so the same sample meets the same probe in any batch."""
    like, rows = torch.zeros(1, dtype=D), [row_of("x", p, 0, 4) for p in range(16)]
    whole = row_signs(rows, 1, "layer", 3, 70, like)
    assert set(whole.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(row_signs([rows[7], rows[3]], 1, "layer", 3, 70, like), whole[[7, 3]])
    assert abs(float(rademacher((1000, 1000), generator(2, "x"), like).mean())) < 4e-3


def test_words_made_on_a_device_are_those_of_the_host():
    """In signed arithmetic, as accelerators have it."""
    starts = np.random.default_rng(0).integers(0, 2**64, size=50, dtype=np.uint64)
    starts[:4] = [0, 1, 2**63, 2**64 - 1]
    host = numbers._words(starts, 77)
    device = numbers.words_on(torch.from_numpy(starts.view(np.int64).copy()), 77)
    np.testing.assert_array_equal(device.numpy().view(np.uint64), host)
    # The first outputs of SplitMix64 from 0, as its reference implementation prints them.
    assert [int(word) for word in host[0, :3]] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize(("positions", "width"), [(7, 100), (1, 64), (3, 1)])
def test_signs_do_not_depend_on_where_they_are_made(monkeypatch, positions, width):
    rows = [row_of("probe", p, d, 64) for p in range(3) for d in range(20)]
    host = row_signs(rows, 5, "fc.weight", positions, width, LIKE)
    monkeypatch.setattr(numbers, "is_host", lambda device: False)
    assert torch.equal(row_signs(rows, 5, "fc.weight", positions, width, LIKE), host)
