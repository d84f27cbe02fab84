"""Build the training text: Python source under permissive licences, and the record of where it came from.

    python -m tokenspeed.builtin.train.corpus --wheels DIR --out OUT

Reads the standard library of the running interpreter and every wheel in DIR (`pip download --no-deps
--only-binary=:all: -r packages.txt -d DIR`). A package whose metadata does not name a licence of `PERMISSIVE`
is refused. Writes train.txt and heldout.txt (documents separated by NUL, in package and path order) to OUT
and the record corpus.json beside this package.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import platform
import re
import sysconfig
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

PERMISSIVE = frozenset(
    [
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSD",
        "0BSD",
        "Apache-2.0",
        "PSF-2.0",
        "Python-2.0",
        "ISC",
        "Zlib",
        "CC0-1.0",
        "HPND",
        "Unlicense",
    ]
)

# What older metadata says instead of an SPDX identifier, lower case.
ALIASES = {
    "mit license": "MIT",
    "the mit license": "MIT",
    "the mit license (mit)": "MIT",
    "expat license": "MIT",
    "bsd license": "BSD",
    "new bsd": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause",
    "modified bsd license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "python software foundation license": "PSF-2.0",
    "psf": "PSF-2.0",
    "isc license (iscl)": "ISC",
}
SPDX = {name.lower(): name for name in PERMISSIVE} | ALIASES

SKIPPED_PARTS = frozenset(
    [
        "tests",
        "test",
        "testing",
        "_vendor",
        "vendor",
        "_vendored",
        "vendored",
        "third_party",
        "externals",
        "extern",
        "lib2to3",
        "idlelib",
        "turtledemo",
        "ensurepip",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "migrations",
        "locale",
        "locales",
        "node_modules",
    ]
)
MIN_BYTES, MAX_BYTES, MAX_LINE = 200, 150_000, 300
MAX_DIGITS = 0.15  # share of a file's characters; above it the file is a table
MAX_PACKAGE_BYTES = 6_000_000  # no single package's habits should dominate
# The comment block that opens a file, where it is a licence: the record keeps it, the model need not.
LICENCE_HEADER = re.compile(
    r"\A(#!.*\n)?(?:[ \t]*(?:#.*)?\n)*?#.*(?:licen[cs]e|copyright).*\n(?:#.*\n)*\s*", re.I
)
GENERATED = re.compile(r"do not edit|@generated|auto-?generated|generated (by|from|automatically)", re.I)
HELD_OUT_PER_MILLE = 10


@dataclass(frozen=True)
class Source:
    name: str
    version: str
    licence: str  # SPDX expression, or what the metadata says where it has none
    files: tuple[tuple[str, bytes], ...]


def permissive(expression: str) -> bool:
    """Whether an SPDX expression can be satisfied with licences of `PERMISSIVE` alone."""
    parts = re.sub(r"[()]", " ", expression).split(" AND ")
    return all(any(_spdx(choice) in PERMISSIVE for choice in part.split(" OR ")) for part in parts)


def _spdx(name: str) -> str:
    name = name.strip()
    return SPDX.get(name.lower(), name)


def licence_of(meta: Message) -> str:
    """The licence that a distribution's metadata declares; empty where it declares none."""
    if expression := meta.get("License-Expression"):
        return expression
    classifiers = [c.split(" :: ")[-1] for c in meta.get_all("Classifier", []) if c.startswith("License ::")]
    names = [_spdx(c) for c in classifiers if c != "OSI Approved"]
    if names:
        return " AND ".join(sorted(set(names)))
    return _spdx(str(meta.get("License", "")).strip().splitlines()[0]) if meta.get("License") else ""


def wheel(path: Path) -> Source:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        head = next(n for n in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        meta = Parser().parsestr(archive.read(head).decode("utf-8", "replace"))
        files = tuple((n, archive.read(n)) for n in sorted(names) if wanted(n))
    return Source(meta["Name"], meta["Version"], licence_of(meta), files)


def standard_library() -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    relative = sorted(str(p.relative_to(root)) for p in root.rglob("*.py"))
    files = tuple((f"lib/{r}", (root / r).read_bytes()) for r in relative if wanted(r))
    return Source("python", platform.python_version(), "PSF-2.0", files)


def wanted(name: str) -> bool:
    parts = name.split("/")
    file = parts[-1]
    is_test = file.startswith("test_") or file.endswith("_test.py") or file == "conftest.py"
    return file.endswith(".py") and not is_test and SKIPPED_PARTS.isdisjoint(parts)


def clean(raw: bytes) -> str | None:
    """The file's text, or None where it would teach nothing good."""
    if not MIN_BYTES <= len(raw) <= MAX_BYTES or b"\0" in raw:
        return None
    try:
        text = raw.decode("utf-8").replace("\r\n", "\n").removeprefix("\ufeff")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if max(map(len, text.split("\n"))) > MAX_LINE or GENERATED.search(text[:1500]):
        return None
    if sum(map(str.isdigit, text)) > MAX_DIGITS * len(text):
        return None
    return LICENCE_HEADER.sub("", text)


def cleaned(source: Source) -> list[tuple[str, str]]:
    pairs = ((name, clean(raw)) for name, raw in source.files)
    return [(name, text) for name, text in pairs if text is not None]


def held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 1000 < HELD_OUT_PER_MILLE


def build(sources: Iterable[Source]) -> tuple[list[str], list[str], list[dict[str, str | int]]]:
    """Deduplicated training documents, held-out documents and one record for each source."""
    seen: set[bytes] = set()
    train: list[str] = []
    held: list[str] = []
    records: list[dict[str, str | int]] = []
    accepted = [s for s in sources if _accept(s)]
    with ProcessPoolExecutor(2) as pool:
        for source, files in zip(accepted, pool.map(cleaned, accepted), strict=True):
            count: Counter[str] = Counter()
            for name, text in files:
                # Licence headers and trailing blanks differ between copies of one file; the code does not.
                key = hashlib.sha256(re.sub(r"#.*|\s+", "", text).encode()).digest()
                if key in seen or count["bytes"] > MAX_PACKAGE_BYTES:
                    continue
                seen.add(key)
                (held if held_out(name) else train).append(text)
                count.update(files=1, bytes=len(text.encode()))
            records.append(
                {"name": source.name, "version": source.version, "licence": source.licence, **count}
            )
    return train, held, records


def _accept(source: Source) -> bool:
    if permissive(source.licence):
        return True
    print(f"refused {source.name} {source.version}: {source.licence[:60]!r}")
    return False


def _sources(wheels: Path) -> Iterator[Source]:
    yield standard_library()
    for path in sorted(wheels.glob("*.whl")):
        yield wheel(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument(
        "--installed", nargs="*", default=[], help="distributions of this environment, by name"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    train, held, records = build(_sources(args.wheels))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, documents in (("train", train), ("heldout", held)):
        data = "\0".join(documents).encode()
        print(f"{name}: {len(documents)} files, {len(data) / 1e6:.1f} MB")
        (args.out / f"{name}.txt").write_bytes(data)
    record = Path(__file__).parent.parent / "corpus.json"
    lines = ",\n".join(json.dumps(r) for r in records if r.get("files"))
    record.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
