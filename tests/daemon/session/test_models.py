"""A configuration's model is checked and loaded, and the run's row describes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import storage_cases as cases

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.market import MarketSection
from tracepaper.daemon.config.sections import StrategySection
from tracepaper.daemon.session import models
from tracepaper.daemon.session.build import resolved
from tracepaper.daemon.session.models import free_bytes
from tracepaper.daemon.session.run_row import new_run, start_event
from tracepaper.strategies.attention import compiled
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import RunKind

# Free memory: that of the machine, that of a container, unknown on other systems.

MEMINFO = "MemTotal:       16000 kB\nMemFree:  10 kB\nMemAvailable:   8000 kB\nHugePages_Total: 0\n"


def system(root: Path, *, limit: str | None = None) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(MEMINFO)
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    if limit is not None:
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text("900000\n")
        (group / "memory.stat").write_text("anon 600000\ninactive_file 300000\n")
    return root


@pytest.mark.parametrize(
    ("limit", "free"), [(None, 8_192_000), ("1000000", 400_000), ("max", 8_192_000), ("500000", 0)]
)
def test_what_the_machine_has_is_less_in_a_container(
    tmp_path: Path, limit: str | None, free: int
) -> None:
    assert free_bytes(tmp_path) is None  # unknown on another system
    assert free_bytes(system(tmp_path, limit=limit)) == free


def test_what_attends_is_on_the_run_and_in_its_start_event() -> None:
    config = resolved(Config(), FillModel.QUOTE)
    forecaster = models.load_forecaster(config)
    run, _ = new_run(
        config, [cases.BTC], forecaster, kind=RunKind.LIVE, started_at_ms=1, period_start_ms=1
    )
    change = start_event(forecaster, warm_from=(), market_ms=1)
    assert run.backend == change.backend == models.chosen_backend(config)
    assert run.backend == (*compiled.available(), "tiles")[0]


def test_a_run_without_a_model_attends_by_nothing() -> None:
    config = resolved(Config(strategy=StrategySection(name="sma_cross")), FillModel.QUOTE)
    run, _ = new_run(
        config, [cases.BTC], None, kind=RunKind.LIVE, started_at_ms=1, period_start_ms=1
    )
    assert run.backend == start_event(None, warm_from=(), market_ms=1).backend == ""


def test_memory_is_asked_for_before_a_model_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two instruments of the bundled network fit the free memory, ten do not."""
    monkeypatch.setattr(models, "free_bytes", lambda: 80 << 20)
    market = {"symbols": ("BTCUSDT", "ETHUSDT")}
    models.load_forecaster(Config(market=MarketSection.model_validate(market)))
    many = {"symbols": tuple(f"S{number}USDT" for number in range(10))}
    with pytest.raises(AttentionInvalid, match=r"A window of 1,088 bars needs .* are free"):
        models.load_forecaster(Config(market=MarketSection.model_validate(many)))
