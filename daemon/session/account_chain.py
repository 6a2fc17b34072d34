"""The runs of one account, each of which took over the account of the one before, over files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tracepaper.daemon.session.carried_account import CarriedAccount, Origin
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import RunRow
from tracepaper.strategies.types.market import RunKind


class AccountRun(NamedTuple):
    """A live run of *path* and the account with which it begins.

    ``run`` is None in a file that has been made by a rotation and not been started since.
    """

    path: Path
    run: RunRow | None
    account: CarriedAccount | None
    end: tuple[int, str]  # its last step and the digest of its last commit

    @property
    def origin(self) -> Origin | None:
        """The end of the run before; None in the first run of an account."""
        return None if self.account is None else self.account.origin

    @property
    def head(self) -> str:
        """The digest of its last commit, or that with which it begins."""
        return self.origin.digest if self.run is None and self.origin is not None else self.end[1]

    @property
    def named(self) -> str:
        """The run and its file, as a sentence names them."""
        if self.run is None:
            return f"the first run of {self.path}"
        return f"run {self.run.run_id} of {self.path}"


class Joint(NamedTuple):
    """Whether the account with which a run begins follows from the record of the run before.

    ``follows`` is None where the record of that run was not given.
    """

    file: Path
    origin: Origin
    follows: bool | None
    sentence: str


def joints_of(chain: Sequence[AccountRun]) -> list[Joint]:
    """Derive the account at each joint of *chain*, and compare it with the one that was stored."""
    joints = []
    for before, after in zip((None, *chain), chain, strict=False):
        if (origin := after.origin) is None:
            continue
        if before is None or before.run is None:
            follows = None
            sentence = (
                f"The account with which {after.named} begins is that of run {origin.run_id} at "
                f"digest {origin.digest}; give the file that holds it to check this."
            )
        else:
            with Reader.open(before.path) as reader:
                follows = CarriedAccount.of(reader, before.run) == after.account
            follow = "follows" if follows else "does not follow"
            sentence = (
                f"The account with which {after.named} begins {follow} from the record of "
                f"{before.named}."
            )
        joints.append(Joint(after.path, origin, follows, sentence))
    return joints


def account_chain(files: Sequence[Path]) -> list[AccountRun]:
    """Return the runs of the newest account in *files*, given in any order, oldest run first.

    Raises ``DataInvalid`` where a file is given twice or missing, belongs to another account or
    holds no live run, and where two runs go on with the account of one.
    """
    found: dict[str, AccountRun] = {}
    after: dict[str, AccountRun] = {}  # by the run whose account it took over
    newest = []
    for place, path in enumerate(files):
        if (
            same := next((each for each in files[:place] if path.samefile(each)), None)
        ) is not None:
            raise DataInvalid(f"{path} and {same} are the same file; give it once.")
        for each in (of_file := _runs_of(path)):
            if each.run is not None and (other := found.setdefault(each.run.run_id, each)) != each:
                raise DataInvalid(
                    f"{other.path} and {path} both hold run {each.run.run_id}, so one is a copy; "
                    "give one of them."
                )
            origin = each.origin
            if origin is not None and (other := after.setdefault(origin.run_id, each)) != each:
                raise DataInvalid(
                    f"Two runs go on with the account of run {origin.run_id}, as after a backup "
                    f"was restored: {other.named}, and {each.named}; give the files of one."
                )
        newest.append(of_file[-1])
    ends = [each for each in newest if each.run is None or each.run.run_id not in after]
    chains = [_back(end, found) for end in ends]
    if len(chains) > 1:
        raise DataInvalid(_apart(chains))
    for before, later in pairwise(chains[0]):
        taken = later.origin
        if taken is not None and (taken.last_step, taken.digest) != before.end:
            raise DataInvalid(
                f"At step {taken.last_step} of {before.named} its account was taken over by "
                f"{later.named}; now it ends at step {before.end[0]} with another head: it went on "
                "afterwards, or one of the two was changed."
            )
    return chains[0]


def _apart(chains: Sequence[Sequence[AccountRun]]) -> str:
    """Return why the runs of several files are not one chain."""
    for first, *_ in chains:
        if first.origin is not None:
            return (
                f"None of the files holds run {first.origin.run_id}, with whose account "
                f"{first.named} begins; give the file that holds it too."
            )
    names = " and ".join(str(chain[-1].path) for chain in chains[:2])
    return f"{names} hold different accounts; give the files of one."


def _runs_of(path: Path) -> list[AccountRun]:
    """Return the live runs of *path*; the one that it waits for if it has none."""
    with Reader.open(path) as reader:
        runs = []
        for run_id in reader.run_ids():
            stored = reader.stored_run(run_id)
            if stored.run.kind is RunKind.LIVE:
                text, steps = stored.run.account, reader.counted(run_id)[1]
                account = None if text is None else CarriedAccount.read(text)
                end = steps - 1, stored.head_digest.hex()
                runs.append(AccountRun(path, stored.run, account, end))
        if not runs and (account := CarriedAccount.waiting(reader, RunKind.LIVE)) is not None:
            runs.append(AccountRun(path, None, account, (-1, "")))
    if not runs:
        raise DataInvalid(f"{path} holds no live run, so no account; give another file.")
    return runs


def _back(end: AccountRun, found: dict[str, AccountRun]) -> list[AccountRun]:
    """Return the runs up to *end* whose account it goes on with, as far as they were *found*."""
    chain = [end]
    while chain[-1].origin is not None and (before := found.get(chain[-1].origin.run_id)):
        chain.append(before)
    return chain[::-1]
