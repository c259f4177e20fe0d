"""Files of three kinds, with places, by the rules of YAML 1.2."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot.config.documents import parse, read
from surefoot.config.place import Opaque
from surefoot.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("6e4", 6e4),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("12", 12),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'3e-4'", "3e-4"),
        ("2001-01-01", "2001-01-01"),
        (".inf", float("inf")),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        ("[[1, 2], [x]]", [[1, 2], ["x"]]),
    ],
)
def test_yaml_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = parse("a.yaml", f"train:\n  x: {text}\n").data["train"]["x"]
    assert found == value
    assert type(found) is type(value)


PLACED = {
    ".yaml": "# top\ntrain:\n  seed: 7\noptim: {lr: 3e-4}\n",
    ".json": '{"x": 1,\n\t"train": {\n\t"seed": 7},\n"optim": {"lr": 3e-4}}\n',
    ".toml": '# top\n[train]  # t\n"seed" = 7\n[optim]\nlr = 3e-4\n',
}


@pytest.mark.parametrize(
    ("suffix", "key", "value", "rate"),
    [
        (".yaml", (3, 3), (3, 9), (4, 13)),
        (".json", (3, 2), (3, 10), (4, 17)),
        (".toml", (3, 1), (3, 10), (5, 6)),
    ],
)
def test_every_value_has_its_line_and_column(
    suffix: str, key: tuple[int, int], value: tuple[int, int], rate: tuple[int, int]
) -> None:
    document = parse(f"a{suffix}", PLACED[suffix], suffix)
    assert document.data["train"] == {"seed": 7}
    assert document.data["optim"] == {"lr": 3e-4}
    assert document.spot(("train", "seed")).key == key
    assert document.spot(("train", "seed")).value == value
    assert document.spot(("optim", "lr")).value == rate
    line = document.text.splitlines()[value[0] - 1]
    assert line[value[1] - 1] == "7"


def test_toml_places_inline_tables_and_dotted_keys() -> None:
    text = 'optim = { lr = 1.0, kind = "adamw" }\ntrain.seed = 4\nx = """\nseed = 3\n"""\n'
    document = parse("a.toml", text, ".toml")
    assert document.spot(("optim", "kind")).value == (1, 28)
    assert document.spot(("train", "seed")).value == (2, 14)
    assert ("seed",) not in document.spots


def test_place_of_something_unknown_is_that_of_what_holds_it() -> None:
    document = parse("a.yaml", "train:\n  seed: 1\n")
    assert document.spot(("train", "nothing", "here")) == document.spot(("train",))
    assert document.where((0, 0)) == "a.yaml"
    assert document.excerpt((0, 0)) is None


def test_caret_stands_under_the_column_even_behind_tabs_and_in_long_lines() -> None:
    document = parse("a.json", '{\n\t"train": {"seed": 1}}', ".json")
    line, caret = str(document.excerpt(document.spot(("train", "seed")).key)).splitlines()
    assert line[caret.index("^")] == '"'
    long = parse("a.yaml", f"train: {{{'x' * 200}: 1, seed: 2}}\n")
    line, caret = str(long.excerpt(long.spot(("train", "seed")).value)).splitlines()
    assert line[caret.index("^")] == "2"
    assert len(line) < 125


def test_assignments_are_read_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_text(
        "import os\nos.remove(__file__)\n"
        "steps = 5 * 8  # forty\nname = 'a' + str(1)\nrate = -6e-4\nhalf = 1 / 0\n"
    )
    document = read(path)
    assert path.exists()
    assert document.data == {
        "steps": 40,
        "name": Opaque("'a' + str(1)"),
        "rate": -6e-4,
        "half": Opaque("1 / 0"),
    }
    assert document.spot(("rate",)).value == (5, 8)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.yaml", b"\xff\xfe\x00", "not a text file"),
        ("a.yaml", b"train:\0", "not a text file"),
        ("a.yaml", b"- a\n- b\n", "expected settings"),
        ("a.yaml", b"just words\n", "expected settings"),
        ("a.yaml", b"a: 1\n---\nb: 2\n", "one file holds one set of settings"),
        ("a.yaml", b"a: *b\n", "write the value itself"),
        ("a.yaml", b"a: &x {b: *x}\n", "nested too deep"),
        ("a.yaml", b"a: &x [*x]\n", "nested too deep"),
        ("a.yaml", "a: \u0007\n".encode(), "invisible"),
        ("a.yaml", b"a: 'open\n", "closing quote"),
        ("a.yaml", b"a: [1, 2\n", "bracket"),
        ("a.json", b"[1]", "expected settings"),
        ("a.json", b"[" * 100_000, "nested too deep"),
        ("a.yaml", b"[" * 100_000, "nested too deep"),
        ("a.toml", b"a = " + b"[" * 100_000, "nested too deep"),
        ("a.json", b'{"a": ' + b"1" * 5000 + b"}", "number too long"),
        ("a.toml", b"a = " + b"1" * 5000, "number too long"),
        ("a.json", b'{"a": 1, "a": 2}', "written twice"),
        ("a.toml", b"a = 1\na = 2\n", "not valid TOML"),
        ("a.toml", b"a = ", "not valid TOML"),
        ("a.py", b"a = = 1\n", "not a file of assignments"),
        ("a.txt", b"a: 1\n", "unknown kind of file"),
    ],
)
def test_unreadable_files_are_told_and_not_raised(
    name: str, content: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert says in str(caught.value)
    assert "a." in caught.value.problems[0].where


def test_mark_at_the_start_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbftrain:\r\n  seed: 3\r\n")
    document = read(path)
    assert document.data == {"train": {"seed": 3}}
    assert document.spot(("train", "seed")).value == (2, 9)


def test_folder_stands_for_the_configuration_in_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {seed: 3}\n")
    assert read(tmp_path).data == {"train": {"seed": 3}}


@pytest.mark.parametrize(
    ("asked", "there", "says"),
    [
        ("rnu.yaml", ["run.yaml"], "did you mean run.yaml?"),
        ("zebra.yaml", ["run.yaml", "data.txt"], "there is run.yaml"),
        ("run.yaml", ["data.txt"], "preset"),
        ("far/run.yaml", [], "no folder far"),
    ],
)
def test_missing_file_names_what_is_near(
    asked: str, there: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in there:
        Path(name).write_text("")
    with pytest.raises(ConfigError, match="no file") as caught:
        read(asked)
    assert says in str(caught.value)


def test_empty_file_says_nothing() -> None:
    assert parse("a.yaml", "# nothing\n").data == {}
    assert parse("a.toml", "", ".toml").data == {}
