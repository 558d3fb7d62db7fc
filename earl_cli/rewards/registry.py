"""Rewards by name: those of the package, a user's ``module:function``, and weighted sums of these."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earl_cli.config.rl import RlConfig
from earl_cli.errors import EarlError, UsageError
from earl_cli.openai_client.client import check_keys, variables_without_key
from earl_cli.rewards.judge.client import Judge
from earl_cli.rewards.judge.declarations import Rubrics, load_declaration, load_rubrics
from earl_cli.rewards.reward import SIGNATURE_HINT, Edit, Reward, Score, checked_scores
from earl_cli.rewards.viescore import JUDGED_REWARDS, judged_reward

API_BASE_VARIABLE = "APP__REWARD_FUNCTION_API_BASE"
REWARD_NAMES = (*JUDGED_REWARDS, "reference")


class NoJudgeError(UsageError):
    """A reward needs a judge, and no address is configured."""


def reward_from_config(config: RlConfig, cache: Path) -> Reward:
    """The reward that a run's config names; a judge's replies are kept in the file ``cache``. Nothing is connected yet.

    Raises UsageError for an unknown name, a function or file that can't be loaded, or a missing or invalid address.
    """
    judge = judge_from_config(config, cache)
    rubrics = load_rubrics(config.rubrics)
    try:
        return _configured_reward(config, judge, rubrics)
    except NoJudgeError as error:
        no_key = [f"{each} holds no key either" for each in variables_without_key([config.judge_api_key_variable])]
        error.what = "; ".join([error.what, *no_key])
        raise


def _configured_reward(config: RlConfig, judge: Judge | None, rubrics: Rubrics) -> Reward:
    if config.reward is not None:
        return load_reward(config.reward, judge, rubrics)
    computed = {"viescore": config.reward_compute_viescore, "ground_score": config.reward_compute_ground_score}
    also = tuple(name for name, on in computed.items() if on)
    return judged_reward(_require_judge(judge, config.reward_final_reward), rubrics, config.reward_final_reward, also)


def judge_from_config(config: RlConfig, cache: Path) -> Judge | None:
    """The judge of a run's config; None if neither the config nor the environment has its address.

    Raises UsageError for an invalid address, a variable without a key, or an unknown declaration.
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
        config.judge_concurrency,
        config.judge_timeout,
        load_declaration(config.judge_declaration),
    )


def load_reward(spec: str | Mapping[str, float], judge: Judge | None = None, rubrics: Rubrics | None = None) -> Reward:
    """The reward of a name in `REWARD_NAMES`, of ``module:function``, or the weighted sum of a mapping of these to
    weights.

    Those in `JUDGED_REWARDS` need ``judge``. Raises UsageError.
    """
    if not isinstance(spec, str):
        return _weighted_sum(spec, judge, rubrics)
    if spec in JUDGED_REWARDS:
        return judged_reward(_require_judge(judge, spec), rubrics or load_rubrics(), spec)
    if spec == "reference":
        reference: Reward = importlib.import_module("earl_cli.rewards.reference").reference_reward
        return reference
    if ":" in spec:
        return _user_reward(spec)
    raise UsageError(
        f"there is no reward {spec!r}", hint=f"one of {', '.join(REWARD_NAMES)}, or your own module:function"
    )


def _require_judge(judge: Judge | None, name: str) -> Judge:
    if judge is None:
        raise NoJudgeError(
            f"the reward {name} needs a judge, and no address is given",
            where="reward_function_api_base",
            hint="earl judge serve starts one: --set reward_function_api_base=http://HOST:4877/v1, or put it into "
            f"{API_BASE_VARIABLE}; --set reward=reference needs none",
        )
    return judge


def _weighted_sum(weights: Mapping[str, float], judge: Judge | None, rubrics: Rubrics | None) -> Reward:
    if not weights:
        raise UsageError("a weighted reward needs at least one name", where="reward")
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise UsageError(f"the weight of {name} is {weight}", where="reward")
    rewards = {name: load_reward(name, judge, rubrics) for name in weights}

    def reward(edits: Sequence[Edit], /) -> list[Score]:
        columns = {name: each(edits) for name, each in rewards.items()}
        return [_weighted_score(weights, {name: columns[name][row] for name in columns}) for row in range(len(edits))]

    return reward


def _weighted_score(weights: Mapping[str, float], scores: Mapping[str, Score]) -> Score:
    parts = {f"{name}.{part}": value for name, score in scores.items() for part, value in score.parts.items()}
    known = {name: score.value for name, score in scores.items() if score.value is not None}
    is_complete = len(known) == len(scores)
    value = sum(weights[name] * part for name, part in known.items()) if is_complete else None
    reason = "\n".join(f"{name}: {score.reason}" for name, score in scores.items() if score.reason)
    explanations = {f"{name}.{key}": text for name, score in scores.items() for key, text in score.explanations.items()}
    missing = {f"{name}.{key}": text for name, score in scores.items() for key, text in score.missing.items()}
    return Score(value, parts | known, reason, explanations, missing)


def _user_reward(spec: str) -> Reward:
    """A user's function, with checks of what it returns."""
    function = _import_function(spec)

    def reward(edits: Sequence[Edit], /) -> list[Score]:
        try:
            results = function(edits)
        except EarlError:
            raise
        except Exception as error:
            what = f"the reward function raised {type(error).__name__}: {error}"
            raise UsageError(what, where=spec, hint=f"--debug shows the traceback; {SIGNATURE_HINT}") from error
        return checked_scores(results, len(edits), spec)

    return reward


def _import_function(spec: str) -> Any:
    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"{module_name!r} is no module's name", where=spec, hint="such as my_rewards:brightness")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # permanently: the module may import others from here later
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        what = f"there is no module {error.name}"
        raise UsageError(
            what, where=spec, hint=f"modules are looked for in {here} and among what is installed"
        ) from None
    except Exception as error:
        what = f"the module of the reward can't be imported: {type(error).__name__}: {error}"
        raise UsageError(what, where=spec, hint="--debug shows the traceback") from error
    function = getattr(module, name, None)
    if not callable(function):
        what = f"the module has no function {name!r}" if function is None else f"{name!r} is no function"
        raise UsageError(what, where=spec, hint=SIGNATURE_HINT)
    return function
