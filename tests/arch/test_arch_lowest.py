"""The oldest releases that may be installed are written down once more, for whoever tries them."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("tb", "gpu", "zst", "export", "remote", "code", "onnx", "sweep", "llama")


def test_the_oldest_releases_are_those_that_are_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {*EXTRAS, "dev"}
    asked = [*project["dependencies"], *(text for extra in EXTRAS for text in extras[extra])]
    lowest = {f"{r.name}{r.specifier}".replace(">=", "==") for r in map(Requirement, asked)}
    written = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in written if not line.startswith("#")] == sorted(lowest, key=str.lower)
