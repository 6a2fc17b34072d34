"""The space of a sweep, and the points that samplers take of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.sweep.space import Axis, GridSampler, axis_of_text, sampler_of, space_of
from tracepaper.strategies.errors import ConfigInvalid


@pytest.mark.parametrize(
    ("values", "points"),
    [
        ([5, 10], (5, 10)),
        (range(2, 9, 3), (2, 5, 8)),
        (np.array([0.5, 1.0]), (0.5, 1.0)),
        ((2, 5), (2, 3, 4, 5)),
        ((2, 9, 3), (2, 5, 8)),
        ((0.1, 0.5, 0.2), (0.1, 0.3, 0.5)),
        ((0.1, 0.5), ()),
        ({"low": 1, "high": 3}, (1, 2, 3)),
        (("a", "b"), ("a", "b")),
        (True, (True,)),
        ("LONG", ("LONG",)),
    ],
)
def test_what_is_given_has_these_points(values: Any, points: tuple[Any, ...]) -> None:
    """Public reports: backtesting.py#1242, optuna#469."""
    (axis,) = space_of({"x": values})
    assert axis.points() == points


@pytest.mark.parametrize(
    "space",
    [
        {},
        {"x": []},
        {"x": (9, 2)},
        {"x": (1, 2, 0)},
        {"x": (1.0, float("nan"))},
        {"x": {"low": 1}},
        {"x": {"low": 0, "high": 3, "log": True}},
        {"x": {"low": 1, "high": 3, "step": 1, "log": True}},
    ],
)
def test_a_space_without_a_point_gets_one_sentence(space: Any) -> None:
    with pytest.raises(ConfigInvalid, match=r"give|name"):
        space_of(space)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("fast=5,10,20", Axis("fast", (5, 10, 20))),
        ("fast=5..50", Axis("fast", (), 5, 50)),
        ("fast=5..52:5", Axis("fast", (), 5, 50, 5)),
        ("x=0.001..0.1:log", Axis("x", (), 0.001, 0.1, None, log=True)),
        ("x=-1..1:0.5", Axis("x", (), -1, 1, 0.5)),
        ("sizing.mode=fixed,notional", Axis("sizing.mode", ("fixed", "notional"))),
        ("long_only=true,false", Axis("long_only", (True, False))),
        ("x=a..b", Axis("x", ("a..b",))),
    ],
)
def test_the_command_line_writes_it_as_text(text: str, axis: Axis) -> None:
    assert axis_of_text(text) == axis


def test_a_grid_has_every_point_once_and_the_last_axis_fastest() -> None:
    sampler = GridSampler(space_of({"a": [1, 2], "b": [3, 4]}))
    points = [sampler.ask(number) for number in range(sampler.count)]
    assert points == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]


def test_a_grid_of_an_endless_axis_and_one_too_large_are_refused() -> None:
    for space in ({"x": (0.0, 1.0)}, {"x": (0, 1_000), "y": (0, 1_000)}, {"x": (1, 10**12)}):
        with pytest.raises(ConfigInvalid, match="give steps or lists, or draw"):
            GridSampler(space_of(space))


AXES = space_of({"n": (1, 9, 2), "x": {"low": 0.01, "high": 10.0, "log": True}, "c": ["a", None]})


@given(seed=st.integers(0, 2**40), begin=st.integers(0, 9))
def test_a_random_point_is_a_function_of_seed_and_number(seed: int, begin: int) -> None:
    whole = sampler_of("random", AXES, trials=10, seed=seed, maximize=True)
    points = [whole.ask(number) for number in range(10)]
    later = sampler_of("random", AXES, trials=10, seed=seed, maximize=False)
    for number in range(begin):
        later.tell(number, points[number], None)
    assert [later.ask(number) for number in range(begin, 10)] == points[begin:]
    assert len({point["x"] for point in points}) == 10
    for point in points:
        assert point["n"] in {1, 3, 5, 7, 9}
        assert 0.01 <= point["x"] <= 10
        assert point["c"] in {"a", None}


@pytest.mark.parametrize("begin", [0, 12])
def test_tpe_goes_on_as_if_it_had_never_stopped(begin: int) -> None:
    def worth(point: dict[str, Any]) -> float | None:
        return None if point["n"] == 9 else -abs(point["x"] - 1.0)

    points: list[dict[str, Any]] = []
    for first in (0, begin):
        sampler = sampler_of("tpe", AXES, trials=20, seed=3, maximize=True)
        for number, point in enumerate(points[:first]):
            sampler.tell(number, point, worth(point))
        drawn = points[:first]
        for number in range(first, 20):
            point = sampler.ask(number)
            sampler.tell(number, point, worth(point))
            drawn.append(point)
        if points:
            assert drawn == points
        points = drawn


@pytest.mark.parametrize(
    ("name", "trials", "sentence"),
    [
        ("cma", None, "choose grid, random, tpe"),
        ("grid", 5, "leave trials out"),
        ("random", 0, "a whole number from 1 on"),
    ],
)
def test_a_sampler_that_cannot_serve_is_refused(
    name: str, trials: int | None, sentence: str
) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        sampler_of(name, AXES, trials=trials, seed=0, maximize=True)
