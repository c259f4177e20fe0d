"""`surefoot plan`: what fits, what would, what is refused, and a configuration that trains."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surefoot.cli import doctor, main
from surefoot.engine.foresee import outlook
from surefoot.engine.foresee.cards import CARDS, find_place
from surefoot.engine.memory import allowed
from surefoot.engine.world import why_no_card
from surefoot.errors import ConfigError

TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")
TINY = ["plan", "charlm", "--preset", "tiny", "--path", TEXT]


def test_a_card_that_is_not_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    written = tmp_path / "run.yaml"
    words = [*TINY, "--gpu", "rtx 2060 super", "--write", str(written)]
    assert main([*words, "--json"]) == 0
    told = capsys.readouterr()
    assert f"wrote  {written}" in told.err, "and nothing but the document on standard output"
    found = json.loads(told.out)
    assert found["fits"] and found["place"] == "RTX 2060 SUPER" and found["precision"] == "fp16"
    assert found["bytes"] == sum(found["parts"].values()) > found["parts"]["weights"] > 100_000
    assert found["parts"]["CUDA"] == 500_000_000
    assert found["seconds"] == pytest.approx(60 * found["step_seconds"])
    assert "micro_batch_size: 8" in written.read_text()
    assert main([*words, "--json"]) == 2, "it never writes over a file"
    assert main([*words[:-1], str(tmp_path / "no" / "such.yaml")]) == 1
    assert "--write: cannot write" in capsys.readouterr().err
    assert main(["plan", "charlm", "-c", str(written), "--gpu", "8GB"]) == 0
    assert "what you could change" in capsys.readouterr().out


def test_a_batch_is_cut_until_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--d-model", "512", "--num-heads", "4", "--context", "512", "--batch-size", "32"]
    assert main([*TINY, *sizes, "--gpu", "1.5GB"]) == 0
    out = capsys.readouterr().out
    assert "pieces of" in out and "same result" in out
    assert main([*TINY, *sizes, "--gpu", "1.5GB", "--micro-batch-size", "32"]) == 4
    told = capsys.readouterr()
    assert "does not fit" in told.out
    assert "--micro-batch-size 16" in told.out or "--micro-batch-size" in told.err


def test_where_nothing_fits_the_smallest_change_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = ["--d-model", "2048", "--num-layers", "8", "--num-heads", "4"]
    assert main([*TINY, *sizes, "--gpu", "4GB"]) == 4
    told = capsys.readouterr()
    assert "does not fit" in told.out
    assert "--d-model 1024 needs" in told.err


@pytest.mark.parametrize(
    ("asked", "told"),
    [("RTX 2060 SUPR", "RTX 2060 SUPER"), ("zebra", "or --gpu 8gb"), ("5MB", "that small")],
)
def test_unknown_cards(asked: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_place(asked, None)
    assert told.lower() in str(caught.value).lower()


def test_cards_are_found_by_what_drivers_call_them() -> None:
    assert find_place("NVIDIA GeForce RTX 2060 SUPER", None).name == "RTX 2060 SUPER"
    assert find_place("Tesla T4", None).precision == "fp16"
    assert all(card.source and (card.half or 99) > card.fp32 for card in CARDS.values())


def group(folder: Path, most: str, held: int, cached: int = 0, version: int = 2) -> None:
    """Write what Linux shows of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{held}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


def test_limits_of_control_groups_count(tmp_path: Path) -> None:
    root, table = tmp_path / "cgroup", tmp_path / "table"
    assert allowed(root, table) is None
    group(root, "max", 700)
    assert allowed(root, table) is None
    group(root, "1000", 700, cached=50)
    assert allowed(root, table) == 350, "a container sees its own group as the root"
    table.write_text("0::/user/one\n")
    group(root / "user", "900", 800)
    group(root / "user" / "one", "5000", 10)
    assert allowed(root, table) == 100, "the least of those around decides"
    table.write_text("0::/../elsewhere\n")
    assert allowed(root, table) == 350


def test_limits_of_older_control_groups_count(tmp_path: Path) -> None:
    root, table = tmp_path / "cgroup", tmp_path / "table"
    table.write_text("8:pids:/\n4:cpu,memory:/user/one\n0::/\n")
    group(root / "memory", str((1 << 63) - 4096), 9000, version=1)
    assert allowed(root, table) is None
    group(root / "memory" / "user" / "one", "2000", 500, cached=100, version=1)
    assert allowed(root, table) == 1600


def test_a_plan_for_a_control_group_says_what_would_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surefoot.engine.memory.allowed", lambda: 20_000_000)
    sizes = ["--d-model", "256", "--num-layers", "2", "--context", "256"]
    assert main([*TINY, *sizes]) == 4
    told = capsys.readouterr()
    assert "does not fit" in told.out and "fits with --" in told.out
    assert "too much, even with one example at a time" in told.err


def test_what_was_measured_here_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    assert "--probe measures" in capsys.readouterr().out
    assert main([*TINY, "--probe"]) == 0
    assert "measured here" in capsys.readouterr().out
    assert main([*TINY, "--probe", "--gpu", "8GB"]) == 2


def test_a_run_says_what_it_took_and_the_next_plan_remembers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train = ["train", *TINY[1:], "--runs", str(tmp_path), "--name", "first"]
    assert main([*train, "--no-tensorboard", "--no-report"]) == 0
    assert "ms taken" in capsys.readouterr().out
    taken = json.loads((tmp_path / "first" / "run.json").read_text())["taken"]
    assert taken["steps"] == 60 and taken["bytes"] > 10**8 and taken["step_seconds"] > 0
    assert main([*TINY, "--runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["before"] == {"run": "first", **taken}


def test_doctor_keeps_the_ceilings_it_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["doctor", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert first["products"] == again["products"] and first["bandwidth"] == again["bandwidth"]
    assert "GB/s" in first["bandwidth"]["is"] and "free" in first["memory"]["is"]
    assert "bf16" in first["numbers"]["is"] and "MB/s" in first["disk"]["is"]
    assert {"device", "compile", "threads", "[gpu]", "[code]", "[tb]"} <= first.keys()


def test_doctor_names_cards_of_two_sizes_and_what_others_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    sizes = [(6 * 10**9, 8 * 10**9), (23 * 10**9, 24 * 10**9)]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: sizes[index])
    first, second = doctor._cards()
    assert "6.0 of 8.0 GB free" in first[1] and "other programs use 2.0 GB" in first[2]
    assert second[0] == "device 1" and "--device cuda:1" in second[2]


def test_a_plan_is_for_the_card_asked_for_and_names_one_of_another_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def properties(index: Any) -> Any:
        n = index if isinstance(index, int) else torch.device(index).index or 0
        size = (8, 24, 24)[n] * 10**9
        return SimpleNamespace(
            name=f"card {n}", total_memory=size, multi_processor_count=80, major=8
        )

    ceilings = find_place("RTX 3060", None).ceilings
    monkeypatch.setattr("surefoot.engine.foresee.cards.measured", lambda *_, **__: ceilings)
    monkeypatch.setattr("surefoot.engine.foresee.cards.overhead", lambda *_: None)
    monkeypatch.setattr("surefoot.engine.auto.known.device_name", lambda _: "card")
    for name, value in {
        "is_available": lambda: True, "device_count": lambda: 3, "set_device": lambda _: None,
        "mem_get_info": lambda device: (properties(device).total_memory - 10**9, 0),
        "get_device_properties": properties, "is_bf16_supported": lambda _: True,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    assert main(TINY) == 0
    out = capsys.readouterr().out
    assert "on     card 0: 7.0 GB to use" in out
    assert "cuda:1 has 24.0 GB, cuda:2 has 24.0 GB (--device plans for it)" in out
    assert "has room for what fits cuda:0" in out
    assert main([*TINY, "--device", "cuda:2"]) == 0
    out = capsys.readouterr().out
    assert "on     card 2: 23 GB to use" in out and "cuda:0 has 8.0 GB" in out
    assert main([*TINY, "--device", "cuda:3"]) == 3
    told = capsys.readouterr().err
    assert "there is no CUDA device 3" in told and "--gpu 8GB" in told
    assert main([*TINY, "--device", "cpu"]) == 0, "a processor beside cards is planned for, too"
    assert "on     this machine" in capsys.readouterr().out


def test_doctor_says_why_a_card_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "finds no driver" in why_no_card()
    monkeypatch.setattr("pathlib.Path.exists", lambda _: True)
    assert "nvidia-smi" in why_no_card()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this torch is for processors" in why_no_card()


def test_a_card_without_a_driver_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert main(["train", *TINY[1:], "--device", "cuda"]) == 3
    told = capsys.readouterr().err
    assert "there is no CUDA device 0" in told and "finds no driver" in told
    assert "--device cpu" in told


def test_a_plan_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Looked ahead once, and told in terminals of four widths."""
    seen: dict[str, Any] = {}

    def once(name: str, look: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *asked: seen[name] if name in seen else seen.setdefault(name, look(*asked))

    monkeypatch.setattr(outlook, "look_ahead", once("ahead", outlook.look_ahead))
    changes = outlook.changes
    monkeypatch.setattr(outlook, "changes", once("changes", lambda *asked: list(changes(*asked))))
    for columns in (40, 60, 80, 120):
        for module in ("plan", "folded"):
            monkeypatch.setattr(f"surefoot.cli.{module}.room", partial(int, columns))
        assert main([*TINY, "--gpu", "8GB"]) == 0
        said = capsys.readouterr().out
        assert max(len(line) for line in said.splitlines()) <= columns
        assert ("█" in said) is (columns in (60, 120))
        assert ("what the optimiser remembers" in said) is (columns >= 80)
