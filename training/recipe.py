"""Recipes: what a training run is to do, from a file and from settings given on the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.run import read_recipe

RECIPES = Path(__file__).resolve().parent.parent / "conf"
"""Where the recipes lie that come with the program."""

Recipe = dict[str, Any]


def with_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with other values.

    Args:
        recipe: what it was.
        settings: `key=value`, or `stage.key=value` within a stage; values as in TOML, but words need no quotes.

    Raises:
        ValueError: the recipe has no such key, or its value is of another kind.
    """
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in recipe.items()}
    for setting in settings:
        name, _, text = setting.partition("=")
        *stages, key = name.strip().split(".")
        table = changed
        for stage in stages:
            table = table.get(stage, {})
        if key not in table or isinstance(table[key], dict):
            raise ValueError(f"{setting!r}: the recipe has no {name!r}; it has {', '.join(_names(recipe))}")
        table[key] = _value(text.strip(), table[key], setting)
    return changed


def keep_recipe(recipe: Path, settings: Iterable[str], out: Path) -> Path:
    """Write the recipe with its settings to OUT/recipe.json, with the name of its file as `file`, and say where it is.

    Raises:
        ValueError: see `with_settings`.
    """
    settled = {**with_settings(read_recipe(recipe), settings), "file": recipe.name}
    path = out / "recipe.json"
    if path.exists() and read_recipe(path) != settled and (out / "checkpoint.pt").exists():
        print(f"{out} goes on from a checkpoint that was begun by another recipe.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settled, indent=2) + "\n")
    return path


def _value(text: str, old: Any, setting: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(old):
        raise ValueError(f"{setting!r}: {old!r} is {type(old).__name__}, {value!r} is {type(value).__name__}")
    return value


def _names(recipe: Recipe) -> list[str]:
    names: list[str] = []
    for key, value in recipe.items():
        names += [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key]
    return names
