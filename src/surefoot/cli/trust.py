"""`surefoot trust FILE`: code that may run where a run or a file of settings asks for it."""

from __future__ import annotations

from pathlib import Path

from surefoot import trust
from surefoot.cli.options import Parser, print_json
from surefoot.errors import ConfigError

__all__ = ["run"]


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    own = Parser(
        prog="surefoot trust",
        description="Let runs and files of settings run these Python files, or list such files.",
        epilog="A file that you name in a command (surefoot train own.py) is trusted from then on.",
    )
    own.add_argument("path", nargs="*", help="files, or folders for all files in them")
    own.add_argument("--json", action="store_true", help="print one JSON document")
    options = own.parse_args(argv)
    try:
        for path in map(Path, options.path):
            _remember(path)
        _show(options.path, options.json)
    except OSError as error:
        fix = "name the files in $SUREFOOT_TRUSTED, separated as in $PATH"
        raise ConfigError(f"cannot remember what is trusted: {error}", fix=fix) from error
    return 0


def _remember(path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"there is no file {path}", fix="check the path")
    if not trust.known(path):
        trust.remember(path)


def _show(added: list[str], json: bool) -> None:
    found = [str(path) for path in trust.trusted()]
    if json:
        print_json({"trusted": found, "file": str(trust.ledger())})
    elif added:
        print(*(f"trusted: {Path(path).resolve()}" for path in added), sep="\n")
    elif found:
        print(*found, f"\nto take one back, delete its line in {trust.ledger()}", sep="\n")
    else:
        print("no Python file has been named yet")
