"""From the configuration to a model: what it may ask for, and what the run's row then says."""

from __future__ import annotations

import pytest
import storage_cases as cases

from tracepaper.daemon import models
from tracepaper.daemon.config import Config
from tracepaper.daemon.config_sections import Market, Model
from tracepaper.daemon.describing import describe_run, started
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.types import RunKind


def test_what_attends_is_on_the_run_and_in_its_start_event() -> None:
    config = Config()
    made = models.load_forecaster(config)
    run = describe_run(
        config, [cases.BTC], made, kind=RunKind.LIVE, started_at_ms=1, period_start_ms=1
    )
    change = started(made, warm_from=(), market_ms=1)
    assert run.backend == change.backend == models.chosen_backend(config) == "tiles"


def test_a_run_without_a_model_attends_by_nothing() -> None:
    run = describe_run(
        Config(), [cases.BTC], None, kind=RunKind.LIVE, started_at_ms=1, period_start_ms=1
    )
    assert run.backend == started(None, warm_from=(), market_ms=1).backend == ""


@pytest.mark.parametrize("backend", ["flash_attn", "sdpa", "reference"])
def test_a_backend_that_the_checkpoint_cannot_use_is_refused(backend: str) -> None:
    config = Config(model=Model(backend=backend))
    for ask in (models.load_forecaster, models.chosen_backend):
        with pytest.raises(ConfigInvalid, match=f"model.backend is '{backend}', .* auto or tiles"):
            ask(config)


def test_memory_is_asked_for_before_a_model_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten instruments of the bundled network need more than four of them."""
    monkeypatch.setattr(models, "free_bytes", lambda: 80 << 20)
    market = {"symbols": ("BTCUSDT", "ETHUSDT")}
    models.load_forecaster(Config(market=Market.model_validate(market)))
    many = {"symbols": tuple(f"S{number}USDT" for number in range(10))}
    with pytest.raises(AttentionInvalid, match=r"A window of 1088 bars needs .* use at most \d+"):
        models.load_forecaster(Config(market=Market.model_validate(many)))
