"""The schedule deals every kind once a round, the same for one seed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tracepaper.replay.exchange.faults import (
    KLINE_PATH,
    LIES_MS,
    REST_KINDS,
    RETCODES,
    STATUSES,
    FaultKind,
    FaultPlan,
    plan_from,
    read_plan,
)
from tracepaper.strategies.errors import ConfigInvalid


def test_each_round_deals_every_kind_once_in_another_order() -> None:
    rounds = list(islice(FaultPlan(seed=3, every_s=2.0).scheduled(), 3 * len(FaultKind)))
    orders = [
        [timed.fault.kind for timed in rounds[at : at + len(FaultKind)]]
        for at in range(0, len(rounds), len(FaultKind))
    ]
    assert all(sorted(order) == sorted(FaultKind) for order in orders)
    assert orders[0] != orders[1]
    assert all(1.0 <= timed.wait_s <= 3.0 for timed in rounds)


def test_one_seed_gives_one_schedule() -> None:
    first, again, other = (
        list(islice(FaultPlan(seed=seed, every_s=1.0).scheduled(), 20)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_plan_without_an_interval_schedules_nothing() -> None:
    assert list(FaultPlan(seed=1).scheduled()) == []


def test_rest_faults_of_the_schedule_provoke_the_client() -> None:
    dealt = {
        timed.fault.kind: timed.fault
        for timed in islice(FaultPlan(every_s=1).scheduled(), len(FaultKind))
    }
    assert {kind for kind, fault in dealt.items() if fault.provoke} == set(REST_KINDS)


def test_the_schedule_draws_from_every_status_code_and_lie() -> None:
    dealt = [
        timed.fault for timed in islice(FaultPlan(every_s=1).scheduled(), 400 * len(FaultKind))
    ]
    drawn = {
        "status": {one.status for one in dealt if one.kind is FaultKind.HTTP_STATUS},
        "code": {one.code for one in dealt if one.kind is FaultKind.RETCODE},
        "lie": {(one.ms, one.topic) for one in dealt if one.kind is FaultKind.LYING_TIME},
    }
    lies = {(lie_ms, path) for lie_ms in LIES_MS for path in ("", KLINE_PATH)}
    assert drawn == {"status": set(STATUSES), "code": set(RETCODES), "lie": lies}
    assert {one.topic for one in dealt if one.kind is FaultKind.DROP} == {"", "kline."}


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_file_lists_faults_by_time(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"faults.{suffix}"
    texts = {
        "toml": (
            "seed = 4\nevery_s = 2.5\nkinds = ['stall']\n"
            "[[faults]]\nafter_s = 5\nkind = 'stall'\nseconds = 3\n"
            "[[faults]]\nafter_s = 1.5\nkind = 'drop'\ntopic = 'kline.'\n"
        ),
        "json": (
            '{"seed": 4, "every_s": 2.5, "kinds": ["stall"], "faults": ['
            '{"after_s": 5, "kind": "stall", "seconds": 3},'
            '{"after_s": 1.5, "kind": "drop", "topic": "kline."}]}'
        ),
    }
    path.write_text(texts[suffix])
    plan = read_plan(path)
    assert (plan.seed, plan.every_s, plan.kinds) == (4, 2.5, (FaultKind.STALL,))
    assert [(timed.wait_s, timed.fault.kind) for timed in plan.listed] == [
        (1.5, FaultKind.DROP),
        (3.5, FaultKind.STALL),
    ]


@pytest.mark.parametrize(
    "request_body",
    [
        {"sed": 1},
        {"every_s": -1},
        {"every_s": "2"},
        {"kinds": ["boom"]},
        {"faults": [{"after_s": 1}]},
        {"faults": [{"kind": "drop", "after_s": "soon"}]},
        {"faults": "drop"},
        {"kinds": 5},
    ],
)
def test_a_wrong_plan_is_one_sentence(request_body: dict[str, object]) -> None:
    with pytest.raises(ConfigInvalid, match=r"give .*\.$"):
        plan_from(request_body)


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text("seed = = 4")
    with pytest.raises(ConfigInvalid, match=r"faults\.toml"):
        read_plan(path)
    with pytest.raises(ConfigInvalid, match=r"absent\.json"):
        read_plan(tmp_path / "absent.json")
