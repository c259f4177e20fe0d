"""Planning of tuning: models without contents are what the real ones are, and tiers are computed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from surefoot import recipes
from surefoot.cli import main
from surefoot.config.fields import changed
from surefoot.data.batch import Batch
from surefoot.engine.auto.fit import Pins
from surefoot.engine.foresee import cards
from surefoot.engine.foresee.cards import Place, find_place
from surefoot.engine.foresee.predict import predict
from surefoot.nn.pretend import hollow
from surefoot.recipes.code import base
from surefoot.recipes.code import tiers as reckoning
from surefoot.recipes.code.base import _staged
from surefoot.recipes.code.judge import TextJudge
from surefoot.recipes.code.settings import CodeConfig
from surefoot.recipes.code.tiers import TIERS, chosen_context, measures, tiers, trained_for

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

PLACE = Place("a small card", 10**9, {}, 0.0, 512, "bf16", None, processors=30)
CODE = recipes.find("code")


def folder(at: Path, layers: int = 2, **more: Any) -> str:
    """A base of which there is only the configuration."""
    transformers.LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=300, max_position_embeddings=8192, **more,
    ).save_pretrained(at)  # fmt: skip
    return str(at)


def settings(base: str, **more: Any) -> CodeConfig:
    found = {"model.base": base, **{k.replace("__", "."): v for k, v in more.items()}}
    config: CodeConfig = changed(CodeConfig(), found)
    return config


def storages(tensors: Iterable[Any]) -> int:
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


@pytest.mark.parametrize("double", [False, True])
def test_a_stand_in_of_four_bits_holds_what_the_real_layer_holds(double: bool) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    real = bnb.nn.Linear4bit(
        192,
        80,
        bias=False,
        quant_type="nf4",
        compress_statistics=double,
        compute_dtype=torch.float32,
    ).to("cpu")
    state = real.weight.quant_state
    held = [real.weight.data, state.absmax, state.code]
    if double:
        held += [state.state2.absmax, state.state2.code, state.offset]
    config = transformers.LlamaConfig(
        hidden_size=80, intermediate_size=192, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=64,
    )  # fmt: skip
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = hollow(config, torch.float32, four_bit=True, double_quant=double)
        layer: Any = model.get_submodule("model.layers.0.mlp.down_proj")
        mine = [layer.weight, layer.absmax, *layer.constants]
    assert storages(held) == storages(mine)


def test_further_layers_add_the_same(tmp_path: Path) -> None:
    config = settings(
        folder(tmp_path, 13), model__context=1024, train__batch_size=1, adapter__method="qlora+",
        memory__offload=True, memory__checkpointing=True, memory__mlp_tile=256,
    )  # fmt: skip
    pins = Pins("cpu", precision="bf16", ops={"cross_entropy": "chunked"})
    whole = predict(
        replace(CODE, depth=lambda _: 1), config, pins, micro=1, block=512, processors=30
    )
    peak, host, _ = reckoning._played(CODE, config, PLACE, reckoning.Known())
    assert (peak, host) == (whole.peak, whole.host)
    assert host == 13 * 1024 * 64 * 2  # the inputs of all layers, in bf16


def test_layers_of_several_kinds_are_not_counted_from_the_first(tmp_path: Path) -> None:
    assert CODE.depth is not None and CODE.depth(settings(folder(tmp_path, 13))) == 13
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    mixed = transformers.Qwen3Config(num_hidden_layers=6, layer_types=kinds, sliding_window=64)
    mixed.save_pretrained(tmp_path / "mixed")
    assert CODE.depth(settings(str(tmp_path / "mixed"))) is None


def test_every_tier_takes_the_least_that_makes_it_fit(tmp_path: Path) -> None:
    config = settings(folder(tmp_path), memory__checkpointing=False)
    place = replace(PLACE, room=48_000_000)
    found = list(tiers(CODE, config, place))
    assert [t.context for t in found] == list(TIERS[: len(found)])
    assert all(t.fits for t in found[:-1]) and not found[-1].fits and len(found) >= 3
    assert [len(way) for way in measures(config, 4096)] == [0, 1, 2, 3]
    for tier in found[:-1]:
        ways = measures(config, tier.context)
        at = ways.index(dict(tier.settings))
        if at:  # with less it does not fit
            less = reckoning._tier(
                CODE, config, place, tier.context, ways[at - 1], 8192, reckoning.Known()
            )
            assert not less.fits
    assert [t.known for t in found] == [t.context <= 8192 for t in found]
    assert found[-1].settings == measures(config, found[-1].context)[-1]


def test_auto_takes_the_largest_that_both_limits_allow(tmp_path: Path) -> None:
    config = settings(folder(tmp_path), memory__checkpointing=True)
    roomy, narrow = replace(PLACE, room=10**10), replace(PLACE, room=30_000_000)
    assert chosen_context(CODE, config, roomy, 10**6).context == 8192  # what the base knows
    assert chosen_context(CODE, config, roomy, 3000).context == 2048  # what there is to read
    tight = chosen_context(CODE, config, narrow, 10**6)
    assert tight.fits and tight.context < 8192


def test_stretched_rows_are_no_trained_rows() -> None:
    plain = transformers.LlamaConfig(max_position_embeddings=4096)
    yarn = {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
    }  # fmt: skip
    longer = transformers.LlamaConfig(max_position_embeddings=32768, rope_parameters=yarn)
    assert trained_for(plain) == trained_for(longer) == 4096
    learned = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    public = transformers.LlamaConfig(
        max_position_embeddings=131072, rope_parameters={**yarn, **learned}
    )
    assert trained_for(public) == 131072  # Llama 3.2 saw such rows


@pytest.mark.slow
def test_phi_2_on_the_cards_of_the_plan(tmp_path: Path) -> None:
    transformers.PhiConfig(
        vocab_size=51200, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32,
        num_attention_heads=32, max_position_embeddings=2048, partial_rotary_factor=0.4,
    ).save_pretrained(tmp_path)  # fmt: skip
    four, half = (
        list(
            tiers(
                CODE, settings(str(tmp_path), adapter__method=m), find_place("RTX 2060 SUPER", None)
            )
        )
        for m in ("qlora+", "lora+")
    )
    assert max(t.context for t in four if t.fits) == 65536
    assert not any(t.fits and t.context >= 32768 for t in half)  # 32 K without 4 bits do not fit
    assert not any(t.known for t in (*four, *half))


@pytest.mark.parametrize(
    ("absent", "preset"), [("transformers", "tiny"), ("peft", "tiny"), ("bitsandbytes", "gpu8")]
)
def test_without_what_it_takes_planning_says_how_to_get_it(
    absent: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = folder(tmp_path / "base") if absent == "bitsandbytes" else "tiny"
    monkeypatch.setitem(sys.modules, absent, None)
    assert main(["plan", "code", "--preset", preset, "--base", given, "--gpu", "8GB"]) == 3
    told = capsys.readouterr().err
    assert absent in told and 'pip install "surefoot[code]"' in told


def test_a_plan_loads_what_a_run_loads_before_it_looks_at_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    config_of, place_of = base.public_config, cards.find_place

    def first(ref: str) -> Any:
        events.append("base")
        return config_of(ref)

    def second(*_: Any) -> Any:
        events.append("place")
        return place_of("8GB", None)

    monkeypatch.setattr(base, "public_config", first)
    monkeypatch.setattr(cards, "find_place", second)
    assert main(["plan", "code", "--preset", "tiny", "--context", "64"]) == 0
    assert events[:2] == ["base", "place"]


def test_two_processes_may_make_the_same_base_at_the_same_time(tmp_path: Path) -> None:
    wanted = tmp_path / "bases" / "mine"
    with _staged(wanted) as slow, _staged(wanted) as quick:
        for staged in (slow, quick):
            (staged / "config.json").write_text("{}", "utf-8")
    assert [path.name for path in wanted.parent.iterdir()] == ["mine"]
    assert (wanted / "config.json").is_file()


class Doubled:
    """A model of which each row costs what is in it, and twice as much without its adapters."""

    factor = 1.0

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.factor * x.double().sin().square().sum()

    @contextmanager
    def base(self) -> Iterator[None]:
        self.factor = 2.0
        yield
        self.factor = 1.0


def test_a_judge_that_ranks_share_says_what_one_alone_says() -> None:
    def batches() -> Iterator[Batch]:
        for number in range(5):
            x = torch.arange(12 * (number + 1)).view(-1, 6)
            yield Batch({"x": x, "y": torch.where(x % 5 == 0, -100, x)}, x.numel())

    alone, shared = (TextJudge(batches, "val", 0.25) for _ in range(2))
    model = Doubled()
    said = alone(model)
    assert said["base_val_ppl"] > said["val_ppl"] > 1 and said["val_bits_per_byte"] > 0
    for _ in range(2):  # the base is judged the first time only
        parts = [shared.rows(model, rank, 3) for rank in range(3)]
        rows = [part[i] for i in range(2) for part in parts if i < len(part)]
        assert len(rows) == 5 and shared.result(rows) == said
    assert all(base is None for _, base in rows)
