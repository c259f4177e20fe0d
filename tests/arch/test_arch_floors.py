"""The floors: imports go down only, doors are light, rooms are small, nothing can run a file."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from surefoot.config.fields import leaves
from surefoot.ops import OPS
from surefoot.recipes import find, names

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "surefoot"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_imports_go_down_only() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as f; f()"]
    done = subprocess.run(
        [*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def loaded(code: str, *words: str) -> set[str]:
    """Return the top-level modules that are loaded after `code` ran in a fresh interpreter."""
    script = (
        f"import io, sys, contextlib\n"
        f"with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    {code}\n"
        f"import json; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], {"torch", "numpy", "pydantic", "argparse", "rich", "yaml"}),
        (["--version"], {"torch", "numpy", "pydantic"}),
        (["train", "--help"], {"torch", "numpy"}),
        (["train", "charlm", "--help"], {"torch", "numpy"}),
        (["resume", "--help"], {"torch", "numpy"}),
        (["sample", "--help"], {"torch", "numpy"}),
        (["runs", "--json"], {"torch", "numpy"}),
        (["config", "show", "charlm"], {"torch", "numpy"}),
        (["config", "explain", "d_model"], {"torch", "numpy"}),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_a_verb_loads_only_what_it_needs(words: list[str], heavy: set[str]) -> None:
    found = loaded("from surefoot.cli import main; assert main(sys.argv[1:]) == 0", *words)
    assert not heavy & found


def test_importing_the_package_is_light() -> None:
    found = loaded("import surefoot; assert surefoot.__version__")
    assert not {"torch", "numpy", "pydantic", "yaml"} & found
    assert "torch" not in loaded(
        "import surefoot; surefoot.derive, surefoot.RunConfig, surefoot.train"
    )


def test_training_loads_no_compiler(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 100, encoding="utf-8")
    found = loaded(
        "from surefoot.cli import main; assert main(sys.argv[1:]) == 0",
        *("train", "charlm", "--preset", "tiny", "--max-steps", "1", "--compile", "off", "--quiet"),
        *("--path", str(text), "--runs", str(tmp_path / "runs")),
    )
    assert "torch" in found
    assert not {"sympy", "torch._dynamo", "torch._inductor"} & found


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_house_is_within_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("size_budget").main() == 0, capsys.readouterr().out


def test_no_code_was_copied(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("duplicates").main([]) == 0, capsys.readouterr().out


def test_a_copy_is_found_under_other_comments_and_spacing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = [f"    total = total + {k} * weight" for k in range(6)]
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("def f(weight, total):\n" + "\n".join(body) + "\n    return total\n")
    spread = "\n\n".join(line.replace(" * ", "*") + "  # a remark" for line in body)
    other.write_text(f'def g(weight, total):\n    """Another."""\n{spread}\n    return -total\n')
    duplicates = tool("duplicates")
    assert duplicates.main([str(tmp_path)]) == 1
    assert f"6 equal lines: {one}:2 and {other}:3" in capsys.readouterr().out
    other.write_text(other.read_text().replace("3*weight", "3*height"))
    assert duplicates.main([str(tmp_path)]) == 0


FORBIDDEN = {"eval", "exec", "compile", "__import__"}  # as calls of the built-in


def dangers(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(SRC)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
            if {m.partition(".")[0] for m in modules} & {"pickle", "dill", "marshal", "shelve"}:
                found.append(f"{where} imports pickle")
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if "weights_only=True" in map(ast.unparse, node.keywords):
                continue  # torch.load then takes tensors and plain values only
            if called in FORBIDDEN or called in (
                "torch.load",
                "torch.save",
                "np.load",
                "os.system",
            ):
                found.append(f"{where} calls {called}")
            if any(k.arg == "shell" for k in node.keywords):
                found.append(f"{where} runs a shell")
    return found


def test_no_file_can_run_code() -> None:
    found = [danger for path in sorted(SRC.rglob("*.py")) for danger in dangers(path)]
    allowed = [d for d in found if d.startswith("data/") and d.endswith("calls np.load")]
    # Tensors for other programs, asked for by `--to pt`, and read again with weights_only.
    asked = [d for d in found if d.startswith("formats/export.py") and d.endswith("torch.save")]
    # What a model wrote is compiled in a process of its own, where executing is refused.
    child = "data/compile_child.py"
    judged = [d for d in found if d.startswith(child) and d.endswith("calls compile")]
    assert [d for d in found if d not in [*allowed, *asked, *judged]] == []
    assert len(asked) == 1 and len(judged) == 2
    for place in allowed:  # np.load reads pickles only when it is told to
        assert "allow_pickle=True" not in (SRC / place.partition(":")[0]).read_text()


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_project_names_no_host_and_no_machine_of_its_makers() -> None:
    words = ["pypi", r"org", "files.python" + "hosted", "hugging" + "face.co", "npm" + "js"]
    hosts = re.compile(
        "|".join(
            [rf"{words[0]}\.{words[1]}", *map(re.escape, words[2:]), "/wo" + "rk/", "/ro" + "ot/"]
        )
    )
    found = []
    for path in tracked():
        if path.suffix in (".png", ".js", ".safetensors"):
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in hosts.finditer(text)]
    assert found == []


def reads(tree: ast.AST) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_every_setting_is_read_by_somebody() -> None:
    """Outside config/, or by a method of a section that is itself used outside."""
    outside: set[str] = set()
    methods: dict[str, set[str]] = {}
    for path in SRC.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.parent.name != "config":
            outside |= reads(tree)
        elif path.name in ("schema.py", "model.py"):
            found = {n.name: reads(n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
            methods.update({name: what for name, what in found.items() if name != "conflicts"})
    outside |= set(OPS)  # the ways of operations are read by name
    used = outside.union(*(what for name, what in methods.items() if name in outside))
    for recipe in names():
        known = {p: leaf for p, leaf in leaves(find(recipe).config).items() if not leaf.overlay}
        dead = [path for path, leaf in known.items() if leaf.name not in used]
        assert dead == [], f"{recipe} has settings that change nothing"


def test_the_package_admits_what_it_promises() -> None:
    project: dict[str, Any] = PROJECT["project"]
    assert project["requires-python"] == ">=3.11"
    assert any(d.startswith("torch>=") for d in project["dependencies"]), "torch must not be pinned"
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert "torch==2.13.0" in pins
    assert all("==" in pin for pin in pins)
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert PROJECT["tool"]["mypy"]["python_version"] == "3.11"


def test_every_file_parses_as_the_oldest_python() -> None:
    for path in SRC.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 11))


def test_what_runs_need_is_a_file_of_the_package() -> None:
    shipped = PROJECT["tool"]["setuptools"]["package-data"]["surefoot"]
    others = [p for p in SRC.rglob("*") if p.is_file() and p.suffix != ".py"]
    unknown = [
        str(path.relative_to(SRC))
        for path in others
        if "__pycache__" not in path.parts
        and not any(path.relative_to(SRC).match(s) for s in shipped)
    ]
    assert unknown == []


def test_the_environment_of_this_test_is_sealed() -> None:
    assert os.environ["SUREFOOT_OFFLINE"] == "1"
    assert Path(os.environ["SUREFOOT_CACHE"]).is_relative_to(
        Path(os.environ["SUREFOOT_RUNS"]).parent
    )
