"""What goes with a base's tokenizer: special tokens, the chat template, how it begins and ends texts.

A base may come from anybody. Text of known files is taken along where it lies in the base's own
folder and is no larger than such text is; of settings, what says how to read and to write, and
nothing that names code or a path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from surefoot.errors import DataError

__all__ = ["ABOUT", "GENERATION", "WANTED", "manners", "spoken", "without_code"]

ABOUT = "tokenizer_config.json"
GENERATION = "generation_config.json"
_TEMPLATE, _MORE = "chat_template.jinja", "additional_chat_templates/*.jinja"
_TOKENS = ("special_tokens_map.json", "added_tokens.json")
WANTED = (ABOUT, GENERATION, *_TOKENS, _TEMPLATE, _MORE)
_LARGEST = 16 << 20  # bytes of one file
_PLAIN = "PreTrainedTokenizerFast"
_PLAIN_5 = "TokenizersBackend"  # the same in transformers 5, which earlier ones do not know
_KINDS = ("_token", "_tokens", "_side")  # how names end of what says how texts are read and written
_NAMED = (
    "added_tokens_decoder", "add_prefix_space", "chat_template", "clean_up_tokenization_spaces",
    "do_lower_case", "errors", "legacy", "model_input_names", "model_max_length",
    "response_schema", "tokenizer_class", "trim_offsets", "use_default_system_prompt",
)  # fmt: skip
_SECRET = ("hf_token", "use_auth_token")
_CODE = ("_name_or_path", "auto_map", "custom_pipelines", "trust_remote_code")


def manners(folder: Path) -> dict[str, str]:
    """Return the files beside tokenizer.json that say how a tokenizer behaves, by name, as text.

    What names code is left out. Raises DataError for a file that leads out of the folder, or that
    is none of its kind.
    """
    found: dict[str, str] = {}
    for path in _places(folder):
        text, name = _text(path, folder), path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            told = _object(text, path)
            if name == ABOUT:
                told = {n: v for n, v in told.items() if _says_how(n)}
                told["tokenizer_class"] = _known_class(told.get("tokenizer_class"))
            elif name == _TOKENS[0]:
                told = {n: v for n, v in told.items() if _says_how(n)}
            text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
        found[name] = text
    return found


def spoken(files: Mapping[str, str]) -> dict[str, Any]:
    """Return what `files` say in one: the settings of the tokenizer, with the chat template."""
    told = json.loads(files.get(ABOUT, "{}"))
    return {**told, **({"chat_template": files[_TEMPLATE]} if _TEMPLATE in files else {})}


def without_code(path: Path) -> None:
    """Take out of a `config.json` what names code or a place on this machine."""
    told = json.loads(path.read_text("utf-8"))
    kept = {name: value for name, value in told.items() if name not in _CODE}
    path.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


def _places(folder: Path) -> Iterator[Path]:
    for pattern in WANTED:
        found = sorted(folder.glob(pattern)) if "*" in pattern else [folder / pattern]
        yield from (path for path in found if os.path.lexists(path))


def _says_how(name: str) -> bool:
    return name in _NAMED or (name.endswith(_KINDS) and name not in _SECRET)


def _known_class(name: Any) -> str:
    """Return `name` where it is a tokenizer of transformers itself, else the one for any."""
    import transformers

    found = getattr(transformers, str(name), None)
    ours = isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)
    return str(name) if ours and name != _PLAIN_5 else _PLAIN


def _text(path: Path, folder: Path) -> str:
    try:
        whole, home = path.resolve(strict=True), folder.resolve()
        blobs = home.parent.parent / "blobs"  # where the hub's cache has what its folders link to
        inside = whole.is_relative_to(home)
        if not inside and not (home.parent.name == "snapshots" and blobs in whole.parents):
            raise _wrong(path, "leads out of the base's folder")
        if not whole.is_file():
            raise _wrong(path, "is no file")
        with whole.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise _wrong(path, f"is larger than {_LARGEST >> 20} MB")
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise _wrong(path, "is no text") from None
    except (OSError, RuntimeError) as error:  # the latter: links that go round, before Python 3.13
        raise _wrong(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _object(text: str, path: Path) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"is no JSON: {error}") from None
    if not isinstance(told, dict):
        raise _wrong(path, "holds no settings")
    return told


def _wrong(path: Path, how: str) -> DataError:
    fix = "what the base's owner publishes there, as a file; or without it"
    return DataError(f"model.base: {path.name} {how}", where=str(path), fix=fix)
