"""Several strategies on one account, whole runs: recorded, verified, stopped, live, mistyped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from account_laws import check_account
from builders import START_MS, bars, instrument, quote
from fed_daemon import Process as FedProcess
from several_live import MINUTE
from several_strategies import ACCOUNTING, DRAWN, configured

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.session.build import build_engine, resolved
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import FillModel, Step
from tracepaper.strategies.types.market import (
    Event,
    Funding,
)

FAILS_AT = (START_MS // MINUTE + 30) % 1_000


def several(execution: FillModel, **sections: Any) -> Config:
    config = configured(
        of=(ACCOUNTING, DRAWN, ACCOUNTING),
        options=({"seed": 1}, {"seed": 2, "fails_at": FAILS_AT}, {"seed": 3}),
        execution={"fill_within_ms": 60_000},
        **sections,
    )
    return resolved(config, execution)


class Process(FedProcess):
    """A process whose engine is asked at every step whether its sums hold."""

    def feed(self, event: Event) -> None:
        super().feed(event)
        if self.opened.engine.members:
            check_account(self.opened.engine.broker.account)


def events(count: int, *, quotes: bool) -> list[Event]:
    stream: list[Event] = []
    for at, item in enumerate(bars(count, seed=4)):
        if quotes:
            at_ms = item.close_time_ms - 500
            stream.append(quote(item.close - 5, item.close + 5, at_ms=at_ms))
        stream.append(item)
        if at % 10 == 9:
            stream.append(Funding(item.instrument, 1_234_567, item.close_time_ms, item.seen_ms))
    return stream


def held(path: Path) -> None:
    """Assert that the record at *path* holds, and that all of it follows from itself."""
    with Reader.open(path) as reader:
        run_id = reader.find("last")
        verification = verify_run(reader, path, run_id)
        assert verification.differences == []
        kept = list(reader.steps(run_id))
    assert any(step.strategies for step in kept)
    with open_reader(path) as connection:
        assert verify_chain(connection, run_id).problem is None


def essence(steps: list[Step]) -> list[Any]:
    """Return all of a run that a restart must not change: everything but ids."""
    return [
        (
            step.decision, step.strategies,
            [(o.side, o.quantity, o.filled, o.status, o.reason, o.owner) for o in step.orders],
            [(f.side, f.quantity, f.price, f.fee, f.filled_ms) for f in step.fills],
            step.account,
            [(t.position, t.account) for t in step.shadows],
        )
        for step in steps
        if type(step.event).__name__ in {"Bar", "Quote", "Funding"}
    ]  # fmt: skip


def test_one_that_was_set_aside_stays_so_after_a_restart(tmp_path: Path) -> None:
    given, model = events(50, quotes=False), FillModel.NEXT_OPEN
    whole = Process(tmp_path / "whole.db", several(model), model)
    whole.live(given)
    whole.stop()
    assert any("set aside" in member.outcome.reason for member in whole.steps[-2].strategies)
    cut = [at for at, event in enumerate(given) if not isinstance(event, Funding)][36]
    for part in (given[:cut], given[cut:]):
        process = Process(tmp_path / "cut.db", several(model), model)
        process.live(part)
        process.stop()
    assert essence(process.steps) == essence(whole.steps)[cut:]


@pytest.mark.parametrize("mode", ["one_way", "hedge"])
def test_an_account_of_one_strategy_is_taken_over_by_shares(tmp_path: Path, mode: str) -> None:
    path, account = tmp_path / "run.db", {"cash": "100000", "position_mode": mode}
    alone = resolved(
        load(
            None,
            {
                "strategy": {"name": DRAWN, "options": {"seed": 1}},
                "sizing": {"mode": "equity", "fraction": "1"},
                "account": account,
            },
        ),
        FillModel.NEXT_OPEN,
    )
    first = Process(path, alone, FillModel.NEXT_OPEN)
    given = events(40, quotes=False)
    stop = 0
    for stop, event in enumerate(given, start=1):
        first.feed(event)
        if stop > 20 and first.opened.engine.broker.account.held("linear:BTCUSDT"):
            break
    first.stop()
    second = Process(path, several(FillModel.NEXT_OPEN, account=account), FillModel.NEXT_OPEN)
    engine = second.opened.engine
    assert second.opened.run.parent_run_id == first.opened.run.run_id
    assert [part.held("linear:BTCUSDT") for part in engine.broker.account.owners.values()] != [
        0,
        0,
        0,
    ]
    broker = engine.broker
    cash = (
        sum(part.subtotal().cash for part in broker.account.owners.values())
        + broker.account.reserve
    )
    assert cash == first.steps[-1].account.cash
    second.opened.engine.step(given[stop], None)
    for line in broker.account.lines_of("linear:BTCUSDT"):
        assert sum(share.held for share in line.shares) == line.held
    second.audit.close()


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"strategies": {"a": {"share": "0.6"}, "b": {"share": "0.5"}}},
        "the shares of [strategies] add up to 1.1; let them be at most 1 together",
    ),
    ({"strategies": {"a": {"share": "0.6"}}}, "[strategies.a] is alone; write it as [strategy]"),
    (
        {
            "strategy": {"long_only": False},
            "strategies": {"a": {"share": "0.5"}, "b": {"share": "0.5"}},
        },
        "gives [strategy], and [strategies] names several; leave one out.",
    ),
    ({"strategies": {"a": {}, "b": {"share": "0.5"}}}, "[strategies.a] needs a share"),
    (
        {"strategies": {"a": {"share": "0.5", "shadows": "ungated"}, "b": {"share": "0.5"}}},
        "have different `shadows`, which all of them share; give each the same",
    ),
    ({"strategies": {"reset": "day"}}, "[strategies] reset is of several strategies"),
]


@pytest.mark.parametrize(("sections", "sentence"), BAD)
def test_what_cannot_be_used_is_one_sentence(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load(None, sections)
    text = str(caught.value)
    assert sentence in text
    assert text.endswith(".")
    assert "\n" not in text


def test_a_limit_that_no_model_measures_is_refused_by_the_names_of_all() -> None:
    config = configured(risk={"max_tail": "0.5"})
    with pytest.raises(ConfigInvalid, match=r"which a \+ b \+ c is not given"):
        build_engine(
            config,
            [instrument()],
            execution=FillModel.NEXT_OPEN,
            period_start_ms=0,
            forecaster=None,
        )


def test_explain_shows_what_stands_behind_a_netted_decision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.db"
    config = several(FillModel.NEXT_OPEN, risk={"max_notional": "40000"})
    process = Process(path, config, FillModel.NEXT_OPEN)
    process.live(events(50, quotes=False))
    process.stop()
    refused = [
        step for step in process.steps if step.decision is not None and step.decision.refused_by
    ]
    for step in (refused[-1], process.steps[-2]):
        capsys.readouterr()
        assert invoke(["explain", f"last:{step.sequence}", "--db", str(path), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        for member, row in zip(step.strategies, document["strategies"], strict=True):
            assert row["strategy"] == member.strategy
            assert row["reason"] == member.outcome.reason
            assert row["unfilled_reason"] == member.outcome.unfilled_reason
            assert row["target_quantity"] == (member.target_quantity or 0) / 1_000
            gates = json.loads(row["gates"])
            assert set(gates) == set(member.outcome.gate_set.gates)
            assert step.decision is not None
            pairs = zip(step.decision.outcome.gate_set.gates, step.decision.measures, strict=True)
            measures = {**dict(pairs), **dict(member.measures)}
            assert {gate: judged[0] for gate, judged in gates.items()} == {
                gate: pytest.approx(measures[gate]) for gate in gates
            }
        assert invoke(["explain", f"last:{step.sequence}", "--db", str(path)]) == 0
        printed = capsys.readouterr().out
        assert all(
            f"{member.strategy} wants " in " ".join(printed.split()) for member in step.strategies
        )
        assert "None of the strategies asks a model" in printed


@pytest.mark.parametrize(
    ("axis", "options", "sentence"),
    [
        ("fast=2,3", (), "fast is a key of one; write strategies.NAME.KEY"),
        ("sizing.fraction=0.5,1", ("--strategy", "sma_cross"), "leave one out"),
    ],
)
def test_a_sweep_of_one_of_several_is_refused_in_a_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    axis: str,
    options: tuple[str, ...],
    sentence: str,
) -> None:
    file = tmp_path / "both.toml"
    file.write_text('[strategies.a]\nshare = "0.5"\n[strategies.b]\nshare = "0.5"\n')
    state = ["--state", str(tmp_path / "sweep.db")]
    code = invoke(["sweep", str(DEMO_CANDLES), "-c", str(file), "--space", axis, *options, *state])
    assert code != 0
    complaint = capsys.readouterr().err
    assert "[strategies] names several" in complaint
    assert sentence in complaint
    assert not (tmp_path / "sweep.db").exists()
