"""``tracepaper.train`` and ``tracepaper.evaluate``: the commands of these names, from Python.

The commands call these functions. The rule is docs/python.md, Y21.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Sections
from tracepaper.daemon.config.loading import with_settings as configured_with
from tracepaper.daemon.config.values import MODULE_CLASS
from tracepaper.replay import notebook
from tracepaper.replay.backtest.run_spec import columns_of, configured, inputs_of, paths_of
from tracepaper.replay.dataframes import Library, columns_of_table, frame_of, frames_for
from tracepaper.replay.document.terminal import show
from tracepaper.replay.document.values import Found, Paragraph, Table, TitledParts
from tracepaper.replay.learning.card import card_tables, seeds_table
from tracepaper.replay.learning.fit import Observe
from tracepaper.replay.learning.fitted import FitRun, Say
from tracepaper.replay.learning.holdouts import read_holdouts
from tracepaper.replay.learning.inspection.inspections import read_inspections
from tracepaper.replay.learning.judge.judge import ModelReader, judge_named, source_of, untrained
from tracepaper.replay.learning.judge.tables import found_of
from tracepaper.replay.learning.recipe import (
    Recipe,
    as_recipe,
    evaluation_options,
    kind_of,
    over,
    read_recipe,
    recipe_of,
    tables_of,
    with_settings,
)
from tracepaper.replay.learning.recipe_data import DataRequest, read_dataset
from tracepaper.replay.learning.side_inputs import SideFiles
from tracepaper.replay.learning.splits import Holdout
from tracepaper.replay.learning.training import (
    FitView,
    check_replaceable,
    described,
    draws_by_seed,
    seed_folders,
    train_seeds,
)
from tracepaper.replay.page.export import write_document_page
from tracepaper.replay.sweep.places import each_on
from tracepaper.storage.checkpoints import Checkpoint
from tracepaper.storage.paths import path_of
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import require

Settings = Mapping[str, Any] | Sequence[str]
"""Values by key, or the texts ``KEY=VALUE`` of ``--set``."""


class Findings(notebook.Text):
    """What a call found: what the command prints, its ``document`` of JSON, and frames.

    ``tables`` are the names of the frames, ``notes`` what the command says while it works.
    """

    def __init__(self, found: Found, library: Library, notes: Sequence[str] = ()) -> None:
        super().__init__(lambda console: show(console, found.parts), found.document)
        self._tables = {table.key: table for table in found.tables}
        self._library: Library = library
        self.tables, self.notes = (*self._tables,), notes

    def table(self, name: str) -> Any:  # noqa: ANN401 - a frame of any library
        """Return the table *name* as a frame; ``x_error`` is the error of an estimate ``x``."""
        if name not in self._tables:
            names = ", ".join(self.tables)
            raise ConfigInvalid(f"There is no table {name}; choose from {names}.")
        return frame_of(columns_of_table(self._tables[name]), self._library)


def train(  # noqa: PLR0913 - the options of the command
    recipe: str | Path | Sections | None = None,
    data: Any = None,  # noqa: ANN401 - as ``backtest`` takes it
    *,
    out: str | Path | None = None,
    settings: Settings = (),
    seeds: int | None = None,
    jobs: int | None = None,
    on: str | None = None,
    covariates: Any = None,  # noqa: ANN401 - a path or a frame
    depth: str | Path | Sequence[str | Path] = (),
    columns: Mapping[str, str | None] | Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    frames: Library | None = None,
    progress: bool | None = None,
) -> Findings:
    """Train a model of *recipe* on *data*, evaluate it on untouched bars, write it into *out*.

    *recipe* is a TOML file of ``tracepaper train --init``, a checkpoint's card, or a dictionary of
    their sections; *settings*, ``{"training.steps": 800}``, override it. *data* and *columns* are
    those of ``backtest``; for order books *data* are files. Without *out* nothing is trained, and
    the tables ``files`` and ``labels`` show the data. The table ``figures`` has a row for each
    horizon, figure and forecaster, ``card`` one for each other key, ``seeds`` the means over
    *seeds*. *covariates* are a file or a frame, *depth* files of order books. *jobs* and *on* say
    where seeds are trained, *resume* continues an unfinished training, and *overwrite* replaces a
    finished checkpoint. *frames* is the library of
    frames. A notebook shows a bar unless *progress* is False; with True a terminal does too.

    Raises ``ConfigInvalid`` or ``DataInvalid``, with the sentence of the command.
    """
    given = configured(recipe, "recipe") or {}
    folder = None if out is None else path_of(out)
    content = read_recipe(given) if isinstance(given, Path) else tables_of(given)
    document = with_settings(as_recipe(content), _texts(settings))
    if seeds is None and (jobs or on):
        raise ConfigInvalid("--jobs and --on say where seeds are trained; give --seeds N too.")
    each = each_on(on, jobs)
    chosen = recipe_of(document)
    files = SideFiles(covariates, paths_of(depth, "depth"))
    _require_extras(chosen, given, files)
    request = DataRequest(inputs_of(data, "data"), files.read(), columns_of(columns, "columns"))
    library = frames_for(data, frames)
    if folder is None:
        tables = described(read_dataset(chosen, request))
        rows = {each.key: each.documents() for each in tables}
        return Findings(Found(tables, rows, tables), library)
    first = int(document.get("training", {}).get("seed", 0))
    recipes = [
        recipe_of(over(document, {"training": {"seed": first + nth}})) for nth in range(seeds or 0)
    ]
    if not resume:
        check_replaceable(seed_folders(recipes or [chosen], folder), overwrite=overwrite)
    notes: list[str] = []
    with _shown(chosen, notes, progress=progress) as (observe, say):
        run = FitRun(folder, "", SystemClock().wall_ms(), observe, say, resume)
        checkpoints = train_seeds(recipes or [chosen], request, run, each=each)
        by_folder = {str(folder): checkpoint.card for folder, checkpoint in checkpoints}
        study: list[Table] = []
        if seeds is not None and draws_by_seed(checkpoints[0][1].card):
            study = [seeds_table([*by_folder.values()])]
        elif seeds is not None:
            say("These cards hold no figure that a seed changes.")
    documents: list[Any] = [
        {"folder": folder, "id": card["model"]["id"], "card": card}
        for folder, card in by_folder.items()
    ]
    all_documents = {"checkpoints": documents, **{each.key: each.documents() for each in study}}
    found = Found(
        [*(line for written in checkpoints for line in _lines(*written)), *study],
        documents[0] if len(documents) == 1 else all_documents,
        [*card_tables(by_folder), *study],
    )
    return Findings(found, library, notes)


def evaluate(  # noqa: PLR0913 - the options of the command
    checkpoint: str | Path,
    data: Any,  # noqa: ANN401 - as ``backtest`` takes it
    *,
    columns: Mapping[str, str | None] | Sequence[str] | None = None,
    start: str | date | None = None,
    end: str | date | None = None,
    holdout: str | None = None,
    compare: str | Sequence[str] = (),
    html: str | Path | None = None,
    covariates: Any = None,  # noqa: ANN401 - a path or a frame
    depth: str | Path | Sequence[str | Path] = (),
    config: str | Path | Sections | None = None,
    settings: Settings = (),
    inspect: str | Sequence[str] = (),
    frames: Library | None = None,
    progress: bool | None = None,
) -> Findings:
    """Evaluate a model on the bars after its calibration slice, against every baseline.

    *checkpoint* is a folder, ``default`` or ``module:Class``; *config* configures a class. *start*
    and *end* are dates. *holdout*, *compare*, *html*, *settings* and *inspect* are the
    options of ``tracepaper evaluate``. The tables of the holdouts have a column
    ``holdout``. The other arguments are those of ``train``.

    Raises ``ConfigInvalid`` or ``DataInvalid``, with the sentence of the command.
    """
    name, notes = str(checkpoint), list[str]()
    inspections = read_inspections(_several(inspect))
    require("captum", "--inspect attribution", inspections.get("attribution"))
    options, others = evaluation_options(_texts(settings))
    given = configured(config, "config")
    chosen = columns_of(columns, "columns")
    files = SideFiles(covariates, paths_of(depth, "depth"))
    inspected: dict[str, object] = {f"inspect {each}": count for each, count in inspections.items()}
    examined = {**inspected, "set evaluation.explained_bars": options.explained_bars}
    side = {"covariates": files.covariates, "depth": files.depth or None}
    source = source_of(name)
    if source == DataSource.ORDER_BOOKS:
        bar_options = {"columns": chosen or None, "config": given, "set": others or None}
        _reject(
            examined | bar_options | side,
            f"is for models of bars, and {name} reads order books; leave it out, and see "
            f"where it looked by `tracepaper explain --depth FILE --checkpoint {name}`.",
        )
    elif source == DataSource.CLOSES:
        _reject(
            examined,
            f"examines what a model says of one instrument's bars, and {name} answers for "
            "all symbols of a close; leave it out, and see where it looked by `tracepaper explain "
            "RUN --full`.",
        )
    holdouts = read_holdouts(holdout, *(None if at is None else str(at) for at in (start, end)))
    is_class, rivals = MODULE_CLASS.match(name) is not None, _several(compare)
    if others and not any(map(MODULE_CLASS.match, (name, *rivals))):
        raise ConfigInvalid("--set configures a class of your own; leave it out, or name a class.")
    request = DataRequest(inputs_of(data, "data"), columns=chosen)
    reader = ModelReader(request, files, configured_with(given, others), options.threads)
    with notebook.progress("judgements", wanted=progress) as advance:
        if sentences := untrained(name):
            lines = tuple(Paragraph(sentence, "code") for sentence in sentences)
            document = {"says": list(sentences), "figures": {}}
            found = Found(lines, document, page=lambda: TitledParts(f"Judgement of {name}", lines))
        else:
            if is_class:
                _reject(
                    inspected | side,
                    "examines a checkpoint's network or arrays, which a class does not show; leave "
                    "it out.",
                )
            spans, bars = _counted(holdouts, advance), options.explained_bars
            found = found_of(judge_named(reader, name, spans, inspections, bars, rivals=rivals))
    if html is not None and found.page is not None:
        write_document_page(found.page(), path_of(html))
    return Findings(found, frames_for(data, frames), notes)


def _texts(settings: Settings) -> Sequence[str]:
    """Return *settings* as the texts of ``--set``."""
    if not isinstance(settings, Mapping):
        return _several(settings)
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in settings.items()
    ]


def _several(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _counted(holdouts: Sequence[Holdout], advance: notebook.Advance) -> Iterator[Holdout]:
    """Yield *holdouts*; *advance* receives the number that are judged."""
    for done, holdout in enumerate(holdouts):
        yield holdout
        advance(done + 1, len(holdouts))


@contextmanager
def _shown(
    recipe: Recipe, notes: list[str], *, progress: bool | None
) -> Iterator[tuple[Observe, Say]]:
    """Show a fit by a bar of a notebook; elsewhere, if *progress* is True, on stderr."""
    if progress and notebook.display_here() is None:
        with FitView(recipe) as view:
            yield view.observe, view.say
        return
    with notebook.progress("steps", wanted=progress) as advance:
        yield lambda fit: advance(fit.step, fit.steps), notes.append


def _require_extras(recipe: Recipe, given: object, files: SideFiles) -> None:
    """Raise ``ConfigInvalid`` for a missing package, and for files that the kind cannot read.

    *given* is the recipe's file, or its content.
    """
    key = "ensemble.kind=tree" if recipe.members else "model.kind=tree"
    recipe.check(f"The tree of {given}" if isinstance(given, Path) else key)
    has_files = files.covariates is not None or files.depth
    if has_files and not recipe.kind.model.takes_covariates:
        raise ConfigInvalid(
            f"A model of the kind {recipe.kind.name} has no encoder for covariates or order books: "
            "they are a modality of the kind trading alone; train that, or leave --covariates and "
            "--depth out."
        )


def _lines(folder: Path, checkpoint: Checkpoint) -> Iterator[Paragraph]:
    """Yield the sentences of a checkpoint's card, and how it is used."""
    kind = kind_of(checkpoint.card)
    use = {
        DataSource.CLOSES: f"[strategy] name = {kind.name!r} and [model] checkpoint = "
        f"{str(folder)!r}, with [sizing] mode = 'equity' and fraction = '1'.",
        DataSource.ORDER_BOOKS: f"tracepaper explain --depth FILE --checkpoint {folder}.",
        DataSource.BARS: f"model.checkpoint = {str(folder)!r}, or tracepaper models {folder}.",
    }[kind.model.source]
    verb = "Look at" if kind.model.source == DataSource.ORDER_BOOKS else "Use"
    sentences = (f"  {sentence}" for sentence in checkpoint.card["honesty"]["sentences"])
    for line in (f"Wrote {folder}, checkpoint {checkpoint.id}.", *sentences, f"{verb} it: {use}"):
        yield Paragraph(line, "code")


def _reject(options: Mapping[str, object], reason: str) -> None:
    """Raise ``ConfigInvalid`` with *reason* for the first of *options* that is given."""
    for option, value in options.items():
        if value is not None:
            raise ConfigInvalid(f"--{option} {reason}")
