"""What a setting means, the reference of all, and the page of help."""

from __future__ import annotations

import pytest

from surefoot.config.explain import explain, find_field, reference
from surefoot.config.fields import leaves, sections
from surefoot.errors import ConfigError
from surefoot.recipes.charlm import CharConfig, recipe


@pytest.mark.parametrize(
    "word", ["optim.lr", "lr", "--lr", "--optim.lr", "learning_rate", "--learning-rate"]
)
def test_a_setting_is_found_under_every_name_it_has(word: str) -> None:
    assert find_field(word, CharConfig) == "optim.lr"


@pytest.mark.parametrize(
    ("word", "help"),
    [
        ("kind", "optim.kind or schedule.kind"),
        ("dmodel", "did you mean model.d_model?"),
        ("train", "it has seed, batch_size"),
        ("zebra", "surefoot config docs RECIPE"),
    ],
)
def test_what_is_not_found_is_told(word: str, help: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_field(word, CharConfig)
    assert help in str(caught.value)


def test_explanation_says_what_why_and_where_from() -> None:
    text = explain("model.d_model", CharConfig, recipe.presets, 64, "run.yaml:3:5")
    assert text.splitlines()[:2] == [
        "model.d_model = 64     from run.yaml:3:5",
        "Width of the residual stream.",
    ]
    for part in ("a whole number at least 1", "default  128", "tiny 32", "--d-model VALUE"):
        assert part in text
    assert "a resume must repeat it" in text
    assert "a resume may change it" in explain("cadence.log_every", CharConfig, {})


def test_reference_holds_every_section_and_setting() -> None:
    page = reference("charlm", recipe.summary, CharConfig, recipe.presets, "laptop")
    for name in sections(CharConfig):
        assert f"\n## {name}\n" in page
        assert f"[`{name}`](#{name})" in page
    for leaf in leaves(CharConfig).values():
        assert f"| `{leaf.name}` |" in page
        assert leaf.doc in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {7}
