"""``tracepaper models``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tracepaper.daemon.commands.options import (
    ColumnsOption,
    CommandAnswer,
    DatabaseOption,
    DepthOption,
    JsonOption,
    answers,
    print_json,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracepaper.replay.document.values import Part
    from tracepaper.strategies.networks.checks import NetworkCheck


class ListsByDefault(TyperGroup):
    """A group whose command ``list`` may go unnamed: ``models FOLDER`` lists FOLDER."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - vendored
        """Insert ``list`` if the arguments name no command of the group."""
        if "--help" not in args and (not args or args[0] not in self.commands):
            args = ["list", *args]
        return super().parse_args(ctx, args)


models = typer.Typer(
    cls=ListsByDefault, help="List checkpoints with their cards; check or export a network."
)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A bundled checkpoint's name, or a folder.")
]


@models.command("list")
@answers
def list_models(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER…", help="Names of bundled checkpoints, checkpoints, or folders of them."
        ),
    ] = None,
    *,
    db: DatabaseOption = None,
    card: Annotated[bool, typer.Option("--card", help="Print the cards in full.")] = False,
) -> CommandAnswer:
    """List the bundled checkpoints, those kept beside a database, and those in FOLDER."""
    from tracepaper.replay.learning.card import experimental
    from tracepaper.storage.checkpoints import BUNDLED, CARD_NAME, kept_folder, listed, locate

    places = [locate(str(folder)) for folder in folders or [BUNDLED]]
    if db is not None:
        places.append(kept_folder(db, ""))
    checkpoints = list(listed(places))
    if not checkpoints:
        sentence = "No checkpoint lies there; `tracepaper train` makes one."
        return CommandAnswer({"models": [], "experimental_kinds": []}, sentence, 1)
    kinds = [] if folders else _unproven(checkpoints)
    documents = [
        {"folder": str(folder), "card": content, "experimental": experimental(content)}
        for folder, content in checkpoints
    ]
    answer = {"models": documents, "experimental_kinds": kinds}
    if len(checkpoints) == 1 or card:
        texts = (
            (folder / CARD_NAME).read_text() if card else "\n".join(_lines(folder, content))
            for folder, content in checkpoints
        )
        return CommandAnswer(answer, "\n".join(texts))
    return CommandAnswer(answer, lambda: _show_list(checkpoints, kinds))


def _show_list(checkpoints: Sequence[tuple[Path, Mapping[str, Any]]], kinds: list[str]) -> None:
    """Print a row for each checkpoint, and how to read more."""
    import msgspec

    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.document.terminal import show
    from tracepaper.replay.document.values import Form, Paragraph, table_of
    from tracepaper.replay.learning.card import experimental
    from tracepaper.storage.checkpoints import Card

    names = ("name", "id", "kind", "interval", "horizons", "made")
    forms: dict[str, Form] = dict.fromkeys(names, "text")
    rows = []
    for folder, content in checkpoints:
        stored = msgspec.convert(content, Card)
        kind = f"{stored.model.kind:.20}" + ", experimental" * bool(experimental(stored))
        horizons = ", ".join(map(str, stored.architecture.horizons[:16]))
        rows.append(
            (
                *(f"{folder.name:.40}", stored.model.id, kind),
                *(f"{stored.market.get('interval')!s:.20}", horizons, stored.model.created[:10]),
            )
        )
    parts: list[Part] = [
        table_of("models", "", forms, rows, ["Horizons are in bars."]),
        Paragraph("`tracepaper models list NAME` says what a model was measured to do."),
    ]
    if kinds:
        parts.append(
            Paragraph(
                "Experimental, for no bundled checkpoint of theirs has beaten persistence: "
                f"{', '.join(kinds)}; `tracepaper train --set model.kind=NAME` fits one."
            )
        )
    show(Terminal(), parts)


@models.command()
def check(
    model: ModelArgument,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="PATH", help="Candle files; by default bundled ones."),
    ] = None,
    *,
    columns: ColumnsOption = None,
    covariates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The covariates, if it was trained with some."),
    ] = None,
    depth: DepthOption = None,
    json: JsonOption = False,
) -> None:
    """Check a network on real rows: NaN and infinity, dead or collapsed heads, gradients.

    For an ensemble, its network is checked. Exit code 1 if a check fails.
    """
    from tracepaper.replay.learning.inspection.model import open_checkpoint

    stored = open_checkpoint(model, covariates, depth or ())
    network_check = stored.examined(tuple(data or ()), columns or ())
    if json:
        document = {
            "model": str(stored.folder),
            "model_id": stored.model_id,
            **asdict(network_check),
        }
        print_json({**document, "gradients_in_training": stored.gradients})
    else:
        from tracepaper.daemon.terminal.console import Terminal
        from tracepaper.replay.document.terminal import show

        show(Terminal(), _checked(network_check, stored.gradients))
    if network_check.faults:
        raise DataInvalid(
            f"{stored.folder} is not in order: {network_check.faults[0]} Train it again, "
            "or restore it."
        )


@models.command()
@answers
def export(
    model: ModelArgument,
    *,
    to: Annotated[str, typer.Option("--to", metavar="RUNTIME", help="onnx, or torch (.pt2).")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="New file.")],
    bars: Annotated[
        int | None,
        typer.Option(
            "--bars", metavar="N", help="Bars of the input window; by default the model's context."
        ),
    ] = None,
) -> CommandAnswer:
    """Write a network for another runtime, after comparing its outputs with the original's.

    For an ensemble, its network is written. The inputs are the model's feature rows and their
    absolute positions, the outputs the heads at the last bar.
    """
    from tracepaper.replay.learning.inspection.model import StoredNetwork

    for package in ("onnx", "onnxscript"):
        require(package, "--to onnx", to == "onnx")
    exported = StoredNetwork.open(model).exported(to, out, bars=bars)
    return CommandAnswer(
        exported,
        f"{out} holds {exported['model_id']} for {to}: windows of {exported['bars']:,} bars of "
        f"{exported['columns']} columns ({exported['features']}) in, horizons "
        f"{', '.join(map(str, exported['horizons']))} out; it differs by at most "
        f"{exported['largest_difference']:.1e} of an output's scale.",
    )


def _checked(network_check: NetworkCheck, gradients: Mapping[str, Any]) -> Iterator[Part]:
    """Yield the card's gradients in training, the tables of the checks, and the faults."""
    from tracepaper.replay.document.values import Paragraph, table_of

    if gradients:
        names = ("part", "first", "median", "last", "relative")
        rows = (tuple(map(row.get, names)) for row in gradients.get("parts", ()))
        yield table_of(
            "gradients_in_training",
            "Norm of the gradient in training, at the first validation, the median and the last "
            "one",
            {"part": "text", **dict.fromkeys(names[1:], "exact")},
            [
                tuple(f"{cell:.2e}" if isinstance(cell, float) else str(cell) for cell in row)
                for row in rows
            ],
        )
        if warning := gradients.get("warning"):
            yield Paragraph(str(warning), "warning")
    if network_check.heads:
        yield table_of(
            "heads",
            f"Heads, at the last of {network_check.rows:,} bars of {network_check.windows} windows",
            {"layer": "count", "head": "count", "confidence": "exact", "from": "exact",
             "to": "exact", "share": "share", "fault": "text"},
            [
                (
                    head.layer, head.head,
                    *(f"{value:.3f}" for value in (head.confidence, head.lowest, head.highest)),
                    head.share, head.fault,
                )
                for head in network_check.heads
            ],
        )  # fmt: skip
    if network_check.gradients:
        yield table_of(
            "gradients",
            "Gradient of the outputs' mean square, root mean square of each part",
            {"part": "text", "parameters": "count", "weights": "exact", "gradient": "exact",
             "fault": "text"},
            [
                (row.part, row.parameters, f"{row.weights:.2e}", f"{row.gradient:.2e}", row.fault)
                for row in network_check.gradients
            ],
        )  # fmt: skip
    yield Paragraph(
        "\n".join(network_check.faults)
        or "Every layer is finite, over these rows and at the extremes of what a row can hold."
    )


def _unproven(checkpoints: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[str]:
    """Return the experimental kinds of which no checkpoint has beaten persistence."""
    import msgspec

    from tracepaper.replay.learning.card import experimental
    from tracepaper.storage.checkpoints import Card
    from tracepaper.strategies.forecasters.build import model_kinds

    proven = {
        part.model.kind
        for card in (msgspec.convert(table, Card) for _, table in checkpoints)
        for part, name in ((card, "model"), (card.parts.get("network"), "network_member"))
        if part is not None and not experimental(card, of=name)
    }
    return [
        name for name, kind in model_kinds().items() if kind.is_experimental and name not in proven
    ]


def _lines(place: Path, card: dict[str, Any]) -> list[str]:
    """Return a checkpoint's id, name, main facts and caveats."""
    from tracepaper.replay.learning.card import card_facts, experimental
    from tracepaper.replay.report.honesty import card_sentences

    model = card["model"]
    why = experimental(card)
    return [
        f"{model.get('id', '')}  {model.get('name', '')}  ({place})",
        f"  {'; '.join(card_facts(card))}",
        *([f"  experimental: {why}"] if why else []),
        *(f"  {sentence}" for sentence in card_sentences(card)),
    ]
