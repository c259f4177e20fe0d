"""Whatever byte a crash stops at, every whole row is there once and nothing else is."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.track.lines import Lines, encode

ROWS = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(0, 40), "text": st.text(max_size=12), "x": st.floats()}
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, cut=st.floats(0, 1), step=st.integers(0, 40))
def test_cut_anywhere_then_open_and_rewind(
    rows: list[dict[str, object]], cut: float, step: int
) -> None:
    whole = [encode(row) for row in rows]
    data = b"".join(whole)
    data = data[: int(cut * len(data))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_bytes(data)
        lines = Lines(path)
        lines.rewind(step)
        lines.append(encode({"step": step}))
        lines.close()
        found = [json.loads(line) for line in path.read_bytes().splitlines()]
        aside = Path(folder) / "metrics.superseded.jsonl"
        moved = aside.read_bytes().splitlines() if aside.exists() else []
    ends = [sum(map(len, whole[: n + 1])) for n in range(len(whole))]
    kept = [json.loads(line) for line, end in zip(whole, ends) if end - 1 <= len(data)]
    assert found == [row for row in kept if row["step"] <= step] + [{"step": step}]
    assert [json.loads(line) for line in moved] == [row for row in kept if row["step"] > step]
