"""Validate the recipe that a client sends for a training, and merge it with the defaults."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jsonschema_rs

from core.catalog.cards import ImageShape
from core.catalog.families import FamilyDescription, JsonObject, Schema
from core.catalog.validation import FieldError, InvalidOptionsError, option_errors, whole_numbers

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
# Hash of training worker id → packed heartbeat, in the training workers' database.
TRAINING_WORKERS = "reverie:trainers"

TRAINER_TIMEOUT_S = 5.0  # age of a heartbeat after which a training worker counts as dead


def resolve_recipe(
    name_of_family: str, family: FamilyDescription, dataset: JsonObject, name: str, overrides: JsonObject, gpus: int = 1
) -> dict[str, Any]:
    """Return the complete recipe of a training: the family's defaults with `overrides`.

    `overrides` is the recipe of the client's request, `name` the name of the new model, and
    `dataset` the description of the dataset, whose image shape is set in the configuration. `gpus`
    is the number of devices that share each batch. Raises InvalidOptionsError if the schema of the
    family rejects an override, or if the recipe does not fit the dataset.
    """
    config, training = dict(overrides.get("config", {})), dict(overrides.get("training", {}))
    errors = _schema_errors("config", family.config, config) + _schema_errors("training", family.training, training)
    if errors:
        raise InvalidOptionsError(errors)
    config = {**family.recipe["config"], **whole_numbers(family.config, config)}
    defaults = family.recipe["training"]
    unused = {"epochs": "steps", "batch_size": "min_epochs"}  # defaults that another setting takes the place of
    dropped = {default for name, default in unused.items() if name in training}
    defaults = {name: value for name, value in defaults.items() if name not in dropped}
    training = {**defaults, **whole_numbers(family.training, training)}
    errors = _set_shape(family, dataset, config)
    counts = dataset["counts"]
    if not family.players and "validation" not in training:
        maximum = int(family.training["properties"]["validation"]["maximum"])
        training["validation"] = min(counts.get("validation", 0), 1000, maximum)
    _set_epochs(family, counts, training)
    errors += _count_errors(family, counts, training)
    errors += [] if errors else _batch_errors(family, counts, config, training, gpus)
    if errors:
        raise InvalidOptionsError(errors)
    return {
        "family": name_of_family,
        "name": name,
        "summary": overrides.get("summary") or f"{name_of_family} trained on {dataset['name']}",
        "data": dataset["name"],
        "seed": overrides.get("seed", 0),
        "config": config,
        "training": training,
    }


def _schema_errors(part: str, schema: Schema, values: JsonObject) -> list[FieldError]:
    """Return the errors of the `values` that `schema` rejects, each with the valid range.

    `part` is "config" or "training"; errors name a field as `recipe.PART.NAME`.
    """
    rules = schema["properties"]
    validator = jsonschema_rs.validator_for(schema)

    def hint(name: str) -> str:
        return f"; it must be {_describe_rule(rules[name])}"

    return option_errors(values, rules, validator, f"recipe.{part}", "field", hint)


def _describe_rule(rule: JsonObject) -> str:
    """Return what a field's JSON Schema allows in words, such as "an integer in [1, 100000]"."""
    if rule.get("type") == "array":
        return f"a list, each {_describe_rule(rule['items'])}"
    if "enum" in rule:
        return f"one of {', '.join(map(str, rule['enum']))}"
    kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    types = " or ".join({"integer": "an integer", "null": "null"}.get(kind, f"a {kind}") for kind in kinds)
    left = f"[{rule['minimum']}" if "minimum" in rule else f"({rule.get('exclusiveMinimum', '-∞')}"
    right = f"{rule['maximum']}]" if "maximum" in rule else f"{rule.get('exclusiveMaximum', '∞')})"
    return f"{types} in {left}, {right}" if {"integer", "number"} & set(kinds) else types


def _set_shape(family: FamilyDescription, dataset: JsonObject, config: dict[str, Any]) -> list[FieldError]:
    """Set the dataset's image shape in the configuration `config`, in place; return errors.

    It is an error if the family cannot be trained on such images, or if `config` has another shape.
    For super-resolution, `config` has no shape; only the kind of the dataset is checked.
    """
    photographs = dataset["kind"] == "photographs"
    if family.data == "photographs":
        detail = f"{dataset['name']} holds {dataset['kind']}; upload photographs for a family that enlarges them"
        return [] if photographs else [{"field": "dataset", "detail": detail}]
    errors = []
    for side in ImageShape._fields:
        rule = family.config["properties"].get(side)
        if rule is None:
            continue
        value = dataset[side]
        if config.get(side, value) != value:
            errors.append({"field": f"recipe.config.{side}", "detail": f"pictures of {dataset['name']} have {value}"})
        elif not rule["minimum"] <= value <= rule["maximum"]:
            detail = f"its pictures have {side} {value}; the family takes {_describe_rule(rule)}"
            errors.append({"field": "dataset", "detail": detail})
        config[side] = value
    return errors


def _set_epochs(family: FamilyDescription, counts: Mapping[str, int], training: dict[str, Any]) -> None:
    """Replace `steps` and `min_epochs` in the section `training` by a number of epochs and a batch
    size.

    The batch size is the smallest, from the recipe's on, with which so many steps are `min_epochs`
    epochs; the number of epochs is the smallest with at least that many steps. `counts` has the
    numbers of images, keyed by split.
    """
    steps, min_epochs = training.pop("steps", 0), training.pop("min_epochs", 0)
    if not steps:
        return
    rules = family.training["properties"]
    held_back = 0 if counts.get("validation") else training.get("validation", 0)
    images = max(1, _training_count(counts, training) - held_back)
    size = min(math.ceil(images * min_epochs / steps), int(rules["batch_size"]["maximum"]))
    training["batch_size"] = max(_batch_size(family, training), size)
    training["epochs"] = min(math.ceil(steps * training["batch_size"] / images), int(rules["epochs"]["maximum"]))


def _count_errors(family: FamilyDescription, counts: Mapping[str, int], training: JsonObject) -> list[FieldError]:
    """Return an error for each number in a recipe that the family or the splits do not allow.

    `counts` are the numbers of images, keyed by split. It is an error to ask for more images than a
    split has, for validation in an adversarial family, or for a `patience` without validation.
    """
    errors = []
    size = _batch_size(family, training)
    if size > counts["train"]:
        detail = f"{size} is more than the {counts['train']} training pictures; ask for at most as many"
        errors.append({"field": "recipe.training.batch_size", "detail": detail})
    wanted, held_back = training.get("validation", 0), counts.get("validation", 0)
    field = "recipe.training.validation"
    if family.players and wanted:
        detail = "adversarial families have no single validation loss: it must be 0"
        errors.append({"field": field, "detail": detail})
    elif held_back and wanted > held_back:
        detail = f"{wanted} is more than the {held_back} pictures held back; ask for at most as many"
        errors.append({"field": field, "detail": detail})
    elif not held_back and wanted >= _training_count(counts, training):
        detail = f"{wanted} leaves nothing of the {_training_count(counts, training)} training pictures"
        errors.append({"field": field, "detail": detail})
    if training.get("patience") and not wanted:
        detail = "it needs training.validation to choose epochs on"
        errors.append({"field": "recipe.training.patience", "detail": detail})
    return errors


def _batch_size(family: FamilyDescription, training: JsonObject) -> int:
    return int(training.get("batch_size", family.training["properties"]["batch_size"]["default"]))


def _training_count(counts: Mapping[str, int], training: JsonObject) -> int:
    """Return the size of the dataset's training split, or the recipe's `pictures` if that is less.

    `counts` is the number of images by split, `training` the recipe's section of that name. Images
    that training later holds back for validation are included.
    """
    return min(training.get("pictures") or counts["train"], counts["train"])


def _batch_errors(
    family: FamilyDescription, counts: Mapping[str, int], config: JsonObject, training: JsonObject, gpus: int
) -> list[FieldError]:
    """Return one error if an optimizer step would have fewer images than it needs, else none.

    Batch normalisation needs more than one image per step, and several devices (`gpus`) need this
    number each.
    """
    whole_config = {name: rule.get("default") for name, rule in family.config["properties"].items()} | {**config}
    matching = (one.pictures for one in family.smallest_batches if jsonschema_rs.is_valid(one.when, whole_config))
    smallest = gpus * max(matching, default=1)
    size = _batch_size(family, training)
    held_back = 0 if counts.get("validation") else training.get("validation", 0)
    count = _training_count(counts, training) - held_back
    reason = f"a step of this model{f' on {gpus} devices' if gpus > 1 else ''} takes at least {smallest} pictures"
    if size < smallest:
        return [{"field": "recipe.training.batch_size", "detail": f"{size} is too small: {reason}"}]
    if count < smallest:
        return [{"field": "dataset", "detail": f"{count} training pictures are too few: {reason}"}]
    return []
