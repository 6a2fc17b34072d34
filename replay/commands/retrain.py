"""``tracepaper retrain``: train a model on a run's bars, and judge it beside the running one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    ToOption,
    database_path,
    print_json,
)

if TYPE_CHECKING:
    from tracepaper.daemon.config.loading import Config
    from tracepaper.daemon.session.promotion import CandidateJudgement
    from tracepaper.replay.judging.retraining import Retraining


def retrain(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Whose bars and model; the last by default.")
    ] = "last",
    *,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    candidate: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Judge this checkpoint instead of training one."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The model to beat; by default the run's own."),
    ] = None,
    to: ToOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where it works; by default by_hand in retrain.folder."
        ),
    ] = None,
    test: Annotated[
        int | None, typer.Option(min=1, help="Number of the judgement; by default the next one.")
    ] = None,
    service: Annotated[
        bool,
        typer.Option(
            "--service", help="As the daemon starts it: low priority, ends when stdin is closed."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train on a database's bars as a daemon does, and say whether it would promote the model.

    The keys of retrain say how. The newest time, retrain.judge, is kept from the training; both
    models are judged on it by QLIKE at gate.horizon, with errors by day. Nothing is promoted by
    hand, and no error is spent.
    """
    from tracepaper.daemon.config.loading import load

    given = load(config)
    if service:
        from tracepaper.daemon.session.background import stay_behind

        stay_behind(given.retrain)
    database = database_path(db, config)
    asked, number = _asked(given, database, run, candidate, against, to, folder, test)
    found = _found(asked, number, float(given.retrain.alpha))
    if json:
        print_json(found)
        return
    for sentence in _sentences(found, float(given.retrain.alpha)):
        typer.echo(sentence)


def _asked(
    given: Config,
    database: Path,
    named: str,
    candidate: Path | None,
    against: Path | None,
    to: str | None,
    folder: Path | None,
    test: int | None,
) -> tuple[Retraining, int]:
    """Return what is asked for, and the number of the judgement."""
    from tracepaper.daemon.commands.options import located
    from tracepaper.daemon.session.promotion import (
        BY_HAND,
        past_retrainings,
        retrain_folder,
        tests_of,
    )
    from tracepaper.replay.archive.times import instant
    from tracepaper.replay.judging.retraining import Retraining
    from tracepaper.storage.checkpoints import ID_DIGITS, find_kept
    from tracepaper.storage.reader import Reader
    from tracepaper.strategies.errors import ConfigInvalid
    from tracepaper.strategies.market import time_of

    found = located(named, database)
    with Reader.open(found.path) as reader:
        run, models = reader.run(found.run_id), reader.models(found.run_id)
    if not models.next and against is None:
        raise ConfigInvalid(
            f"Run {run.run_id} has no model to train; name a run that has one, or a model to beat "
            "by --against."
        )
    rules = given.retrain
    symbols = [item.symbol for item in run.instruments]
    number = test or 1 + tests_of(past_retrainings(found.path, run.kind, symbols))
    asked = Retraining(
        database=found.path,
        run_id=run.run_id,
        running=against or find_kept(found.path, models.next[:ID_DIGITS]),
        folder=folder or retrain_folder(given, found.path) / BY_HAND,
        judge_ms=time_of(rules.judge) or 0,
        min_days=rules.min_days,
        min_bars=rules.min_bars,
        data=rules.data,
        recipe=None if rules.recipe is None else Path(rules.recipe),
        threads=rules.threads,
        until_ms=None if to is None else instant(to),
        candidate=candidate,
    )
    return asked, number


def _found(asked: Retraining, number: int, alpha: float) -> CandidateJudgement:
    from msgspec.structs import replace

    from tracepaper.daemon.session.promotion import level_of
    from tracepaper.replay.commands.train import train
    from tracepaper.replay.judging.retraining import retrain as trained

    found = trained(asked, train=train, say=lambda text: typer.echo(text, err=True))
    if not found.is_judged:
        return found
    return replace(found, test=number, level=level_of(alpha, number))


def _sentences(found: CandidateJudgement, alpha: float) -> list[str]:
    from tracepaper.daemon.session.promotion import verdict

    if not found.is_judged:
        return [f"Nothing was judged: {found.reason}."]
    outcome, reason = verdict(found, test=found.test, alpha=alpha)
    return [
        f"{outcome.value.capitalize()}: {reason}.",
        f"Candidate {found.candidate_sha256[:12]} lies in {found.candidate}.",
        f"The running model is {found.running_sha256[:12]}; {found.bars:,} bars were judged.",
    ]
