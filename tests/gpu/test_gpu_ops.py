"""On a card: every way of every operation is its reference, and the standard ways are not slower.

Run with a CUDA device (`pytest tests/gpu/test_gpu_ops.py -q -n 0`); without one everything here is
skipped. What torch's compiler has to build first is marked slow.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from tests.unit.test_ops_compiled_parts import COMPILED, compiled_as_plain  # noqa: E402

from surefoot.cli import main  # noqa: E402
from surefoot.ops import OPS, Op  # noqa: E402
from surefoot.ops.check import DTYPES, check, measure, race, slow  # noqa: E402

CUDA = torch.device("cuda")
WAYS = [
    pytest.param(op.name, name, marks=[pytest.mark.slow] if way.slow_start else [])
    for op in OPS.values()
    for name, way in op.ways.items()
    if name != "reference"
]
LIMIT = 0.05  # that a standard way may be slower than its reference
TRIES = 3  # of a race that was lost: another program may have taken part


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("op", "way"), WAYS)
def test_every_way_is_its_reference(op: str, way: str) -> None:
    reason = OPS[op].ways[way].why_not(CUDA)
    if reason is not None:
        pytest.skip(reason)
    found = check(OPS[op], way, CUDA, shapes=4 if OPS[op].ways[way].slow_start else 16)
    assert [finding for finding in found if not finding.fine] == []
    assert {finding.dtype for finding in found} <= {"fp64", "fp32", "bf16", "fp16"} and found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", COMPILED, ids=lambda op: op.name)
def test_no_way_loses_its_gradient_in_the_compiler(op: Op) -> None:
    compiled_as_plain(op, CUDA)


def test_triton_runs_here() -> None:
    ops = [op for op in OPS.values() if "triton" in op.ways]
    assert ops and [op.name for op in ops if op.ways["triton"].why_not(CUDA) is not None] == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("op", OPS)
def test_no_standard_way_is_slower_than_its_reference(op: str, dtype: str) -> None:
    told: list[str | None] = []
    for _ in range(TRIES):
        ((raced, speeds),) = race([OPS[op]], CUDA, dtype)
        told.append(slow(raced, speeds, LIMIT))
        print("".join(f"\n{op} {dtype} {n}: {s.seconds * 1e6:.1f} us, {s.ratio:.2f}" for n, s in speeds.items()))  # fmt: skip
        if told[-1] is None:
            return
    alone = [measure(OPS[op], CUDA, ["reference"], DTYPES[dtype]) for _ in range(TRIES)]
    taken = [speeds["reference"].seconds for speeds in alone]
    if max(taken) > (1 + LIMIT) * min(taken):
        pytest.skip(f"another program computes here: the reference alone took {taken} s")
    pytest.fail(f"{TRIES} races were lost: {told}")


def test_the_command_checks_on_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "check", "--device", "cuda", "--shapes", "2"]) == 0
    assert "OFF" not in capsys.readouterr().out
