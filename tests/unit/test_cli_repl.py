"""Continuing what is typed: what a person at a terminal may do between two texts and within one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from surefoot.cli.sample import _repl, _words
from surefoot.engine import Request


class Speaker:
    """Repeats what it is asked; of `long` it does not find an end before somebody stops it."""

    def __init__(self) -> None:
        self.models, self.asked = {}, []

    def reply(self, learner: str, request: Request) -> Iterator[str]:
        self.asked.append((request.prompt, request.seed))
        yield " and so on"
        if request.prompt == "long":
            raise KeyboardInterrupt


def session(monkeypatch, typed, terminal):
    lines = iter(typed)

    def line(prompt):
        print(end=prompt)
        for text in lines:
            return text
        raise EOFError

    monkeypatch.setattr("builtins.input", line)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal)
    speaker = Speaker()
    return speaker, _repl(_words().parse_args(["--repl", "--stream", "--seed", "5"]), speaker, "m")


def test_each_line_has_the_next_seed_and_ctrl_c_ends_one_text(monkeypatch, capsys):
    speaker, code = session(monkeypatch, ["long", "", "short"], terminal=True)
    assert code == 0
    assert speaker.asked == [("long", 5), (None, 6), ("short", 7)]
    shown = "> long and so on\n\n>  and so on\n\n> short and so on\n\n> \n"
    assert capsys.readouterr().out == shown


def test_without_a_terminal_an_interruption_ends_the_program(monkeypatch, capsys):
    with pytest.raises(KeyboardInterrupt):
        session(monkeypatch, ["short", "long", "never"], terminal=False)
    assert capsys.readouterr().out == "short and so on\nlong and so on"
