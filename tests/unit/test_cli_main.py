"""The door: verbs, help, exit codes, and what is loaded for them."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from surefoot import cli, errors
from surefoot.cli import VERBS, main
from surefoot.version import __version__


def pretend(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Let the verb `runs` do something else."""
    monkeypatch.setitem(sys.modules, "surefoot.cli.runs", SimpleNamespace(run=run))


def raising(error: BaseException) -> object:
    def run(verb: str, argv: list[str]) -> int:
        raise error

    return run


def test_top_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert main(argv) == 0
        out = capsys.readouterr().out
        for verb, (_, _, text) in VERBS.items():
            assert f"  {verb} " in out
            assert text in out
        assert max(map(len, out.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"surefoot {__version__}\n"


@pytest.mark.parametrize(
    ("word", "help"),
    [("tarin", "surefoot train?"), ("shwo", "surefoot show?"), ("zebra", "verbs: train, resume")],
)
def test_unknown_verbs(word: str, help: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert help in capsys.readouterr().err


def test_words_reach_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    pretend(monkeypatch, lambda verb, argv: seen.append((verb, argv)) or 5)
    assert main(["runs", "--json", "x"]) == 5
    assert seen == [("runs", ["--json", "x"])]


@pytest.mark.parametrize(
    ("error", "code", "first"),
    [
        (errors.SurefootError("no", fix="do"), 1, "error: no"),
        (errors.RunError("no such run", where="runs/"), 2, "error: no such run"),
        (errors.ConfigError("bad"), 2, "error: bad"),
        (errors.Unsupported("no GPU"), 3, "error: no GPU"),
        (errors.OutOfResources("full"), 4, "error: full"),
        (errors.DeviceLost("gone"), 4, "error: gone"),
        (errors.CheckFailed("differs"), 5, "error: differs"),
        (errors.Stopped("saved at step 4"), 75, "saved at step 4"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    first: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend(monkeypatch, raising(error))
    monkeypatch.setattr(cli, "_silence", lambda stream: None)
    assert main(["runs"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.partition("\n")[0] == first


def test_a_bug_shows_its_traceback_and_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, raising(ZeroDivisionError("oh")))
    assert main(["runs"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: oh" in err
    assert "report it" in err


def loaded_by(*argv: str) -> set[str]:
    """Return the modules that a fresh process holds after a command."""
    code = (
        "import json, sys\n"
        "from surefoot.cli import main\n"
        f"code = main({list(argv)!r})\n"
        "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True
    )
    code_of, names = json.loads(done.stderr.splitlines()[-1])
    assert code_of == 0
    return set(names)


HEAVY = {"torch", "numpy", "matplotlib", "rich", "jinja2", "tensorboardX"}


def test_top_help_loads_next_to_nothing() -> None:
    bare = loaded_by("--version")
    found = loaded_by("--help")
    assert not found & (HEAVY | {"pydantic", "argparse", "yaml", "difflib"})
    ours = {name for name in found if name.startswith("surefoot")}
    assert ours == {"surefoot", "surefoot.cli", "surefoot.errors", "surefoot.version"}
    assert len(found - bare) <= 2


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--help"],
        ["train", "charlm", "--help"],
        ["config", "show", "charlm"],
        ["config", "explain", "lr"],
        ["config", "docs", "charlm"],
    ],
)
def test_help_and_settings_never_load_torch_or_numpy(argv: list[str]) -> None:
    assert not loaded_by(*argv) & HEAVY


def test_every_verb_has_a_module_with_run() -> None:
    from importlib import import_module

    for module in {module for _, module, _ in VERBS.values()}:
        assert callable(import_module(f"surefoot.cli.{module}").run)


def test_reader_that_goes_away_is_no_error() -> None:
    code = "from surefoot.cli import main; raise SystemExit(main(['config', 'docs', 'charlm']))"
    shell = f'"{sys.executable}" -c "{code}" | head -c 5; echo " ${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=600)
    assert done.stderr == ""
    assert done.stdout.split()[-1] in ("141", "0")  # 0: all of it went into the pipe in time


def test_a_device_that_is_lost_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    import surefoot.engine  # which knows how devices say it

    assert surefoot.engine.__doc__
    said = "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"
    pretend(monkeypatch, raising(torch.AcceleratorError(said)))
    assert main(["runs"]) == 4
    err = capsys.readouterr().err
    assert err.startswith("error: the device does not answer any more: CUDA error: unspec")
    assert "try it again when it is back" in err and "bug" not in err and "Traceback" not in err
    pretend(monkeypatch, raising(RuntimeError("shapes cannot be multiplied")))
    assert main(["runs"]) == 1 and "This is a bug" in capsys.readouterr().err


def test_windows_is_told_what_to_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["runs"]) == 3
    assert "WSL 2" in capsys.readouterr().err
