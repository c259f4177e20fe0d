"""Problems of a file become prompts, and those that are in the training text are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surefoot.data.compile_rate import Completion, judge
from surefoot.data.problem_prompts import leaks, read_problems
from surefoot.errors import DataError

HUMAN = {
    "task_id": "HumanEval/0", "entry_point": "close",
    "prompt": 'from typing import List\n\n\ndef close(numbers: List[float]) -> bool:\n    """ Are any two close?\n    """\n',
    "canonical_solution": "    for n in numbers:\n        if n in numbers[1:]:\n            return True\n\n    return False\n",
    "test": "assert close([1, 1])",
}  # fmt: skip
MBPP = {
    "task_id": 7, "text": "Write a function to find words.", "test_list": ["assert find('a')"],
    "code": "import re\r\ndef find(text):\r\n  found = re.findall('[a-z]+', text)\r\n  return [w for w in found if len(w) > 3]",
}  # fmt: skip


def written(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_both_kinds_become_prompts_whose_solutions_compile(tmp_path: Path) -> None:
    human, mbpp = read_problems(written(tmp_path, HUMAN, MBPP), 9)
    assert human.prompt.prefix.endswith('"""') and human.prompt.column == 4
    assert mbpp.prompt.prefix.split("\n") == [
        "import re", "def find(text):", '  """Write a function to find words."""',
    ]  # fmt: skip
    bodies = [HUMAN["canonical_solution"], "  found = re.findall('[a-z]+', text)\n  return found\n"]
    done = [Completion(p.prompt, "\n" + str(body), True) for p, body in zip((human, mbpp), bodies)]
    assert all(v.as_is and v.cut and v.ended for v in judge(done))
    assert len(read_problems(written(tmp_path, HUMAN, MBPP), 1)) == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["nonsense"], "problems.jsonl:1"),
        (["[1, 2]"], "problems.jsonl:1"),
        (["null"], "problems.jsonl:1"),
        (["nonsense"], "it is no JSON: Expecting value"),
        ([HUMAN, {"task_id": 1}], "problems.jsonl:2"),
        ([HUMAN, {"task_id": 1}], "it has no 'code'"),
        ([{**MBPP, "code": "x = 1"}], "defines no function"),
        ([{**MBPP, "code": "def f(:"}], "its code is no Python: "),
        ([{**HUMAN, "prompt": " \n"}], "its prompt is empty"),
        ([], "is empty"),
    ],
)
def test_other_files_are_refused_with_the_line(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_problems(written(tmp_path, *rows), 9)
    assert said in str(caught.value)


def test_a_mark_at_the_beginning_of_a_file_is_none_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, HUMAN)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [p.name for p in read_problems(path, 9)] == [HUMAN["task_id"]]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file(?s:.*)check the path"):
        read_problems(tmp_path / "none.jsonl", 9)


def test_problems_in_the_training_text_are_found_whatever_the_spaces(tmp_path: Path) -> None:
    problems = read_problems(written(tmp_path, HUMAN, MBPP), 9)
    copied = "class A:\n" + "\n".join("    " + x for x in problems[0].code.split("\n"))
    assert leaks(problems, ["x = 1\n", copied]) == ["HumanEval/0"]
    assert leaks(problems, ["def other(a, b):\n    return a + b * 2 - 7\n"]) == []
    assert leaks(problems, []) == []
    renamed = MBPP["code"].replace("\r", "").replace("> 3", "> 4")  # type: ignore[attr-defined]
    assert leaks(problems, [renamed]) == ["7"]
