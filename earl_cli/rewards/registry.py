"""From a config's words to a reward: a name, a user's own ``module:function``, or a weighted sum of such."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

from earl_cli.config.rl import RlConfig
from earl_cli.errors import EarlError, UsageError
from earl_cli.openai_client.client import check_keys, without_key
from earl_cli.rewards.judge.client import Judge
from earl_cli.rewards.judge.declarations import Rubrics, load_declaration, load_rubrics
from earl_cli.rewards.reward import Edit, Reward, Score
from earl_cli.rewards.viescore import JUDGED, judged

API_BASE_VARIABLE = "APP__REWARD_FUNCTION_API_BASE"
NAMES = (*JUDGED, "reference")
SHAPE = "a function takes a list of earl_cli.rewards.reward.Edit and returns a list of as many Score, float or None"


class NoJudgeError(UsageError):
    """A reward that needs a judge, of whom nothing says where it is."""


def reward_of(config: RlConfig, cache: Path) -> Reward:
    """The reward that a run's settings name; a judge's answers are kept in the file ``cache``.

    Raises UsageError for a name, function, file or address that isn't there. Nothing is asked yet.
    """
    judge = judge_of(config, cache)
    rubrics = load_rubrics(config.rubrics)
    try:
        return _reward_of(config, judge, rubrics)
    except NoJudgeError as error:
        also = [f"{each} holds no key either" for each in without_key([config.judge_api_key_variable])]
        error.what = "; ".join([error.what, *also])
        raise


def _reward_of(config: RlConfig, judge: Judge | None, rubrics: Rubrics) -> Reward:
    if config.reward is not None:
        return choose(config.reward, judge, rubrics)
    computed = {"viescore": config.reward_compute_viescore, "ground_score": config.reward_compute_ground_score}
    also = tuple(name for name, on in computed.items() if on)
    return judged(_required(judge, config.reward_final_reward), rubrics, config.reward_final_reward, also)


def judge_of(config: RlConfig, cache: Path) -> Judge | None:
    """The judge of a run's settings; None if neither they nor the environment name its address.

    Raises UsageError for an address, a variable without a key, or a declaration that isn't there.
    """
    base = config.reward_function_api_base or os.environ.get(API_BASE_VARIABLE, "").strip()
    if not base:
        return None
    check_keys([config.judge_api_key_variable])
    return Judge(
        base,
        config.reward_function_api_model_name,
        cache,
        config.judge_api_key_variable,
        config.judge_at_once,
        config.judge_timeout,
        load_declaration(config.judge_declaration),
    )


def choose(spec: str | Mapping[str, float], judge: Judge | None = None, rubrics: Rubrics | None = None) -> Reward:
    """The reward for a name of `NAMES`, for ``module:function``, or for a mapping of such to weights: their sum.

    ``judge`` is needed by those of `JUDGED`. Raises UsageError.
    """
    if not isinstance(spec, str):
        return _weighted(spec, judge, rubrics)
    if spec in JUDGED:
        return judged(_required(judge, spec), rubrics or load_rubrics(), spec)
    if spec == "reference":
        reference: Reward = importlib.import_module("earl_cli.rewards.reference").reference_reward
        return reference
    if ":" in spec:
        return _of_user(spec)
    raise UsageError(f"there is no reward {spec!r}", hint=f"one of {', '.join(NAMES)}, or your own module:function")


def _required(judge: Judge | None, name: str) -> Judge:
    if judge is None:
        raise NoJudgeError(
            f"the reward {name} needs a judge, and nothing says where it is",
            where="reward_function_api_base",
            hint="earl judge serve starts one: --set reward_function_api_base=http://HOST:4877/v1, or put it into "
            f"{API_BASE_VARIABLE}; --set reward=reference needs none",
        )
    return judge


def _weighted(weights: Mapping[str, float], judge: Judge | None, rubrics: Rubrics | None) -> Reward:
    if not weights:
        raise UsageError("a weighted reward needs at least one name", where="reward")
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise UsageError(f"the weight of {name} is {weight}", where="reward")
    rewards = {name: choose(name, judge, rubrics) for name in weights}

    def reward(edits: Sequence[Edit], /) -> list[Score]:
        columns = {name: each(edits) for name, each in rewards.items()}
        return [_sum(weights, {name: column[row] for name, column in columns.items()}) for row in range(len(edits))]

    return reward


def _sum(weights: Mapping[str, float], scores: Mapping[str, Score]) -> Score:
    parts = {f"{name}.{part}": value for name, score in scores.items() for part, value in score.parts.items()}
    known = {name: score.value for name, score in scores.items() if score.value is not None}
    whole = len(known) == len(scores)
    value = sum(weights[name] * part for name, part in known.items()) if whole else None
    reason = "\n".join(f"{name}: {score.reason}" for name, score in scores.items() if score.reason)
    explanations = {f"{name}.{key}": text for name, score in scores.items() for key, text in score.explanations.items()}
    missing = {f"{name}.{key}": text for name, score in scores.items() for key, text in score.missing.items()}
    return Score(value, parts | known, reason, explanations, missing)


def _of_user(spec: str) -> Reward:
    """A user's function, whose results are looked at before anything is trained on them."""
    function = _imported(spec)

    def reward(edits: Sequence[Edit], /) -> list[Score]:
        try:
            results = function(edits)
        except EarlError:
            raise
        except Exception as error:
            what = f"the reward function raised {type(error).__name__}: {error}"
            raise UsageError(what, where=spec, hint="--debug shows where") from error
        if not isinstance(results, Iterable) or isinstance(results, str | bytes | Mapping):
            what = f"the reward function returned {type(results).__name__}, not a list"
            raise UsageError(what, where=spec, hint=SHAPE)
        scores = [_checked(result, spec) for result in results]
        if len(scores) != len(edits):
            what = f"the reward function returned {len(scores)} scores for {len(edits)} edits"
            raise UsageError(what, where=spec, hint=SHAPE)
        return scores

    return reward


def _imported(spec: str) -> Any:
    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"{module_name!r} is no module's name", where=spec, hint="such as my_rewards:brightness")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # for good: the module may import its neighbours later
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        what = f"there is no module {error.name}"
        raise UsageError(
            what, where=spec, hint=f"modules are looked for in {here} and among what is installed"
        ) from None
    except Exception as error:
        what = f"the module of the reward can't be imported: {type(error).__name__}: {error}"
        raise UsageError(what, where=spec, hint="--debug shows where") from error
    function = getattr(module, name, None)
    if not callable(function):
        what = f"the module has no function {name!r}" if function is None else f"{name!r} is no function"
        raise UsageError(what, where=spec, hint=SHAPE)
    return function


def _checked(result: object, spec: str) -> Score:
    """One result as a Score; a value that is no finite number is a missing one."""
    score = result if isinstance(result, Score) else Score(result)  # type: ignore[arg-type]
    value: object = score.value
    if value is None:
        return replace(score, reason=score.reason or "the reward function gave none")
    if not isinstance(value, Real):
        what = f"the reward function returned a {type(value).__name__} where a score should be"
        raise UsageError(what, where=spec, hint=SHAPE)
    number = float(value)
    parts = {name: float(part) for name, part in score.parts.items() if math.isfinite(part)}
    if not math.isfinite(number):
        return replace(score, value=None, parts=parts, reason=score.reason or f"the reward function gave {number}")
    return replace(score, value=number, parts=parts)
