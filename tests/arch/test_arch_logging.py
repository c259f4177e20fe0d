"""One way to say something: `Record.note`. A library prints nothing and configures nobody's logging."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "surefoot"
SPEAKING = {
    "track/console.py", "track/terminal.py",  # beside the door (cli)
    "engine/ranks/beat.py",  # last words of a process that ends in the middle of a step
}  # fmt: skip
CONFIGURING = {
    "basicConfig", "dictConfig", "fileConfig", "captureWarnings", "setLevel", "addHandler",
    "removeHandler", "filterwarnings", "simplefilter", "resetwarnings", "showwarning",
}  # fmt: skip
ALLOWED = {
    ("track/log.py", "addHandler"),  # a NullHandler on our own logger
    ("lab/debug.py", "simplefilter"),  # inside `catch_warnings`
    ("cli/launch.py", "setLevel"),  # of torchrun, in the process that only starts others
    ("data/clean.py", "simplefilter"),  # inside `catch_warnings`
    ("data/compile_rate.py", "simplefilter"),  # inside `catch_warnings`
    ("data/problem_prompts.py", "simplefilter"),  # inside `catch_warnings`
    ("recipes/code/base.py", "simplefilter"),  # inside `catch_warnings`
    ("recipes/code/base.py", "setLevel"),  # of libraries while they load, and put back
    ("formats/onnx_file.py", "simplefilter"),  # inside `catch_warnings`
    ("sweep/library.py", "simplefilter"),  # inside `catch_warnings`
    ("formats/onnx_file.py", "setLevel"),  # of torch's exporter while it works, and put back
}


def calls(path: Path) -> set[str]:
    """Return the last names of everything that a file calls or assigns to."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    targets = [t for node in ast.walk(tree) if isinstance(node, ast.Assign) for t in node.targets]
    names = {node.id for node in functions if isinstance(node, ast.Name)}
    return names | {node.attr for node in [*functions, *targets] if isinstance(node, ast.Attribute)}


def test_only_the_door_and_the_console_print() -> None:
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    printing = {name for name, path in files.items() if "print" in calls(path)}
    assert {name for name in printing if not name.startswith("cli/")} <= SPEAKING


def test_nobody_configures_logging_or_warnings() -> None:
    files = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    found = {(name, call) for name, path in files.items() for call in calls(path) & CONFIGURING}
    assert found == ALLOWED
