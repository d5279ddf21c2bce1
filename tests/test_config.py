"""The trainer's knobs: what is written is read back, and what does not fit is refused in one line."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsewatch.trainer.config import ConfigError, TrainConfig, from_mapping, load_config

ROOT = Path(__file__).parents[1]
KNOBS = get_type_hints(TrainConfig)
DEFAULTS = asdict(TrainConfig())


def written(folder: Path, text: str) -> Path:
    path = folder / "train.toml"
    path.write_text(text)
    return path


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == TrainConfig()


@given(
    logdir=st.text(st.characters(codec="utf-8")),
    model=st.text(st.characters(codec="utf-8")),
    rate=st.floats(0, 1e300),
    steps=st.integers(1, 2**62),
    vllm=st.booleans(),
)
def test_every_config_survives_its_own_toml(logdir: str, model: str, rate: float, steps: int, vllm: bool) -> None:
    config = TrainConfig(logdir=logdir, model=model, learning_rate=rate, steps=steps, vllm=vllm)
    assert from_mapping(tomllib.loads(config.to_toml()), "here") == config


@pytest.mark.parametrize("knob", [name for name, kind in KNOBS.items() if kind in (int, float)])
@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, -math.inf])
def test_numbers_out_of_range_are_refused(knob: str, bad: float) -> None:
    with pytest.raises(ConfigError, match=f"{knob}: got "):
        from_mapping({knob: bad}, "here")


def misfits() -> list[tuple[str, Any]]:
    fitting = {dict[str, Any]: {dict}, str: {str}, int: {int}, float: {float, int}, bool: {bool}}
    values: list[Any] = ["words", 1, 1.5, True, [1], {"a": 1}]
    return [(knob, bad) for knob, kind in KNOBS.items() for bad in values if type(bad) not in fitting[kind]]


@pytest.mark.parametrize(("knob", "bad"), misfits())
def test_a_wrong_type_is_refused_and_named(knob: str, bad: Any) -> None:
    wanted = KNOBS[knob]
    with pytest.raises(ConfigError) as error:
        from_mapping({knob: bad}, "a.toml")
    assert str(error.value) == f"a.toml: {knob}: got {bad!r} ({type(bad).__name__}), expected {wanted.__name__}"


def test_a_whole_number_will_do_for_a_float() -> None:
    assert from_mapping({"temperature": 2}, "here") == TrainConfig(temperature=2.0)


def test_an_unknown_key_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, "learning_rat = 0.1"))
    assert "got unknown key 'learning_rat' (did you mean 'learning_rate'?), expected one of " in str(error.value)
    assert all(knob in str(error.value) for knob in KNOBS)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a\nb", "a\0b"])
def test_a_name_is_a_plain_folder_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name: got .*expected a plain folder name"):
        TrainConfig(name=name)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_text("steps = "), "expected valid TOML"),
        (lambda path: path.write_bytes(b"name = '\xff'"), "expected valid TOML"),
    ],
)
def test_an_unreadable_file_is_one_line(make: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    make(path)
    with pytest.raises(ConfigError, match=r"^config: got ") as error:
        load_config(path)
    assert told in str(error.value)


def test_overrides_are_toml_or_bare_words(tmp_path: Path) -> None:
    path = written(tmp_path, "steps = 3\nseed = 1")
    config = load_config(path, ("steps=7", "model = some/folder", 'name="quoted"', "vllm=true", "beta=1"))
    assert config == TrainConfig(steps=7, seed=1, model="some/folder", name="quoted", vllm=True, beta=1.0)


@pytest.mark.parametrize(
    ("override", "told"),
    [("steps", "--set: got 'steps', expected key=value"), ("steps=x", "steps: got 'x' (str), expected int"),
     ("stepz=1", "did you mean 'steps'?"), ("loss_type=ppo", "loss_type: got 'ppo', expected one of grpo, ")],
)  # fmt: skip
def test_a_wrong_override_is_refused(override: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, ""), (override,))
    assert told in str(error.value)


def test_the_loss_types_are_trls() -> None:
    from trl import GRPOConfig

    from collapsewatch.trainer.config import LOSS_TYPES

    described = next(field.metadata["help"] for field in fields(GRPOConfig) if field.name == "loss_type")
    assert all(f"'{name}'" in described for name in LOSS_TYPES)


def test_the_example_holds_every_knob_with_its_default_and_a_comment() -> None:
    text = (ROOT / "examples" / "train.toml").read_text()
    assert {key: (type(value), value) for key, value in tomllib.loads(text).items()} == {
        key: (type(value), value) for key, value in DEFAULTS.items()
    }
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line.split(" = ")[0] for line in lines] == list(KNOBS)  # in the order of the code
    assert all("  # " in line for line in lines)


def test_the_demo_is_a_valid_config() -> None:
    path = ROOT / "trainer" / "demo.toml"
    assert asdict(load_config(path)).items() >= tomllib.loads(path.read_text()).items()
