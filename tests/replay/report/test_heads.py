from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from tracepaper.daemon.session.models import forecaster_of
from tracepaper.replay.report.document import Report
from tracepaper.replay.report.heads import (
    HeadReport,
    flow_picture,
    group_names,
    heads_chart,
    read_heads,
)
from tracepaper.storage import checkpoints
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.ensemble import network_half
from tracepaper.strategies.forecasters.streaming import StreamingForecaster


@pytest.fixture(scope="module")
def heads(attention_report: Report) -> HeadReport:
    return read_heads(attention_report.record)


def test_the_flow_ends_in_the_decision_s_own_rollout(
    heads: HeadReport, attention_report: Report
) -> None:
    record = attention_report.record
    model = checkpoints.kept_folder(record.database, str(record.run["model_id"]))
    forecaster = network_half(forecaster_of(model, record.config, mode="step"))
    assert isinstance(forecaster, StreamingForecaster)
    with Reader.open(record.database) as reader:
        bars = reader.bars(str(record.run["run_id"]), heads.instrument)
    forecaster.warm(heads.instrument, bars)
    told = forecaster.explain(heads.instrument)
    assert heads.rollout == pytest.approx(np.array(told.weights), abs=1e-6)


def test_every_layer_passes_on_all_that_reached_it(heads: HeadReport) -> None:
    assert heads.flow.sum(axis=(1, 2)) == pytest.approx(np.ones(4), abs=1e-5)
    for above, below in zip(heads.flow[:-1], heads.flow[1:], strict=True):
        assert above.sum(axis=0) == pytest.approx(below.sum(axis=1), abs=1e-5)
    assert heads.flow[0].sum(axis=1).tolist() == pytest.approx([1, 0, 0, 0, 0, 0, 0], abs=1e-5)


def test_the_groups_of_the_last_column_agree_with_the_stored_buckets(
    heads: HeadReport, attention_report: Report
) -> None:
    """Age below 1,024 by the flow and by the blocks of the database, within one block."""
    with sqlite3.connect(attention_report.record.database) as db:
        weights = [
            row[0]
            for row in db.execute(
                "SELECT weight FROM v_explanations WHERE sequence = ? AND bucket <> 'older' "
                "ORDER BY CAST(bucket AS INTEGER)",
                (heads.sequence,),
            )
        ]
    young = heads.flow[-1].sum(axis=0)[:4].sum()
    assert sum(weights[:16]) - 1e-6 <= young + weights[15]
    assert young - weights[16] <= sum(weights[:17]) + 1e-6


def test_each_head_s_row_is_a_share_of_all_it_sees(heads: HeadReport) -> None:
    widths = np.diff([*heads.cell_ages, heads.window])
    whole = (heads.maps * widths[:, None]).sum(axis=2)
    assert whole == pytest.approx(np.ones_like(whole), abs=1e-4)


def test_pictures_have_a_panel_a_head_and_a_label_a_group(heads: HeadReport) -> None:
    chart = heads_chart(heads)
    assert len(chart["data"]) == 16
    words = flow_picture(heads)
    assert all(f">{name}: " in words for name in heads.groups[:4])
    assert group_names(1_000)[-1] == "256–999"
    assert words.count("<svg") == 1


def test_a_run_without_a_model_says_that_there_is_nothing_to_look_into(
    cross_report: Report,
) -> None:
    with pytest.raises(DataInvalid, match="leave --heads out"):
        read_heads(cross_report.record)
