"""On a real Ray: the cells of the local executor, and one sentence for whatever goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from programs import BIN, Program, environment, run
from waiting import deadline_s

pytestmark = pytest.mark.slow

FOLDER: Final = re.compile(r"/tmp/tp-ray-\w+")

SPACE = {"fast": [3, 5, 9], "slow": [12, 20, 40]}
SIZED = {"sizing": {"mode": "fixed", "quantity": "0.1"}}

SWEEP = """
import json, sys
from tracepaper import TracepaperError, sweep
asked = json.loads(sys.argv[1])
if __name__ == "__main__":
    try:
        found = sweep(asked.pop("strategy"), asked.pop("data"), asked.pop("space"), "return",
                      progress=lambda *said: print(*said, file=sys.stderr, flush=True), **asked)
    except TracepaperError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps([[cell.point, cell.value, cell.error, cell.figures, cell.daily,
                       cell.config_sha256] for cell in found.cells]))
"""
ODD = """
import os
from pathlib import Path
from tracepaper import Action, Signal, Strategy


class Odd(Strategy):
    def __init__(self, how):
        self.how = how

    def decide(self, now):
        if self.how == "exits":
            with Path("exits").open("a") as file:
                file.write("x")
            os._exit(3)
        if self.how.startswith("dies once beside "):
            there = Path(self.how.removeprefix("dies once beside "))
            if not there.exists():
                there.touch()
                os._exit(3)
        if self.how.startswith("waits for "):
            while not Path(self.how.removeprefix("waits for ")).exists():
                pass
        if self.how.startswith("meets "):
            _, own, other = self.how.split()
            Path(own).touch()
            while not Path(other).exists():
                pass
        if self.how == "blocks":
            while True:
                pass
        if self.how == "takes":
            self.taken = [bytearray(os.urandom(1 << 20)) * 100 for _ in range(60)]
        return Signal(Action.LONG if now.close > now.open else Action.FLAT, "as it went")
"""

THREADS = """
import torch
from tracepaper import Action, Signal, Strategy


class Threads(Strategy):
    def __init__(self, number):
        self.number = number

    def decide(self, now):
        if torch.get_num_threads() == self.number and now.close > now.open:
            return Signal(Action.LONG, "as many as here")
        return Signal(Action.FLAT, "it fell, or other sums")
"""


class SweepProcess:
    """Sweeps in a process of its own, which has a folder of its own."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        (folder / "swept.py").write_text(SWEEP)
        (folder / "odd.py").write_text(ODD)
        (folder / "threads.py").write_text(THREADS)

    def start(self, extra: dict[str, str], **request: Any) -> subprocess.Popen[str]:
        given = environment({"TRACEPAPER_TRIALS": str(self.folder / "trials.db"), **extra})
        whole = {"strategy": "sma_cross", "data": str(self.data), "space": SPACE, "config": SIZED}
        return subprocess.Popen(
            [sys.executable, "swept.py", json.dumps(whole | request)],
            cwd=self.folder,
            env={name: value for name, value in given.items() if value},  # unset where empty
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def output(self, extra: dict[str, str] | None = None, **request: Any) -> tuple[int, str, str]:
        with self.start(extra or {}, **request) as process:
            out, err = process.communicate(timeout=deadline_s(240))
        return process.returncode, out, err

    def cells(self, extra: dict[str, str] | None = None, **request: Any) -> list[Any]:
        code, out, err = self.output(extra, **request)
        assert code == 0, err
        document: list[Any] = json.loads(out.splitlines()[-1])
        return document


@pytest.fixture
def sweeping(tmp_path: Path, candles: Path) -> SweepProcess:
    return SweepProcess(tmp_path, candles)


def test_cells_are_those_of_the_local_executor_bit_for_bit(sweeping: SweepProcess) -> None:
    assert sweeping.cells(on="ray", jobs=2) == sweeping.cells(on="local", jobs=2)


def test_what_goes_wrong_in_a_cell_is_named_and_the_others_go_on(sweeping: SweepProcess) -> None:
    once = f"dies once beside {sweeping.folder / 'died'}"
    request: Any = {
        "strategy": "odd:Odd",
        "space": {"how": ["fine", "exits", once, "blocks", "fine too"]},
        "jobs": 2,
        "limit_s": 15.0,
    }
    document = {cell[0]["how"]: cell for cell in sweeping.cells(on="ray", **request)}
    assert document["fine"][1] == document["fine too"][1] == document[once][1] is not None
    assert document["exits"][2] == (
        "Tried 3 times on Ray: its worker or node ended; let the class raise and not exit, or "
        "give it less memory."
    )
    assert (sweeping.folder / "exits").read_text() == "xxx"
    assert document["blocks"][2] == (
        "It took longer than 15 s and was stopped; give a higher limit, or mend it."
    )


@pytest.mark.long
def test_a_worker_has_the_threads_of_the_driver(sweeping: SweepProcess) -> None:
    """Where nothing is said, Ray gives a worker one; a local process has one a core."""
    request: Any = {"strategy": "threads:Threads", "space": {"number": [1, 2]}, "jobs": 1}
    cells = sweeping.cells({"OMP_NUM_THREADS": ""}, on="ray", **request)
    assert cells == sweeping.cells({"OMP_NUM_THREADS": ""}, on="local", **request)
    assert [cell[3]["trades"] > 0 for cell in cells].count(True) == (os.cpu_count() in {1, 2})


@pytest.mark.long
def test_a_cell_over_its_memory_is_named(sweeping: SweepProcess) -> None:
    memory = psutil.virtual_memory()
    most = (memory.total - memory.available + 3 * 2**30) / memory.total
    if most > 0.9:
        pytest.skip("other programs leave too little memory to take some of it away")
    extra = {"RAY_memory_usage_threshold": f"{most:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    space = {"how": ["takes", "fine"]}
    taking, fine = sweeping.cells(extra, strategy="odd:Odd", space=space, on="ray", jobs=1)
    assert taking[2] == (
        "Tried 3 times on Ray: it took more memory than its node gives; let it take less, or give "
        "nodes more."
    )
    assert fine[1] is not None


# ---------------------------------------------------------------- interrupted

COUNTED = """
import time
from pathlib import Path
from tracepaper import Action, Signal, Strategy


class Counted(Strategy):
    def __init__(self, number):
        Path(f"begun-{number}").touch()
        while number > 12 and not Path("go").exists():
            time.sleep(0.05)
        self.number = number

    def decide(self, now):
        return Signal(Action.LONG if now.close > self.number else Action.FLAT, "as it went")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind_and_the_same_command_goes_on(
    candles: Path, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "counted.py").write_text(COUNTED)
    words = [
        *("sweep", str(candles), "--strategy", "counted:Counted", "--objective", "return"),
        *("--space", "number=1..60", "--state", "state.db", "--json", "--jobs", "2"),
        *("--set", "sizing.mode=fixed", "--set", "sizing.quantity=0.1"),
    ]
    extra = {"TRACEPAPER_TRIALS": str(tmp_path / "trials.db")}
    # In a group of its own, which a terminal interrupts; a test in the background ignores that.
    # SIGTERM goes to the command: where its raylet ends first, Ray ends the command with 1.
    there = Program(
        ["setsid", "env", "--default-signal=INT", str(BIN / "tracepaper"), *words, "--on", "ray"],
        tmp_path, name="there", extra=extra,
    )  # fmt: skip
    there.wait_until(lambda: len(list(tmp_path.glob("begun-*"))) >= 6)
    family = psutil.Process(there.process.pid).children(recursive=True)
    [folder] = {
        Path(match) for each in family for match in FOLDER.findall(" ".join(each.cmdline()))
    }
    assert folder.is_dir()
    tell = os.killpg if number is signal.SIGINT else os.kill
    tell(there.process.pid, number)
    ended = there.end()
    assert ended.code == 130, ended.err
    assert "Traceback" not in ended.err
    _, alive = psutil.wait_procs(family, timeout=deadline_s(30))
    assert alive == []
    assert not folder.exists()
    (tmp_path / "go").touch()
    whole = run([*words, "--on", "ray"], tmp_path, extra)
    assert whole.err == ""
    document = json.loads(whole.out)
    assert len(document["cells"]) == 60
    assert 4 <= 60 - document["new_runs"] < 60
    local = json.loads(run([*words, "--state", "local.db"], tmp_path, extra).out)
    seconds = [cell.pop("seconds", None) for cell in (*local["cells"], *document["cells"])]
    assert len(seconds) == 120
    assert local["cells"] == document["cells"]


# ---------------------------------------------------------------- clusters


CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster

made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = []
print(made.address, flush=True)
for line in sys.stdin:
    if line == "remove\\n":
        made.remove_node(nodes.pop())
    else:
        nodes.append(made.add_node(num_cpus=1, **json.loads(line)))
    print("done", flush=True)
made.shutdown()
"""


class Nodes:
    """A cluster on this machine, in a process of its own, whose head makes no cell."""

    def __init__(self, folder: Path) -> None:
        extra = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            cwd=folder, env=environment(extra), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.address = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self._line() == "done"


@pytest.fixture
def cluster() -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="tp-test-", dir="/tmp"))
    nodes = Nodes(folder)
    try:
        yield nodes
    finally:
        nodes.process.communicate(timeout=deadline_s(60))
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_a_node_that_goes_in_mid_sweep_loses_no_cell(
    sweeping: SweepProcess, cluster: Nodes
) -> None:
    space = {"fast": list(range(2, 22)), "slow": [30, 40]}
    cluster.ask("{}")
    cluster.ask("{}")
    process = sweeping.start({"RAY_ADDRESS": cluster.address}, space=space, on="ray")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("3 40 "):
            break
    cluster.ask("remove")
    out, err = process.communicate(timeout=deadline_s(240))
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == sweeping.cells(space=space, on="local", jobs=2)
