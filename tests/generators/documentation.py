"""Builds the documentation: `make docs` writes it into ``build/docs/site``.

The pages of the repository keep their places, so that their links hold; beside them lies one page
for each module under ``reference/``, made from its docstrings. Anything that the builder warns of
is an error: a link that leads nowhere, a cross-reference that nothing answers.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from programs import ROOT

BUILT: Final = ROOT / "build" / "docs"
INDEX: Final = ROOT / "docs" / "index.md"
"""Its sections are those of the site."""
BESIDE: Final = (
    "deploy/*.svg",
    "deploy/*.png",
    "docs/drawings/*.svg",
    "docs/*.ipynb",
    "deploy/config.example.toml",
    "replay/samples/SOURCES.md",
    "LICENSE",
)
"""What pages link to."""
LINK: Final = re.compile(r"\]\(([^)#:]+)\)")

PYTHON: Final = {
    "paths": ["package"],
    "options": {
        "docstring_style": "google",
        "filters": ["!^_"],
        "heading_level": 2,
        "members_order": "source",
        "show_root_heading": False,
        "show_root_toc_entry": False,
        "show_signature_annotations": True,
        "separate_signature": True,
        "show_source": False,
    },
}


def modules() -> list[str]:
    """Return the dotted name of every module and package that is installed, in order."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = []
    for package in document["tool"]["setuptools"]["packages"]:
        folder = ROOT.joinpath(*package.split(".")[1:])
        listed.append(package)
        names = (path.stem for path in folder.glob("[!_]*.py"))
        listed += [f"{package}.{name}" for name in names if name != "setup"]
    return sorted(name for name in listed if ".migrations.versions" not in name)


def page_of(module: str) -> str:
    """Return the place of a module's page in the site's sources."""
    return f"reference/{'/'.join(module.split('.'))}.md"


def sections() -> Iterator[tuple[str, list[str]]]:
    """Yield each section of the index with the pages that it leads to; the decisions come last."""
    yield "tracepaper", ["README.md", INDEX.relative_to(ROOT).as_posix()]
    for part in INDEX.read_text(encoding="utf-8").split("\n## ")[1:]:
        paths = [(INDEX.parent / link).resolve() for link in LINK.findall(part)]
        pages = dict.fromkeys(path.relative_to(ROOT).as_posix() for path in paths)
        of_section = [name for name in pages if name.endswith(".md") and "_log/" not in name]
        yield part.partition("\n")[0], of_section
    log = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/decisions_log/*.md"))
    yield "Decisions", sorted(log, key=lambda name: not name.endswith("/index.md"))


def staged(place: Path) -> None:
    """Lay out the sources of the site under *place*, with its configuration."""
    sources = place / "sources"
    shutil.rmtree(place, ignore_errors=True)
    navigation: list[dict[str, object]] = []
    for title, names in sections():
        navigation.append({title: names})
        for name in names:
            _copy(name, sources)
    for pattern in BESIDE:
        for path in ROOT.glob(pattern):
            _copy(path.relative_to(ROOT).as_posix(), sources)
    navigation.append({"Modules": _reference(sources)})
    package = place / "package" / "tracepaper"
    package.mkdir(parents=True)
    for part in (
        "__init__.py",
        "__main__.py",
        "attention.py",
        "models.py",
        "daemon",
        "replay",
        "storage",
        "strategies",
    ):
        (package / part).symlink_to(ROOT / part)
    configured(place, navigation)


def configured(place: Path, navigation: list[dict[str, object]]) -> None:
    """Write the configuration of a site whose sources lie under *place*."""
    settings = {
        "site_name": "tracepaper",
        "docs_dir": "sources",
        "site_dir": "site",
        "use_directory_urls": False,  # so that the pages open from a folder
        "theme": {"font": False, "features": ["navigation.indexes", "toc.follow"]},
        "markdown_extensions": ["tables", "fenced_code", "attr_list", {"toc": {"permalink": True}}],
        "plugins": [{"search": {}}, {"mkdocstrings": {"handlers": {"python": PYTHON}}}],
        "nav": navigation,
    }
    (place / "mkdocs.yml").write_bytes(msgspec.json.encode(settings))  # JSON is YAML


def _copy(name: str, sources: Path) -> None:
    target = sources / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, target)


def _reference(sources: Path) -> list[dict[str, object]]:
    """Write a page for each module; return their places in the navigation, by package."""
    by_package: dict[str, list[dict[str, str]]] = {}
    for module in modules():
        page = sources / page_of(module)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"# {module}\n\n::: {module}\n", encoding="utf-8")
        package = ".".join(module.split(".")[:2])
        by_package.setdefault(package, []).append({module: page_of(module)})
    return [dict([item]) for item in by_package.items()]


def complaints(place: Path) -> str:
    """Build the site that lies under *place*; return what the builder complained of, or nothing."""
    program = Path(sys.executable).with_name("zensical")
    done = subprocess.run(
        [program, "build", "--strict", "-f", place / "mkdocs.yml"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else f"{done.stdout}\n{done.stderr}"


def main() -> None:
    """Build the site, or say what is wrong with it."""
    staged(BUILT)
    if complaint := complaints(BUILT):
        sys.exit(complaint)
    sys.stdout.write(f"Open {(BUILT / 'site' / 'index.html').relative_to(ROOT)}.\n")


if __name__ == "__main__":
    main()
