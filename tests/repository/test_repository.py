"""The repository: packages, folders, dependencies and pointers agree."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from vulture import Vulture

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("daemon", "replay", "storage", "strategies")
POINTER = re.compile(
    r"\b([A-Z]{4,})\.md\b"  # a document by its file name
    r"|(?:\(|\b(?:see|in) )([A-Z]{5,})(?:,? (?:point|section|rule)s?)? \d+\b(?!\.\d)"  # by number
    r"|\b([A-Z]{5,}),? (?:point|section|rule)s? \d"
)
WRITTEN_BY_READERS = {"deploy/tracepaper.toml"}  # as the page on Docker asks for
TOLD_IN = {".py", ".md", ".toml", ".yml", ".service", "Makefile", "Dockerfile"}
PAGES = ("*.md", "*/*.md", "docs/*/*.md", "replay/*/*.md")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
IN_THE_REPOSITORY = re.compile(
    r"(?<![\w/.])((?:daemon|replay|storage|strategies|tests|deploy|docs)/[\w./-]+\.[a-z]+)\b"
)


def tracked() -> list[str]:
    """Return the files of the repository, relative to its root."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [os.fsdecode(name) for name in done.stdout.split(b"\0")[:-1]]


def sources() -> list[Path]:
    inner = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [ROOT / "__init__.py", *inner]


def project() -> dict[str, object]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert isinstance(document["tool"], dict)
    return document


@cache
def parsed(source: str) -> ast.Module:
    """Parse each source of the packages once, however many tests read it."""
    return ast.parse(source)


@pytest.fixture(autouse=True, scope="module")
def _trees_are_let_go() -> Iterator[None]:
    yield
    parsed.cache_clear()


def imported(source: str) -> set[str]:
    """Return the top-level packages of others that *source* imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


def test_whatever_is_imported_or_called_by_make_check_is_a_declared_dependency() -> None:
    """What another package happens to bring is missing on the machine where it does not."""
    section = project()["project"]
    assert isinstance(section, dict)
    extras = section["optional-dependencies"]
    declared = {
        re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-")
        for line in (*section["dependencies"], *extras["dev"])
    }
    for lines in (section["dependencies"], *extras.values()):
        assert len(lines) == len(set(lines)), "one line a package"
    makers = packages_distributions()
    ours = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"tracepaper"}
    ours |= {path.parent.name for path in (ROOT / "tests").rglob("*.py")}
    files = [*sources(), *(ROOT / "tests").rglob("*.py")]
    names = {
        name
        for path in files
        if not {"clients", "peers"} & set(path.parts)  # programs in environments of their own
        for name in imported(path.read_text("utf-8"))
    } - ours
    tools = {"ruff", "import-linter", "mypy", "pyright", "vulture"}
    needed = {makers.get(name, [name])[0].lower().replace("_", "-") for name in names} | tools
    assert imported("import numpy.typing\nimport os\nfrom .a import b") == {"numpy"}
    assert {"numpy", "scipy", "pydantic"} <= needed
    stubbed = ("flash-attn", "yfinance")  # neither runs in the tests
    assert {name for name in needed - declared if not name.startswith(stubbed)} == set()


def test_every_folder_with_modules_is_a_listed_package() -> None:
    folders = {path.parent.relative_to(ROOT) for path in sources()}
    texts = {".".join(("tracepaper", *folder.parts)) for folder in folders}
    listed = project()["tool"]["setuptools"]["packages"]  # type: ignore[index]
    assert sorted(texts) == sorted(listed)
    assert listed == sorted(listed)


def spoken(path: Path) -> str:
    """Return what *path* tells its reader: comments and docstrings of a module, else all of it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    words = [token.string for token in tokens if token.type == tokenize.COMMENT]
    literals = (node.value for node in ast.walk(parsed(text)) if isinstance(node, ast.Expr))
    words += [str(node.value) for node in literals if isinstance(node, ast.Constant)]
    return "\n".join(words)


def lost_pointers(path: Path, text: str) -> set[str]:
    """Return the documents, links and files that *text*, which stands in *path*, names in vain."""
    documents = {name for match in POINTER.findall(text) for name in match if name}
    lost = documents - {page.stem for pages in PAGES for page in ROOT.glob(pages)}
    names = set(IN_THE_REPOSITORY.findall(text)) - WRITTEN_BY_READERS
    lost |= {name for name in names if not (ROOT / name).exists()}
    if path.suffix == ".md":
        lost |= {name for name in LINK.findall(text) if not (path.parent / name).exists()}
    return lost


def test_nothing_sends_its_reader_to_a_document_that_is_not_here() -> None:
    planted = "see RULES.md; in order (POINTS 12), (NOTES, section 4), CHANGELOG.md, BTCUSDT 1,"
    planted += " daemon/nowhere.py, [there](deploy/nowhere.md) and daemon/clock.py"
    expected = {"RULES", "POINTS", "NOTES", "daemon/nowhere.py", "deploy/nowhere.md"}
    assert lost_pointers(ROOT / "README.md", planted) == expected
    strangers = {
        name: lost
        for name in tracked()
        if Path(name).suffix in TOLD_IN or Path(name).name in TOLD_IN
        if (ROOT / name).is_file()
        if lost_pointers(ROOT / name, (ROOT / name).read_text(encoding="utf-8"))  # few, and quick
        if (lost := lost_pointers(ROOT / name, spoken(ROOT / name)))
    }
    assert strangers == {}


def classes_named_twice(modules: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the public classes that stand in more than one of *modules* (name, source)."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, source in modules:
        for node in parsed(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    return {name: place for name, place in places.items() if len(place) > 1}


def test_a_public_class_name_has_one_meaning() -> None:
    planted = [("a", "class Order: ..."), ("b", "class Order: ...\nclass _Own: ...")]
    assert classes_named_twice(planted) == {"Order": ["a", "b"]}
    modules = [
        (path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
        for path in sources()
        # The names of the HTTP interface are its own: code says `answers.Decision`.
        if path != ROOT / "replay" / "page" / "answers.py"
    ]
    assert classes_named_twice(modules) == {}


def test_a_share_is_written_in_per_cent_by_one_function() -> None:
    other = re.compile(r"[+,]?\.\d%[}\"']|[}]%[\"' ]")
    others = {path.name for path in sources() if other.search(path.read_text(encoding="utf-8"))}
    # `[exits]` writes 2%, and the library of attention has no other function.
    assert others == {"values.py", "methods.py", "showing.py"}


def test_what_may_be_unused_is_named_with_its_reason_and_is_unused() -> None:
    settings = project()["tool"]["vulture"]  # type: ignore[index]
    paths, allowed = [settings["paths"][:-1], settings["paths"][-1]]
    vulture = Vulture(ignore_decorators=settings["ignore_decorators"])
    vulture.scavenge([str(ROOT / path) for path in paths])
    unused = {item.name for item in vulture.get_unused_code(min_confidence=60)}
    tree = ast.parse((ROOT / allowed).read_text(encoding="utf-8"))
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert unused - named == set(), "remove them, or give a reason in " + allowed
    assert named - unused == set(), "these are read, or gone: take them out of " + allowed
