"""The tests of numbers as other processors would run them: narrower vectors, with and without bf16.

    python tests/campaigns/campaign_processors.py

PyTorch, oneDNN, MKL and OpenBLAS choose their instructions by the processor, and sums of other
widths round otherwise; each takes less than there is where the environment says so. A tolerance
that only one processor keeps fails here. Instructions that the processor lacks cannot be tried:
what is tried is printed, with the width that torch took.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]


def _takes(torch: str, onednn: str, mkl: str, openblas: str) -> dict[str, str]:
    """Return the environment in which each library takes no more than these instructions."""
    return {
        "ATEN_CPU_CAPABILITY": torch,
        "ONEDNN_MAX_CPU_ISA": onednn,
        # Products and exponentials of float32 are MKL's, those of NumPy OpenBLAS's.
        "MKL_ENABLE_INSTRUCTIONS": mkl,
        "OPENBLAS_CORETYPE": openblas,
    }


PROCESSORS: Final[dict[str, dict[str, str]]] = {
    "as it is": {},
    "without vectors": _takes("default", "SSE41", "SSE4_2", "Nehalem"),
    "AVX2": _takes("avx2", "AVX2", "AVX2", "Haswell"),
    "AVX-512 without bf16": _takes("avx512", "AVX512_CORE", "AVX512", "SkylakeX"),
    "AVX-512 with bf16": _takes("avx512", "AVX512_CORE_BF16", "AVX512", "SkylakeX"),
}
"""Each processor by the environment that makes this one compute like it."""
BEYOND: Final = (
    "tests/replay/learning/test_fit.py::test_products_in_bfloat16_leave_the_weights_float32[lstm]"
)
"""Its id begins at the root, as pytest's do. Torch asks the processor whether oneDNN has an LSTM of
bfloat16, and not oneDNN: where AVX-512 is there and oneDNN may not take it, as on no real
processor, it fails."""
_SAYS: Final = "import torch; print(torch.backends.cpu.get_cpu_capability())"


def numeric(folder: Path = TESTS) -> list[str]:
    """List the test files that compute with torch, by their first imports."""
    modules = sorted(folder.rglob("test_*.py"))
    return [str(path) for path in modules if "\nimport torch\n" in path.read_text()]


def main() -> None:
    """Run the tests of numbers on each processor; end with 1 where any fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=PROCESSORS, help="one of the processors")
    parser.add_argument("tests", nargs="*", help="test files, by default all that compute")
    options = parser.parse_args()
    files, failed = options.tests or numeric(), []
    for name, processor in PROCESSORS.items():
        if options.only not in (None, name):
            continue
        environment = os.environ | processor
        width = subprocess.run(
            [sys.executable, "-c", _SAYS],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        print(f"{name} ({width}):", flush=True)
        narrow = "AVX512" not in processor.get("ONEDNN_MAX_CPU_ISA", "AVX512")
        left_out = ["--deselect", BEYOND] if narrow else []
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m",
             "not slow and not gpu and not clients and not peers", "--no-header", "--tb=line",
             *left_out, *files],
            env=environment, check=False,
        )  # fmt: skip
        print(f"{name}: {time.monotonic() - begun:,.0f} s, exit {done.returncode}", flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        sys.exit(f"Tests of numbers fail on: {', '.join(failed)}.")
    print("The tests of numbers pass on every processor that this one can be.")


if __name__ == "__main__":
    main()
