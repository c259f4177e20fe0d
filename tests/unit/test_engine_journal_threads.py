"""A journal that one thread writes while another puts it on the disk."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from surefoot.engine.journal import Journal, Kind, Record, read


def test_a_sync_amid_an_append_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal", "run")
    begun: list[threading.Thread] = []
    write = os.write

    def write_while_a_save_syncs(handle: int, data: bytes) -> int:
        if not begun:
            begun.append(threading.Thread(target=journal.sync))
            begun[0].start()
            begun[0].join(timeout=0.1)  # it must be waiting for us, and not write this record too
        return write(handle, data)

    monkeypatch.setattr(os, "write", write_while_a_save_syncs)
    numbers = [journal.append(Record(Kind.STEP, step)) for step in (1, 2, 3)]
    begun[0].join()
    journal.close()
    found = list(read(tmp_path / "journal"))
    assert numbers == [number for number, _ in found] == [1, 2, 3]
    assert [record.step for _, record in found if record is not None] == [1, 2, 3]
