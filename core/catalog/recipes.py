"""What the API and the training worker both know of trainings, without torch: their files, families and recipes."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from core.catalog.numbers import whole_numbers
from core.catalog.validation import InvalidOptionsError, option_errors
from core.settings import Settings

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
SERVE = ("if better", "always", "never")
TRAINING_WAKEUP = "reverie:trainings"
"""The list by which training workers are woken; what it holds means nothing."""

TRAINING_WORKERS = "reverie:trainers"
"""Hash of training worker id → packed heartbeat, in the training workers' database."""

TRAINER_TIMEOUT_S = 5.0
"""Age of a heartbeat after which a training worker counts as dead."""

_SHAPE = ("channels", "height", "width")

Facts = dict[str, Any]
"""What `python -m models families` says of one family."""


@dataclass(frozen=True)
class StatePaths:
    """Where what trainings read and write lies in the state folder."""

    state: Path

    def run(self, job_id: str) -> Path:
        """The folder of a training's run."""
        return self.state / "runs" / job_id

    def auxiliary_job(self, job_id: str) -> Path:
        """The folder of a short job's files, gone after it."""
        return self.state / "desk" / job_id

    @property
    def datasets(self) -> Path:
        """The folder of datasets."""
        return self.state / "datasets"

    @property
    def checkpoints(self) -> Path:
        """The folder of versions made here."""
        return self.state / "checkpoints"

    @property
    def families(self) -> Path:
        """What a training worker found in the folder of extra models."""
        return self.state / "families.json"


def families(settings: Settings) -> dict[str, Facts]:
    """What each family can be trained with, those of the folder of extra models among them."""
    known = _shipped()
    if settings.extra_models is None:
        return known
    try:
        return {**json.loads(StatePaths(settings.state).families.read_bytes()), **known}
    except FileNotFoundError:  # no training worker has looked yet
        return known


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Facts]:
    found: dict[str, Facts] = json.loads(Path(__file__).with_name("families.json").read_bytes())
    return found


def settled(
    family: str, facts: Facts, dataset: Mapping[str, Any], name: str, asked: Mapping[str, Any], gpus: int = 1
) -> Any:
    """The recipe in force: what was `asked` over the family's, in the shape of the dataset. Raises FaultsError.

    `gpus` is how many devices share each batch.
    """
    config, training = dict(asked.get("config", {})), dict(asked.get("training", {}))
    wrong = [*_faults("config", facts["config"], config), *_faults("training", facts["training"], training)]
    _raise(wrong)
    config, training = (
        {**facts["recipe"][part], **whole_numbers(facts[part], given)}
        for part, given in (("config", config), ("training", training))
    )
    wrong += _shaped(facts, dataset, config)
    counts = dataset["counts"]
    if not facts["players"] and "validation" not in training:
        training["validation"] = min(counts.get("validation", 0), _most_validation(facts))
    wrong += _fitting(facts, counts, training)
    wrong += _too_few(facts, counts, config, training, gpus) if not wrong else []
    _raise(wrong)
    return {
        "family": family,
        "name": name,
        "summary": asked.get("summary") or f"{family} trained on {dataset['name']}",
        "data": dataset["name"],
        "seed": asked.get("seed", 0),
        "config": config,
        "training": training,
    }


def _most_validation(facts: Facts) -> int:
    return min(1000, int(facts["training"]["properties"]["validation"]["maximum"]))


def _raise(wrong: list[dict[str, str]]) -> None:
    if wrong:
        raise InvalidOptionsError(wrong)


def _faults(part: str, schema: dict[str, Any], given: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a schema has against values, each naming its field and the field's range."""
    rules = schema["properties"]
    check = jsonschema_rs.validator_for(schema)
    return option_errors(
        given, rules, check, f"recipe.{part}", "field", lambda name: f"; it must be {_range(rules[name])}"
    )


def _range(rule: Mapping[str, Any]) -> str:
    """A field's rule in words: "an integer in [1, 100000]"."""
    if rule.get("type") == "array":
        return f"a list, each {_range(rule['items'])}"
    if "enum" in rule:
        return f"one of {', '.join(map(str, rule['enum']))}"
    kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    said = " or ".join({"integer": "an integer", "null": "null"}.get(kind, f"a {kind}") for kind in kinds)
    left = f"[{rule['minimum']}" if "minimum" in rule else f"({rule.get('exclusiveMinimum', '-∞')}"
    right = f"{rule['maximum']}]" if "maximum" in rule else f"{rule.get('exclusiveMaximum', '∞')})"
    return f"{said} in {left}, {right}" if {"integer", "number"} & set(kinds) else said


def _shaped(facts: Facts, dataset: Mapping[str, Any], config: dict[str, Any]) -> list[dict[str, str]]:
    """Give the config the dataset's shape; answers what does not fit."""
    photographs = dataset["kind"] == "photographs"
    if facts["data"] == "photographs":
        detail = f"{dataset['name']} holds {dataset['kind']}; upload photographs for a family that enlarges them"
        return [] if photographs else [{"field": "dataset", "detail": detail}]
    wrong = []
    for word in _SHAPE:
        rule = facts["config"]["properties"].get(word)
        if rule is None:
            continue
        value = dataset[word]
        if config.get(word, value) != value:
            wrong.append({"field": f"recipe.config.{word}", "detail": f"pictures of {dataset['name']} have {value}"})
        elif not rule["minimum"] <= value <= rule["maximum"]:
            detail = f"its pictures have {word} {value}; the family takes {_range(rule)}"
            wrong.append({"field": "dataset", "detail": detail})
        config[word] = value
    return wrong


def _fitting(facts: Facts, counts: Mapping[str, int], training: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the numbers of pictures do not allow."""
    rules = facts["training"]["properties"]
    wrong = []
    size = training.get("batch_size", rules["batch_size"]["default"])
    if size > counts["train"]:
        detail = f"{size} is more than the {counts['train']} training pictures; ask for at most as many"
        wrong.append({"field": "recipe.training.batch_size", "detail": detail})
    wanted, there = training.get("validation", 0), counts.get("validation", 0)
    field = "recipe.training.validation"
    if facts["players"] and wanted:
        wrong.append({"field": field, "detail": "players have no common loss to choose epochs on: it must be 0"})
    elif there and wanted > there:
        detail = f"{wanted} is more than the {there} pictures held back; ask for at most as many"
        wrong.append({"field": field, "detail": detail})
    elif not there and wanted >= _used(counts, training):
        detail = f"{wanted} leaves nothing of the {_used(counts, training)} training pictures"
        wrong.append({"field": field, "detail": detail})
    if training.get("patience") and not wanted:
        wrong.append(
            {"field": "recipe.training.patience", "detail": "it needs training.validation to choose epochs on"}
        )
    return wrong


def _used(counts: Mapping[str, int], training: Mapping[str, Any]) -> int:
    """How many of the training pictures a recipe takes, before any are held back."""
    return min(training.get("pictures") or counts["train"], counts["train"])


def _too_few(
    facts: Facts, counts: Mapping[str, int], config: Mapping[str, Any], training: Mapping[str, Any], gpus: int
) -> list[dict[str, str]]:
    """What does not fit where a step takes more than one picture: batch normalisation, or several devices."""
    defaults = {name: rule.get("default") for name, rule in facts["config"]["properties"].items()}
    cases = [case for case in facts.get("smallest_batches", []) if _holds(case["when"], {**defaults, **config})]
    least = max((case["pictures"] for case in cases), default=1) * gpus
    size = training.get("batch_size", facts["training"]["properties"]["batch_size"]["default"])
    held_back = 0 if counts.get("validation") else training.get("validation", 0)
    count = _used(counts, training) - held_back
    why = f"a step of this model{f' on {gpus} devices' if gpus > 1 else ''} takes at least {least} pictures"
    if size < least:
        return [{"field": "recipe.training.batch_size", "detail": f"{size} is too small: {why}"}]
    if count < least:
        return [{"field": "dataset", "detail": f"{count} training pictures are too few: {why}"}]
    return []


def _holds(schema: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return bool(jsonschema_rs.validator_for(dict(schema)).is_valid(dict(config)))


def better(new: list[dict[str, Any]], old: list[dict[str, Any]]) -> bool | None:
    """Whether the first figure of one card is better than that of another; None where they are not the same figure."""
    if not new or not old or new[0]["name"] != old[0]["name"]:
        return None
    rise = float(new[0]["value"]) - float(old[0]["value"])
    return rise > 0 if new[0]["better"] == "higher" else rise < 0
