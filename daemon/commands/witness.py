"""``tracepaper witness``: dates of the record by third parties."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import (
    CommandAnswer,
    ConfigOption,
    DatabaseOption,
    answers,
    database_path,
    located,
    say,
)
from tracepaper.strategies.extras import require

if TYPE_CHECKING:
    from aiohttp import web

    from tracepaper.storage.witness.cosigner import Cosigner

app = typer.Typer(help="Have others date the record, prove what they dated, and judge it.")
BODY_BYTES = 65_536
"""Most bytes of a request to a witness."""


@app.callback()
def needs() -> None:
    """Refuse every command while the extra is missing."""
    require("cryptography", "witness")


@app.command()
@answers
def key(
    *,
    origin: Annotated[
        str, typer.Option(metavar="NAME", help="The log's name, as example.com/alice/btc.")
    ] = "",
    witness: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Make the key of a witness instead.")
    ] = None,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Make a private key, once; without --origin print its public key."""
    from tracepaper.storage.witness.judge import COSIGNED, PLAIN
    from tracepaper.storage.witness.keys import key_text, make_key, read_key
    from tracepaper.storage.witness.leaves import witness_folder

    path = witness or witness_folder(database_path(db, config)) / "key"
    kind = COSIGNED if witness else PLAIN
    public = make_key(path, origin, kind) if origin else read_key(path, kind).key
    return CommandAnswer({"key": key_text(public), "path": str(path)}, key_text(public))


@app.command()
@answers
def status(*, db: DatabaseOption = None, config: ConfigOption = None) -> CommandAnswer:
    """Show how many commits of the record are logged and dated, and by whom."""
    from urllib.parse import unquote

    from tracepaper.storage.witness.log import WitnessLog

    log = WitnessLog(database_path(db, config))
    sizes = {name.rpartition("+")[0]: int(each["size"][-1]) for name, each in log.dates.items()}
    for path in log.clock_files("*"):
        day, size, clock = path.stem.split("+")
        state = ", on its way into Bitcoin" if path.suffix == ".pending" else ""
        sizes[f"{unquote(clock)} ({day}{state})"] = int(size)
    newest = {name.partition(" ")[0]: name for name in sizes}.values()
    lines = [f"{sizes[name]} of {log.leaves.size} commits dated by {name}" for name in newest]
    document = {
        "origin": log.origin,
        "leaves": log.leaves.size,
        "cosigned": log.dated,
        "witnesses": {name: sizes[name] for name in newest},
        "ended": log.ended,
    }
    nobody = f"0 of {log.leaves.size} commits dated by nobody"
    text = "\n".join(f"{log.origin}: {line}" for line in lines or [nobody])
    return CommandAnswer(document, "\n".join(filter(None, (text, log.ended))))


@app.command()
@answers
def attest(
    run: Annotated[str, typer.Argument(metavar="RUN", help="An id, a prefix, or `last`.")],
    sequence: Annotated[
        int | None, typer.Argument(metavar="[SEQUENCE]", help="A decision's step.")
    ] = None,
    *,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Print the proof of one decision, or of the whole run until its newest dated commit."""
    import json

    from tracepaper.storage.database.reader import Reader
    from tracepaper.storage.witness.log import WitnessLog

    path, run_id = located(run, db, config)
    with Reader.open(path) as reader:
        number = reader.stored_run(run_id).run_key
        proof = WitnessLog(path).prove(reader.connection, number, sequence)
    return CommandAnswer(proof, json.dumps(proof, separators=(",", ":"), ensure_ascii=False))


@app.command()
@answers
def publish(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Served as files by anybody.")],
    *,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Write the dated log to a folder: tiles, notes, a proof of each run, and a page."""
    from tracepaper.storage.database.reader import Reader
    from tracepaper.storage.witness.log import WitnessLog
    from tracepaper.storage.witness.publish import publish as write

    path = database_path(db, config)
    with Reader.open(path) as reader:
        counts = write(WitnessLog(path), reader.connection, folder)
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    return CommandAnswer({"folder": str(folder), **counts}, f"{folder} holds {text}.")


@app.command()
@answers
def judge(
    proofs: Annotated[list[Path], typer.Argument(metavar="PROOF…", help="Files or folders.")],
    *,
    log: Annotated[str, typer.Option(metavar="KEY", help="The public key of the log.")],
    witness: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A witness's public key, or a clock's certificate file."),
    ] = None,
) -> CommandAnswer:
    """Say what proofs prove, by `deploy/judge.py`, which needs no tracepaper; exit 1 if nothing."""
    from tracepaper.storage.witness.judge import Refused, read_witness
    from tracepaper.storage.witness.judge import judge as judge_files
    from tracepaper.storage.witness.keys import parse_key

    try:
        keys = [read_witness(text) for text in witness or ()]
        sentences = judge_files(proofs, parse_key(log, "--log"), keys)
    except (Refused, ValueError) as refused:
        return CommandAnswer({"holds": False, "refused": str(refused)}, f"Refused: {refused}", 1)
    return CommandAnswer({"holds": True, "sentences": sentences}, "\n".join(sentences))


@app.command()
def serve(
    *,
    key: Annotated[Path, typer.Option(metavar="FILE", help="The witness's private key.")],
    log: Annotated[
        list[str], typer.Option(metavar="KEY", help="The public key of a log to witness.")
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, metavar="PORT")] = 8790,
) -> None:
    """Witness other people's logs until Ctrl-C; what it signed is kept in FILE.state."""
    from aiohttp import web

    from tracepaper.storage.witness.cosigner import Cosigner
    from tracepaper.storage.witness.judge import COSIGNED
    from tracepaper.storage.witness.keys import key_text, parse_key, read_key

    signer = read_key(key, COSIGNED)
    logs = {each.name: each for each in (parse_key(text, "--log") for text in log)}
    cosigner = Cosigner(signer, logs, key.with_name(f"{key.name}.state"))
    say(f"{key_text(signer.key)}\nwitnesses {', '.join(logs)} at http://{host}:{port}")
    web.run_app(application(cosigner), host=host, port=port, print=None)


def application(cosigner: Cosigner) -> web.Application:
    """Return the HTTP application of *cosigner*, by tlog-witness."""
    from aiohttp import web

    from tracepaper.daemon.clock import SystemClock

    clock = SystemClock()

    async def add_checkpoint(request: web.Request) -> web.Response:
        body = (await request.read()).decode(errors="replace")
        status, text = cosigner.add_checkpoint(body, clock.wall_ms() // 1000)
        kind = "text/x.tlog.size" if status == 409 else "text/plain"
        return web.Response(status=status, body=text.encode(), content_type=kind)

    served = web.Application(client_max_size=BODY_BYTES)
    served.router.add_post("/add-checkpoint", add_checkpoint)
    return served
