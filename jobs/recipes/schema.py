"""JSON schema of recipes, for editors and checks: the kinds of stages with their options, as they stand in a file."""

from typing import Any

from jobs.common.config_tree import schema_of
from jobs.recipes.ablation.plan import SECTION, AblationConfig
from jobs.recipes.load import RECIPE_KEYS
from jobs.recipes.prepare_stage import PrepareStage
from jobs.recipes.stages import KINDS, TrainStage
from jobs.training.config import TrainConfig

TEXT: dict[str, Any] = {"type": "string"}
# Whatever a stage's option is, a file may have a placeholder in its place.
PLACEHOLDER: dict[str, Any] = {"type": "string", "pattern": r"\$\{.*\}"}


def recipe_schema() -> dict[str, Any]:
    """Schema of a recipe's file. No option is required: a catalogue, a configuration or another recipe may bring it."""
    definitions: dict[str, Any] = {}
    kinds = []
    for kind, stage in KINDS.items():
        schema = schema_of(TrainConfig if stage is TrainStage else stage)
        definitions |= schema.pop("$defs", {})
        properties: dict[str, Any] = {
            name: {"anyOf": [value, PLACEHOLDER]} for name, value in schema["properties"].items()
        }
        if stage is TrainStage:
            properties["config"] = TEXT
        if stage is PrepareStage:
            names = {"type": "array", "items": TEXT}
            properties["sets"] = {"anyOf": [names, {"type": "object"}]}
            properties |= {"catalogue": TEXT, "raw": TEXT, "options": {"type": "object"}}
        kinds.append(
            {
                "title": kind,
                "description": schema.get("description", ""),
                "type": "object",
                "properties": {"do": {"const": kind}, **properties},
                "additionalProperties": False,
            }
        )
    # A stage that changes one of the recipe below does not name its kind again.
    tree: dict[str, Any] = dict.fromkeys(RECIPE_KEYS, TEXT)
    tree[SECTION] = schema_of(AblationConfig)
    definitions |= tree[SECTION].pop("$defs", {})
    tree |= {"values": {"type": "object"}, "variants": {"type": ["object", "null"]}}
    tree["stages"] = {"type": "object", "additionalProperties": {"anyOf": kinds}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of padt run",
        "type": "object",
        "properties": tree,
        "anyOf": [{"required": ["stages"]}, {"required": ["extends"]}],
        "additionalProperties": False,
        "$defs": definitions,
    }
