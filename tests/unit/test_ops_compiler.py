"""Compiled code is kept where only its owner writes, and taken only where it would be made."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from surefoot.ops import compiler

# torch's parts warn about each other while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PLACE = "TORCHINDUCTOR_CACHE_DIR"

TWO_STEPS = """
import torch
from torch._dynamo.utils import counters
from surefoot.config.model import GPTConfig
from surefoot.engine.random import example_keys
from surefoot.nn.dropout import set_keys
from surefoot.nn.gpt import GPT
from surefoot.ops import ATTENTION, CROSS_ENTROPY
from surefoot.ops.compiler import keep_code
torch.set_num_threads(1)
keep_code()
config = GPTConfig(d_model=32, num_layers=1, num_heads=2, context=16, dropout=0.2)
model = GPT(config, 31, seed=1)
model.blocks[0].attn.attend = ATTENTION.pick("tiles", "cpu")
model.cross_entropy = CROSS_ENTROPY.pick("chunked", "cpu")
tokens = torch.arange(64).view(4, 16) % 31
model.compile(dynamic=False)
with torch.autocast("cpu", torch.bfloat16):
    for step in range(2):
        set_keys(model, example_keys(1, step, 0, 4))
        loss = model(tokens, tokens)
        loss.backward()
parts = [loss.detach(), *(p.grad for p in model.parameters())]
bits = b"".join(part.flatten().view(torch.uint8).numpy().tobytes() for part in parts)
import hashlib
said = counters["aot_autograd"]
print(said["autograd_cache_hit"], said["autograd_cache_miss"], said["autograd_cache_bypass"],
      hashlib.sha256(bits).hexdigest())
"""


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No place is chosen, and what is chosen is forgotten afterwards."""
    monkeypatch.setenv(PLACE, "")
    monkeypatch.delenv(PLACE)


def test_code_is_kept_where_only_we_write(unset: None, sealed: Path) -> None:
    compiler.keep_code()
    place = Path(os.environ[PLACE])
    assert place.parent == sealed / "cache" / "compiled"
    assert place.stat().st_mode & 0o077 == 0
    compiler.keep_code()
    assert Path(os.environ[PLACE]) == place, "what was chosen stays"


def test_torchs_own_place_in_the_common_folder_is_left(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLACE, str(Path(tempfile.gettempdir()) / "torchinductor_me"))
    compiler.keep_code()
    assert Path(os.environ[PLACE]).is_relative_to(sealed)


def test_a_place_that_a_person_chose_stays(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLACE, str(tmp_path))
    compiler.keep_code()
    assert os.environ[PLACE] == str(tmp_path) and not (sealed / "cache" / "compiled").exists()


def test_without_a_folder_torch_takes_its_own(
    unset: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "file"))
    compiler.keep_code()
    assert not os.environ.get(PLACE, "").startswith(str(tmp_path))


def test_a_folder_that_runs_nothing_is_not_taken(
    unset: None, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_flag=os.ST_NOEXEC))
    compiler.keep_code()
    assert not os.environ.get(PLACE, "").startswith(str(sealed))


def test_code_of_others_goes_when_nobody_used_it_for_long(unset: None, sealed: Path) -> None:
    old, recent = (sealed / "cache" / "compiled" / name for name in ("old", "recent"))
    for folder in (old, recent):
        (folder / "ab").mkdir(parents=True)
    long_ago = time.time() - 61 * 86_400
    os.utime(old, (long_ago, long_ago))
    compiler.keep_code()
    assert not old.exists() and recent.exists()


def test_another_processor_or_compiler_has_another_folder(
    unset: None, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    tools = [["model name : A"], ["model name : B"]]
    for features in tools:
        monkeypatch.setattr(compiler, "_features", lambda features=features: features)
        compiler._machine.cache_clear()
        names.add(compiler._machine())
    monkeypatch.setattr(compiler, "compiler", lambda device: sys.executable)
    compiler._machine.cache_clear()
    names.add(compiler._machine())
    compiler._machine.cache_clear()
    assert len(names) == 3


def test_every_key_names_the_threads_of_that_moment() -> None:
    import torch.compiler.config as settings

    before = torch.get_num_threads()
    try:
        compiler.keep_code()
        marks = []
        for count in (1, 2):
            compiler.set_threads(count)
            marks.append(settings.cache_key_tag)
        assert torch.get_num_threads() == 2 and marks[0] != marks[1]
        assert all(mark.startswith("surefoot ") for mark in marks)
    finally:
        compiler.set_threads(before)


@pytest.mark.parametrize("works", [True, False])
def test_vector_instructions_are_tried_once_where_all_of_them_work(
    works: bool, unset: None, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as settings
    import torch._inductor.cpu_vec_isa as kinds

    tries = []

    @lru_cache
    def listed() -> list[str]:
        told = settings.cpp.vec_isa_ok
        tries.append(told)
        return ["wide", "narrow"] if told or works else ["narrow"]

    monkeypatch.setattr(kinds, "valid_vec_isa_list", listed)
    with settings.patch({"cpp.vec_isa_ok": None}):
        compiler.keep_code("cpu")
        assert settings.cpp.vec_isa_ok is (True if works else None)
        settings.cpp.vec_isa_ok = None  # as another process finds it
        compiler.keep_code("cpu")
        assert settings.cpp.vec_isa_ok is (True if works else None)
    assert tries == ([None, True] if works else [None, True] * 2)


@pytest.mark.slow
def test_a_second_process_takes_the_code_and_computes_the_same_bits(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    found = []
    for cache in ("a", "a", "b"):
        env = {
            **os.environ, "SUREFOOT_CACHE": str(tmp_path / cache), PLACE: "",
            "PYTHONPATH": str(root / "src"),
        }  # fmt: skip
        del env[PLACE]
        done = subprocess.run(
            [sys.executable, "-c", TWO_STEPS], env=env, capture_output=True, text=True, check=True
        )
        found.append(done.stdout.split())
    made, taken, made_anew = found
    assert made[:3] == ["0", "1", "0"] and taken[:3] == ["1", "0", "0"], found
    assert made[3] == taken[3] == made_anew[3]
