"""Makes the wheel one of this platform where ``make native`` has built the compiled loops."""

from __future__ import annotations

from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

HAS_LOOPS = any(Path(__file__).parent.glob("strategies/attention/native_*.so"))


class Loops(Distribution):
    """What is distributed is compiled where the loops are."""

    def has_ext_modules(self) -> bool:
        """Return whether there are objects, which no compiler of setuptools has made."""
        return HAS_LOOPS


class Wheel(bdist_wheel):
    """A wheel of any Python 3: for this platform if it holds objects, for all if it does not."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag: no object depends on a version of Python."""
        _, _, platform = super().get_tag()
        return "py3", "none", platform


# The name keeps this file out of the wheel: a build front end runs it under another.
setup(script_name="setup.py", distclass=Loops, cmdclass={"bdist_wheel": Wheel})
