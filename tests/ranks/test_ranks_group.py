"""Real processes over gloo: the same bits however weights are held, and for any number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
SIZES = (2, 3, 4)


def play(folder: Path, name: str, *sizes: int, **more: str) -> dict[int, dict[str, list[Any]]]:
    done = subprocess.run(
        [sys.executable, str(HERE / "group.py"), str(folder), name, *map(str, sizes)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **more}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {size: json.loads((folder / f"{size}.json").read_text()) for size in sizes}
    assert "Traceback" not in done.stderr, done.stderr
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[Any]]]:
    return play(tmp_path_factory.mktemp("ranks"), "quick", 1, *SIZES)


@pytest.mark.parametrize("reduce", ["ordered", "tree"])
def test_replicas_and_shards_have_the_same_bits(found: Any, reduce: str) -> None:
    for size in SIZES:
        ways = {n: ranks for n, ranks in found[size].items() if n.startswith(f"{reduce} ")}
        assert len(ways) == (3 if size % 2 == 0 else 2)
        assert len({ranks[0][0] for ranks in ways.values()}) == 1, (size, ways)
        records = {record for ranks in ways.values() for _, record in ranks}
        assert len(records) == 1, f"all {size} ranks report the same, however weights are held"


def test_a_tree_has_the_same_bits_for_any_number_of_ranks(found: Any) -> None:
    weights = {size: found[size]["tree ddp"][0] for size in SIZES} | {1: found[1]["tree none"][0]}
    weights |= {
        0: found[1]["tree ddp"][0],
        -1: found[1]["tree fsdp2"][0],
    }  # one, wrapped all the same
    assert len({tuple(pair) for pair in weights.values()}) == 1, weights
    other = {size: found[size]["ordered ddp"][0][0] for size in (2, 3)}
    assert len(set(other.values())) == 2, "ordered sums are those of a number of ranks"


@pytest.mark.parametrize("reduce", ["ordered", "tree"])
def test_a_step_waits_for_one_reduction_which_the_backward_pass_hides(
    found: Any, reduce: str
) -> None:
    for under_way, sums, told, in_time in found[2][f"overlap {reduce}"]:
        assert sums > 2, "several buckets, so that there is something to hide"
        assert under_way[-1] >= sums - 1, "all but the last are under way at the last gradient"
        assert told == ["gloo:all_gather"] + ["gloo:all_reduce"] * sums, "and nothing besides"
        assert in_time, "losses, wishes and checksums travel during the backward pass"


def test_memory_that_runs_out_on_one_rank_is_met_by_all(found: Any) -> None:
    undisturbed = None
    for when in ("forward", "backward"):
        once, twice = found[2][f"memory {when} 1"], found[2][f"memory {when} 2"]
        assert once[0][1:] == once[1][1:] and twice[0][1:] == twice[1][1:]
        assert once[0][2:] == [[], 2], "what passes changes nothing"
        undisturbed = undisturbed or once[0][0]
        assert once[0][0] == undisturbed
        assert twice[0][3] == 1 and "going on with 1 examples a pass" in twice[0][2][0]
        assert "rank 1" in twice[0][2][0]


def test_memory_that_runs_out_while_others_add_gradients_is_met_by_all(found: Any) -> None:
    undisturbed = found[2]["memory forward 1"]
    for name in ("midway 0 gradient", "midway 3 gradient", "midway 3 begin"):
        assert found[2][name] == undisturbed, name


def test_a_rank_without_room_to_stand_in_ends(found: Any) -> None:
    said = found[2]["no room"][1]
    assert said.startswith("OutOfResources: out of memory while gradients were added")


def test_what_is_not_finite_on_one_rank_is_applied_by_none(found: Any) -> None:
    for how in ("ddp", "fsdp2"):
        first, second = found[2][f"nan {how}"]
        assert first == second and first[0] == [True, True, False, True, True, True]
        assert first[1] == 5


def test_a_rank_whose_weights_drift_is_named(found: Any) -> None:
    for said in found[2]["tampered"]:
        assert said.startswith("CheckFailed: rank 1 does not hold the weights that rank 0 holds")
        assert "before step 3" in said


def test_a_learner_beside_another_is_as_alone(found: Any) -> None:
    assert found[2]["beside"] == [[True, 12], [True, 12]]


def test_blocks_that_are_computed_again_have_the_same_bits(found: Any) -> None:
    for rank, played in enumerate(found[2]["again"]):
        assert played == [found[2]["ordered ddp"][rank]] * 2


def test_looking_at_a_split_model_changes_nothing(found: Any) -> None:
    weights, seen = found[2]["gathered"][0]
    assert weights == found[2]["ordered fsdp2"][0][0] and seen != 0.0


def test_an_evaluation_is_shared_and_its_numbers_are_those_of_one_process(found: Any) -> None:
    told = {size: found[size]["shared"] for size in (1, *SIZES)}
    assert len({str(metrics) for ranks in told.values() for _, metrics, *_ in ranks}) == 1, told
    assert all(same for ranks in told.values() for same, *_ in ranks)
    for size in SIZES:
        passes = [seen for _, _, seen, *_ in told[size]]
        assert sum(passes) == 7 + 1, "each batch once, and one again after memory ran out"
        assert max(passes) <= -(-7 // size) + 1
        assert [by_one for *_, by_one, _ in told[size]] == [{"rank": 0}] * size
        where = f"where: rank {size - 1} of {size}, here"
        assert all(where in said for *_, said in told[size])


def test_a_checkpoint_of_a_split_model_needs_one_copy_of_host_memory(found: Any) -> None:
    (first, held), (other, nothing) = found[2]["host"]
    assert held == 1.0 and nothing == 0.0
    assert first <= 1.2 and other <= 0.2, "copies of the model, on rank 0 and elsewhere"


def test_every_rank_may_write_its_own_part_of_a_checkpoint(found: Any) -> None:
    files, same, restored = found[2]["apart"][0]
    kinds = [
        f"main.{rank}of2.{kind}.safetensors"
        for rank in (0, 1)
        for kind in ("ema", "model", "optim")
    ]
    assert files == [*kinds, "state.json"]
    assert same and restored


@pytest.mark.parametrize("size", SIZES)
def test_ranks_that_do_not_agree_are_named(found: Any, size: int) -> None:
    for said in found[size]["refused"]:
        last = size - 1
        assert "RunError: the ranks do not agree, nothing was trained" in said["version"]
        assert f"rank {last} (" in said["version"] and "torch 9.9, 2.0 on rank 0" in said["version"]
        assert f"is not shared: rank {last}" in said["folder"] and said["same"] == ""
        assert "more ranks than micro-batches: 9 ranks cannot share 4 micro-batches" in said["many"]
        assert said["first"] == "SurefootError: it is broken\n  where: here\n  help:  mend it"
        assert f"where: rank {last} of {size}, here" in said["each"]


@pytest.mark.parametrize("size", SIZES)
def test_a_signal_to_one_rank_stops_all_after_the_same_step(found: Any, size: int) -> None:
    assert found[size]["wishes"] == [[0, 0, 15, 15, 15, 15]] * size


@pytest.mark.slow
def test_resumes_in_every_order_of_sizes(tmp_path: Path) -> None:
    ends: dict[str, list[Any]] = {}
    for place in range(3):
        links = play(tmp_path, "chain", 1, 2, 4, PLACE=str(place))
        ends = {name: ranks for found in links.values() for name, ranks in found.items()}
    assert len(ends) == 2 * len(list(permutations((1, 2, 4))))
    assert len({ranks[0][0] for ranks in ends.values()}) == 1, ends
    assert ends["ddp 1-2-4"][0][0] == play(tmp_path, "quick", 1)[1]["tree none"][0][0]
