"""`__all__` is the whole interface of a module: what others use is in it, and nothing else is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "src"
FILES = sorted((ROOT / "surefoot").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): tree for path, tree in TREES.items()}


def declared(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__" and node.value is not None:
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def defined(tree: ast.Module) -> set[str]:
    """Every name that the module's top level binds, also inside `if TYPE_CHECKING`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update((a.asname or a.name).partition(".")[0] for a in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update(t.id for t in targets if isinstance(t, ast.Name))
    return found - {"annotations"}


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: the order of the linter."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_all_is_there_sorted_and_true(name: str) -> None:
    names = declared(MODULES[name])
    if names is None and (name.endswith("__main__") or not defined(MODULES[name])):
        return  # nothing in it for others
    assert names is not None, f"{name} has no __all__"
    assert names == sorted(names, key=order), f"{name}.__all__ is not sorted"
    assert len(set(names)) == len(names)
    assert set(names) <= defined(MODULES[name]), f"{name}.__all__ names what is not there"


def borrowed() -> Iterator[tuple[str, str, str]]:
    """Yield (who, module, name) of everything that one module takes from another."""
    for who, tree in MODULES.items():
        aliases: dict[str, str] = {}
        for node in ast.walk(tree):
            if not (
                isinstance(node, ast.ImportFrom) and (node.module or "").startswith("surefoot")
            ):
                continue
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    aliases[alias.asname or alias.name] = inner
                else:
                    yield who, str(node.module), alias.name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = aliases.get(node.value.id)
                if module is not None and f"{module}.{node.attr}" not in MODULES:
                    yield who, module, node.attr


def test_what_others_use_is_in_all() -> None:
    missing = sorted(
        {f"{who} uses {name} of {module}" for who, module, name in borrowed()
         if name not in (declared(MODULES[module]) or [])}
    )  # fmt: skip
    assert not missing, "not in __all__:\n" + "\n".join(missing)


def test_the_top_exports_every_name_that_it_can_load() -> None:
    import surefoot

    assert set(surefoot.__all__) == {*surefoot._HOMES, "__version__"}
    for name in surefoot.__all__:
        assert getattr(surefoot, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        surefoot.trian  # noqa: B018
