"""Compiles the loops of attention where a C compiler is, and tags the wheel by what it holds.

``native.c`` becomes one object for each width of vectors. A build without a compiler, or with one
that fails, warns in one line and goes on: torch computes the same.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = "strategies/attention"
WIDTHS = {"native_avx512": ["-mavx512f", "-mprefer-vector-width=512"], "native_avx2": ["-mavx2"]}


def loops() -> list[Extension]:
    """Return the objects to compile: Linux on x86-64 alone has the instructions and the ABI."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return []
    source = Path(__file__).parent / FOLDER / "native.c"
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    return [
        Extension(
            f"tracepaper.strategies.attention.{name}",
            [f"{FOLDER}/native.c"],
            define_macros=[("SOURCE", f'"{sha256}"')],
            # Without debugging text: a run names an object by its bytes, which name no folder.
            extra_compile_args=["-O3", "-g0", "-std=gnu11", "-Wall", "-Wextra", "-mfma", *width],
            extra_link_args=["-pthread"],
            optional=True,
        )
        for name, width in WIDTHS.items()
    ]


class BuildLoops(build_ext):
    """Builds libraries for ctypes, which are no modules of one version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the object's path: no version of Python is in its name, and it is no module's."""
        return f"{fullname.replace('.', '/').replace('native_', 'native.')}.so"


class Wheel(bdist_wheel):
    """A wheel of any Python 3: for this platform if it holds objects, for all if it does not."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag: no object depends on a version of Python.

        An index takes no wheel for ``linux``, but one for ``manylinux`` of the C library that the
        objects were linked with (PEP 600).
        """
        _, _, platform_tag = super().get_tag()
        if not any(Path(self.bdist_dir).rglob("native.*.so")):
            return "py3", "none", "any"
        library, version = platform.libc_ver()
        if library == "glibc":
            platform_tag = f"manylinux_{version.replace('.', '_')}_{platform.machine()}"
        return "py3", "none", platform_tag

    def run(self) -> None:
        """Build from nothing: a module that an earlier version left in ``build`` would go along."""
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()


# The name keeps this file out of the wheel: a build front end runs it under another.
setup(
    script_name="setup.py",
    ext_modules=loops(),
    cmdclass={"bdist_wheel": Wheel, "build_ext": BuildLoops},
)
