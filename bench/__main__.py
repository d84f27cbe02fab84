"""Every bench under one name: `python -m bench NAME ...` runs `bench.NAME`; without a name it lists them."""

from __future__ import annotations

import ast
import runpy
import sys
from difflib import get_close_matches
from pathlib import Path

FOLDER = Path(__file__).parent


def commands() -> dict[str, str]:
    """The first line of what each bench says of itself, by name; nothing is imported for that."""
    found = {}
    for path in sorted([*FOLDER.glob("[!_]*.py"), *FOLDER.glob("*/__main__.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            name = path.parent.name if path.stem == "__main__" else path.stem
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return dict(sorted(found.items()))


def listing() -> str:
    told = "\n".join(f"  {name:<12} {line}" for name, line in commands().items())
    return f"usage: python -m bench NAME ...   (--help after a name tells its options)\n\n{told}"


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(listing())
        return
    name, known = sys.argv[1], commands()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        sys.exit(f"error: no bench {name!r}; " + (f"did you mean {near[0]!r}?" if near else listing()))
    del sys.argv[1]
    try:
        runpy.run_module(f"bench.{name}", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}; the benches need more than the server: pip install 'tokenspeed[bench]'")


if __name__ == "__main__":
    main()
