"""What holds for every configuration, and for every text that somebody may type."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from surefoot.config import flags
from surefoot.config.documents import parse
from surefoot.config.fields import Given, Leaf, flatten, leaves
from surefoot.config.files import dump, load_run_config, scalar
from surefoot.config.identity import fingerprint
from surefoot.config.resolve import Layer, check, gather, starting_values
from surefoot.errors import ConfigError
from surefoot.recipes.charlm import CharConfig

LEAVES = leaves(CharConfig)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def values_of(leaf: Leaf) -> st.SearchStrategy[Any]:
    """Values that mostly are of the right kind."""
    ways: list[st.SearchStrategy[Any]] = [st.just(leaf.default)]
    ways += [st.sampled_from(leaf.choices)] if leaf.choices else []
    ways += [st.integers(0, 10**12)] if int in leaf.kinds else []
    ways += [st.floats(0, 1e6)] if float in leaf.kinds else []
    ways += [st.booleans()] if leaf.boolean else []
    ways += [WORDS] if leaf.textual else []
    ways += [st.lists(WORDS, max_size=3).map(tuple)] if leaf.listing else []
    ways += [st.none()] if leaf.optional else []
    return st.one_of(ways)


@st.composite
def configurations(draw: st.DrawFn) -> CharConfig:
    """A configuration with up to six settings changed."""
    merged = starting_values(CharConfig)
    for path in draw(st.lists(st.sampled_from(sorted(LEAVES)), max_size=6, unique=True)):
        trial = merged | {path: Given(draw(values_of(LEAVES[path])), "drawn")}
        try:
            check(CharConfig, trial)
        except ConfigError:
            continue
        merged = trial
    config: CharConfig = check(CharConfig, merged).config
    return config


@settings(max_examples=60)
@given(configurations(), st.dictionaries(st.sampled_from(sorted(LEAVES)), WORDS))
def test_written_and_read_again_is_the_same(config: CharConfig, sources: dict[str, str]) -> None:
    text = dump(config, sources, {"threads": 2}, "charlm", None)
    stored = load_run_config(text, CharConfig)
    assert stored.config == config
    assert flatten(stored.config) == flatten(config)
    assert fingerprint(stored.config) == fingerprint(config)


@settings(max_examples=60)
@given(configurations())
def test_the_command_line_can_say_every_configuration(config: CharConfig) -> None:
    flat = flatten(config)
    argv = [f"--{path}={said(value)}" for path, value in flat.items() if sayable(value)]
    _, values, problems = flags.parse(flags.parser("t"), argv, CharConfig)
    assert problems == []
    rest = {p: Given(v, "rest") for p, v in flat.items() if p not in values}
    assert check(CharConfig, rest | values).config == config


def said(value: Any) -> str:
    if value is None:
        return "none"
    return ",".join(value) if isinstance(value, list) else str(value)


def sayable(value: Any) -> bool:
    """Lists of words with commas, and the word `none` itself, need a file."""
    if isinstance(value, list):
        return all(word == word.strip() and word and "," not in word for word in value)
    return not isinstance(value, str) or value.strip().lower() not in ("none", "null", "~")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_any_value_is_read_as_it_was_written(value: Any) -> None:
    assert parse("a.yaml", f"x: {scalar(value)}\n").data == {"x": value}


KEYS = st.sampled_from(
    ["train", "model", "optim", "lr", "seed", "d_model", "n_embd", "surefoot", "x", "resolved"]
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3)
)


@settings(max_examples=150)
@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_any_tree_is_a_configuration_or_told_mistakes(tree: dict[str, Any]) -> None:
    document, layer = parse("a.yaml", scalar(tree) + "\n"), Layer()
    gather(document, CharConfig, layer)
    try:
        check(CharConfig, starting_values(CharConfig) | layer.values, layer.problems)
    except ConfigError as error:
        layer.problems += error.problems
    assert all(problem.what and problem.where for problem in layer.problems)


@settings(max_examples=150)
@given(st.sampled_from([".yaml", ".toml", ".json", ".py"]), st.text(max_size=40))
def test_any_text_is_a_file_or_a_told_mistake(suffix: str, text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(parse(f"a{suffix}", text, suffix).data, dict)


ARGUMENTS = st.lists(
    st.sampled_from(
        ["--lr", "--d-model=3", "--report", "--no-report", "-c", "--", "-1", "=", "--="]
    )
    | st.text(max_size=6)
    | st.text(max_size=6).map(lambda text: "--" + text),
    max_size=6,
)


@settings(max_examples=150)
@given(ARGUMENTS)
def test_any_words_are_settings_or_told_mistakes(argv: list[str]) -> None:
    own = flags.parser("t")
    own.add_argument("-c", "--config", action="append", default=[])
    options, values, problems = flags.parse(own, argv, CharConfig)
    assert options.help in (True, False)
    assert set(values) <= set(LEAVES)
    assert all(problem.what and problem.fix for problem in problems)


def test_strategy_reaches_more_than_the_defaults() -> None:
    """Guard against a strategy whose every draw is refused."""
    refused = 0
    for path, leaf in LEAVES.items():
        for choice in leaf.choices:
            try:
                check(CharConfig, starting_values(CharConfig) | {path: Given(choice, "x")})
            except (ConfigError, ValidationError):
                refused += 1
    assert refused == 0
