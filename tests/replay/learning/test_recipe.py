"""A recipe reads back as printed, ``--set`` equals a file, and invalid choices are rejected."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from learning import FORMS, choose

from tracepaper.replay.learning.estimators.networks import derived
from tracepaper.replay.learning.recipe import (
    Recipe,
    kind_of,
    kinds,
    over,
    read_recipe,
    recipe_of,
    with_bars,
    with_settings,
)
from tracepaper.storage.checkpoints import dump
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.networks.architecture import network_kinds
from tracepaper.strategies.networks.keys import TEXT, keys_of


@pytest.mark.parametrize("name", sorted(kinds()))
def test_an_initial_recipe_explains_each_key_and_reads_back_equal(
    name: str, tmp_path: Path, cli: Cli
) -> None:
    text = cli.out("train", "--init", name)
    lines = text.splitlines()
    kind = kinds()[name]
    section: dict[str, Any] = {}
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith(("[", "# [")):
            section = dict(kind.sections[line.strip("# []")])
        elif " =" in line:
            key = section.pop(line.removeprefix("# ").partition(" =")[0])
            assert above.startswith(f"# {key.text.rstrip('.')}"), line
        elif not line:
            assert not [key for key in section.values() if not key.derived]
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    assert cli.out("train", "--init", str(file)) == text
    assert tomllib.loads(text)["model"]["kind"] == name


def test_every_kind_is_listed_with_what_it_is(cli: Cli) -> None:
    lines = cli.out("train", "--init", "?").splitlines()
    assert [line.split()[0] for line in lines] == list(kinds())
    assert all(len(line.split()) > 2 for line in lines)


def test_a_model_of_order_books_has_no_key_that_its_files_cannot_mean() -> None:
    sections = kinds()["orderbook"].sections
    assert set(sections) == {"model", "architecture", "training"}
    assert set(sections["training"]) == {"steps", "windows", "learning_rate", "seed", "threads"}


@pytest.mark.parametrize(
    ("text", "section", "value"),
    [
        ("layers=2", "architecture", 2),
        ("architecture.layers=2", "architecture", 2),
        ("encoding=alibi", "architecture", "alibi"),
        ('encoding="alibi"', "architecture", "alibi"),
        ("clock=week,funding", "architecture", ["week", "funding"]),
        ('clock=["week"]', "architecture", ["week"]),
        ("clock=", "architecture", []),
        ("horizons=5, 30", "architecture", [5, 30]),
        ("horizons=5m,4h", "architecture", "5m,4h"),
        ('horizons=["5m", 240]', "architecture", "5m,240"),
        ("quantiles=0.1,0.9", "architecture", [0.1, 0.9]),
        ("gated=true", "architecture", True),
        ("mlp_ratio=4", "architecture", 4),
        ("training.learning_rate=1e-3", "training", 1e-3),
        ("features.intervals=15,5m", "features", ["15", "5m"]),
        ("features.schema_id=v2", "features", "v2"),
        ("calibration.horizon=30m", "calibration", "30m"),
        ("model.name=5", "model", "5"),
    ],
)
def test_a_setting_is_read_as_its_key_says(text: str, section: str, value: object) -> None:
    document = with_settings({}, [text])
    [actual] = document[section].values()
    assert actual == value
    assert type(actual) is type(value)


def test_the_three_dates_of_a_split_are_text_and_come_together() -> None:
    names = ("train_until", "validation_until", "calibration_until")
    texts = [f"split.{name}=2025-0{month}-01" for month, name in enumerate(names, start=1)]
    section = with_settings({}, texts)["split"]
    assert section == dict(zip(names, ("2025-01-01", "2025-02-01", "2025-03-01"), strict=True))
    assert with_settings({}, ["split.embargo_bars=5"])["split"] == {"embargo_bars": 5}
    with pytest.raises(ConfigInvalid, match="Set all three of split"):
        with_settings({}, texts[:2])


def test_a_later_setting_wins_and_the_kind_says_which_keys_there_are() -> None:
    document = with_settings({"architecture": {"dim": 8}}, ["layers=2", "layers=3"])
    assert document["architecture"] == {"dim": 8, "layers": 3}
    assert kind_of(document).name == "flash"
    document = with_settings({}, ["factor=3", "model.kind=informer"])
    assert document == {"model": {"kind": "informer"}, "architecture": {"factor": 3}}
    times = with_settings({}, ["horizons=30m,1h", "features.intervals=15m"])
    assert with_bars(times)["architecture"]["horizons"] == (2, 4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("layers", "--set layers sets no key"),
        (".layers=3", "--set .layers=3 sets no key"),
        ("layrs=3", "has no architecture.layrs, the nearest is layers"),
        ("trainning.steps=3", r"has no section \[trainning\], the nearest is training"),
        ("features=30", "architecture.features follows from the data"),
        ("model.kind=flush", "no kind of model called 'flush', the nearest is flash"),
        ("training.precision=float16", "'float16'; choose one of auto, bfloat16, float32"),
    ],
)
def test_a_setting_that_a_recipe_cannot_have_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        with_settings({}, [text])


@pytest.mark.parametrize("kind", sorted(network_kinds()))
def test_a_printed_recipe_reads_back(kind: str) -> None:
    recipe = recipe_of({"model": {"kind": kind}, "training": {"steps": 7, "learning_rate": 1}})
    assert recipe_of(tomllib.loads(dump(recipe.document()))) == recipe
    keys = keys_of(type(network_kinds()[kind].read({})))
    assert set(recipe.document()["architecture"]) == set(keys)
    assert recipe.document()["architecture"]["dropout"] == 0.1


@pytest.mark.parametrize("name", sorted(kinds()))
def test_a_value_outside_its_range_is_refused_by_the_name_of_its_key(name: str) -> None:
    for section, keys in kinds()[name].sections.items():
        for key in keys.values():
            beyond = [] if key.low is None else [f"{key.low - 1:g}"]
            beyond += [] if key.high is None else [f"{key.high + 1:g}"]
            beyond += [] if key.type == TEXT or (key.name, section) in TIMES else ["odd"]
            for text in () if key.derived else beyond:
                with pytest.raises(ConfigInvalid, match=rf"{section}\.{key.name} is"):
                    with_settings({"model": {"kind": name}}, [f"{section}.{key.name}={text}"])


TIMES = (("horizons", "architecture"), ("horizon", "calibration"))
"""Keys that also take text: a time such as 4h."""


def test_options_lie_over_the_recipe_and_a_card_is_one(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[model]\nkind = "informer"\n[architecture]\nfactor = 3\nlayers = 2\n')
    changes = choose("layers=4", "distil=false", "training.seed=9")
    toml = tomllib.loads(cli.out("train", "--init", str(file), *changes))
    assert toml["architecture"]["factor"] == 3
    assert toml["architecture"]["layers"] == 4
    assert toml["architecture"]["distil"] is False
    assert toml["training"]["seed"] == 9
    with_results = over(
        toml, {"model": {"weights_sha256": "ab"}, "training": {"best_step": 3}, "figures": {"5": 1}}
    )
    assert recipe_of(with_results) == recipe_of(toml)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"model": {"kind": "flush"}}, "no kind of model called 'flush', the nearest is flash"),
        ({"trainning": {}}, r"no section \[trainning\], the nearest is training"),
        ({"training": {"step": 3}}, "training.step is unknown, the nearest is steps"),
        ({"training": {"precision": "half"}}, "training.precision"),
        ({"architecture": {"widow": 3}}, "architecture.widow is unknown, the nearest is window"),
        ({"calibration": {"horizon": 7}}, "none of the model's"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused(document: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        recipe_of(document)


def test_a_row_model_has_a_recipe_of_its_own(cli: Cli) -> None:
    words = ["--init", "tree", *choose("training.seed=4", "horizons=5,15")]
    document = tomllib.loads(cli.out("train", *words))
    recipe = recipe_of(document)
    assert (recipe.kind.name, recipe.horizons, recipe.horizon, recipe.options.seed) == (
        "tree",
        (5, 15),
        15,
        4,
    )
    assert tomllib.loads(dump(recipe.document())) == document
    error = cli.err("train", *words, *choose("layers=3"), code=2)
    assert "kind tree has no architecture.layers" in error


def test_a_network_is_made_for_its_rows_and_its_interval() -> None:
    recipe = recipe_of({"architecture": {"gated": True}})
    fitted = derived(recipe, schema("v2-15m").names, interval_minutes=15)
    section = fitted.document()["architecture"]
    assert (section["features"], section["interval_minutes"]) == (78, 15)
    plain = derived(
        recipe_of({"model": {"kind": "lstm"}}), schema("v2-15m").names, interval_minutes=15
    )
    assert plain.document()["architecture"]["features"] == 78


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "half.toml").write_text("[model")
    with pytest.raises(ConfigInvalid, match="is not TOML"):
        read_recipe(tmp_path / "half.toml")
    (tmp_path / "flat.toml").write_text("architecture = 3")
    with pytest.raises(ConfigInvalid, match="is no table"):
        read_recipe(tmp_path / "flat.toml")


# ---------------------------------------------------------------- its hash


@pytest.mark.parametrize("name", [*FORMS, "crossasset", "portfolio", "tree", "glm"])
def test_repeats_of_a_recipe_have_its_hash_and_no_other_recipe_has(name: str) -> None:
    form = FORMS.get(name, {"kind": name})
    section = {key: value for key, value in form.items() if key != "kind"}
    of = {"model": {"kind": form["kind"]}, "architecture": section}
    digest = recipe_of(of).hash
    assert recipe_of({**of, "training": {"seed": 7, "threads": 1}}).hash == digest
    assert recipe_of({**of, "training": {"learning_rate": 0.125}}).hash != digest
    assert recipe_of({**of, "features": {"schema_id": "tree-1m"}}).hash != digest


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
    assert dump(of(4, 0).document()) == dump(of(4.0, 0.0).document())
    assert of(4, 0).hash == of(4.0, 0.0).hash
    assert of(3, 0).hash != of(4, 0).hash
