import re
from pathlib import Path

import pytest

from surefoot.data.clean import docstrings, play, plays

PLAY = r"""# Coriolanus

## ACT I

### SCENE I. Rome. A street.

_Enter a company of mutinous Citizens, with staves, clubs, and other
weapons_

**First Citizen**
Before we proceed any further, hear me speak.

_Shouts within_

What shouts are these?

**VOLUMNIA**
_\[Kneeling]_
Your knee, sirrah.  That's my _\[Aside
to all]_ brave boy!

**SHALLOW**
[To PAGE]_
Will you go?

**All**
__\[Sings]_
""".replace("\n", "  \n")  # Markdown's forced line ends


def test_speeches_stay_and_directions_go():
    assert play(PLAY) == (
        "First Citizen:\nBefore we proceed any further, hear me speak.\n\n"
        "What shouts are these?\n\n"
        "VOLUMNIA:\nYour knee, sirrah.  That's my brave boy!\n\n"
        "SHALLOW:\nWill you go?\n\n"
        "All:\n\n"
    )


def test_line_ends_of_the_source_do_not_matter():
    assert play(PLAY.replace("\n", "\r\n")) == play(PLAY)


def test_no_markup_is_left():
    assert not re.search(r"[\\\[\]_*#]", play(PLAY))


def test_plays_end_after_the_last_line():
    text = plays([PLAY, PLAY], last_line="What shouts are these?")
    assert text.endswith("speak.\n\nWhat shouts are these?\n")
    assert text.count("First Citizen") == 1
    assert plays([PLAY, PLAY]) == play(PLAY) * 2
    with pytest.raises(ValueError, match="substring not found"):
        plays([PLAY], last_line="not in it")


def test_docstrings_are_found_wherever_they_stand(tmp_path: Path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "left_out.py").write_text('"""Not me."""')
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "old.py").write_text('"""An old \\d escape."""')
    (tmp_path / "a.py").write_text(
        '"""About a."""\nclass C:\n    """A class.\n\n    More.\n    """\n'
        '    def f(self):\n        """Café."""\n    async def g(self):\n        """Waits."""\n'
    )
    assert docstrings(["Topic — “so”.", "ñ\n\nKept."], tmp_path) == (
        'Topic -- "so".\n\n\nKept.\n\n\n'
        "a\nAbout a.\n\n\nC\nA class.\n\nMore.\n\n\ng\nWaits.\n\n\n"
        "old\nAn old \\d escape.\n\n\n"
    )
