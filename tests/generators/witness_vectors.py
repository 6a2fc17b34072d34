"""Writes tests/data/witness/vectors.json: proofs, true and forged, with what the judge says.

Keys are random, so each run writes other vectors. Run it only when the format changes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from clocks import Authority
from witnessed import saved, witnessed

from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.witness.judge import CLOCK, Note, NoteKey, Refused, judge, read_witness
from tracepaper.storage.witness.judge import Authority as TokenKey
from tracepaper.storage.witness.keys import key_text, signature_line

TARGET = Path(__file__).parents[1] / "data" / "witness" / "vectors.json"


def change_rows(proof: Any) -> None:
    """Say another action in the rows."""
    leaf = proof["leaves"][0]
    leaf["entry"] = leaf["entry"].replace('"allowed":0', '"allowed":1')


def change_root(proof: Any) -> None:
    """Put another root into the note."""
    dated = proof["notes"][0]
    lines = dated["note"].split("\n")
    lines[2] = dated["path"][0]
    dated["note"] = "\n".join(lines)


def backdate(proof: Any) -> None:
    """Leave the witness out."""
    dated = proof["notes"][0]
    dated["note"] = "".join(dated["note"].splitlines(keepends=True)[:-1])


def main() -> None:
    """Write the vectors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = witnessed(folder, runs=3, bars=4)
        log = case.extend()
        assert case.submit(log, 1_700_006_700).status == 200
        with closing(open_reader(case.database)) as reader:
            decisions = [log.prove(reader, number, 3) for number in (1, 2, 3)]
            run = log.prove(reader, 1, None)
        cases: list[dict[str, Any]] = []

        def add(
            name: str,
            *proofs: Any,
            change: Callable[[Any], object] = id,
            keys: Sequence[NoteKey | TokenKey] = (case.witness,),
        ) -> None:
            paths = [saved(folder, proof, change) for proof in proofs]
            try:
                verdict, holds = "\n".join(judge(paths, case.log, keys)), True
            except Refused as refused:
                verdict, holds = f"Refused: {refused}", False
            texts = [path.read_text("utf-8") for path in paths]
            by = "witness" if case.witness in keys else "certificate"
            of_case = {
                "name": name,
                "by": by,
                "holds": holds,
                "verdict": f"{verdict}\n",
                "files": texts,
            }
            cases.append(of_case)

        add("decision", decisions[0])
        add("run", run)
        add("every run", *decisions)
        add("left out run", decisions[0], decisions[2])
        for change in (change_rows, change_root, backdate):
            add(change.__name__.replace("_", " "), decisions[0], change=change)
        authority = Authority(folder / "tsa")
        clock, text = read_witness(str(authority.certificate)), Note.parse(log.note(6)).text
        tokens = {
            "token": authority.token(text),
            "token of another note": authority.token(f"{text}more"),
            "token of another authority": Authority(folder / "other").token(text),
        }
        for case_name, token in tokens.items():
            note = f"{log.note(6)}{signature_line('https://tsa.example', CLOCK + token)}"
            dated = {"note": note, "path": decisions[0]["notes"][0]["path"]}
            add(case_name, {**decisions[0], "notes": [dated]}, keys=[clock])
        keys = {"log": key_text(case.log), "witness": key_text(case.witness)}
        keys["certificate"] = authority.certificate.read_text("ascii")
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(json.dumps({**keys, "cases": cases}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
