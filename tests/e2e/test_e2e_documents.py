"""The documents are true: the tutorial runs as printed, commands exist, links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TEXT = ROOT / "tests" / "fixtures" / "shakespeare.txt"
SMALL = (  # what the tutorial's runs are made smaller by, the cadence of the default preset aside
    f"--preset tiny --path {TEXT} --max-steps 320 --validate-every 250 --sample-every 500 "
    "--save-every 10min --precision fp32 --threads 1 --matmul default --compile off --no-report "
    "--no-tensorboard"
)


def blocks(page: Path, language: str) -> Iterator[str]:
    for name, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if name == language:
            yield body


def commands(page: Path) -> list[str]:
    """What a reader types: the lines behind `$ ` in console blocks."""
    joined = (block.replace("\\\n", " ") for block in blocks(page, "console"))
    lines = [line for block in joined for line in block.splitlines()]
    return [
        line.removeprefix("$ ").partition("     #")[0] for line in lines if line.startswith("$ ")
    ]


# A reader who waits for a step is slow, and these runs are fast: here they stand still at it, once and
# with no save under way, until the kill that comes next.
PATIENT = """
import os, signal, sys, threading
from pathlib import Path
from surefoot.cli import main
from surefoot.track.record import Record

steps, marks, row = {steps!r}, Path({marks!r}), Record.row

def row_and_wait(self, kind, step, *given, **values):
    row(self, kind, step, *given, **values)
    mark = marks / f"{{self.path.name}}-{{step}}"
    if kind == "train" and (self.path.name, step) in steps and not mark.exists():
        mark.touch()
        for thread in threading.enumerate():
            if thread.name == "surefoot-save":
                thread.join()
        os.kill(os.getpid(), signal.SIGSTOP)

Record.row = row_and_wait
if sys.argv[1] in ("train", "resume"):
    from surefoot.recipes import charlm

    charlm.SAMPLE_TOKENS = 30  # those that a run writes at its end, which nobody looks at here
sys.exit(main(sys.argv[1:]))
"""
AWAITED = re.compile(r"""until grep -q '"step": (\d+),' runs/(\w+)/metrics.jsonl""")


def walk(place: Path) -> list[tuple[str, str]]:
    """Run the tutorial in a shell; return each command with what it printed."""
    (place / "bin").mkdir()
    smaller = {"000002000": "000000320", "--d-model 192 ": "--d-model 48 "}
    typed = commands(ROOT / "docs" / "tutorial.md")
    for printed, played in smaller.items():
        assert any(printed in command for command in typed)
        typed = [command.replace(printed, played) for command in typed]
    steps = {(m[2], int(m[1])) for command in typed if (m := AWAITED.match(command))}
    assert len(steps) == 3
    program = place / "bin" / "patient.py"
    program.write_text(PATIENT.format(steps=steps, marks=str(place / "bin")))
    door = place / "bin" / "surefoot"
    door.write_text(
        f'#!/bin/sh\nif [ "$1" = train ]; then shift 2; set -- train charlm {SMALL} "$@"; fi\n'
        f'exec {shlex.quote(sys.executable)} {shlex.quote(str(program))} "$@"\n'
    )
    door.chmod(0o755)
    script = "".join(f"echo '@@@ {n}'\n{command}\n" for n, command in enumerate(typed))
    hidden = ("SUREFOOT_RUNS", "PYTEST_CURRENT_TEST", "CI")  # runs are a reader's own
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment["PATH"] = f"{door.parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1800,
    )  # fmt: skip
    said = re.split(r"^@@@ \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    assert len(said) == len(typed), done.stdout
    return list(zip(typed, said))


def test_the_tutorial_runs_as_printed(tmp_path: Path) -> None:
    told = walk(tmp_path)
    said = dict(told)  # of a command that comes twice, the last
    listed = next(out for command, out in told if command == "surefoot runs")
    assert re.search(r"^killed .* lost +300/320 ", listed, re.MULTILINE), listed
    resumed = said["surefoot resume killed"]
    proven = re.search(r"^resume proven over (\d+) steps?$", resumed, re.MULTILINE)
    assert "going on from checkpoint of step 250" in resumed
    assert proven is not None and proven[1] == "50", resumed
    (equal,) = (out for command, out in told if command.startswith("diff -r"))
    assert equal == "equal, byte for byte\n"
    (counts,) = (out for command, out in told if command.startswith("grep -c"))
    assert counts.split() == ["runs/first/metrics.jsonl:32", "runs/killed/metrics.jsonl:32"]
    (written,) = (out for command, out in told if command.startswith("surefoot sample"))
    assert re.match(r"checkpoint of step \d+\nROMEO:", written) and len(written) >= 200
    assert "  val_bits_per_char " in said["surefoot evaluate killed"]
    assert "did you mean --d-model?" in said["surefoot train charlm --d-modle 192"]
    assert (
        "optim.lr: 0.003 in the run, 0.001 asked for"
        in said["surefoot resume killed --max-steps 3000 --lr 0.001"]
    )
    assert "killed" in said["surefoot show killed"] and "resumed" in said["surefoot show killed"]
    assert "last, best" in said["surefoot checkpoints killed"]
    assert said["surefoot verify killed"].count("sound") == 3
    experiments(told, said)


def experiments(told: list[tuple[str, str]], said: dict[str, str]) -> None:
    """Section 8: two runs that differ in one setting, one of them killed twice."""
    resumed = said["surefoot resume narrow"]
    assert "going on from checkpoint of step " in resumed
    # Both are missing where it was killed just as it had saved.
    told_of = re.search(r"^(\d+) steps? after it ", resumed, re.MULTILINE)
    proven = re.search(r"^resume proven over (\d+) steps?$", resumed, re.MULTILINE)
    assert (told_of and told_of[1]) == (proven and proven[1]), resumed
    assert said["surefoot show narrow"].count("  resumed  ") == 2
    compared = said["surefoot compare base narrow"]
    assert re.search(r"^  model.d_model +32 +96$", compared, re.MULTILINE), compared
    assert re.search(r"^equal: \d+ settings", compared, re.MULTILINE)
    assert "narrow against base: val loss " in compared and "one seed each" in compared
    assert "48 rows written" in said["surefoot tb narrow --rebuild"]
    assert "kept by you" not in said["surefoot prune"]
    for command in ("surefoot prune", "surefoot prune --yes"):
        assert "test (under 20 steps)" in said[command]
    assert "probe is back" in said["surefoot prune --undo"]


def flags_of(verb: str) -> set[str]:
    """Every flag that a verb takes, settings included."""
    from surefoot.config.fields import leaves, short_names
    from surefoot.config.learners import overlays
    from surefoot.recipes import find, names

    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    section = page.partition(f"## surefoot {verb}\n")[2].partition("\n## ")[0]
    found = set(re.findall(r"--[a-z][a-z-]*", section))
    if verb in (
        "train",
        "resume",
        "adopt",
        "plan",
        "parity",
        "trace",
        "lr-find",
        "sweep",
        "profile",
    ):
        for config in (find(name).config for name in names()):
            settings = [*leaves(config), *short_names(config)]
            settings += [f"{path}.{s}" for path in overlays(config).values() for s in settings]
            found |= {f"--{path.replace('_', '-')}" for path in settings}
    return found


def surefoot_commands() -> list[tuple[str, str]]:
    found = [(page.name, c) for page in PAGES for c in commands(page) if c.startswith("surefoot ")]
    assert len(found) > 30
    return found


@pytest.mark.parametrize(("page", "command"), surefoot_commands())
def test_commands_in_documents_exist(page: str, command: str) -> None:
    from surefoot.cli import VERBS

    _, verb, *words = shlex.split(command.partition(" &&")[0].removesuffix("&"))
    assert verb in VERBS, command
    if "modle" in command:
        return  # a mistake on purpose
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    known = flags_of(verb) | {"--data.length", "--length"}  # of the recipe of the example
    assert flags <= known, command


def test_python_in_documents_parses() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            ast.parse(block)


def test_links_lead_somewhere() -> None:
    dead = []
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in target and not (page.parent / target).exists():
                dead.append(f"{page.relative_to(ROOT)} -> {target}")
    assert dead == []


def test_the_promise_names_tests_that_exist() -> None:
    """A row reads `tests/x.py::test_a`, `::test_b`; the second is in the file before it."""
    text = (ROOT / "docs" / "explain" / "promise.md").read_text(encoding="utf-8")
    file = ""
    for name in re.findall(r"`((?:tests/[\w/.]+|::)[^`]*)`", text):
        path, _, test = name.partition("::")
        file = path or file
        assert (ROOT / file).exists(), file
        if test:
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), name
    assert file


def test_every_page_can_be_reached_from_the_index() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / t).resolve() for t in targets if (page.parent / t).is_file()]
    assert set((ROOT / "docs").rglob("*.md")) <= seen


def test_python_from_the_guide_runs(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small model and few steps in place of those that the guide names."""
    import surefoot

    train, resume = surefoot.train, surefoot.resume
    small = {"d_model": 16, "max_steps": 4, "warmup_steps": 1, "path": TEXT, "precision": "fp32"}
    quiet = {"quiet": True, "report": False, "sample_every": 0}
    monkeypatch.setattr(
        surefoot, "train", lambda r, **k: train(r, preset="tiny", **{**k, **small, **quiet}),
        raising=False,
    )  # fmt: skip
    monkeypatch.setattr(
        surefoot,
        "resume",
        lambda r, **k: resume(r, **{**k, "max_steps": 6}, **quiet),
        raising=False,
    )
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "guides" / "from-python.md", "python"):
        code = compile(block, "from-python.md", "exec")
        exec(code, names)  # noqa: S102 - our own page
    assert names["result"].status == "done" and names["result"].step == 6
    assert names["steps"][-1] == 6
    assert "done" in capsys.readouterr().out


def reference(name: str) -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_the_command_line_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    now = reference("cli_reference").page()
    kept = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    if sys.version_info >= (3, 13):  # argparse lays help out differently from there on
        now, kept = (sorted(set(re.findall(r"--[a-z-]+|^## .*$", x))) for x in (now, kept))
    assert now == kept, "write it anew with `make docs`"
