"""Sampling parameters: one place says what is allowed, and what is written comes back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earl_cli.config.rl import RlConfig
from earl_cli.config.sampling import PARAMETERS, SamplingParams
from earl_cli.errors import UsageError

params = st.builds(
    SamplingParams,
    temperature=st.just(0.0) | st.floats(1e-6, 1e9),
    top_k=st.integers(-1, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
)


@given(params)
def test_what_is_written_comes_back(sampling: SamplingParams) -> None:
    assert SamplingParams.from_dict(json.loads(json.dumps(sampling.to_dict()))) == sampling


def test_what_names_a_results_folder_stays() -> None:
    assert SamplingParams().to_dict() == {"temperature": 1.0, "top_k": 2048, "top_p": 1.0}
    assert SamplingParams(min_p=0.1).to_dict() == {"temperature": 1.0, "top_k": 2048, "top_p": 1.0, "min_p": 0.1}


def test_given_values_replace_the_model_s_own() -> None:
    own = SamplingParams.from_dict({"temperature": 0.5, "top_k": 64.0})
    assert str(own) == "temperature 0.5, top-k 64, top-p 1"
    assert own.updated({"top_p": 0.25}) == SamplingParams(0.5, 64, 0.25)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e-30),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", None),
        ("min_p", -0.1),
        ("min_p", 2),
        ("top_k", 1.5),
        ("top_k", 2**40),
        ("top_k", [64]),
    ],
)
def test_values_that_are_not_allowed(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"^{name}: must be .*, not ") as caught:
        SamplingParams.from_dict({name: value})
    assert repr(value) in str(caught.value)


def test_what_is_no_set_of_parameters() -> None:
    with pytest.raises(UsageError, match=r"no sampling parameter 'top_q' .there are temperature, top_k, top_p, min_p"):
        SamplingParams.from_dict({"top_q": 1})
    with pytest.raises(UsageError, match="must be an object"):
        SamplingParams.from_dict([1])


@pytest.mark.parametrize("name", [each.name for each in PARAMETERS])
def test_every_parameter_is_a_key_of_the_rl_config(name: str) -> None:
    config = RlConfig(run_name="run", data=("store",), **{name: 1})
    assert getattr(config.sampling, name) == 1
    with pytest.raises(ValueError, match=name):
        RlConfig(run_name="run", data=("store",), **{name: 0.5 if name == "top_k" else -2})
