"""`make bench`: run every benchmark, then put their pages together as benchmarks/results.md.

    python benchmarks/run.py [NAME ...] [--text FILE] [--nanogpt FOLDER]

Names are those of the files beside this one. Without `--text`, the comparison of losses reads the
default corpus; without `--nanogpt`, nanoGPT is left out of the comparison of speed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCHMARKS = ("loop", "overhead", "startup", "memory", "save", "record", "peers", "quality")


def assemble() -> str:
    """Return all pages as one, with what was missed at the top."""
    pages = [p.read_text(encoding="utf-8") for p in sorted((HERE / "results").glob("*.md"))]
    goals = [x for page in pages for x in page.splitlines() if x.startswith("- goal:")]
    missed = [x for x in goals if "missed" in x]
    head = ["# Benchmarks", "", f"{len(goals)} goals, {len(goals) - len(missed)} met.", "", *missed]
    body = ["\n".join(f"#{x}" if x.startswith("#") else x for x in p.splitlines()) for p in pages]
    return "\n".join(head).rstrip() + "\n\n" + "\n\n".join(body) + "\n"


def main() -> int:
    """Run, assemble, and return 1 when a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=BENCHMARKS, metavar="NAME")
    parser.add_argument("--text", help="tinyshakespeare, or any text")
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    asked = parser.parse_args()
    extras = {"quality": ["--text", asked.text], "peers": ["--nanogpt", asked.nanogpt]}
    failed = 0
    for name in asked.names:
        extra = extras.get(name, [])
        given = extra if extra and extra[1] else []
        failed |= subprocess.call([sys.executable, str(HERE / f"{name}.py"), *given])
    (HERE / "results.md").write_text(assemble(), encoding="utf-8")
    return int(failed != 0)


if __name__ == "__main__":
    raise SystemExit(main())
