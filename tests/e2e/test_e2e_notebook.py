"""The notebook, cell by cell, as on a machine without a GPU and without a drive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import PINS, QUICK

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "colab.ipynb"
TEXT = "\n\n".join(
    f"The city of number {n} lies on the river; it has {n} bridges." for n in range(90)
)


def run_all(settings: dict[str, Any]) -> dict[str, Any]:
    """Execute the cells one after another; `settings` replace what the marked cell says."""
    space: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs"), "the notebook is kept without outputs"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), space)  # noqa: S102
            if "parameters" in cell["metadata"].get("tags", ()):
                space |= settings
    return space


@pytest.mark.filterwarnings("ignore")  # those of the libraries that read the exports
def test_it_trains_mirrors_comes_back_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    pins = {name.replace("-", "_"): value for name, value in (PINS | QUICK).items()}
    own = {"preset": "tiny", "path": "text.txt", "max_steps": 6, "save_every": 2} | pins
    first = run_all({"SETTINGS": own, "TOKENS": 12})
    assert first["result"].status == "done" and Path("my-gpt.zip").exists()
    assert (tmp_path / "drive" / "colab" / "checkpoints").is_dir()
    for place in (Path("runs"), Path("my-gpt")):
        shutil.rmtree(place)  # a new machine: only the drive is left
    Path("my-gpt.gguf").unlink()
    again = run_all({"SETTINGS": own, "TOKENS": 12})
    assert again["step"] == first["step"] and again["text"] == first["text"]
    assert "computed by" in capsys.readouterr().out
