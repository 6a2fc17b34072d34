"""Compiles the loops of attention, makes both distributions reproducible, and writes the SBOM.

The version has the commit: of the checkout, else of ``SOURCE_COMMIT``; a source distribution keeps
it for the wheel that is built of it.

``native.c`` becomes one object for each width of vectors. A build without a compiler, or with one
that fails, warns in one line and goes on: torch computes the same.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import re
import runpy
import shutil
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
VERSION = "0.1.0"
ALONE = (ROOT / "tracepaper_attention").is_dir()
"""Whether this is attention alone, as ``deploy/attention/sources.sh`` lays it out."""
FOLDER = "tracepaper_attention" if ALONE else "strategies/attention"
PACKAGE = "tracepaper_attention" if ALONE else "tracepaper.strategies.attention"
WIDTHS = {"native_avx512": ["-mavx512f", "-mprefer-vector-width=512"], "native_avx2": ["-mavx2"]}
VENDORED = "replay/page/assets/vendor"
EARLIEST_S = 315_532_800
"""1980-01-01, the earliest date of a zip archive: every file of a distribution has it."""


def version() -> str:
    """Return the version with its commit, or with ``unknown`` where nothing tells it."""
    if (ROOT / "PKG-INFO").is_file():  # of an unpacked source distribution
        text = (ROOT / "PKG-INFO").read_text("utf-8")
        return re.findall(r"^Version: (\S+)", text, re.MULTILINE)[0]
    reader = ROOT / "daemon" / "version.py"
    commit = "" if ALONE else runpy.run_path(str(reader))["commit_of"](ROOT)
    commit = commit or os.environ.get("SOURCE_COMMIT", "")[:9]
    if re.fullmatch("[0-9a-f]{9}", commit):
        return f"{VERSION}+g{commit}"
    print(  # noqa: T201
        "The version names no commit, since this is no git checkout; set SOURCE_COMMIT to name it.",
        file=sys.stderr,
    )
    return f"{VERSION}+unknown"


def loops() -> list[Extension]:
    """Return the objects to compile: Linux on x86-64 alone has the instructions and the ABI."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return []
    source = ROOT / FOLDER / "native.c"
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    return [
        Extension(
            f"{PACKAGE}.{name}",
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
        os.environ["SOURCE_DATE_EPOCH"] = str(EARLIEST_S)
        os.umask(0o022)  # an archive holds the modes of files
        super().run()

    def write_wheelfile(self, wheelfile_base: str, *arguments: str) -> None:
        """Write ``WHEEL``, and beside it the bill of materials (PEP 770)."""
        super().write_wheelfile(wheelfile_base, *arguments)
        path = Path(wheelfile_base, "sboms", f"{self.distribution.get_name()}.cdx.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(bill_of_materials(self.distribution), indent=1) + "\n", "utf-8")


class SourceArchive(sdist):
    """An archive of which the bytes follow from the files: no time, user or umask enters it."""

    def make_archive(self, base_name: str, _format: str, **tree: str | None) -> str:
        """Write the release tree into a ``.tar.gz`` and return its path."""

        def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = EARLIEST_S, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() else 0o644
            return entry

        path = f"{base_name}.tar.gz"
        with (
            gzip.GzipFile(path, "wb", mtime=EARLIEST_S) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            archive.add(str(tree["base_dir"]), filter=plain)
        return path


# ---------------------------------------------------------------- bill of materials


def bill_of_materials(distribution: Distribution) -> dict[str, object]:
    """Return CycloneDX 1.6 of the wheel.

    It names the page's vendored code, and each direct dependency at the version of
    ``constraints.txt``, with which it was tested; those of extras are optional.
    """
    name, version = distribution.get_name(), distribution.get_version()
    program = component("pypi", name, version, licenses=[{"license": {"id": "Apache-2.0"}}])
    extras = [text for texts in distribution.extras_require.values() for text in texts]
    required = packages(distribution.install_requires)
    components = [] if ALONE else [*vendored()]
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    for package, tested in re.findall(r"^([\w.-]+)==([\w.+]+)", pins, re.MULTILINE):
        key = normalized(package)
        if key in required | packages(extras):
            scope = "required" if key in required else "optional"
            components.append(component("pypi", key, tested, scope=scope))
    references = [each["bom-ref"] for each in components]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": program | ({} if ALONE else {"type": "application"})},
        "components": components,
        "dependencies": [{"ref": program["bom-ref"], "dependsOn": references}],
        # What the dependencies require in turn is not listed.
        "compositions": [{"aggregate": "incomplete", "dependencies": references}],
    }


def component(kind: str, name: str, version: str, **fields: object) -> dict[str, object]:
    """Return a component of an index of *kind* (``pypi``, ``npm``)."""
    url = f"pkg:{kind}/{name}@{version.replace('+', '%2B')}"
    identity = {"bom-ref": url, "name": name, "version": version, "purl": url}
    return {"type": "library"} | identity | fields


def vendored() -> Iterable[dict[str, object]]:
    """Yield other people's code in the page, as ``THIRD_PARTY.md`` lists it."""
    for line in (ROOT / VENDORED / "THIRD_PARTY.md").read_text("utf-8").splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            file, package, inner, version, *_, sha256 = (cell.strip("`") for cell in cells)
            hashes = [{"alg": "SHA-256", "content": sha256}]
            fields: dict[str, object] = {
                "description": f"{VENDORED}/{file}: {package}",
                "hashes": hashes,
            }
            if inner:  # its package does not say in which version
                url = f"pkg:npm/{inner}"
                fields["components"] = [{"type": "library", "name": inner, "purl": url}]
            yield component("npm", package.partition(",")[0], version, **fields)


def packages(requirements: Iterable[str]) -> set[str]:
    """Return the names of the packages that *requirements* name."""
    return {normalized(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in requirements}


def normalized(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


# The name keeps this file out of the wheel: a build front end runs it under another.
setup(
    script_name="setup.py",
    version=version(),
    ext_modules=loops(),
    cmdclass={"bdist_wheel": Wheel, "build_ext": BuildLoops, "sdist": SourceArchive},
)
