"""Files of every old form: what they are read as, the one note, and today's form of them.

The expected texts are beside the files, ending in `.today.yaml` and `.note.txt`. When one changes
on purpose, write them anew with `make golden`. An old file must never stop being readable.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot.cli import main
from surefoot.config.documents import read
from surefoot.config.fields import flatten
from surefoot.config.migrate import migrate
from surefoot.config.names import LEFT_OUT, RENAMED
from surefoot.config.resolve import Resolved, resolve
from surefoot.recipes.charlm import CharConfig

FOLDER = Path(__file__).with_name("legacy")
FILES = sorted(
    p.name for p in FOLDER.iterdir() if not p.name.endswith((".today.yaml", ".note.txt"))
)


def settle(path: Path | str) -> Resolved:
    return resolve("charlm", CharConfig, {}, files=[path])


@pytest.mark.parametrize("name", FILES)
def test_old_file_is_read_with_one_note_and_migrates_to_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(FOLDER)
    old = settle(name)
    assert len(old.notes) == 1
    text = migrate(read(name), CharConfig)
    assert text is not None
    new = tmp_path / "new.yaml"
    new.write_text(text, encoding="utf-8")
    today = settle(new)
    assert today.notes == []
    assert today.config == old.config
    assert migrate(read(new), CharConfig) is None
    for expected, found in (
        (f"{name}.today.yaml", text),
        (f"{name}.note.txt", old.notes[0] + "\n"),
    ):
        if request.config.getoption("--update-golden"):
            (FOLDER / expected).write_text(found, encoding="utf-8")
        assert (FOLDER / expected).read_text(encoding="utf-8") == found


@pytest.mark.parametrize("name", [n for n in FILES if not n.endswith(".json")])
def test_migration_loses_no_comment(name: str) -> None:
    text = str(migrate(read(FOLDER / name), CharConfig))
    for line in (FOLDER / name).read_text().splitlines():
        _, mark, comment = line.partition("#")
        assert not mark or f"#{comment.rstrip()}" in text


def test_values_are_those_that_were_meant() -> None:
    flat = flatten(settle(FOLDER / "nanogpt_gpt2.py").config)
    expected = {
        "train.batch_size": 480,
        "machine.micro_batch_size": 12,
        "model.context": 1024,
        "machine.precision": "bf16",
        "machine.compile": "on",
        "schedule.kind": "cosine",
        "train.seed": 1337,
    }
    assert {path: flat[path] for path in expected} == expected
    assert flatten(settle(FOLDER / "flat.toml").config)["schedule.kind"] == "constant"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("n_embd: 64\nd_model: 32\n", "d_model: says the same as n_embd"),
        ("gradient_accumulation_steps: 4\n", "no meaning without a batch_size"),
        ("batch_size: x\ngradient_accumulation_steps: 4\n", "no meaning without a batch_size"),
        ("n_embed: 64\n", "did you mean model.d_model?"),
        ("kind: adamw\n", "optim.kind (under 'optim:') or schedule.kind (under 'schedule:')"),
        ("n_embd: wide\n", "model.d_model: expected a whole number"),
    ],
)
def test_mistakes_in_old_files_are_told(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(text)
    assert says in told(path)


def test_expression_in_an_old_python_file_is_told_where_it_matters(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_text("n_embd = width * 2\nout_dir = 'a' + b\n")
    said = told(path)
    assert "n_embd: is not a plain value: width * 2" in said
    assert "old.py:1:10" in said
    assert "out_dir" not in said


def told(path: Path) -> str:
    from surefoot.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        settle(path)
    return str(caught.value)


def test_command_writes_a_new_file_and_never_over_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = str(FOLDER / "flat.yaml"), tmp_path / "new.yaml"
    assert main(["config", "migrate", old, "--write", str(new)]) == 0
    assert capsys.readouterr().out == f"wrote {new}\n"
    assert main(["config", "migrate", old]) == 0
    assert capsys.readouterr().out == new.read_text()
    before = new.read_text()
    assert main(["config", "migrate", old, "--write", str(new)]) == 2
    assert "exists" in capsys.readouterr().err
    assert new.read_text() == before
    assert main(["config", "migrate", str(new)]) == 0
    out, err = capsys.readouterr()
    assert (out, "today's form already" in err) == (before, True)
    assert main(["config", "migrate", old, "--write", str(tmp_path / "no" / "new.yaml")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_every_old_name_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
    for old, path in RENAMED.items():
        assert f"| `{old}` | `{path}` |" in guide
    for old in LEFT_OUT:
        assert f"`{old}`" in guide


def test_note_in_the_guide_is_the_one_that_people_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").write_text("block_size: 64\nn_embd: 64\nmax_iters: 200\neval_iters: 2\n")
    guide = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
    assert f"-c old.yaml\n{settle('old.yaml').notes[0]}\n" in guide
