"""Tensors to bytes and back."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from surefoot.engine import codec
from surefoot.errors import CheckpointError

TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    found = {str(t): torch.arange(-3, 4).to(t) for t in TYPES}
    return found | {
        "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "turned": torch.rand(3, 4).T,
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]), "größe/x.y": torch.ones(1),
    }  # fmt: skip


def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    size, hashed = codec.write_tensors(path, tensors())
    data = path.read_bytes()
    assert (size, hashed) == (len(data), xxhash.xxh3_128_hexdigest(data)) == codec.digest(path)
    found = codec.read_tensors(path)
    for name, tensor in tensors().items():
        if name != "turned":
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            as_bytes = tensor.contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(found[name].reshape(-1).view(torch.uint8), as_bytes), name


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    turned = torch.arange(12.0).reshape(3, 4).T
    codec.write_tensors(tmp_path / "x", {"b": turned, "a": torch.ones(2, dtype=torch.bfloat16)})
    found = load_file(tmp_path / "x")
    assert torch.equal(found["b"], turned) and found["a"].dtype == torch.bfloat16


def test_equal_tensors_give_equal_files_in_any_order(tmp_path: Path) -> None:
    a, b = torch.ones(3), torch.zeros(2)
    assert codec.write_tensors(tmp_path / "1", {"a": a, "b": b}) == codec.write_tensors(
        tmp_path / "2", {"b": b, "a": a}
    )


def test_more_than_one_piece_is_hashed_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "_CHUNK", 7)
    size, hashed = codec.write_bytes(tmp_path / "x", bytes(range(100)))
    assert (size, hashed) == (100, xxhash.xxh3_128_hexdigest(bytes(range(100))))
    assert codec.digest(tmp_path / "x") == (size, hashed)


@pytest.mark.parametrize("data", [
    b"", b"\0", struct.pack("<Q", 100) + b"{}", struct.pack("<Q", 2**63) + b"{}",
    struct.pack("<Q", 2) + b"{]", struct.pack("<Q", 2) + b"[]", b"\x80\x05K\x01." * 20,
])  # fmt: skip
def test_what_is_no_tensor_file_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"header is longer|not a safetensors file"):
        codec.read_tensors(tmp_path / "x")


def test_a_missing_file_is_a_checkpoint_error_too(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        codec.read_tensors(tmp_path / "x")


def test_a_shelf_holds_the_same_tensors_and_reads_each_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    codec.write_tensors(path, tensors())
    whole, shelf = codec.read_tensors(path), codec.TensorFile(path)
    assert dict.fromkeys(shelf) == dict.fromkeys(whole) and len(shelf) == len(whole)
    for name, tensor in whole.items():
        found = shelf[name]
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert torch.equal(found.nan_to_num(7), tensor.nan_to_num(7)), name
    with pytest.raises(KeyError):
        shelf["none"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        shelf["scalar"]
    path.unlink()
    with pytest.raises(CheckpointError):
        shelf["scalar"]
