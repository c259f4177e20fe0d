"""The notebook table, with a stand-in for IPython."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from surefoot.track.console import PlainConsole, in_notebook, open_console
from surefoot.track.notebook import NotebookConsole


class Cell:
    """An output cell: what was shown in it, newest last."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, value: str) -> None:
        self.shown.append(value)


@pytest.fixture
def cell(monkeypatch: Any) -> Cell:
    made = Cell()

    def display(value: str, display_id: bool) -> Cell:
        assert display_id
        made.shown.append(value)
        return made

    package: Any = ModuleType("IPython")
    package.get_ipython = lambda: SimpleNamespace(kernel=object())
    module: Any = ModuleType("IPython.display")
    module.HTML, module.display = str, display
    package.display = module
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return made


def test_one_table_refreshes(cell: Cell, capsys: Any) -> None:
    console = open_console(100)
    assert isinstance(console, NotebookConsole)
    for step in range(1, 51):
        console.row({"kind": "train", "step": step, "learner": "main", "loss": 2.0})
    before = len(cell.shown)
    assert before < 5  # not at each step
    console.row({"kind": "eval", "step": 50, "learner": "main", "val_loss": 1.5, "top1": 0.25})
    console.sample({"step": 50, "learner": "main", "prompt": "a<b", "text": "<script>x</script>"})
    console.note("no <room>", "warning")
    console.rewind(10, {})
    console.sync()
    console.close()
    page = cell.shown[-1]
    assert 'value="10" max="100"' in page
    assert "val loss 1.500" in page and "top-1 25.0 %" in page and ">best<" in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page and "<script>" not in page
    assert "<b>warning:</b> no &lt;room&gt;" in page and "a&lt;b" in page
    assert capsys.readouterr().out == ""


def test_it_stays_small(cell: Cell) -> None:
    console = open_console(None)
    for step in range(100):
        console.row({"kind": "eval", "step": step, "learner": "b", "val_loss": 1.5})
        console.note("x", "info")
    assert cell.shown[-1].count("<tr>") == 12 and len(cell.shown[-1]) < 5000


def test_a_stream_that_was_asked_for_is_used(cell: Cell) -> None:
    assert in_notebook()
    assert isinstance(open_console(1, stream=io.StringIO()), PlainConsole)


def test_a_terminal_shell_is_no_notebook(monkeypatch: Any) -> None:
    package: Any = ModuleType("IPython")
    package.get_ipython = lambda: SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", package)
    assert not in_notebook()
