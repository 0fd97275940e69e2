"""Searches that run side by side find what each finds alone, in as many rounds as the longest takes."""

from genbound.quantities.side_by_side import side_by_side


def halving(wanted):
    low, high = 0, 64
    while high - low > 1:
        middle = (low + high) // 2
        if (yield middle, wanted):
            low = middle
        else:
            high = middle
    return low


def at_once(_):
    return "nothing to ask"
    yield


def test_each_finds_its_own():
    rounds = []

    def answers(number, asked):
        rounds.append((number, sorted(asked)))
        return {name: guess <= wanted for name, (guess, wanted) in asked.items()}

    def once(_):
        assert (yield 5, 9)
        return "asked once"

    searches = {"a": halving(37), "b": once(0), "c": halving(2), "d": at_once(0)}
    assert side_by_side(searches, answers) == {"a": 37, "b": "asked once", "c": 2, "d": "nothing to ask"}
    assert rounds == [(0, ["a", "b", "c"]), *((n, ["a", "c"]) for n in range(1, 6))]


def test_nothing_is_measured_where_nobody_asks():
    assert side_by_side({"d": at_once(0)}, lambda number, asked: 1 / 0) == {"d": "nothing to ask"}
