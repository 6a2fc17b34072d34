"""A user's model is imported, guarded and hashed; only an equal one resumes its run."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from builders import bars, instrument, present
from engines import engine_of
from msgspec.structs import replace

from tracepaper.daemon.config.loading import Config, load, restore
from tracepaper.daemon.session.build import with_usual_warmup
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.user_model import UserForecaster, load_model
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken, StrategyFailed
from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.time_buckets import weights_of
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar

BTC = "linear:BTCUSDT"
COUNTS = itertools.count()
HEADER = """
import numpy as np
from tracepaper.strategies.api.model import Model, feature_row

@feature_row(lookback=3)
def features(past):
    return [past.close[-1] / past.close[0] - 1, past.volume.sum()]

class Mine(Model):
"""
PLAIN = """
    features = "{module}:features"
    def predict(self, inputs):
        return {{"mean_return": float(inputs.features[-1, 0])}}
"""
ROWS = """
    features = "{module}:features"
    def predict_rows(self, rows):
        return {{"mean_return": rows[:, 0]}}
"""


@pytest.fixture
def folder(here: Path) -> Path:
    return here


def written(folder: Path, body: str, *, header: str = HEADER) -> str:
    """Write a module with a class ``Mine`` of that body; return its name."""
    name = f"own_{next(COUNTS)}"
    text = header + body.format(module=name)
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return name


def configured(module: str, folder: Path, **model: Any) -> Config:
    """Return a configuration, read from a file in *folder*, that names the class."""
    return load(None, {"model": {"class": f"{module}:Mine", **model}}).in_folder(folder)


def model_of(folder: Path, body: str, *, mode: str = "step", **model: Any) -> UserForecaster:
    forecaster = load_model(configured(written(folder, body), folder, **model), mode=mode)
    forecaster.scale([instrument()])
    return forecaster


def answers(model: UserForecaster, given: list[Bar]) -> list[Forecast | None]:
    return [model.step(bar) for bar in given]


def test_it_answers_once_its_whole_past_is_known(folder: Path) -> None:
    model = model_of(folder, PLAIN)
    first = answers(model, given := bars(6))
    assert (model.context, first[:2]) == (3, [None, None])
    change = given[2].close / given[0].close - 1
    assert first[2] is not None
    assert first[2].mean_return[0] == pytest.approx(change, rel=1e-6)


@pytest.mark.parametrize("schema", ["{module}:features", "v2"])
def test_warmed_stepped_and_scanned_it_answers_alike(folder: Path, schema: str) -> None:
    body = ROWS.replace("{module}:features", schema)
    whole = model_of(folder, body)
    given = bars(560 if schema == "v2" else 40)
    stepped = answers(whole, given)
    warmed = model_of(folder, body)
    warmed.warm(BTC, given[:-5])
    assert [x.mean_return for x in answers(warmed, given[-5:]) if x] == [
        x.mean_return for x in stepped[-5:] if x
    ]
    scanning = model_of(folder, body, mode="scan")
    assert (scanning.mode, scanning.causal) == ("scan", True)
    parts = [scanning.scan(part) for part in (given[:2], given[2:-9], given[-9:-1])]
    scanned = [*itertools.chain.from_iterable(parts), scanning.step(given[-1])]
    assert [x and x.mean_return for x in scanned] == [x and x.mean_return for x in stepped]
    assert sum(x is not None for x in scanned) == len(given) - whole.context + 1


def test_prices_are_prices_and_the_past_is_its_own_to_keep(folder: Path) -> None:
    body = """
    context = 4
    kept = []
    def predict(self, inputs):
        past = inputs.past
        self.kept.append(past.close)
        for array in (past.close, past.time, inputs.features):
            try:
                array[0] = 0
            except ValueError:
                continue
            raise AssertionError("it could be written")
        assert isinstance(past.close.base, bytes)
        assert len(past.volume) == 4 and inputs.time == past.time[-1]
        return {{"mean_return": past.close[-1]}}
"""
    model = model_of(folder, body)
    forecasts = answers(model, given := bars(9))
    prices = [bar.close / 10 ** instrument().price_decimals for bar in given]
    assert [x.mean_return[0] for x in forecasts if x] == prices[3:]
    kept: list[Any] = model.model.kept  # type: ignore[attr-defined]
    assert [array.tolist() for array in kept] == [prices[at : at + 4] for at in range(6)]


@pytest.mark.parametrize("declared", ["8", "(8,)", "[8]"])
def test_a_models_only_horizon_is_the_horizon(folder: Path, declared: str) -> None:
    config = configured(written(folder, f"    horizons = {declared}\n" + PLAIN), folder)
    assert with_usual_warmup(config, None).gate.horizon == 8
    named = config.gate.model_copy(update={"horizon": 30})
    named_config = config.model_copy(update={"gate": named})
    assert with_usual_warmup(named_config, None).gate.horizon == 30, "it is set"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    pass\n", "implement predict or predict_rows"),
        ("    context = 0\n" + PLAIN, "context is 0"),
        ("    context = 2\n" + ROWS, "implement predict instead"),
        ("    horizons = ()\n" + PLAIN, "give whole bars"),
        ("    measures = 'mean_return'\n" + PLAIN, "name some of"),
        ("    measures = ('mean',)\n" + PLAIN, "name some of"),
        ("    trained_until = 'May'\n" + PLAIN, "write a date"),
        (PLAIN.replace("features = ", "features = 'v9' #"), "No feature schema is called"),
        (PLAIN.replace(":features", ":Mine"), "feature_row"),
        ("    def __init__(self):\n        pass\n" + PLAIN, "options, files"),
        (
            "    from tracepaper.strategies.types.calibration import Calibration\n"
            "    calibration = Calibration({{'direction': (1.0,)}}, {{}}, 0.0)\n" + PLAIN,
            "99 numbers",
        ),
    ],
)
def test_a_declaration_that_cannot_be_kept_is_one_sentence(
    folder: Path, body: str, words: str
) -> None:
    with pytest.raises(ConfigInvalid, match=words):
        model_of(folder, body)


def test_what_is_no_model_or_no_name_is_said(folder: Path) -> None:
    name = written(folder, PLAIN)
    with pytest.raises(ConfigInvalid, match=r"model.class 'nowhere:Mine' cannot be imported"):
        load_model(configured("nowhere", folder))
    with pytest.raises(ConfigInvalid, match=r"no tracepaper.Model"):
        load_model(load(None, {"model": {"class": f"{name}:np"}}))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "    def predict(self, inputs):\n        return 1 / 0\n",
            "ZeroDivisionError.*own_.*py:11",
        ),
        ("    def predict(self, inputs):\n        return {{'mean': 1}}\n", "answer only"),
        ("    def predict(self, inputs):\n        return 'up'\n", "return a mapping"),
    ],
)
def test_what_it_does_wrong_ends_in_one_sentence(folder: Path, body: str, words: str) -> None:
    with pytest.raises(StrategyFailed, match=words):
        answers(model_of(folder, body), bars(2))


ATTENDING = """
    context = {context}
    measures = ("mean_return", "attended")
    def predict(self, inputs):
        import torch
        from tracepaper import attention
        shares = inputs.past.volume / inputs.past.volume.sum()
        return {{"mean_return": 0.001, "attended": {answer}}}
"""


def attending(folder: Path, answer: str, context: int = 150) -> UserForecaster:
    """Return a model whose shares are those of volume, given as *answer*."""
    body = ATTENDING.replace("{answer}", answer).replace("{context}", str(context))
    return model_of(folder, body)


@pytest.mark.parametrize(
    "answer",
    ["shares", "shares.tolist()", "torch.tensor(shares)[None, None]",
     "attention.AttendedTokens({{'bars': torch.tensor(shares)[None, None]}}, torch.zeros(1, 1))"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("context", "size", "count"), [(150, 64, 4), (65, 64, 3), (64, 1, 64), (40, 1, 40)]
)
def test_where_it_looked_is_stored_by_blocks_of_time_and_measured(
    folder: Path, answer: str, context: int, size: int, count: int
) -> None:
    given = bars(220)
    model = attending(folder, answer, context)
    [*_, last] = answers(model, given)
    volumes = np.array([bar.volume for bar in given[-context:]], dtype=float)
    shares = volumes / volumes.sum()
    looked = present(present(last).explanation)
    assert model.bucket_bars == size
    blocks = np.array([bar.open_time_ms // bar.interval_ms // size for bar in given[-context:]])
    wanted = np.bincount(blocks[-1] - blocks, shares, minlength=count)[:count]
    assert weights_of(looked.buckets) == pytest.approx(wanted, abs=2**-23)
    recent = shares[-round(context / 4) :].sum()
    assert looked.recent_mass == pytest.approx(recent)
    assert present(looked.confidence_entropy) == pytest.approx(
        1 + (shares * np.log(shares)).sum() / np.log(context)
    )
    assert {"recent_mass", "event_focus"} < model.measures
    assert model.attended(given[0].instrument) == pytest.approx(tuple(shares))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("shares[1:]", "py:13.*of shape .149,. for 150 bars; give one share each"),
        ("shares * 0.99", r"a sum of 0.99 and"),
        ("shares * float('nan')", "a sum of nan and"),
        ("shares - (np.arange(150) == 0) + (np.arange(150) == 1)", "a least share of -"),
        ("'all'", "give one share per bar"),
    ],
)
def test_shares_that_are_none_end_at_their_first_bar(folder: Path, answer: str, words: str) -> None:
    with pytest.raises(StrategyFailed, match=words):
        answers(attending(folder, answer), bars(160))


def test_features_are_held_to_be_pure_of_one_width_and_finite(folder: Path) -> None:
    def model(function: str) -> UserForecaster:
        header = HEADER.replace(
            "return [past.close[-1] / past.close[0] - 1, past.volume.sum()]", function
        )
        name = written(folder, PLAIN, header=header)
        forecaster = load_model(configured(name, folder))
        forecaster.scale([instrument()])
        return forecaster

    with pytest.raises(StrategyFailed, match="computed twice"):
        answers(model("return [np.random.random()]"), bars(4))
    growing = "global N; N = globals().get('N', 0) + 1; return [1.0] * (1 + (N > 4))"
    with pytest.raises(StrategyFailed, match="return the same number"):
        answers(model(growing), bars(9))
    with pytest.raises(StrategyFailed, match="return a row of numbers"):
        answers(model("return 'high'"), bars(4))
    [forecast] = [x for x in answers(model("return [np.nan]"), bars(3)) if x]
    assert np.isnan(forecast.mean_return).all()


def test_files_are_read_beside_the_configuration_and_are_part_of_the_id(folder: Path) -> None:
    body = """
    def __init__(self, options, files):
        self.weight = float(files["weight.txt"].read_text()) * options.get("times", 1)
    def predict(self, inputs):
        return {{"mean_return": self.weight}}
"""
    name = written(folder, body)
    (folder / "weight.txt").write_text("0.25", encoding="utf-8")

    def loaded(**options: object) -> UserForecaster:
        given = configured(name, folder, files=["weight.txt"], options=options)
        forecaster = load_model(given)
        forecaster.scale([instrument()])
        return forecaster

    first = loaded()
    [forecast] = answers(first, bars(1))
    assert forecast is not None
    assert forecast.mean_return == (0.25,)
    assert loaded().model_sha256 == first.model_sha256
    assert loaded(times=2).model_sha256 != first.model_sha256
    restored = restore(configured(name, folder, files=["weight.txt"]).canonical_json())
    assert load_model(restored).model_sha256 == first.model_sha256
    (folder / "weight.txt").write_text("0.5", encoding="utf-8")
    assert loaded().model_sha256 != first.model_sha256
    with pytest.raises(ConfigInvalid, match=r"there is no other.txt"):
        load_model(configured(name, folder, files=["other.txt"]))


def test_the_sources_of_class_and_features_are_part_of_the_id(folder: Path) -> None:
    name = written(folder, PLAIN)
    first = load_model(configured(name, folder)).model_sha256
    path = folder / f"{name}.py"
    path.write_text(path.read_text("utf-8").replace("volume.sum", "volume.mean"), encoding="utf-8")
    del sys.modules[name]
    assert load_model(configured(name, folder)).model_sha256 != first


def test_the_declared_files_of_the_features_are_part_of_the_id(folder: Path) -> None:
    name = written(folder, PLAIN)
    path = folder / f"{name}.py"
    declares = path.read_text("utf-8").replace("lookback=3", "lookback=3, files=('table.csv',)")
    path.write_text(declares, encoding="utf-8")
    (folder / "table.csv").write_text("1", encoding="utf-8")
    first = load_model(configured(name, folder)).model_sha256
    (folder / "table.csv").write_text("2", encoding="utf-8")
    assert load_model(configured(name, folder)).model_sha256 != first
    (folder / "table.csv").unlink()
    with pytest.raises(ConfigInvalid, match=r"\.files names table\.csv, but there is no file"):
        load_model(configured(name, folder))


def test_another_schema_by_the_configuration_is_another_model(folder: Path) -> None:
    name = written(folder, PLAIN)
    given = {"model": {"class": f"{name}:Mine"}}
    forecaster = load_model(load(None, given))
    minutes, hours = (
        load_model(
            load(None, {**given, "features": {"schema": "v2"}, "market": {"interval": text}})
        )
        for text in ("1m", "1h")
    )
    assert (forecaster.context, minutes.context, hours.context) == (3, 480, 240)
    assert len({forecaster.model_id, minutes.model_id, hours.model_id}) == 3


def test_thresholds_fall_to_plain_numbers_or_ask_for_one(folder: Path) -> None:
    body = """
    measures = ("probabilities",)
    def predict(self, inputs):
        return {{"p_up": 0.7}}
"""
    name = written(folder, body)

    def gates(**overrides: Any) -> dict[str, float]:
        named = {"strategy": {"name": "attention"}, "model": {"class": f"{name}:Mine"}}
        given = load(None, {**named, **overrides})
        engine = engine_of(given, forecaster=load_model(given))
        [gate_set] = engine.gate_sets
        return dict(zip(gate_set.gates, gate_set.thresholds, strict=True))

    document = gates()
    assert document["direction"] == 0.5
    assert not {"confidence_entropy", "edge", "regime"} & set(document)
    with pytest.raises(ConfigInvalid, match=r"gate.direction = 'q0.7'.*write a number"):
        gates(gate={"direction": "q0.7"})
    assert gates(gate={"direction": "0.6"})["direction"] == 0.6
    with pytest.raises(ConfigInvalid, match=r"sizing.mode 'tanh' needs mean_return and stdev"):
        gates(sizing={"mode": "tanh"})


def test_a_model_without_a_direction_cannot_be_traded_by_the_built_in_strategy(
    folder: Path,
) -> None:
    body = "    measures = ('volatility',)\n    def predict(self, inputs):\n        return None\n"
    name = f"{written(folder, body)}:Mine"
    given = load(None, {"strategy": {"name": "attention"}, "model": {"class": name}})
    with pytest.raises(ConfigInvalid, match="needs mean_return or probabilities"):
        engine_of(given, forecaster=load_model(given))


def test_bars_out_of_order_are_a_bug(folder: Path) -> None:
    model = model_of(folder, PLAIN)
    first, second = bars(2)
    model.step(second)
    with pytest.raises(InvariantBroken, match="does not follow"):
        model.step(first)


def test_a_class_that_was_typed_is_hashed_by_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(factor: int) -> UserForecaster:
        module = ModuleType("typed_here")
        monkeypatch.setitem(sys.modules, "typed_here", module)
        body = HEADER + ROWS.format(module="typed_here").replace(
            "rows[:, 0]", f"rows[:, 0] * {factor}"
        )
        exec(compile(body, "<typed>", "exec"), vars(module))
        return load_model(load(None, {"model": {"class": "typed_here:Mine"}}))

    first = typed(1)
    assert first.model_sha256 == typed(1).model_sha256 != typed(2).model_sha256
    first.scale([instrument()])
    assert [x is not None for x in answers(first, bars(4))] == [False, False, True, True]


def test_instruments_are_apart(folder: Path) -> None:
    model = model_of(folder, PLAIN)
    other = replace(instrument(), symbol="ETHUSDT", price_decimals=3)
    model.scale([instrument(), other])
    mine, theirs = bars(5), bars(5, seed=2, instrument_id=other.id)
    pairs = [model.predict_many(pair) for pair in zip(mine, theirs, strict=True)]
    alone = model_of(folder, PLAIN)
    assert [a and a.mean_return for a, _ in pairs] == [
        a and a.mean_return for a in answers(alone, mine)
    ]


def test_a_checkpoint_sees_what_its_card_says() -> None:
    for schema in ("mine:features", "v2"):
        text = rf"schema = '{schema}' is for a class of your own, and the checkpoint sees tree-1m"
        with pytest.raises(ConfigInvalid, match=text):
            load_forecaster(load(None, {"features": {"schema": schema}}))
    assert load_forecaster(load(None)).measures == MEASURES
