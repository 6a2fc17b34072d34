"""A key of ``--set`` without effect is named, and each key that is named has none (I22)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from msgspec.structs import replace
from scenarios import SCENARIOS

from tracepaper.daemon.config.loading import SECTIONS, render
from tracepaper.daemon.config.values import canonical
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.effects import CHANGEABLE, sentence_on
from tracepaper.replay.backtest.make import run_in_memory
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.decisions import RunRow, Step

CANDLES, GATED = "crossing", "a model with gates"
OF_QUOTES = (
    "execution.latency_ms=700",
    "execution.latency_jitter_ms=40",
    "execution.fill_within_ms=900",
)
OF_MODELS = (
    "gate.confidence=0.3",
    "gate.shift=0.01",
    "gate.direction=0.6",
    "gate.regimes=MIXED",
    "gate.on_refusal=flat",
    "regime.momentum=0.9",
    "regime.event_focus=0.07",
    "regime.hysteresis=0.3",
)
USED = (
    "execution.taker_fee=0.0009",
    "execution.spread_bp=3",
    "execution.slippage_bp=2",
    "execution.beyond_best=square_root",
    "execution.impact_bp=7",
    "execution.maker_fee=0.0001",  # no order of this run rests
    "gate.plausible=50",  # no bar is near it
    "account.cash=90000",
    "risk.max_daily_trades=3",
    "exits.stop_loss=9%",
)


@cache
def market_of(name: str) -> tuple[list[Candles], dict[str, Any]]:
    """Return the candles of a scenario, and what is fed beside them."""
    return SCENARIOS[name].candles(), SCENARIOS[name].files()


def of(
    name: str, folder: Path, *settings: str, bars: int | None = None
) -> tuple[tuple[str, ...], list[Step]]:
    """Return the warnings of a scenario's run with *settings*, and its steps except the end.

    Its configuration is a file, as a command has it. The end has the wall time.
    """
    file, (candles, files) = folder / "tracepaper.toml", market_of(name)
    file.write_text(render(SCENARIOS[name].config()))
    spec = RunSpec(
        candles=tuple(part[:bars] for part in candles),
        config=file,
        settings=settings,
        **files,
    )
    with run_in_memory(spec) as log:
        (run_id,) = log.reader.run_ids()
        run: RunRow = log.reader.run(run_id)
        return run.warnings, list(log.reader.steps(run_id))[:-1]


def named(warnings: tuple[str, ...]) -> str:
    """Return the sentence on keys without effect; empty if there is none."""
    return next((text for text in warnings if " no effect in this run" in text), "")


def keys(*settings: str) -> list[str]:
    return [text.partition("=")[0] for text in settings]


@pytest.mark.parametrize(
    ("name", "without", "used"),
    [
        (CANDLES, (*OF_MODELS, *OF_QUOTES), ("strategy.fast=4", *USED)),
        (
            GATED,
            OF_QUOTES,
            (
                "gate.horizon=5",
                *OF_MODELS[:4],
                "regime.hysteresis=0.3",
                "regime.event_focus=0.07",
                *USED,
            ),
        ),
    ],
)
def test_keys_of_set_that_the_run_does_not_use_are_named(
    name: str, without: tuple[str, ...], used: tuple[str, ...], tmp_path: Path
) -> None:
    warnings, _ = of(name, tmp_path, *without, *used, bars=5)
    assert named(warnings)
    head, _, _ = named(warnings).partition(" have no effect")
    by_gates = [text.partition(" ")[0] for text in warnings if text.startswith("gate.")]
    assert sorted([*head.replace(" and ", ", ").split(", "), *by_gates]) == sorted(keys(*without))
    assert all(key.startswith("gate.") for key in by_gates)


def test_a_key_of_gates_that_no_gate_reads_is_said_from_any_source(tmp_path: Path) -> None:
    """Without a model no gate reads a confidence; a model reads it, and a regime."""
    gates = {"confidence": "0.3", "on_refusal": "flat", "plausible": "50"}
    for name, unread in ((CANDLES, ["gate.confidence", "gate.on_refusal"]), (GATED, [])):
        config = SCENARIOS[name].config().settings()
        candles, files = market_of(name)
        spec = RunSpec(
            candles=tuple(part[:5] for part in candles),
            config={**config, "gate": {**config["gate"], **gates}},
            **files,
        )
        with run_in_memory(spec) as log:
            warnings = log.reader.run(log.reader.run_ids()[0]).warnings
        said = [text for text in warnings if text.startswith("gate.")]
        assert [text.partition(" has no effect")[0] for text in said] == unread


def probes() -> Iterator[str]:
    """Yield a setting other than the default for each key of the engine's sections that has one."""
    for section in sorted(CHANGEABLE - {"strategy"}):
        for key, field in SECTIONS[section].model_fields.items():
            value = field.get_default(call_default_factory=True)
            values: list[object] = [*(field.examples or ())]
            if get_origin(field.annotation) is Literal:
                values = [text for text in get_args(field.annotation) if text != value]
            elif isinstance(value, bool):
                values = [not value]
            elif isinstance(value, int | float | Decimal):
                values = [value / 2 if 0 < value <= 1 else value * 2 + 1]
            yield from (f"{section}.{key}={canonical(each)}" for each in values[-1:])


@pytest.mark.parametrize("name", [CANDLES, GATED])
def test_a_key_that_is_named_changes_no_step(name: str, tmp_path: Path) -> None:
    _, expected = of(name, tmp_path)
    assert any(step.fills for step in expected)
    without = dict[str, str]()
    for setting in probes():
        with suppress(TracepaperError):  # a value that cannot be used here
            warnings, _ = of(name, tmp_path, setting, bars=5)
            if named(warnings):
                without[setting.partition("=")[0]] = setting
    assert without
    _, steps = of(name, tmp_path, *without.values())
    # Bars fill the orders, so the latency only dates them.
    assert [*map(undated, steps)] == [*map(undated, expected)]


def undated(step: Step) -> Step:
    """Return *step* with orders that reach the exchange at once."""
    orders = tuple(replace(order, eligible_ms=order.created_ms) for order in step.orders)
    return replace(step, orders=orders)


def test_the_fee_of_one_symbol_is_judged_alone(tmp_path: Path) -> None:
    unused, used = "execution.latency_ms=700", 'execution.fees={"BTCUSDT": {"taker": "0.002"}}'
    warnings, _ = of(CANDLES, tmp_path, unused, used, bars=5)
    assert named(warnings) == sentence_on(keys(unused))
