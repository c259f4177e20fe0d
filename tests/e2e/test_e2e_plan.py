"""`surefoot plan`: what fits, what would, what is refused, and a configuration that trains."""

import json
from pathlib import Path

import pytest
import torch

from surefoot.cli import doctor, main
from surefoot.engine.cards import CARDS, find_place
from surefoot.engine.meter import allowed
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


def test_limits_of_a_control_group_count(tmp_path: Path) -> None:
    assert allowed(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert allowed(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert allowed(tmp_path) == 300


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
    assert "ms taken; the process held" in capsys.readouterr().out
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


def test_doctor_says_why_a_card_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "finds no driver" in doctor._why_no_card()
    monkeypatch.setattr("pathlib.Path.exists", lambda _: True)
    assert "nvidia-smi" in doctor._why_no_card()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this torch is for processors" in doctor._why_no_card()
