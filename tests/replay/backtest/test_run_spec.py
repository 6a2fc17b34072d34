"""One declaration of what a run takes: options, arguments of Python, refusals."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from command_line import Cli

from tracepaper import ConfigInvalid, backtest, sweep
from tracepaper.replay.backtest.market_data import SOURCES, MarketData
from tracepaper.replay.backtest.run_spec import (
    Consumer,
    MarketSpec,
    RunSpec,
    flags_of,
    python_arguments,
    reject_unused,
    spec_of,
)


@pytest.mark.parametrize(
    ("call", "consumer"), [(backtest, Consumer.BACKTEST), (sweep, Consumer.PYTHON_SWEEP)]
)
def test_a_call_from_python_takes_what_is_declared(
    call: Callable[..., object], consumer: Consumer
) -> None:
    assert set(python_arguments(consumer)) <= set(inspect.signature(call).parameters)


def test_every_source_is_a_field_of_the_spec_and_of_the_data() -> None:
    assert set(SOURCES) == {field.name for field in fields(MarketData)}
    assert set(SOURCES) <= {field.name for field in fields(MarketSpec)}


@pytest.mark.parametrize(
    ("command", "lacks"),
    [
        ("replay", ()),
        ("sweep", ("--category", "--mode", "--resume")),
        ("lookahead", ("--from",)),
        ("recursive", ("--from",)),
    ],
)
def test_a_command_has_the_options_of_its_fields_alone(
    command: str, lacks: tuple[str, ...], cli: Cli
) -> None:
    output = cli.out(command, "--help")
    has = ("[PATH]", "--data", "--columns", "--frame-data", "--depth",
           "--set", "--strategy")  # fmt: skip
    assert [flag for flag in (*has, *lacks) if flag in output] == list(has)


def test_what_would_be_ignored_is_refused_by_the_name_of_its_option() -> None:
    reject_unused(RunSpec(candles=("a.db#1",), database=Path("b.db")), Consumer.RECORDED, "So")
    for spec, flag in (
        (RunSpec(settings=("a.b=1",)), "--set"),
        (RunSpec(frames=("a.csv",)), "--frame-data"),
        (RunSpec(mode="step"), "--mode"),
        (RunSpec(end="2025-01-01"), "--to"),
    ):
        with pytest.raises(ConfigInvalid, match=rf"^So; leave {flag} out\.$"):
            reject_unused(spec, Consumer.RECORDED, "So")


def test_a_spec_is_written_as_the_options_that_make_it() -> None:
    spec = RunSpec(
        candles=("a.csv",), columns=("close=Price",), frames=("b.csv",),
        funding=(Path("f.csv"), Path("g.csv")), start="2025-01-01",
    )  # fmt: skip
    assert list(flags_of(spec)) == [
        ("--columns", "close=Price"),
        ("--funding", "f.csv"),
        ("--funding", "g.csv"),
        ("--frame-data", "b.csv"),
        ("--from", "2025-01-01"),
    ]


def test_an_argument_that_cannot_be_meant_is_named() -> None:
    given: dict[str, object] = dict.fromkeys(python_arguments(Consumer.BACKTEST), ())
    given |= {"data": "a.csv", "start": None, "end": None, "config": None, "db": None}
    assert spec_of(Consumer.BACKTEST, given).candles == ("a.csv",)
    for name in ("funding", "data", "columns", "config"):
        with pytest.raises(ConfigInvalid, match=name):
            spec_of(Consumer.BACKTEST, given | {name: 3.5})
