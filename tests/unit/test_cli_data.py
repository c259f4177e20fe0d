import json

import pytest

from surefoot.cli.data import run
from surefoot.data import corpora as room
from surefoot.data.corpora import Corpus
from surefoot.errors import ConfigError, DataError

HASH = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


@pytest.fixture(autouse=True)
def demo(tmp_path, monkeypatch):
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path))
    made = Corpus(
        "shakespeare9", "A demo.", "public domain", "package demo 1", lambda _: "hello", HASH, 5
    )
    varying = Corpus("pydocs", "Varies.", "PSF-2.0", "Python", lambda _: "help")
    monkeypatch.setattr(room, "_ALL", (made, varying))


def test_list_and_get(capsys, tmp_path):
    assert run("data", ["list"]) == 0
    printed = capsys.readouterr().out
    first = printed.splitlines()[1].split()
    assert first[:4] == ["shakespeare9", "*", "5", "no"]
    assert "varies" in printed
    assert str(tmp_path) in printed
    assert run("data", ["get", "shakespeare9"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "shakespeare9: downloaded, from package demo 1; public domain"
    assert printed[1].startswith(str(tmp_path))
    assert run("data", ["get", "shakespeare9"]) == 0
    assert "was here already" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [30, 50])
def test_a_narrow_terminal_gets_a_list_and_no_broken_table(capsys, monkeypatch, columns):
    monkeypatch.setattr("surefoot.cli.data.room", lambda: columns)
    monkeypatch.setattr("surefoot.cli.folded.room", lambda: columns)
    assert run("data", ["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["shakespeare9 *  5 characters,", "    not here", "  A demo."] or lines[:2] == [
        "shakespeare9 *  5 characters, not here", "  A demo.",
    ]  # fmt: skip
    assert "pydocs          size varies," in "\n".join(lines)
    assert all(len(line) <= columns for line in lines if "/" not in line)


def test_json_is_one_document(capsys):
    assert run("data", ["get", "pydocs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["origin"] == "bundled"
    assert run("data", ["list", "--json"]) == 0
    facts = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    assert facts["shakespeare9"]["default"] is True
    assert facts["shakespeare9"]["here"] == "no"
    assert facts["pydocs"]["here"] == "yes"
    assert facts["pydocs"]["characters"] is None


def test_a_damaged_text_is_listed_as_such(capsys, tmp_path):
    run("data", ["get", "shakespeare9"])
    (path,) = (tmp_path / "corpora").iterdir()
    path.write_text("hullo")
    capsys.readouterr()
    run("data", ["list"])
    assert " damaged " in capsys.readouterr().out


def test_an_unknown_name_is_a_data_error():
    with pytest.raises(DataError, match="no corpus 'nothing'"):
        run("data", ["get", "nothing"])


@pytest.mark.parametrize("argv", [[], ["get"], ["lst"], ["list", "--jso"]])
def test_wrong_words_are_a_mistake(argv):
    with pytest.raises(ConfigError) as caught:
        run("data", argv)
    assert "surefoot data" in str(caught.value.problems[0].fix)
