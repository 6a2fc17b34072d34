"""Contributions that a custom model reports are shown and must sum to its forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
from command_line import Cli
from page_cases import shown_of
from pages import document_in

import tracepaper
from tracepaper.models import BASE, LightGBM, tree_shap
from tracepaper.replay.backtest.make import make_run
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.replay.document.values import FoldedParts, Table
from tracepaper.replay.explain.attribution import model_contributions
from tracepaper.replay.page import derivations
from tracepaper.replay.report.past import open_any
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.extras import is_installed

CLASS = """
import numpy as np
from tracepaper import Model, feature_row


@feature_row(lookback=2)
def moves(past):
    return [past.close[-1] / past.close[-2] - 1.0, past.volume[-1] / past.volume[-2] - 1.0]


class Summed(Model):
    features = moves

    def predict_rows(self, rows):
        return {"mean_return": 0.001 + rows.astype(np.float64) @ [0.5, 0.01]}

    def contributions(self, inputs):
        price, volume = inputs.features[-1].astype(np.float64) * [0.5, 0.01]
        return {"price": price, "volume": volume, "base": self.options["base"]}
"""
CONFIG = """
[market]
symbols = ["AAAUSDT"]
interval = "1"
[strategy]
name = "attention"
[model]
class = "summed_model:Summed"
options = { base = %s }
[gate]
horizon = 30
"""


@pytest.mark.parametrize("base", [0.001, 0.002])
def test_contributions_are_shown_and_have_to_sum_to_the_forecast(
    base: float, here: Path, cli: Cli
) -> None:
    (here / "summed_model.py").write_text(CLASS, encoding="utf-8")
    (here / "config.toml").write_text(CONFIG % base, encoding="utf-8")
    data = learning.write_csv(learning.learnable(40, seed=0, symbol="AAAUSDT"), here)
    database = here / "run.db"
    config = here / "config.toml"
    make_run(RunSpec(candles=(str(data),), config=config, database=database))
    with Reader.open(database) as reader:
        run_id = reader.find("last")
    past = open_any(database, run_id, 40)
    answer = cli("explain", f"{run_id}:40", "--db", database)
    if base != 0.001:
        assert answer.code != 0
        with pytest.raises(DataInvalid, match="let them sum to it"):
            model_contributions(past)
        return
    parts = model_contributions(past)
    assert answer.code == 0
    assert parts is not None
    assert {name for name, _ in parts.features} == {"price", "volume", "base"}
    assert sum(added for _, added in parts.features) == pytest.approx(parts.mean_return, rel=1e-9)
    assert "volume" in answer.out


@pytest.mark.skipif(not is_installed("lightgbm"), reason="needs LightGBM")
def test_the_contributions_of_trees_sum_to_their_prediction(tmp_path: Path) -> None:
    import lightgbm

    draw = np.random.default_rng(3)
    rows = draw.normal(size=(300, 3)).astype(np.float32)
    options = {"verbose": -1, "num_threads": 1}
    names = ["a", "b", "c"]
    data = lightgbm.Dataset(rows, rows[:, 0] * 1e-3 + 5e-4, feature_name=names)
    booster = lightgbm.train(options, data, num_boost_round=5)
    booster.save_model(tmp_path / "trees.txt")
    model = LightGBM({"horizon": 5}, {"trees.txt": tmp_path / "trees.txt"})
    added = tree_shap(model.booster, rows[0])
    assert list(added) == [*names, BASE]
    assert abs(added["a"]) > abs(added["b"])
    assert sum(added.values()) == pytest.approx(
        model.predict_rows(rows[:1])["mean_return"][0], rel=1e-9
    )
    assert model.horizons == (5,)


ATTENDED = """
import numpy as np
from tracepaper import Model


class Looked(Model):
    context = 4

    def predict(self, inputs):
        return {"mean_return": 1e-3 * np.log(inputs.past.close[-1] / inputs.past.close[0])}

    def attended(self, inputs):
        return self.options["shares"]
"""


@pytest.mark.parametrize(
    "shares",
    [[0.1, 0.0, 0.6, 0.3], [0.5, 0.5], [1.5, -0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.2]],
)
def test_the_attention_that_a_model_reports_is_shown_and_has_to_be_shares_of_its_bars(
    shares: list[float], here: Path, cli: Cli
) -> None:
    (here / "looked_model.py").write_text(ATTENDED, encoding="utf-8")
    model: dict[str, Any] = {"class": "looked_model:Looked", "options": {"shares": shares}}
    candles = learning.write_csv(learning.learnable(40, seed=0, symbol="AAAUSDT"), here)
    database = here / "run.db"
    sections = {"strategy": {"name": "attention"}, "model": model}
    with tracepaper.backtest(None, candles, config=sections, db=database, progress=False) as run:
        closes = run.rows("bars")["close"]
    if len(shares) != 4 or min(shares) < 0 or sum(shares) != 1:
        assert "return 4 shares" in cli.err("explain", "last:30", "--db", database, code=1)
        return
    document = cli.json("explain", "last:30", "--db", database)
    assert document["attended"]["attribution"]["weights"] == shares
    assert document["attended"]["attribution"]["close"] == pytest.approx(closes[26:30])
    printed = cli.out("explain", "last:30", "--db", database)
    assert "0.6000" in printed
    assert "without an explanation of where it looked" not in printed
    assert "Bar by bar" in cli.out("explain", "last:30", "--full", "--db", database)
    page = here / "decision.html"
    cli.out("explain", "last:30", "--page", page, "--db", database)
    (chart,) = (part for part in document_in(page)["parts"] if part["kind"] == "chart")
    (drawn,) = (layer for layer in chart["panels"][1]["layers"] if layer["name"] == "attention")
    assert drawn["y"] == [100 * share for share in shares[:-1]]
    (on_page,) = derivations.ask(shown_of(database), 30, lambda _share, _doing: None).parts
    assert isinstance(on_page, FoldedParts)
    assert "bars" in {part.key for part in on_page.parts if isinstance(part, Table)}
