"""A record that strangers can date: what the judge accepts, and what it and a witness refuse."""

from __future__ import annotations

import ast
import base64
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from clocks import Authority
from programs import ROOT
from records import tamper
from storage_cases import prune
from waiting import deadline_s
from witnessed import NOW_S, ORIGIN, WITNESS, Witnessed, record_run, saved, witnessed

from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.witness.cosigner import Cosigner, consistent
from tracepaper.storage.witness.judge import (
    COSIGNED,
    LEAF,
    PLAIN,
    Note,
    NoteKey,
    Refused,
    judge,
    leaf_hash,
    read_witness,
    root_of,
)
from tracepaper.storage.witness.keys import key_text, make_key, read_key
from tracepaper.storage.witness.leaves import witness_folder
from tracepaper.storage.witness.log import Tree, WitnessLog, tree_of
from tracepaper.storage.witness.publish import publish
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

VECTORS = ROOT / "tests" / "data" / "witness"


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Witnessed:
    """Three runs of 62 commits, each dated as it ended; tests of this module only read it."""
    return witnessed(tmp_path_factory.mktemp("dated"), runs=3)


@pytest.fixture
def reader(dated: Witnessed) -> Iterator[sqlite3.Connection]:
    with closing(open_reader(dated.database)) as connection:
        yield connection


def proof_of(dated: Witnessed, reader: sqlite3.Connection, number: int = 2) -> dict[str, Any]:
    return WitnessLog(dated.database).prove(reader, number, 40)


def verdict(dated: Witnessed, *paths: Path) -> list[str]:
    return judge(paths, dated.log, [dated.witness])


# ---------------------------------------------------------------- hashes and notes


def test_every_proof_of_every_small_tree_leads_to_its_root() -> None:
    hashes = [leaf_hash(bytes([number])) for number in range(33)]
    for size in range(1, 34):
        tree = tree_of(hashes[:size])
        root = tree.root(0, size)
        assert root == root_of(size, dict(enumerate(hashes[:size])), ())
        for index in range(size):
            path = [base64.b64encode(each) for each in tree.path([index, 0], 0, size)]
            shown = {index: hashes[index], 0: hashes[0]}
            assert root_of(size, shown, [each.decode() for each in path]) == root
        for old in range(1, size + 1):
            proof = tree.consistency(old, 0, size)
            before = tree.root(0, old)
            assert consistent(old, before, size, proof) == (before, root)


def test_a_note_of_another_program_verifies_by_its_published_key() -> None:
    """The vectors are those of golang.org/x/mod/sumdb/note, and the key of sum.golang.org."""
    key = NoteKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
    )
    first, second = (
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN",
        "1FFYC2pZSNXgKvqfqdngotpR",
    )
    signature = (("PeterNeumann", base64.b64decode(f"{first}{second}Zb6KE6RyyBwJnAM=")),)
    assert key.signed_at(Note("", 0, b"", text, signature)) == 0
    assert key.signed_at(Note("", 0, b"", text + "!", signature)) is None
    other = NoteKey.parse("sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8")
    assert other.name == "sum.golang.org"


def test_a_note_of_the_specification_is_read() -> None:
    note = Note.parse(
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5"
        "/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    )
    assert (note.origin, note.size, len(note.signatures)) == (
        "example.com/behind-the-sofa",
        20_852_163,
        1,
    )


# ---------------------------------------------------------------- what a proof says


def test_a_decision_is_dated_by_the_first_note_that_covers_it(
    dated: Witnessed, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    (sentence,) = verdict(dated, saved(tmp_path, proof_of(dated, reader)))
    assert sentence.startswith("This decision (BTCUSDT ")
    assert (
        "was in the log before 2023-11-15 00:01:41 by the clock of witness.example/w1" in sentence
    )


def test_a_proof_takes_less_than_two_kilobytes(
    dated: Witnessed, reader: sqlite3.Connection
) -> None:
    text = json.dumps(proof_of(dated, reader), separators=(",", ":"), ensure_ascii=False)
    assert len(text.encode()) < 2048


def test_a_run_is_proved_with_its_steps_its_digest_and_its_equity(
    dated: Witnessed, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    proof = WitnessLog(dated.database).prove(reader, 2, None)
    sentence = verdict(dated, saved(tmp_path, proof))[0]
    (digest,) = reader.execute("SELECT head_digest FROM runs WHERE run_key = 2").fetchone()
    assert sentence.startswith(f"Run {dated.runs[1]} (number 2, 62 steps, ")
    assert f"digest {digest.hex()}." in sentence
    assert "equity 100,000.00 became" in sentence


def test_a_flipped_bit_of_a_proof_never_changes_what_is_proved(
    dated: Witnessed, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    text, path = json.dumps(proof_of(dated, reader)).encode(), tmp_path / "flipped.json"
    path.write_bytes(text)
    true, rng, refused = verdict(dated, path), random.Random(1), 0
    for _ in range(1000):
        flipped = bytearray(text)
        flipped[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert verdict(dated, path) == true
        except Refused:
            refused += 1
    assert refused > 900  # the others changed nothing: a space, or the case of an escape


# ---------------------------------------------------------------- what a witness refuses


def forged(log: WitnessLog, from_leaf: int) -> Tree:
    """Return a history that is another from *from_leaf* on, with all hashes computed anew."""
    hashes = [leaf_hash(leaf.tobytes()) for leaf in log.leaves]
    return tree_of(
        [
            *hashes[:from_leaf],
            *(leaf_hash(b"forged" + each) for each in hashes[from_leaf:]),
            leaf_hash(b"next"),
        ]
    )


def test_a_thousand_rewritten_histories_are_refused_by_the_witness(dated: Witnessed) -> None:
    log, rng, statuses = WitnessLog(dated.database), random.Random(2), list[int]()
    size = len(log.tree)
    for _ in range(1000):
        log.tree = forged(log, rng.randrange(size))
        text = f"{ORIGIN}\n{size + 1}\n{base64.b64encode(log.tree.root(0, size + 1)).decode()}\n"
        note = f"{text}\n{log.signer.line(text)}"
        old = rng.choice((0, size))
        statuses.append(dated.cosigner.add_checkpoint(log.request(old, note), NOW_S + 9).status)
    assert set(statuses) == {409, 422}
    assert len(statuses) == 1000


def test_a_longer_true_history_is_cosigned_where_the_forged_ones_were_refused(
    tmp_path: Path,
) -> None:
    case = witnessed(tmp_path, bars=5)
    log = case.extend()
    assert case.submit(log, NOW_S).status == 200
    log.append([(1, 7, 7, b"n" * 32)])
    assert case.submit(log, NOW_S).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 400),
        ("old 1\n\nno note", 400),
        ("old 9\n\n{note}", 400),
        ("old 01\n\n{note}", 400),
        ("old 0\n\n{unknown}", 404),
        ("old 0\n\n{forged}", 403),
        ("old 0\n\n{note}", 409),
        ("old 7\n\n{note}", 200),
    ],
)
def test_the_statuses_of_a_witness_are_those_of_the_specification(
    tmp_path: Path, body: str, status: int
) -> None:
    case = witnessed(tmp_path, bars=5)
    log = case.extend()
    assert case.submit(log, NOW_S).status == 200
    note = log.signed
    text = body.format(
        note=note,
        unknown=note.replace("alice", "mallory", 1),
        forged=note.replace("\n7\n", "\n8\n"),
    )
    assert case.cosigner.add_checkpoint(text, NOW_S).status == status


def test_a_witness_remembers_over_a_restart_what_it_signed(tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=5)
    log = case.extend()
    assert case.submit(log, NOW_S).status == 200
    signer, state = read_key(tmp_path / "w1", COSIGNED), tmp_path / "w1.state"
    again = Cosigner(signer, {ORIGIN: case.log}, state)
    assert again.add_checkpoint(log.request(0, log.signed), NOW_S) == (409, "7\n")


# ---------------------------------------------------------------- several proofs


def test_a_witness_that_first_sees_a_log_late_dates_nothing_before(
    dated: Witnessed, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    """Its only note is dated when it first saw the log, whatever the age of the decision."""
    key = make_key(tmp_path / "w2", "w2.example", COSIGNED)
    signer = read_key(tmp_path / "w2", COSIGNED)
    second = Cosigner(signer, {ORIGIN: dated.log}, tmp_path / "w2.state")
    log, proof = WitnessLog(dated.database), proof_of(dated, reader, 1)
    note = log.signed
    answer = second.add_checkpoint(log.request(0, note), NOW_S + 86_400)
    with pytest.raises(Refused, match="None of the given witnesses signed"):
        judge([saved(tmp_path, proof)], dated.log, [key])
    late_note = tmp_path / "late.note"
    late_note.write_text(note + answer.text, "utf-8")
    assert judge([late_note], dated.log, [key]) == [
        f"The log had {len(log.tree)} leaves before 2023-11-16 00:01:40 by the clock of w2.example."
    ]


def test_a_witness_that_signs_two_histories_is_exposed_by_the_two_notes(
    dated: Witnessed, tmp_path: Path
) -> None:
    log = WitnessLog(dated.database)
    signer = read_key(dated.database.parent / "w1", COSIGNED)
    size = len(log.tree)
    for name, root in (("a", log.tree.root(0, size)), ("b", forged(log, 9).root(0, size))):
        text = f"{ORIGIN}\n{size}\n{base64.b64encode(root).decode()}\n"
        note = f"{text}\n{log.signer.line(text)}{signer.line(text, NOW_S)}"
        (tmp_path / name).write_text(note, "utf-8")
    with pytest.raises(Refused) as refused:
        verdict(dated, tmp_path / "a", tmp_path / "b")
    assert str(refused.value) == (f"Two histories of {size} leaves, signed by {ORIGIN}, {WITNESS}.")
    assert len(verdict(dated, tmp_path / "a", tmp_path / "a")) == 2


def test_two_proofs_show_the_runs_between_them_that_were_left_out(
    dated: Witnessed, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    first, second, third = (saved(tmp_path, proof_of(dated, reader, n)) for n in (1, 2, 3))
    assert len(verdict(dated, first, second, third)) == 3
    with pytest.raises(Refused, match="Runs of the log are not shown: number 2"):
        verdict(dated, first, third)


def test_a_published_folder_is_judged_and_a_run_that_is_taken_out_is_named(
    dated: Witnessed, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    counts = publish(WitnessLog(dated.database), reader, tmp_path)
    assert counts == {"leaves": 186, "runs": 3}
    assert len(verdict(dated, tmp_path)) == 4
    assert (tmp_path / "tile" / "0" / "000.p" / "186").stat().st_size == 186 * 32
    assert ORIGIN in (tmp_path / "index.html").read_text("utf-8")
    (tmp_path / "runs" / "2.json").unlink()
    with pytest.raises(Refused, match="Runs of the log are not shown: number 2"):
        verdict(dated, tmp_path)
    leaves = (tmp_path / "leaves").read_bytes()
    for forgery in (
        leaves[: 62 * LEAF.size] + leaves[124 * LEAF.size :],  # the second run is cut out
        leaves[: 61 * LEAF.size] + b"\0" * LEAF.size + leaves[62 * LEAF.size :],
        leaves[:-1],
    ):
        (tmp_path / "leaves").write_bytes(forgery)
        with pytest.raises(Refused, match=r"of another history|malformed|skips or repeats"):
            verdict(dated, tmp_path)


def test_a_log_that_hides_a_run_among_its_leaves_is_refused(tmp_path: Path) -> None:
    """The witness dates what it is shown; the leaves themselves show the hole."""
    case = witnessed(tmp_path, bars=5)
    log = WitnessLog(case.database)
    log.append([(1, 0, 3, b"a" * 32), (3, 0, 3, b"c" * 32)])
    assert case.submit(log, NOW_S).status == 200
    with closing(open_reader(case.database)) as connection:
        publish(log, connection, tmp_path / "public")
    with pytest.raises(Refused, match="Runs of the log are not shown: number 1, 2, 3"):
        verdict(case, tmp_path / "public")


# ---------------------------------------------------------------- public clocks


def flipped(token: bytes) -> bytes:
    return token[:-9] + bytes([token[-9] ^ 1]) + token[-8:]


@pytest.mark.parametrize("kind", ["rsa:2048", "ec -pkeyopt ec_paramgen_curve:P-256"])
def test_a_token_of_the_authority_dates_a_decision_and_no_other_does(
    tmp_path: Path, kind: str
) -> None:
    case = witnessed(tmp_path, bars=5)
    log, own, other = case.extend(), Authority(tmp_path / "a", kind), Authority(tmp_path / "b")
    note = log.sign()
    text = Note.parse(note).text
    authority = read_witness(str(own.certificate))
    tokens = [
        own.token(text),
        other.token(text),
        own.token(f"{text}more"),
        flipped(own.token(text)),
    ]
    for day, token in enumerate(tokens):
        shutil.rmtree(log.folder / "clocks", ignore_errors=True)
        log.keep_token(f"2023-11-{day:02}", note, "https://tsa.example", "tsr", token)
        with closing(open_reader(case.database)) as connection:
            path = saved(tmp_path, log.prove(connection, 1, 3))
        if day == 0:
            (sentence,) = judge([path], case.log, [authority])
            assert "by the clock of CN=tsa.example (a public clock, asked once a day)" in sentence
            assert sentence.endswith("the date is too late to prove that it was no hindsight.")
        else:
            with pytest.raises(Refused, match="None of the given witnesses signed the note"):
                judge([path], case.log, [authority])


def test_a_proof_has_the_first_date_of_a_witness_and_of_a_clock(tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=5)
    log, own = case.extend(), Authority(tmp_path / "a")
    assert case.submit(log, NOW_S).status == 200
    log.append([(1, 7, 7, b"n" * 32)])
    note = log.sign()
    log.keep_token(
        "2023-11-15", note, "https://tsa.example", "tsr", own.token(Note.parse(note).text)
    )
    with closing(open_reader(case.database)) as connection:
        path = saved(tmp_path, log.prove(connection, 1, 3))
    keys = [case.witness, read_witness(str(own.certificate))]
    (both,), (first,), (second,) = (
        judge([path], case.log, given) for given in (keys, keys[:1], keys[1:])
    )
    of_witness = f"before 2023-11-15 00:01:40 by the clock of {WITNESS}"
    assert f"{of_witness} and before " in both
    assert of_witness in first
    assert WITNESS not in second


# ---------------------------------------------------------------- the record behind the log


def test_a_run_opens_with_a_leaf_before_that_of_its_first_decision(
    dated: Witnessed, reader: sqlite3.Connection
) -> None:
    log = WitnessLog(dated.database)
    entries = log.entries(reader, *(log.stored(reader, 1, 0) or ((), ())))
    assert [entry["kind"] for entry in entries] == ["commit"]
    assert entries[0]["run"] == dated.runs[0]
    assert "opened" in entries[0]


def test_rows_that_were_changed_since_are_not_attested(tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=20)
    log = case.extend()
    assert case.submit(log, NOW_S).status == 200
    tamper(case.database, "UPDATE steps SET target_quantity = 5 WHERE sequence = 9")
    with (
        closing(open_reader(case.database)) as connection,
        pytest.raises(DataInvalid, match="rows of step 9 were changed since they were logged"),
    ):
        log.prove(connection, 1, 9)


def test_an_older_copy_that_is_put_back_ends_the_log_for_good(tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=20)
    log = case.extend()
    assert case.submit(log, NOW_S).status == 200
    tamper(
        case.database,
        "DELETE FROM commits WHERE first_sequence > 15",
        "DELETE FROM steps WHERE sequence > 15",
    )
    with closing(sqlite3.connect(case.database)) as connection:
        with pytest.raises(DataInvalid, match="an older copy of the database was put back"):
            log.check_record(connection)
        with pytest.raises(DataInvalid, match="has ended"):
            WitnessLog(case.database).check_record(connection)


def test_a_lost_or_torn_file_of_leaves_is_made_again_from_the_record(tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=20)
    log = case.extend()
    leaves = witness_folder(case.database) / "leaves"
    whole = leaves.read_bytes()
    for rest in (b"", whole[: 7 * LEAF.size + 5]):
        leaves.write_bytes(rest)
        assert case.extend().tree.root(0, 22) == log.tree.root(0, 22)
        assert leaves.read_bytes() == whole


def test_a_date_that_lost_power_tore_is_left_out_and_written_over(tmp_path: Path) -> None:
    case = witnessed(tmp_path)
    log = case.extend()
    assert case.submit(log, NOW_S).status == 200
    (path,), size = (log.folder / "dates").iterdir(), log.dated
    with path.open("ab") as file:
        file.write(b"torn")
    log = case.extend()
    assert log.first_dates(0) == [(NOW_S, size, path.name.replace("%2F", "/").replace("%2B", "+"))]
    record_run(case.database, 7)
    log = case.extend()
    assert case.submit(log, NOW_S + 60).status == 200
    assert [(row[0], row[1]) for row in (log.first_dates(0) + log.first_dates(size))] == [
        (NOW_S, size),
        (NOW_S + 60, len(log.tree)),
    ]


def test_a_prune_keeps_the_leaves_and_their_dates(tmp_path: Path) -> None:
    case = witnessed(tmp_path, bars=1460)  # a day and 20 minutes
    log = case.extend()
    size = len(log.tree)
    assert case.submit(log, NOW_S).status == 200
    with closing(open_reader(case.database)) as connection:
        attested = saved(tmp_path, log.prove(connection, 1, 9))
    (pruning,) = prune(case.database, keep_days=1, pruned_at_ms=0)
    assert pruning.until_sequence > 9
    record_run(case.database, 1, bars=5)
    log = case.extend()
    with closing(open_reader(case.database)) as connection:
        log.check_record(connection)
        assert case.submit(log, NOW_S + 9).status == 200
        with pytest.raises(DataInvalid, match="The rows of step 9 were pruned; only their leaf"):
            log.prove(connection, 1, 9)
        of_rest = (log.prove(connection, *step) for step in ((1, 1000), (2, 3)))
        rest = [saved(tmp_path, proof) for proof in of_rest]
    assert len(log.tree) == size + 1 + 7  # the prune is an event of the first run
    assert len(verdict(case, attested, *rest)) == 3


def test_a_date_before_the_bar_closed_tells_of_a_wrong_clock(tmp_path: Path) -> None:
    """Step 9 closes at 1,700,006,940 s."""
    case = witnessed(tmp_path, bars=20)
    log = case.extend()
    with closing(open_reader(case.database)) as connection:
        for at_s, is_wrong in ((1_700_006_939, True), (1_700_006_940, False)):
            shutil.rmtree(log.folder / "dates", ignore_errors=True)
            case.cosigner.add_checkpoint(log.request(0, log.sign()), NOW_S)
            assert case.submit(log, at_s, old=22).status == 200
            sentence = verdict(case, saved(tmp_path, log.prove(connection, 1, 9)))[0]
            assert ("a clock is wrong, of the witness or the daemon" in sentence) is is_wrong


# ---------------------------------------------------------------- keys


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    make_key(path, "example.com/a", PLAIN)
    assert path.stat().st_mode & 0o777 == 0o600
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(ConfigInvalid, match=f"mode {mode:o}"):
            read_key(path, PLAIN)
    path.chmod(0o600)
    assert read_key(path, PLAIN).key.name == "example.com/a"


def test_a_key_is_never_replaced_and_has_one_purpose(tmp_path: Path) -> None:
    make_key(tmp_path / "key", "example.com/a", PLAIN)
    with pytest.raises(ConfigInvalid, match="a key is never replaced"):
        make_key(tmp_path / "key", "example.com/a", PLAIN)
    with pytest.raises(ConfigInvalid, match="holds no key of a witness"):
        read_key(tmp_path / "key", COSIGNED)
    for name in ("", "a b", "a+b"):
        with pytest.raises(ConfigInvalid, match="needs a name without spaces"):
            make_key(tmp_path / "other", name, PLAIN)
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_key(tmp_path / "absent", PLAIN)


# ---------------------------------------------------------------- the file without tracepaper


def test_the_golden_vectors_have_the_verdicts_beside_them(tmp_path: Path) -> None:
    """Whoever writes another judge tries it on these; this runs ours as a stranger does."""
    vectors = json.loads((VECTORS / "vectors.json").read_text("utf-8"))
    program = ["-I", str(ROOT / "deploy" / "judge.py")]
    keys = {"witness": vectors["witness"], "certificate": str(tmp_path / "tsa.pem")}
    (tmp_path / "tsa.pem").write_text(vectors["certificate"], "ascii")
    assert {each["holds"] for each in vectors["cases"]} == {True, False}
    for case in vectors["cases"]:
        paths = []
        for number, text in enumerate(case["files"]):
            paths.append(tmp_path / f"{case['name']}{number}")
            paths[-1].write_text(text, "utf-8")
        done = subprocess.run(
            [
                sys.executable,
                *program,
                *paths,
                "--log",
                vectors["log"],
                "--witness",
                keys[case["by"]],
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline_s(),
        )
        assert (done.stdout, done.returncode) == (case["verdict"], int(not case["holds"]))


def test_the_judge_needs_nothing_of_tracepaper_and_fits_on_a_few_pages() -> None:
    text = (ROOT / "deploy" / "judge.py").read_text("utf-8")
    assert len(text.splitlines()) <= 300
    nodes = [*ast.walk(ast.parse(text))]
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    modules = {name.partition(".")[0] for name in modules}
    assert modules - set(sys.stdlib_module_names) == {"cryptography"}


def test_keys_are_written_as_they_are_read(dated: Witnessed) -> None:
    assert NoteKey.parse(key_text(dated.log)) == dated.log
    with pytest.raises(Refused, match="is no key of Ed25519 or no file, or was copied wrongly"):
        NoteKey.parse(key_text(dated.log).replace("alice", "alicf"))
