"""What a fleet costs is measured on a real PostgreSQL; here only that the figures are of it."""

from __future__ import annotations

import pytest
from postgres_server import Cluster

from tracepaper.replay.bench import fleet
from tracepaper.storage.fleet.views import FLEET_VIEWS
from tracepaper.strategies.errors import InvariantBroken


def test_the_figures_are_of_the_databases_that_were_shipped(
    postgres: Cluster, fleet_url: str
) -> None:
    found = fleet.measure_fleet(fleet_url, bars=4_000, paced=20, bars_per_s=400)
    assert found["steps"] == 4_000 + 2 * fleet.RUNS, "each run has its begin and its end"
    for name in ("view_ms", "view_of_a_tenth_ms", "view_ratio"):
        assert list(found[name]) == [view.name for view in FLEET_VIEWS]
        assert min(found[name].values()) > 0
    runs = "SELECT count(*) FROM runs GROUP BY database_id ORDER BY 1"
    assert postgres.sql(fleet_url, runs) == [(1,), (fleet.RUNS // 10,), (fleet.RUNS,)]


@pytest.mark.slow
def test_decisions_are_timed_beside_a_process_that_ships(postgres: Cluster, fleet_url: str) -> None:
    found = fleet.measure_decisions(fleet_url, decisions=60, rounds=2, pause_s=0.001)
    for name in ("decision_p50_ms", "decision_p99_ms"):
        assert set(found[name]) == {"without", "with", "difference", "error"}
    shipped = "SELECT count(*) FROM steps GROUP BY database_id"
    assert all(count > 2 * 60 for (count,) in postgres.sql(fleet_url, shipped))
    assert postgres.sql(fleet_url, "SELECT count(*) FROM marks") == [(2,)], "one with, each round"


def test_a_server_that_nothing_is_shipped_to_is_no_measurement(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "SHIP_PROGRAM", ("false",))
    with pytest.raises(InvariantBroken, match="did not begin"):
        fleet.measure_decisions(fleet_url, decisions=1, rounds=2)
