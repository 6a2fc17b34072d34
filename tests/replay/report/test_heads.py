from __future__ import annotations

import sqlite3
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import explained_runs
import numpy as np
import pytest
from command_line import Cli
from models import AnyConfig
from pages import document_in, said_in
from report_cases import build_report_of

from tracepaper.daemon.session.models import forecaster_of
from tracepaper.replay.document.charts import EdgeLayer, FlowLayer, HeatLayer
from tracepaper.replay.explain.recompute import attribute
from tracepaper.replay.report.attention_charts import (
    SCALE,
    edges_chart,
    flow_chart,
    heads_chart,
    layers_chart,
)
from tracepaper.replay.report.heads import HeadReport, group_names, read_heads, subject_tables
from tracepaper.replay.report.past import open_past
from tracepaper.replay.report.report import Report
from tracepaper.storage import checkpoints
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.forecasters.streaming import StreamingForecaster
from tracepaper.strategies.forecasters.tabular import network_member
from tracepaper.strategies.networks.informer import InformerConfig
from tracepaper.strategies.networks.timeframes import CrossConfig, MultiscaleConfig
from tracepaper.strategies.networks.trading import TradingConfig


@pytest.fixture(scope="module")
def heads(attention_report: Report) -> HeadReport:
    return read_heads(attention_report.record)


def test_the_flow_ends_in_the_decision_s_own_rollout(
    heads: HeadReport, attention_report: Report
) -> None:
    record = attention_report.record
    model = checkpoints.kept_folder(record.database, str(record.run["model_id"]))
    forecaster = network_member(forecaster_of(model, record.config, mode="step"))
    assert isinstance(forecaster, StreamingForecaster)
    with Reader.open(record.database) as reader:
        bars = reader.bars(str(record.run["run_id"]), heads.instrument)
    forecaster.warm(heads.instrument, bars)
    attribution = forecaster.explain(heads.instrument)
    assert heads.activity.rollout == pytest.approx(np.array(attribution.weights), abs=1e-6)
    assert heads.half


def test_the_groups_of_the_last_column_agree_with_the_stored_buckets(
    heads: HeadReport, attention_report: Report
) -> None:
    """The share of ages below 1,024 by the flow equals that of the stored blocks."""
    with sqlite3.connect(attention_report.record.database) as db:
        weights = [
            row[0]
            for row in db.execute(
                "SELECT weight FROM v_explanations WHERE sequence = ? AND bucket <> 'older' "
                "ORDER BY CAST(bucket AS INTEGER)",
                (heads.sequence,),
            )
        ]
    young = heads.activity.flow[-1].sum(axis=0)[:4].sum()
    assert sum(weights[:16]) - 1e-6 <= young + weights[15]
    assert young - weights[16] <= sum(weights[:17]) + 1e-6


def test_pictures_have_a_panel_a_head_and_a_label_a_group(heads: HeadReport) -> None:
    chart = heads_chart(heads)
    assert (len(chart.panels), chart.columns) == (16, 4)
    assert chart.panels[0].title.startswith("layer 4, head 1: ")
    [layers] = layers_chart(heads).panels[0].layers
    assert isinstance(layers, HeatLayer)
    widths = np.diff([*heads.cell_ages, heads.window])
    newest = 100 * heads.maps[3, 3, :, -1] * widths
    assert layers.rows[-1] == pytest.approx(newest, rel=1e-2, abs=1e-5)
    assert sum(filter(None, layers.rows[-1])) == pytest.approx(100.0, rel=1e-2)
    [edges] = edges_chart(heads).panels[0].layers
    assert isinstance(edges, EdgeLayer)
    whole = np.array(edges.shares)
    assert whole.shape[:3] == (4, 4, heads.decisions)
    assert whole.sum() == pytest.approx(16 * heads.decisions * SCALE, rel=0.01)
    assert len(edges.times) == heads.decisions
    [flow] = flow_chart(heads, "down the layers").panels[0].layers
    assert isinstance(flow, FlowLayer)
    assert flow.groups == heads.groups
    assert group_names(1_000)[-1] == "256–999"
    assert len(flow.columns) == len(flow.held) == len(flow.flows) + 1 == 5
    for column, (shares, arrives) in enumerate(zip(flow.held[1:], flow.flows, strict=True)):
        arrived = [sum(filter(None, row)) for row in zip(*arrives, strict=True)]
        assert sum(arrived) == pytest.approx(1.0, abs=1e-4), column
        assert shares == pytest.approx(arrived, abs=1e-4)


FURTHER: dict[str, AnyConfig] = {
    "informer": InformerConfig(dim=16, layers=3, heads=2, window=70, horizons=(5, 30)),
    "generative": InformerConfig(
        dim=16, layers=2, heads=2, window=70, horizons=(5, 30), decoder_layers=2, start_token=20
    ),
    "full": replace(explained_runs.SMALL, mask="full"),
    "causal": replace(explained_runs.SMALL, mask="causal"),
    "multiscale": MultiscaleConfig(
        dim=16, layers=2, heads=2, frames=(1, 5, 15), tokens=(20, 8, 4), horizons=(5, 30)
    ),
    "cross": CrossConfig(dim=16, layers=2, heads=2, bars=20, frame=5, tokens=8, horizons=(5, 30)),
    "trading": TradingConfig(dim=16, layers=2, heads=2, window=70, horizons=(5, 30)),
    "one_layer": replace(explained_runs.SMALL, layers=1),
}
"""Networks over whole windows, and a stream whose rings hold one row with a whole window."""


@pytest.fixture(scope="module", params=FURTHER)
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, HeadReport]:
    config = FURTHER[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    database = explained_runs.replayed(folder, network=config, strategy="trend")
    return database, read_heads(build_report_of(database).record)


def test_the_heads_of_every_network_end_in_the_rollout_that_was_stored(
    other: tuple[Path, HeadReport],
) -> None:
    database, heads = other
    attribution = attribute(open_past(database, explained_runs.run_id(database), heads.sequence))
    assert attribution.largest_bucket_difference is not None
    assert attribution.largest_bucket_difference < 1e-5
    assert heads.activity.rollout == pytest.approx(np.array(attribution.weights), abs=1e-6)
    layers, count = len(heads.activity.readings), len(heads.groups)
    assert heads.activity.flow.shape == (layers, count, count)
    assert heads.activity.flow.sum(axis=(1, 2)) == pytest.approx(np.ones(layers), abs=1e-5)
    for above, below in pairwise(heads.activity.flow):
        assert above.sum(axis=0) == pytest.approx(below.sum(axis=1), abs=1e-5)
    widths = np.diff([*heads.cell_ages, heads.window])
    assert (heads.maps * widths[:, None]).sum(axis=2) == pytest.approx(
        np.ones((layers, 2, 40)), abs=1e-4
    )
    assert not heads.half


@pytest.mark.parametrize("other", ["full", "trading"], indirect=True)
def test_heads_are_shown_in_the_terminal_as_json_and_on_the_page(
    other: tuple[Path, HeadReport], cli: Cli, tmp_path: Path
) -> None:
    database, heads = other
    words = ["report", "last", "--db", str(database), "--heads"]
    out = cli.out(*words, "--html", tmp_path / "page.html")
    layers = len(heads.activity.readings)
    assert all(f"\n{layer}.2 " in out for layer in range(1, layers + 1))
    assert f"by the run's model at decision {heads.sequence:,}" in out
    page = tmp_path / "page.html"
    assert said_in(page).count("layer 1, head ") == 2
    charts = [part for part in document_in(page)["parts"] if part["kind"] == "chart"]
    drawn = [panel["layers"][0]["type"] for chart in charts for panel in chart["panels"]]
    assert {"edges", "flow"} <= set(drawn)
    answer = cli.json(*words)["heads"]
    assert [head["head"] for head in answer["head_kinds"]] == [
        f"{layer}.{head}" for layer in range(1, layers + 1) for head in (1, 2)
    ]
    assert answer["rollout"] == heads.activity.rollout.tolist()
    assert len(answer["head_figures"]) == len(answer["head_kinds"])
    assert {len(kinds) for layer in heads.over_run for kinds in layer} == {3}


def test_the_shares_of_features_are_ranked_and_sum_to_one(heads: HeadReport) -> None:
    assert sum(heads.features.values()) == pytest.approx(1.0)
    features, events = subject_tables(heads)
    ranked = [row[1] for row in features.rows]
    assert ranked == sorted(heads.features.values(), reverse=True)
    assert 1 <= len(events.rows) <= 8
    assert heads.horizon == 30


NORM = '[model.explanation]\nmethod = "norm"\nresidual = "0.25"\n'


def test_the_flow_is_by_the_method_that_a_stream_stores(tmp_path: Path) -> None:
    database = explained_runs.replayed(tmp_path, strategy="trend", extra=NORM)
    heads = read_heads(build_report_of(database).record)
    attribution = attribute(open_past(database, explained_runs.run_id(database), heads.sequence))
    assert heads.activity.rollout == pytest.approx(np.array(attribution.weights), abs=1e-6)
    assert heads.activity.rollout[-1] < 0.5  # a quarter stays in each layer, not half
    assert heads.note == ""
