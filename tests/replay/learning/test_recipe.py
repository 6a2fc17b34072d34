"""A recipe reads back as it was printed, and what it cannot mean is refused by name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from learning import FORMS, choose

from tracepaper.daemon.cli import invoke
from tracepaper.replay.learning.estimators.networks import derived
from tracepaper.replay.learning.recipe import Recipe, over, read_recipe, recipe_of
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.networks.architecture import network_kinds
from tracepaper.strategies.networks.keys import keys_of


@pytest.mark.parametrize("kind", sorted(network_kinds()))
def test_a_printed_recipe_reads_back(kind: str) -> None:
    made = recipe_of({"model": {"kind": kind}, "training": {"steps": 7, "learning_rate": 1}})
    assert recipe_of(tomllib.loads(made.text())) == made
    known = keys_of(type(network_kinds()[kind].read({})))
    assert set(made.document()["architecture"]) == set(known)
    assert made.document()["architecture"]["dropout"] == 0.1


def test_options_lie_over_the_recipe_and_a_card_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[model]\nkind = "informer"\n[architecture]\nfactor = 3\nlayers = 2\n')
    changes = choose("layers=4", "distil=false", "training.seed=9")
    assert invoke(["train", "--init", str(file), *changes]) == 0
    said = tomllib.loads(capsys.readouterr().out)
    assert said["architecture"]["factor"] == 3
    assert said["architecture"]["layers"] == 4
    assert said["architecture"]["distil"] is False
    assert said["training"]["seed"] == 9
    with_results = over(
        said, {"model": {"weights_sha256": "ab"}, "training": {"best_step": 3}, "figures": {"5": 1}}
    )
    assert recipe_of(with_results) == recipe_of(said)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"model": {"kind": "flush"}}, "no kind of model called 'flush', the nearest is flash"),
        ({"trainning": {}}, r"no section \[trainning\], the nearest is training"),
        ({"training": {"step": 3}}, "training.step is unknown, the nearest is steps"),
        ({"training": {"steps": "3"}}, "training.steps must be a whole number"),
        ({"training": {"steps": 0}}, "training.steps must be a whole number, at least 1"),
        (
            {"model": {"kind": "tree"}, "training": {"leaves": 65}},
            "training.leaves must be a whole number from 2 to 64",
        ),
        ({"training": {"average": 1.0}}, "training.average is 1.0"),
        ({"training": {"precision": "half"}}, "choose one of auto, float32, bfloat16"),
        ({"training": {"learning_rate": 0.0}}, "must be above 0"),
        ({"training": {"threads": 0}}, "training.threads is 0"),
        ({"architecture": {"widow": 3}}, "architecture.widow is unknown, the nearest is window"),
        ({"model": {"kind": "lstm"}, "architecture": {"heads": 2}}, "architecture.heads is unkn"),
        ({"architecture": 3}, r"\[architecture\] of the recipe is no table"),
        ({"calibration": {"horizon": 7}}, "none of the model's"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused(document: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        recipe_of(document)


def test_a_row_model_has_a_recipe_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--init", "tree", *choose("training.seed=4", "horizons=5,15")]
    assert invoke(words) == 0
    said = tomllib.loads(capsys.readouterr().out)
    made = recipe_of(said)
    assert (made.kind.name, made.horizons, made.horizon, made.options.seed) == (
        "tree",
        (5, 15),
        15,
        4,
    )
    assert tomllib.loads(made.text()) == said
    assert invoke([*words, *choose("layers=3")]) != 0
    assert "kind tree has no architecture.layers" in capsys.readouterr().err


def test_a_network_is_made_for_its_rows_and_its_interval() -> None:
    made = recipe_of({"architecture": {"gated": True}})
    fitted = derived(made, schema("v2-15m"), 900_000)
    section = fitted.document()["architecture"]
    assert (section["features"], section["interval_minutes"]) == (78, 15)
    plain = derived(recipe_of({"model": {"kind": "lstm"}}), schema("v2-15m"), 900_000)
    assert plain.document()["architecture"]["features"] == 78


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "half.toml").write_text("[model")
    with pytest.raises(ConfigInvalid, match="is not TOML"):
        read_recipe(tmp_path / "half.toml")


# ---------------------------------------------------------------- its hash


@pytest.mark.parametrize("name", [*FORMS, "crossasset", "portfolio", "tree", "glm"])
def test_repeats_of_a_recipe_have_its_hash_and_no_other_recipe_has(name: str) -> None:
    form = FORMS.get(name, {"kind": name})
    section = {key: value for key, value in form.items() if key != "kind"}
    of = {"model": {"kind": form["kind"]}, "architecture": section}
    own = recipe_of(of).hash
    assert recipe_of({**of, "training": {"seed": 7, "threads": 1}}).hash == own
    assert recipe_of({**of, "training": {"learning_rate": 0.125}}).hash != own
    assert recipe_of({**of, "features": {"schema_id": "tree-1m"}}).hash != own


def test_an_ensemble_has_the_hash_that_its_card_has() -> None:
    both = recipe_of({"model": {"kind": "flash"}, "ensemble": {"kind": "tree"}})
    card = {
        "model": {"kind": "ensemble"},
        "parts": dict(zip(("network", "rows"), (m.document() for m in both.members), strict=True)),
    }
    assert recipe_of(card).hash == both.hash


def test_a_whole_number_for_a_number_is_the_same_recipe() -> None:
    def of(ratio: float, dropout: float) -> Recipe:
        return recipe_of({"architecture": {"mlp_ratio": ratio, "dropout": dropout}})

    assert of(4, 0) == of(4.0, 0.0)
    assert of(4, 0).text() == of(4.0, 0.0).text()
    assert of(4, 0).hash == of(4.0, 0.0).hash
    assert of(3, 0).hash != of(4, 0).hash
