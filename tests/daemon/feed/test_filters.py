"""New filters of an instrument in the decimals that a run keeps."""

from __future__ import annotations

import pytest
from builders import instrument
from msgspec import structs

from tracepaper.daemon.feed.maintenance import rescaled
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import RiskTier


def test_a_coarser_tick_keeps_the_scales_of_the_run() -> None:
    kept = instrument(price_decimals=2, quantity_decimals=3)
    fresh = structs.replace(
        kept, price_decimals=1, tick_size=5, quantity_decimals=1, max_quantity=7, min_quantity=1
    )
    changed = rescaled(fresh, kept)
    assert (changed.price_decimals, changed.tick_size) == (2, 50)
    assert (changed.quantity_decimals, changed.max_quantity, changed.min_quantity) == (3, 700, 100)


def test_filters_that_did_not_change_are_equal_after_rescaling() -> None:
    one = instrument()
    assert rescaled(one, one) == one


def test_a_finer_tick_than_the_run_keeps_ends_it() -> None:
    kept = instrument(price_decimals=1)
    with pytest.raises(ConfigInvalid, match="finer steps"):
        rescaled(structs.replace(kept, price_decimals=2), kept)


def test_new_filters_keep_the_tiers_that_were_read_at_the_start() -> None:
    kept = structs.replace(instrument(), risk_tiers=(RiskTier(1_000, 50, 10_000, 0),))
    assert rescaled(instrument(), kept).risk_tiers == kept.risk_tiers
