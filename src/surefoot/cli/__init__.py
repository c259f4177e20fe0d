"""Floor 5, the door: words of the command line become calls.

A verb is one line of the table below; its module is imported only when it is asked for, and has
`run(verb, argv) -> exit code`. No verb holds logic that a Python caller would miss.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import TextIO

from surefoot.errors import ConfigError, DeviceLost, Stopped, SurefootError

__all__ = ["VERBS", "main"]

VERBS: dict[str, tuple[str, str, str]] = {
    # verb: (group, module, what it does)
    "train": ("train", "train", "train a recipe, or go on with the run you left"),
    "resume": ("train", "train", "go on with a run, exactly"),
    "adopt": ("train", "adopt", "make a run of weights that come without a configuration"),
    "sweep": ("train", "sweep", "many runs: a grid, draws or a search, and what came of them"),
    "sample": ("use", "sample", "let a model write"),
    "export": ("use", "export", "give a model to transformers, torch or llama.cpp"),
    "import": ("use", "adopt", "make a run of a Llama or Qwen3 from a transformers folder"),
    "evaluate": ("use", "sample", "measure a model on held-out data"),
    "runs": ("look", "runs", "list runs"),
    "show": ("look", "runs", "show one run"),
    "top": ("look", "watch", "watch a run: curves, pace, memory, the last sample"),
    "tail": ("look", "watch", "print the last rows and notes of a run"),
    "compare": ("look", "compare", "compare runs: what differs, and what came of it"),
    "tb": ("look", "tb", "start TensorBoard on runs, or write their events anew"),
    "du": ("tidy", "tidy", "say what takes how much disk"),
    "prune": ("tidy", "tidy", "move runs that nobody needs to a trash, or bring them back"),
    "keep": ("tidy", "tidy", "keep a run whatever prune is asked for"),
    "tag": ("tidy", "tidy", "give a run tags, or take them away"),
    "checkpoints": ("look", "checkpoints", "list the checkpoints of a run"),
    "verify": ("look", "checkpoints", "check that every checkpoint of a run is whole"),
    "lr-find": ("prepare", "lr_find", "try ever larger learning rates, and suggest four"),
    "config": ("prepare", "config", "show, explain, document or migrate settings"),
    "data": ("prepare", "data", "texts by name, and shards for elsewhere"),
    "parity": ("look", "parity", "two implementations side by side: errors, speed, memory"),
    "trace": ("look", "parity", "record what a recipe computes, or check that it still does"),
    "ops": ("prepare", "ops", "list the ways of operations, their speed here, and check them"),
    "plan": ("prepare", "plan", "say what a run will take, before it starts, here or elsewhere"),
    "bench": ("prepare", "bench", "how fast this machine trains and writes, beside others"),
    "profile": ("prepare", "profile", "take a step apart: time, operations, memory, data"),
    "trust": ("prepare", "trust", "let runs and settings run your Python files, or list these"),
    "doctor": ("prepare", "doctor", "say what this machine can do"),
}

_EXAMPLES = (
    ("surefoot train charlm", "some minutes on a laptop"),
    ("surefoot train charlm --help", "every setting"),
    ("surefoot resume last", "after anything"),
)
TRAINS = ("train", "resume", "sweep")
_DONE, _BUG, _NOT_HERE, _FULL, _INTERRUPTED = 0, 1, 3, 4, 130
_PIPE = 141  # the reader of our output went away


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code. `argv` is `sys.argv[1:]` where it is not given."""
    if "RANK" in os.environ:  # one of several processes: the launcher wants to know, and the others
        return _together(argv)
    return _main(argv)


def _together(argv: list[str] | None) -> int:
    from surefoot.cli.stoppable import STOPPED
    from surefoot.track.exits import afresh, note, told

    afresh()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # who is gone is said in our words
    # A signal may come to the launcher before there is a process that it could pass it on to.
    code = STOPPED if told() else _main(argv)
    if "surefoot.engine" in sys.modules:
        from surefoot.engine.ranks.team import leave

        code = leave(code)
    return note(code)


def _main(argv: list[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if sys.platform == "win32":  # locks, signals and reads at a place are those of POSIX
        print(
            "error: Surefoot runs on Linux and macOS\n  help:  on Windows, in WSL 2: wsl --install",
            file=sys.stderr,
        )
        return _NOT_HERE
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except SurefootError as error:
        return _fail(error)
    except SystemExit as leaving:  # argparse, after help or a mistake
        return leaving.code if isinstance(leaving.code, int) else _BUG if leaving.code else _DONE
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        _silence(sys.stdout)
        return _PIPE
    except OSError as error:
        if error.filename is not None or not _refuses(sys.stdout):
            return _bug(error)
        print(f"error: cannot write what was found: {error.strerror}", file=sys.stderr)
        _silence(sys.stdout)
        return _FULL
    except Exception as error:
        lost = _lost(error)
        return _bug(error) if lost is None else _fail(lost)
    return code


def _dispatch(words: list[str]) -> int:
    sys.stdout, sys.stderr = _open(sys.stdout), _open(sys.stderr)
    _tolerate(sys.stdout, sys.stderr)
    _share_cores()
    if not words or words[0] in ("-h", "--help", "help"):
        print(_page())
        return _DONE
    if words[0] in ("-V", "--version"):
        from surefoot.version import __version__

        print(f"surefoot {__version__}")
        return _DONE
    verb, *rest = words
    if verb not in VERBS:
        raise _unknown(verb)
    with _stoppable(verb):
        module = importlib.import_module(f"surefoot.cli.{VERBS[verb][1]}")
        code: int = module.run(verb, rest)
    return code


def _stoppable(verb: str) -> contextlib.AbstractContextManager[None]:
    if verb not in TRAINS:
        return contextlib.nullcontext()
    from surefoot.cli.stoppable import stoppable

    return stoppable()


def _share_cores() -> None:
    """Let threads of matrix products sleep soon instead of spinning; asked for before torch loads.

    With another program on the cores, GNU OpenMP's spinning makes a step up to ten times slower
    (benchmarks/results.md); it reads this variable once, when the library is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _page() -> str:
    """Return the top help from the table alone."""
    lines = ["Surefoot trains small models and never loses its footing.", ""]
    lines += ["usage: surefoot VERB [arguments]      surefoot VERB --help", ""]
    width = max(map(len, VERBS))
    for group in dict.fromkeys(group for group, _, _ in VERBS.values()):
        lines.append(group)
        lines += [f"  {v.ljust(width)}  {text}" for v, (g, _, text) in VERBS.items() if g == group]
    lines += ["", "examples"]
    width = max(len(command) for command, _ in _EXAMPLES)
    lines += [f"  {command.ljust(width)}  {text}" for command, text in _EXAMPLES]
    return "\n".join(lines)


def _unknown(verb: str) -> ConfigError:
    from surefoot.config.suggest import nearest

    near = nearest(verb, VERBS)
    fix = f"did you mean surefoot {near}?" if near else f"verbs: {', '.join(VERBS)}"
    what = f"unknown flag {verb}" if verb.startswith("-") else f"unknown verb {verb}"
    return ConfigError(what, fix=fix)


def _fail(error: SurefootError) -> int:
    text = str(error)
    if not isinstance(error, ConfigError | Stopped):
        text = f"error: {text}"
    if "RANK" in os.environ:
        _tell_others(error, error.final)
    # Of several processes one speaks, or another where rank 0 is gone, or that whose device is lost,
    # for no other one knows it, or one of each machine before they have met.
    speaks = getattr(error, "speaks", False) or isinstance(error, DeviceLost) or _apart()
    if os.environ.get("RANK", "0") == "0" or speaks:
        print(text, file=sys.stderr)
    return error.exit_code


def _apart() -> bool:
    """Whether this is the first process of its machine, and has not met the others."""
    if os.environ.get("LOCAL_RANK") != "0":
        return False
    if "surefoot.engine" not in sys.modules:
        return True
    from surefoot.engine.ranks.team import met

    return not met()


def _tell_others(error: Exception, final: bool = False) -> None:
    """Let the other processes of a group, and their launcher, know what ended this one."""
    if final:
        from surefoot.track.exits import note

        note(getattr(error, "exit_code", _BUG), final)
    if "surefoot.engine" in sys.modules:
        from surefoot.engine.ranks.team import tell

        tell(error)


def _lost(error: Exception) -> SurefootError | None:
    """Return the error for a command whose device no longer answers; None for other errors."""
    if "surefoot.engine" not in sys.modules:
        return None
    from surefoot.engine import lost

    return lost.anywhere(error)


def _bug(error: Exception) -> int:
    import traceback

    if "RANK" in os.environ:
        _tell_others(error)
    traceback.print_exc()
    text = "This is a bug in surefoot. Please report it with the lines above."
    for frame, line in traceback.walk_tb(error.__traceback__):  # the innermost is the last
        if frame.f_globals.get("__name__", "").startswith("surefoot_file_"):
            code = frame.f_code
            text = (
                f"error: your file failed: {type(error).__name__}: {error}\n"
                f"  --> {code.co_filename}:{line}, in {code.co_name}"
            )
    print(f"\n{text}", file=sys.stderr)
    return _BUG


def _open(stream: TextIO | None) -> TextIO:
    """Return the stream, or one that swallows everything where ours was closed from the start."""
    return stream if stream is not None else Path(os.devnull).open("w", encoding="utf-8")


def _refuses(stream: TextIO) -> bool:
    """Whether a stream takes nothing more, like a full disk."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return True
    return False


def _tolerate(*streams: object) -> None:
    """Show the closest character instead of one that the terminal cannot show."""
    codecs.register_error("legible", _legible)
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="legible")


def _legible(error: UnicodeError) -> tuple[str, int]:
    """Replace a character by the closest one; loads the table for that only when it is needed."""
    from surefoot.track.text import legible

    return legible(error)


def _silence(stream: object) -> None:
    """Keep Python from complaining about the closed pipe once more at exit."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]
