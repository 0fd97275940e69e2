"""Draws of many samples: their moments, and that neither the room in a pass nor the company changes one."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from seeded import rng

from genbound.estimators.draws import Moments, Sampler, copies_in_a_pass


@dataclass
class Run:
    """A pass that knows no more than whose its rows are."""

    positions: list[int]


def value(row, column):
    """A number of its own for every stream, member and column."""
    digest = hashlib.sha256(repr((row, column)).encode()).digest()
    return int.from_bytes(digest[:6], "little") / 2**48


def sampler(room):
    """One with three columns whose passes hold at most ``room`` rows, and the sizes that its passes will have had."""
    sizes = []

    def passes(positions):
        for start in range(0, len(positions), room):
            run = Run(positions[start : start + room])
            sizes.append(len(run.positions))
            yield run, np.arange(3)

    def draw(run, rows):
        return torch.tensor([[value(row, column) for column in range(3)] for row in rows], dtype=torch.float64)

    return Sampler("test", passes, draw, 3, room), sizes


def test_moments_are_those_of_numpy():
    draws = rng(0).normal(size=(7, 5, 3))  # draws, samples, columns
    moments = Moments.empty(5, 3)
    for i in range(7):
        rows = np.arange(5)[: 5 - i % 3]
        moments.add(rows, draws[i, rows])
    for n in range(5):
        own = np.array([draws[i, n] for i in range(7) if n < 5 - i % 3])
        assert moments.count[n] == len(own)
        assert moments.mean[n] == pytest.approx(own.mean(0), abs=1e-14)
        assert moments.squares[n] == pytest.approx(((own - own.mean(0)) ** 2).sum(0), abs=1e-13)


@pytest.mark.parametrize("num", [1, 2, 6, 16, 40])
@pytest.mark.parametrize("positions", [[3], [0, 5], list(range(20))])
def test_draws_do_not_depend_on_the_room_in_a_pass(num, positions):
    one, few, many = (sampler(room)[0].draws(positions, num) for room in (1, 7, 64))
    assert one.shape == (len(positions), num, 3)
    assert np.array_equal(one, few) and np.array_equal(one, many)
    assert len(np.unique(one)) == one.size  # nobody shares a draw


def test_few_samples_with_many_draws_fill_their_passes():
    found, sizes = sampler(64)
    found.draws([1, 2], 32)
    assert sizes == [64]
    found, sizes = sampler(64)
    found.draws([1, 2], 3)  # copies divide the draws
    assert sizes == [6]


@pytest.mark.parametrize("num", [1, 2, 12, 16])
@pytest.mark.parametrize("samples", [1, 3, 40])
@pytest.mark.parametrize("room", [1, 8, 64])
def test_copies_are_the_largest_divisor_that_there_is_room_for(num, samples, room):
    copies = copies_in_a_pass(num, samples, room)
    fits = [c for c in range(1, num + 1) if num % c == 0 and c * samples <= room]
    assert copies == (fits[-1] if fits else 1)


def test_samples_with_other_counts_have_the_draws_that_they_have_alone():
    positions, counts = [4, 2, 9, 7], [3, 0, 20, 3]
    together = sampler(8)[0].moments(positions, counts)
    assert together.count.tolist() == counts
    for i, (position, num) in enumerate(zip(positions, counts, strict=True)):
        alone = sampler(8)[0].moments([position], [num])
        assert np.array_equal(together.mean[i], alone.mean[0]) and np.array_equal(together.squares[i], alone.squares[0])


def test_columns_of_several_passes_are_one_draw_before_it_is_finished():
    """Layers whose samples cannot share a pass come on passes of their own."""

    def finish(draws, positions):
        return draws.sum(-1, keepdims=True) * np.array(positions)[:, None, None]

    def passes(positions):
        yield Run(positions), np.array([0, 2])
        for position in positions:
            yield Run([position]), np.array([1])

    def draw(run, rows):
        width = 2 if len(run.positions) > 1 else 1
        return torch.tensor([[10.0 * value(row, 0)] * width for row in rows], dtype=torch.float64)

    found = Sampler("test", passes, draw, 3, 8, finish).draws([2, 5], 2)
    plain = Sampler("test", passes, draw, 3, 8).draws([2, 5], 2)
    assert found.shape == (2, 2, 1) and (plain != 0).all()
    assert found[:, :, 0] == pytest.approx(plain.sum(-1) * np.array([[2], [5]]))


def test_draws_can_be_added_to_those_of_another_kind():
    one = sampler(8)[0]
    other = replace(one, kind="other")
    moments = one.moments([0, 1], [2, 0])
    other.add_to(moments, [0, 1], [0, 3])
    assert moments.count.tolist() == [2, 3]
    assert np.array_equal(moments.mean[1], other.moments([1], [3]).mean[0])
    assert not np.array_equal(moments.mean[1], one.moments([1], [3]).mean[0])
