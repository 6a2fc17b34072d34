"""A kind of model that is registered once is found wherever kinds are: nothing else names it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from programs import texts_of_program

from tracepaper.strategies.api.model import KINDS, ModelKind, register
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.build import model_kinds


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what every command answers, by its name, where one more kind is registered."""
    return texts_of_program("new_kind_program.py", tmp_path_factory.mktemp("new_kind"))


def document(text: str) -> Any:
    return json.loads(text[text.index("{\n") :].removesuffix("exit code 0\n"))


def test_its_recipe_is_printed_listed_and_checked(outputs: dict[str, str]) -> None:
    assert "seasonal    the spread of the last closes\n" in outputs["kinds"]
    assert "# Share of the fit that is not (0 to 1).\nshrink = 0.5\n" in outputs["recipe"]
    assert "# Closes whose spread is taken (2 to 500).\nwindow = 60\n" in outputs["recipe"]
    assert "architecture.window is 501: Expected `int` <= 500." in outputs["wide"]
    assert "seasonal has no architecture.shrnk, the nearest is shrink." in outputs["near"]
    assert "no kind of model called 'seasonl', the nearest is seasonal" in outputs["other"]


def test_it_is_trained_by_that_recipe_onto_a_whole_card(outputs: dict[str, str]) -> None:
    assert "Fitting the seasonal.\nCalibrating.\nJudging on untouched time.\n" in outputs["train"]
    card = document(outputs["again"])["card"]
    assert card["architecture"] == {"horizons": [5, 30], "window": 60, "shrink": 0.25}
    assert set(card["calibration"]) >= {"slope", "spread", "quantiles", "coverage"}
    assert card["training"]["closes"] == 60
    assert card["honesty"]["sentences"][0].startswith("For paper trading only")
    assert {"ewma", "har", "gamma_glm"} <= set(card["figures"]["30"]["qlike"])


def test_it_is_evaluated_and_compared(outputs: dict[str, str]) -> None:
    whole, compared = (document(outputs[name]) for name in ("evaluate", "compare"))
    assert whole["figures"].keys() >= {"5", "30"}
    assert [span["name"] for span in document(outputs["holdout"])["holdouts"]] == ["last"]
    assert [row["name"].endswith("again") for row in compared["beside"]] == [True]


def test_what_examines_a_network_refuses_it(outputs: dict[str, str]) -> None:
    assert outputs["inspect"] == (
        "The model has neither a network nor a model of rows to inspect; leave --inspect out.\n"
        "exit code 2\n"
    )


def test_a_run_trades_by_its_checkpoint_and_is_verified(outputs: dict[str, str]) -> None:
    assert outputs["replay"].endswith("exit code 0\n")
    assert "400 of 400 decisions follow from the record" in outputs["verify"]


def test_a_run_has_the_gates_of_what_it_measures_alone(outputs: dict[str, str]) -> None:
    gates = set(outputs["gates"].splitlines())
    assert {"warm", "finite", "edge"} <= gates
    assert gates & {"confidence", "collapse", "shift", "direction", "regime"} == set()


def test_what_explains_attention_says_that_it_has_none(outputs: dict[str, str]) -> None:
    assert "forecasts without an explanation of where it looked" in outputs["explain"]
    assert outputs["explain"].endswith("exit code 0\n")
    assert "has no attention to look back through" in outputs["full"]
    assert json.loads(outputs["report"].removesuffix("exit code 0\n"))["head_confidence"] is None


def test_what_needs_a_network_refuses_it_in_one_sentence(outputs: dict[str, str]) -> None:
    assert outputs["check"] == (
        "A seasonal checkpoint has no network; name a network's checkpoint.\nexit code 2\n"
    )


def test_a_name_that_is_taken_is_refused() -> None:
    names = list(model_kinds())
    assert {"flash", "tree", "ensemble", "crossasset", "orderbook"} <= set(names)
    with pytest.raises(ConfigInvalid, match="The model kind tree is already registered"):
        register(ModelKind("tree", "another"))
    assert set(KINDS) == set(names)
