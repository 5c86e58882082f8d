"""Which engine a picture goes to: always the same, spread evenly, another one where that one is full or has lost it."""

from collections import Counter

import pytest

pytest.importorskip("ray.serve")

from serve.replica.routing import picture_key, ranked, session  # noqa: E402

NAMES = ("a", "b", "c", "d")
IDLE = dict.fromkeys(NAMES, 0)


def first(key: str, load: dict[str, int] = IDLE, full: int = 4) -> str:
    return ranked(session(key), load, full)[0][0]


def test_a_picture_goes_to_one_engine_and_pictures_spread() -> None:
    keys = [picture_key(str(number).encode()) for number in range(2000)]
    chosen = [first(key) for key in keys]
    assert chosen == [first(key, dict.fromkeys(reversed(NAMES), 1)) for key in keys]
    assert all(400 < count < 600 for count in Counter(chosen).values())


def test_engines_that_come_or_go_move_no_other_pictures() -> None:
    keys = [str(number) for number in range(1000)]
    fewer = dict.fromkeys("abd", 0)
    moved = [key for key in keys if first(key, fewer) != first(key)]
    assert {first(key) for key in moved} == {"c"}


def test_a_full_engine_is_passed_over_in_an_order_of_the_pictures_own() -> None:
    home = first("picture")
    (second,) = ranked(session("picture"), IDLE, 4)[1]
    assert first("picture", IDLE | {home: 4}) == second
    assert first("picture", IDLE | {home: 3}) == home
    # All are full: whichever has least to do.
    assert ranked(session("picture"), dict.fromkeys(NAMES, 9), 4) == [list(NAMES)]


def test_an_engine_that_has_lost_a_job_comes_last() -> None:
    home = first("picture")
    order = [name for group in ranked(session("picture", avoid=[home]), IDLE, 4) for name in group]
    assert order[-1] == home and sorted(order) == list(NAMES)
    assert ranked(session("picture", avoid=["a"]), {"a": 0}, 4) == [["a"]]


def test_a_job_without_pictures_goes_where_there_is_least_to_do() -> None:
    assert ranked("", IDLE, 4) == ranked(session(), IDLE, 4) == [list(NAMES)]


def test_one_engine_can_be_meant() -> None:
    assert ranked(session(only="c"), IDLE, 4) == [["c"]]
    assert ranked(session(only="gone"), IDLE, 4) == []


def test_a_key_is_of_the_pictures_and_their_order() -> None:
    assert picture_key(b"ab", b"c") != picture_key(b"a", b"bc")
    assert picture_key(b"a", b"b") != picture_key(b"b", b"a")
    assert picture_key(b"a") == picture_key(b"a")
