"""What a model wrote is compiled, never executed, and hostile pieces harm nobody."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

from surefoot.data import compile_rate
from surefoot.data.compile_rate import Completion, Prompt, Verdict, function_prompts, judge
from surefoot.data.repository import CodeFile
from surefoot.errors import Unsupported

TEXT = '''import os

def f(x):
    """Say."""
    y = x
    return y

class A:
    def g(self): return 1
    @property
    def h(self):
        return 1
'''
PROMPT = Prompt("a.py", 3, 'import os\n\ndef f(x):\n    """Say."""', 4)


def one(text: str, whole: bool = False) -> Verdict:
    return judge([Completion(PROMPT, f"\n{text}", whole)])[0]


def test_prompts_end_where_a_body_begins() -> None:
    found = function_prompts([CodeFile("a.py", "python", TEXT)], 9)
    assert {(p.line, p.column) for p in found} == {(3, 4), (11, 8)}
    assert PROMPT in found
    assert all(TEXT.startswith(p.prefix) for p in found)
    broken = CodeFile("b.py", "python", "def f(:\n")
    assert function_prompts([broken, CodeFile("c.go", "go", "func f() {}")], 9) == []


HEADS = [
    ("def f(\n    x,\n) -> int: return 1\n", None),
    ("def f(\n    x,\n): ...\n", None),
    ("def f(x):\n    '''Say.'''; return 1\n", None),
    ("def f(x='ä',\n      y='ä'): return 1\n", None),
    ("def f(\n    x,\n) -> int:\n    return 1\n", "def f(\n    x,\n) -> int:"),
    ("try:\n    def f(x):\n        return x\nexcept E:\n    pass\n", None),
    (
        "try:\n    g()\nexcept E:\n    def f(x):\n        return x\n",
        "try:\n    g()\nexcept E:\n    def f(x):",
    ),
    ("def f(x):\n    @g\n    def h(): return 1\n    return h\n", "def f(x):"),
]


@pytest.mark.parametrize(("text", "prefix"), HEADS)
def test_prompts_are_whole_heads_whose_bodies_can_compile(text: str, prefix: str | None) -> None:
    found = [p.prefix for p in function_prompts([CodeFile("a.py", "python", text)], 9)]
    assert found == ([] if prefix is None else [prefix])
    (node,) = (n for n in ast.walk(ast.parse(text)) if getattr(n, "name", "") == "f")
    whole = "\n".join(text.split("\n")[: node.end_lineno])  # type: ignore[attr-defined]
    if prefix is not None:
        assert compile(whole, "f", "exec")


# text, ended by itself -> as_is, cut, ended
CASES = [
    ("    y = x\n    retu", False, (True, True, False)),  # `retu` is a name
    ("    y = x\n    y = (", False, (False, True, False)),
    ("    if x:\n        y", False, (True, False, False)),
    ("    y = 1\n    if x:\n        y", False, (True, True, False)),
    ("    y = 1\n    try:\n        y()\n    except E:\n        y = (", False, (False, True, False)),
    ("    try:\n        y()\n    finally:\n        y = 2\n        z", False, (True, False, False)),
    ("    if x:\n        y()\n    else:\n        y = 2\n    z = (", False, (False, True, False)),
    ("    if x:\n        y()\n    elif (", False, (False, True, False)),
    ("    y = 1\n    try:\n        y()\n    exc", False, (False, True, False)),
    (
        "    try:\n        y()\n    except E:\n        y()\n    else:\n        y = (",
        False,
        (False, True, False),
    ),
    ("    if x:\n        y()\n    else:\n        y = (", False, (False, True, False)),
    ("    if x:\n        y()\n    el", False, (True, True, False)),
    ("    y = 1\n    @g\n    def h(", False, (False, True, False)),
    ("    y = 1\n    if x:  # so\n        y = (", False, (False, True, False)),
    ("    y = 1\n\ndef g(", False, (False, True, True)),
    ("    y = 1\n\nx = = 2\n", False, (False, True, True)),
    ("    y = (1,\n", False, (False, False, False)),
    ("    x = $\n    return 1\n", False, (False, False, False)),
    ("    s = '''abc\n", False, (False, False, False)),
    ("    y = 1\n  z = 3\n    return 1\n", False, (False, False, False)),  # a dedent to nowhere
    ("    return x", True, (True, True, True)),
    ("    return x +", True, (False, False, True)),
    ("    break\n", False, (False, False, False)),  # a tree would take it
    ("    def f(a, a):\n        pass\n    return f\n", False, (False, False, False)),
]


def test_verdicts() -> None:
    found = judge([Completion(PROMPT, f"\n{text}", whole) for text, whole, _ in CASES])
    wanted = [(text, said) for text, _, said in CASES]
    assert [(c[0], (v.as_is, v.cut, v.ended)) for c, v in zip(CASES, found)] == wanted


def test_empty_compiles_and_is_counted_apart() -> None:
    assert one("") == Verdict(True, False, False, True)
    assert one("  \n\n", whole=True).empty


HOSTILE = [
    "    x = " + "(" * 100_000,
    "    x = " + "-" * 100_000 + "1\n",
    "    x = y" + ".a" * 100_000 + "\n",
    "    x = '\0'\n",
    "    x = " + "9" * 5000 + "\n",
    "    x = 2**2**2**2**2**2**9\n",
    "    x = '\ud800'\n",
    "    " + "a = [" * 3000,
]


def test_hostile_pieces_spoil_no_other_verdict(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    bomb = f"    pass\n\nimport pathlib\npathlib.Path({str(marker)!r}).write_text('x')\nf(1)\n"
    texts = [*HOSTILE, bomb, "    return x\n"]
    found = judge([Completion(PROMPT, f"\n{text}", False) for text in texts])
    assert len(found) == len(texts)
    assert found[-1] == Verdict(True, True, False, False)
    assert found[-2].as_is and not marker.exists()
    assert not any(v.as_is for v, text in zip(found, texts) if "\0" in text or "\ud800" in text)


def test_a_process_that_dies_costs_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def once(command: object, pieces: Iterable[object]) -> list[Verdict]:
        asked.append(len(list(pieces)))
        alive = [Verdict(True, True, True, False)] * 2
        return alive[: asked[-1]]

    monkeypatch.setattr(compile_rate, "asked_of", once)
    found = judge([Completion(PROMPT, "    return 1\n", False)] * 7)
    assert [v.as_is for v in found] == [True, True, False] * 2 + [True]
    assert asked == [7, 4, 1]


def test_the_process_may_neither_execute_nor_open(tmp_path: Path) -> None:
    import subprocess
    import sys

    child = Path(compile_rate.__file__).with_name("compile_child.py")
    code = f"import sys; sys.path.insert(0, {str(child.parent)!r}); import compile_child as c\n"
    for deed in ("exec('x = 1')", f"open({str(tmp_path / 'f')!r}, 'w')", "import wave"):
        text = code + f"c.limit()\ntry:\n    {deed}\nexcept PermissionError:\n    print('refused')"
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
        assert done.stdout == "refused\n", (deed, done.stderr)


def test_limits_that_a_system_refuses_or_has_already_do_not_end_it() -> None:
    """macOS refuses a limit of memory, and a shell may have set lower ones."""
    program = (
        "import resource, runpy, sys; set_to = resource.setrlimit\n"
        "def refuse(what, limits):\n"
        "    if what == resource.RLIMIT_AS:\n"
        "        raise ValueError('current limit exceeds maximum limit')\n"
        "    set_to(what, limits)\n"
        "set_to(resource.RLIMIT_CPU, (5, 5)); resource.setrlimit = refuse\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    place = str(Path(compile_rate.__file__).with_name("compile_child.py"))
    piece = {"prefix": PROMPT.prefix, "text": "\n    return x\n", "column": 4, "whole": True}
    found = list(compile_rate.asked_of(["-c", program, place], [piece]))
    assert found == [Verdict(True, True, True, False)]


def test_a_judge_that_cannot_begin_is_no_verdict() -> None:
    """Every piece was said not to compile."""
    with pytest.raises(Unsupported, match="did not begin: ValueError: no such limit"):
        judge_with(["-c", "raise ValueError('no such limit')"])
    with pytest.raises(Unsupported, match="did not begin: it ended with -9"):
        judge_with(["-c", "import os; os.kill(os.getpid(), 9)"])


def judge_with(command: list[str]) -> list[Verdict]:
    return list(compile_rate.asked_of(command, [{"text": ""}]))
