"""A model of a user's own, as its users hold it: in a replay, live, restarted, and as a service."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from bybit_server import MINUTE, START_MS, ScriptedServer
from daemon_under_test import daemon, price
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from programs import ROOT, environment, exchange_on, pointing_at, run
from readme import blocks
from records import rows
from user_strategies import importable
from waiting import deadline_s

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import CheckFinding
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import AGAIN, Limits, lookahead
from tracepaper.replay.checks.verify import Verification, verify_run
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import ModelChange

pytestmark = pytest.mark.slow

SAMPLE: Final = str(ROOT / "replay/samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz")
EXAMPLES: Final = ROOT / "strategies" / "examples"
TREE: Final = (EXAMPLES / "boosted_tree.toml").read_text("utf-8") + '[gate]\nedge = "0.2"\n'


def verified(database: Path) -> Verification:
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        assert verify_chain(reader.connection, run_id).passes
        return verify_run(reader, database, run_id)


# ---------------------------------------------------------------- the boosted tree that ships


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay a part of the sample with the example's trees, and run them live within it."""
    top = tmp_path_factory.mktemp("tree")
    (top / "tree.toml").write_text(TREE, encoding="utf-8")
    span = ["--from", "2025-05-31T02:00", "--to", "2025-05-31T20:00"]
    replayed = run(
        ["replay", "-c", "tree.toml", "--data", SAMPLE, *span, "--db", "replay.db", "--json"], top
    )
    assert replayed.code == 0, replayed.err
    options = ["--bars", "24", "--db", "live.db"]
    with exchange_on(top, "--data", SAMPLE, "--hold", "--speed", "1200") as exchange:
        live = run(["run", "-c", "tree.toml", *options], top, pointing_at(exchange.out))
    assert live.code == 0, live.err[-2000:]
    return top


def test_the_trees_trade_through_the_gates_of_what_they_give(folder: Path) -> None:
    counted = dict(rows(folder / "replay.db", "SELECT gate, count(*) FROM v_gates GROUP BY gate"))
    assert {"deadline", "finite", "edge"} <= set(counted)
    assert not {"confidence_entropy", "collapsed", "shifted", "regime", "direction"} & set(counted)
    [(allowed, given, columns)] = rows(
        folder / "replay.db",
        "SELECT sum(allowed), count(mean_return), count(p_up) + count(stdev_return) "
        "+ count(confidence_entropy) FROM v_decisions",
    )
    assert allowed > 100
    assert (given, columns) == (1_080, 0)
    assert rows(folder / "replay.db", "SELECT count(*) > 5 FROM v_fills") == [(1,)]


def test_live_and_replayed_the_trees_decide_alike(folder: Path) -> None:
    compared = run(["parity", "live.db#last", "replay.db#last", "--json"], folder)
    assert compared.code == 0, f"{compared.out}{compared.err}"
    parity = json.loads(compared.out)
    # A slow machine may have decided some of them late.
    assert parity["compared"] == parity["identical"] + sum(parity["timing"].values()) >= 24
    assert parity["identical"] > 0


@pytest.mark.parametrize("database", ["replay.db", "live.db"])
def test_every_decision_of_the_trees_follows_from_the_record(folder: Path, database: str) -> None:
    proof = verified(folder / database)
    assert (proof.differences, proof.agreed, proof.taken) == ([], proof.decisions, 0)
    checked = run(["audit", "verify", "last", "--db", database], folder)
    assert (checked.code, "holds" in checked.out) == (0, True), checked.out  # its card as well


def test_explain_says_that_there_is_no_more_to_explain(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["explain", "last:900", "--db", str(folder / "replay.db")]
    assert invoke(given) == 0
    printed = capsys.readouterr().out
    assert "Forecast, " in printed
    assert "without an explanation" in printed
    assert invoke([*given, "--full"]) == 1
    assert "is a custom class without contributions" in capsys.readouterr().err


SURE: Final = """
from tracepaper import Model

class Sure(Model):
    measures = ("mean_return", "confidence_entropy")
    def predict(self, inputs):
        return {"mean_return": 0.001, "confidence_entropy": 0.5}
"""


def test_a_confidence_without_a_place_is_explained_and_shown(tmp_path: Path) -> None:
    """Such a model has an explanation that says how sure it is, and not where it looked."""
    (tmp_path / "sure.py").write_text(SURE, encoding="utf-8")
    sections = '[strategy]\nname = "attention"\n[model]\nclass = "sure:Sure"\n'
    (tmp_path / "sure.toml").write_text(sections, encoding="utf-8")
    span = ["--to", "2025-05-26T09:00", "--db", "run.db"]
    assert run(["replay", "-c", "sure.toml", "--data", SAMPLE, *span], tmp_path).code == 0
    assert rows(tmp_path / "run.db", "SELECT max(confidence_entropy) FROM v_decisions") == [(0.5,)]
    explained = run(["explain", "last:50", "--db", "run.db"], tmp_path)
    assert (explained.code, "without an explanation" in explained.out) == (0, True), explained.err
    written = run(["report", "last", "--html", "run.html", "--db", "run.db"], tmp_path)
    assert written.code == 0, written.err


LOOKS: Final = """
from tracepaper.strategies.api.model import Model

class Looks(Model):
    context = 48
    measures = ("mean_return", "attended")

    def predict(self, inputs):
        volume = inputs.past.volume + 1e-9
        return {"mean_return": 0.001, "attended": volume / volume.sum()}
"""


def test_where_it_looked_is_verified_explained_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text(LOOKS, encoding="utf-8")
    sections = '[strategy]\nname = "attention"\n[model]\nclass = "looks:Looks"\n'
    (tmp_path / "looks.toml").write_text(sections, encoding="utf-8")
    span = ["--to", "2025-05-26T12:00", "--db", "run.db"]
    assert run(["replay", "-c", "looks.toml", "--data", SAMPLE, *span], tmp_path).code == 0
    with importable(tmp_path):
        assert verified(tmp_path / "run.db").exact
    [(sums, buckets)] = rows(
        tmp_path / "run.db",
        "SELECT avg(weight), max(buckets) FROM (SELECT sum(weight) AS weight, count(*) AS buckets "
        "FROM v_explanations GROUP BY sequence)",
    )
    assert (sums, buckets) == (pytest.approx(1.0, abs=1e-6), 49)
    [(weight, volume)] = rows(
        tmp_path / "run.db",
        "SELECT max(e.weight), max(b.volume) / sum(b.volume) FROM v_explanations e "
        "LEFT JOIN v_bars b ON b.open_time_ms = e.from_open_time_ms WHERE e.sequence = "
        "(SELECT max(sequence) FROM v_explanations)",
    )
    assert weight == pytest.approx(volume, abs=1e-6)
    explained = run(["explain", "last:268", "--db", "run.db"], tmp_path)
    assert (explained.code, "Bar by bar" in explained.out) == (0, True), explained.err
    written = run(["report", "last", "--html", "run.html", "--db", "run.db"], tmp_path)
    assert written.code == 0, written.err
    document = json.loads(run(["explain", "last:268", "--json", "--db", "run.db"], tmp_path).out)
    assert [block["bucket"] for block in document["buckets"]][-1] == "older"


# ---------------------------------------------------------------- looked at with suspicion

MINE: Final = """
from tracepaper.strategies.api.model import Model, feature_row
{top}
@feature_row(lookback=4, files=({files}))
def features(past):
    {features}
    return [past.close[-1] / past.close[0] - 1.0]

class Mine(Model):
    features = "{module}:features"
    def __init__(self, options, files):
        {init}
    def predict(self, inputs):
        {predict}
        return {{"mean_return": float(inputs.features[-1, 0])}}
"""


@pytest.fixture(scope="module")
def fresh() -> Iterator[FreshProcesses]:
    with FreshProcesses() as server:
        yield server


def checked(
    folder: Path, fresh: FreshProcesses, module: str, bodies: Mapping[str, str]
) -> CheckFinding:
    """Write a model with these bodies, and return what lookahead finds of it."""
    parts = dict.fromkeys(("features", "init", "predict"), "pass") | {"top": "", "files": ""}
    parts |= bodies
    (folder / f"{module}.py").write_text(MINE.format(module=module, **parts), encoding="utf-8")
    (folder / f"{module}.py.csv").write_text("1", encoding="utf-8")
    given: dict[str, dict[str, Any]] = {
        "strategy": {"name": "attention"},
        "model": {"class": f"{module}:Mine"},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "gate": {"edge": "0.01"},
        "market": {"symbols": ["BTCUSDT"]},
    }
    with importable(folder):
        candles = made_candles(walk_rows(100))
        return lookahead(load(None, given), MarketData([candles]), fresh, Limits(probes=2))


def test_what_the_features_declare_is_read_and_stays_unproved(
    tmp_path: Path, fresh: FreshProcesses
) -> None:
    reads = "open(__file__ + '.csv').read()"
    bodies = {"features": reads, "files": "'declares.py.csv',"}
    finding = checked(tmp_path, fresh, "declares", bodies)
    assert finding.verdict == "nothing differs", finding.sentence()
    assert any("whether its declared files tell the future" in note for note in finding.unproved)


def test_a_model_that_draws_is_found(tmp_path: Path, fresh: FreshProcesses) -> None:
    predict = 'import random\n        return {"mean_return": random.random() - 0.5}'
    finding = checked(tmp_path, fresh, "dishonest", {"predict": predict})
    assert (finding.verdict, finding.cause) == ("differs", AGAIN), finding


# ---------------------------------------------------------------- an outside service

OUTSIDE: Final = """
import json
from urllib.request import urlopen
from tracepaper.strategies.api.model import Model

class Mine(Model):
    is_outside = True
    measures = ("mean_return", "probabilities")
    context = 2
    def __init__(self, options, files):
        self.url = options["url"]
    def predict(self, inputs):
        change = float(inputs.past.close[-1] - inputs.past.close[0])
        with urlopen(f"{self.url}/{change}", timeout=None) as answer:
            return json.load(answer)
"""


class Service:
    """An HTTP service on loopback that answers, hangs, talks nonsense or hangs up."""

    def __init__(self) -> None:
        self.mood = "well"
        self.requests = 0
        self.released = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(float(self.path[1:]))

            def _answer(self, change: float) -> None:
                service.requests += 1
                mood = service.mood
                if mood == "hangs":
                    service.released.wait(deadline_s())
                if mood == "hangs up":
                    return
                answer: object = {"mean_return": change / 100, "p_up": 0.7 if change > 0 else 0.2}
                if mood == "of another shape":
                    answer = {"mean_return": [1.0, 2.0], "p_up": 0.5}
                body = b"<html>" if mood == "nonsense" else json.dumps(answer).encode()
                if mood == "NaN":
                    body = b'{"mean_return": NaN, "p_up": 0.5}'
                self.send_response(500 if mood == "fails" else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def die(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(deadline_s())


@contextmanager
def service() -> Iterator[Service]:
    running = Service()
    try:
        yield running
    finally:
        running.die()


MOODS: Final = ("hangs", "nonsense", "NaN", "of another shape", "fails", "hangs up", "dead")


def refusals(database: Path) -> list[str | None]:
    return [name for (name,) in rows(database, "SELECT refused_by FROM v_decisions ORDER BY 1")]


@pytest.mark.sockets
@pytest.mark.parametrize(("limit", "late"), [("None", 1), ("0.8 * self.deadline_s", 0)])
async def test_a_service_that_fails_refuses_its_bar_and_the_record_is_checked_without_it(
    tmp_path: Path, limit: str, late: int
) -> None:
    """A request without a time limit is late; one with a limit gives up before the deadline."""
    source = OUTSIDE.replace("timeout=None", f"timeout={limit}")
    (tmp_path / "outside_model.py").write_text(source, encoding="utf-8")
    database = tmp_path / "run.db"
    with importable(tmp_path), service() as http:
        sections: dict[str, Any] = {
            "strategy": {"name": "attention"},
            "model": {
                "class": "outside_model:Mine",
                "options": {"url": http.url},
                "deadline_ms": 400,
            },
            "gate": {"edge": "0.01", "plausible": "10000"},
        }
        async with ScriptedServer() as server, daemon(server, database, **sections) as running:
            await running.close_bars(4)
            for mood in MOODS:
                http.mood = mood
                if mood == "dead":
                    http.die()
                await running.close_bars(1)
                http.mood = "well"
                http.released.set()
                if mood != "dead":
                    await running.close_bars(2)
        count = http.requests
        counted = "SELECT count(*) FROM v_decisions WHERE late_deadline_ms = 400"
        assert rows(database, counted) == [(late,)]
        forecasts = "SELECT count(*) FROM v_decisions WHERE mean_return IS NOT NULL"
        assert rows(database, forecasts)[0][0] >= 4 - 1 + 2 * (len(MOODS) - 1) - 1
        assert refusals(database).count("deadline") == late
        assert refusals(database).count("finite") == len(MOODS) - late
        assert rows(database, "SELECT count(*) > 0 FROM v_fills") == [(1,)]
        proof = verified(database)
        assert (proof.differences, proof.agreed) == ([], proof.decisions)
        assert proof.taken >= proof.decisions - 1
        assert http.requests == count  # a check asks nobody


# ---------------------------------------------------------------- the page's forest


def test_the_forest_of_the_page_is_fitted_replayed_and_verified(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    page = (ROOT / "docs" / "tree_model.md").read_text(encoding="utf-8")
    for name in ("fit_forest.py", "forest.py", "forest.toml"):
        [block] = [block for block in blocks(page) if block.lines[:1] == (f"# {name}",)]
        (tmp_path / name).write_text(block.text, encoding="utf-8")
    (tmp_path / "samples").symlink_to(ROOT / "replay" / "samples")
    program = [sys.executable, "fit_forest.py"]
    subprocess.run(program, cwd=tmp_path, env=environment(), check=True)
    span = ["--from", "2025-05-31T02:00", "--to", "2025-05-31T04:00"]
    given = ["-c", "forest.toml", "--data", SAMPLE, *span, "--db", "forest.db"]
    assert run(["replay", *given], tmp_path).code == 0
    with importable(tmp_path):
        proof = verified(tmp_path / "forest.db")
    assert (proof.differences, proof.agreed, proof.taken) == ([], proof.decisions, 0)


# ---------------------------------------------------------------- what goes on, and what does not


async def test_an_equal_model_goes_on_and_another_opens_a_run(tmp_path: Path) -> None:
    module, database = tmp_path / "going_on.py", tmp_path / "run.db"
    parts = dict.fromkeys(("features", "init", "predict"), "pass")
    text = MINE.format(module="going_on", top="", files="", **parts)
    sections: dict[str, Any] = {
        "strategy": {"name": "attention"},
        "model": {"class": "going_on:Mine"},
        "gate": {"edge": "0.01"},
    }
    runs = "SELECT count(*) FROM v_runs"

    def is_start(step: Step) -> bool:
        return isinstance(step.event, ModelChange)

    async def started(server: ScriptedServer, minute: int, decided: int) -> None:
        """Start a daemon, and let it decide what closed while none was running."""
        for at in range(minute, minute + 2 * (minute > 0)):
            server.add_candle(START_MS + at * MINUTE, price(at))
            server.server_ms = START_MS + (at + 1) * MINUTE + 3_000
        with importable(tmp_path):
            async with daemon(server, database, **sections) as running:
                if not minute:
                    await running.close_bars(8)
                await running.until(lambda: running.decided() >= decided)
                await running.until(lambda: any(map(is_start, running.steps)))

    async with ScriptedServer() as server:
        module.write_text(text, encoding="utf-8")
        await started(server, 0, decided=8)
        await started(server, 8, decided=2)
        assert rows(database, runs) == [(1,)]
        with importable(tmp_path):
            proof = verified(database)
            assert (proof.differences, proof.agreed) == ([], 10)
        module.write_text(text.replace("- 1.0", "- 1.001"), encoding="utf-8")
        await started(server, 10, decided=0)
    assert rows(database, runs) == [(2,)]
    (first, _), (_, parent) = rows(database, "SELECT run_id, parent_run_id FROM v_runs")
    assert parent == first
    changed = pytest.raises(DataInvalid, match=r"model going_on:Mine, its features.* were changed")
    with importable(tmp_path), Reader.open(database) as reader, changed:
        verify_run(reader, database, first)
