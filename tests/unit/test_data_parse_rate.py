"""What a model wrote in languages with braces is parsed by a grammar, never executed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from surefoot.data.compile_rate import Completion, Prompt, Verdict
from surefoot.data.parse_rate import GRAMMARS, brace_prompts, judge_parse, missing_grammars
from surefoot.data.repository import CodeFile

pytest.importorskip("tree_sitter")

FILES = {
    "go": ("a.go", "package a\n\nfunc Add(x int) int {\n\ty := x\n\treturn y\n}\n"),
    "rust": ("a.rs", "impl A {\n    fn add(x: i32) -> i32 {\n        let y = x;\n        y\n    }\n}\n"),
    "java": ("A.java", "class A {\n  int add(int x) {\n    int y = x;\n    return y;\n  }\n}\n"),
    "javascript": ("a.js", "function add(x) {\n  const y = x;\n  return y;\n}\n"),
    "typescript": ("a.ts", "class A {\n  add(x: number): number {\n    const y = x;\n    return y;\n  }\n}\n"),
    "c": ("a.c", "int add(int x) {\n  int y = x;\n  return y;\n}\n"),
    "cpp": ("a.cpp", "struct A {\n  int add(int x) {\n    int y = x;\n    return y;\n  }\n};\n"),
}  # fmt: skip


def prompt_of(language: str) -> Prompt:
    name, text = FILES[language]
    (found,) = brace_prompts([CodeFile(name, language, text)], 9)
    return found


def one(language: str, text: str, whole: bool = False) -> Verdict:
    return judge_parse([Completion(prompt_of(language), text, whole)])[0]


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_the_body_that_was_there_parses_in_every_language(language: str) -> None:
    _, text = FILES[language]
    prompt = prompt_of(language)
    assert text.startswith(prompt.prefix) and prompt.prefix.endswith("{")
    assert prompt.outer == text[: len(prompt.prefix) - 1].count("{")
    body = text[len(prompt.prefix) : text.index("}") + 1]
    verdict = one(language, body)
    assert verdict == Verdict(as_is=True, cut=True, ended=True, empty=False)
    broken = one(language, "\n  ((( = ;\n")
    assert not (broken.as_is or broken.cut)


# text, ended by itself -> as_is, cut, ended
CASES = [
    ("\n  const y = 1;\n  return y;\n}\n", (True, True, True)),
    ("\n  return x;\n}\n\nfunction other(", (False, True, True)),
    ("\n  const y = 1;\n  return y +", (False, True, False)),
    ("\n  const y = 1;\n  if (y) {\n    cal", (False, True, False)),
    ("\n  const y = (1,", (False, False, False)),
    ("\n  const = ;\n  return y;\n}\n", (False, False, True)),
]


@pytest.mark.parametrize(("text", "wanted"), CASES)
def test_three_rates(text: str, wanted: tuple[bool, bool, bool]) -> None:
    found = one("javascript", text)
    assert (found.as_is, found.cut, found.ended, found.empty) == (*wanted, False)


def test_empty_and_hostile_pieces_count_and_harm_nobody() -> None:
    prompt = prompt_of("javascript")
    texts = ["", "\n" + "(" * 100_000, "\n  require('fs').unlinkSync('a');\n}\n", "\x00\ud800"]
    found = judge_parse([Completion(prompt, text, False) for text in texts])
    assert len(found) == 4 and found[0].empty and not found[0].cut
    assert not found[1].cut and found[2].cut  # parsed, not run


def test_a_grammar_is_found_wherever_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that judges looks into no folder of the person's own by itself."""
    package = tmp_path / "tree_sitter_mine"
    package.mkdir()
    (package / "__init__.py").write_text("from tree_sitter_javascript import language\n")
    monkeypatch.syspath_prepend(tmp_path)
    prompt = replace(prompt_of("javascript"), grammar="tree_sitter_mine:language")
    assert judge_parse([Completion(prompt, "\n  return 1;\n}\n", True)])[0].as_is


def test_files_that_the_grammar_does_not_take_give_no_prompts() -> None:
    broken = CodeFile("a.js", "javascript", "function f( {\n  return 1;\n}\n")
    assert brace_prompts([broken, CodeFile("a.py", "python", "def f():\n    pass\n")], 9) == []
    assert missing_grammars(["python", "go", "markdown"]) == []
