"""Recipes of training runs as frozen models, from a TOML file and command-line overrides."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.errors import TrainingError

RECIPES = Path(__file__).resolve().parents[2] / "conf"
"""Where the recipes lie that come with the program."""

STAGES = ("encoder_stage", "decoder_stage", "joint_stage")
"""Stages of `classify` in the order in which they run; a recipe leaves out what it doesn't want."""

_OLDER_NAMES = {
    "averaging": "ema_decay",
    "begun_share": "initial_weights_share",
    "borrowed": "sharpness_transferred",
    "lungs_emptied": "lungs_blanked",
    "surrounded": "surroundings_swapped",
}
"""What earlier versions called keys of a recipe, so that their runs go on."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
EncoderName = Literal["alexnet", "vgg16", "vgg19", "resnet34", "resnet50", "resnet50_v1", "inception_v3"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StageRecipe(_Table):
    """A stage of `classify`.

    images: drawn with augmentation. first_size_px: side of the first inputs, which grow to `input_size_px`; None: that from
    the start. learning_rate falls to final_learning_rate along half a cosine.
    """

    images: Annotated[int, Field(ge=0)]
    learning_rate: Rate
    final_learning_rate: Rate
    first_size_px: Positive | None = None


class DecoderStageRecipe(StageRecipe):
    """The decoder's stage: weights of its losses beside the fusion loss, see `stages.DecoderStage`."""

    removal: Annotated[float, Field(ge=0)] = 0.0
    certainty: Annotated[float, Field(ge=0)] = 0.0
    sparsity: Annotated[float, Field(ge=0)] = 0.0
    outside: Annotated[float, Field(ge=0)] = 0.0
    smoothness: Annotated[float, Field(ge=0)] = 0.0


class OfNetwork(_Table):
    """What of a recipe the network itself follows from; of a checkpoint's recipe the rest is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    encoder: EncoderName
    representation: Literal["mask", "image"]
    input_size_px: Annotated[int, Field(ge=32)]
    segmented: bool
    answer: Literal["image", "evidence"] = "image"


class ClassifyRecipe(OfNetwork):
    """A recipe of `classify`; the shares of images say how many are changed how, see `inputs.training_input`.

    augmentation: strength at the first and at the last step of a stage, from 0. balance: each label x source x population is
    drawn in proportion to its size ** balance. ema_decay: of the running average that the network ends as.
    initial_weights_share: how much of the end is what training began with. file: the recipe's file name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seed: int
    batch_size: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    label_smoothing: Share
    augmentation: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]
    balance: Share
    ema_decay: Share
    threads: Positive | None = None
    loaders: Positive = 1
    random_masking: Share = 0.0
    emptied: Share = 0.0
    lungs_blanked: Share = 0.0
    context_hidden: Share = 0.0
    mirrored: Share = 0.0
    sharpness_transferred: Share = 0.0
    surroundings_swapped: Share = 0.0
    framed: Share = 0.0
    decorated: Share = 0.0
    initial_weights_share: Share = 0.0
    encoder_stage: StageRecipe | None = None
    decoder_stage: DecoderStageRecipe | None = None
    joint_stage: StageRecipe | None = None
    file: str = ""

    @property
    def needs_lungs(self) -> bool:
        """Whether the inputs depend on where the lungs are."""
        by_lungs = (self.lungs_blanked, self.context_hidden, self.surroundings_swapped, self.framed)
        return self.segmented or any(by_lungs)

    def stage(self, name: str) -> StageRecipe | None:
        """The table of one of STAGES; None where the recipe leaves it out."""
        table: StageRecipe | None = getattr(self, name)
        return table


class EvidenceRecipe(OfNetwork):
    """A recipe of `evidence`; the shares of images are explained in `evidence_inputs.example`.

    sizes_px: of the inputs, [from this share of the time on, this side]. at_rest: names of modules that don't learn.
    seconds: of training. shares: how often each group of the data is drawn ("marked SOURCE" or "LABEL SOURCE"; "LABEL *":
    of each source that no other share names).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    answer: Literal["evidence"] = "evidence"
    sizes_px: tuple[tuple[Share, Positive], ...]
    at_rest: tuple[str, ...] = ()
    seed: int
    batch_size: Positive
    seconds: Annotated[float, Field(gt=0)]
    encoder_learning_rate: Rate
    decoder_learning_rate: Rate
    weight_decay: Annotated[float, Field(ge=0)]
    ema_decay: Share
    checkpoint_seconds: Rate
    threads: Positive | None = None
    loaders: Positive = 1
    sharpness_transferred: Share = 0.0
    framed: Share = 0.0
    decorated: Share = 0.0
    removed: Share = 0.0
    pasted: Share = 0.0
    pasted_healthy: Share = 0.0
    shares: dict[str, Annotated[float, Field(ge=0)]]
    file: str = ""


class SegmentRecipe(_Table):
    """A recipe of `segment`: of the U-Net and its training."""

    epochs: Positive
    augmentation: Share
    batch_size: Positive
    learning_rate: Rate
    final_learning_rate: Rate
    widths: tuple[Positive, ...]
    patch: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    seed: int
    threads: Positive | None = None


Recipe = TypeVar("Recipe", ClassifyRecipe, EvidenceRecipe, SegmentRecipe)


def read_recipe(path: Path, kind: type[Recipe]) -> Recipe:
    """A recipe from TOML as a person writes it, or from JSON as `keep_recipe` does.

    Raises:
        TrainingError: it is missing or no recipe of this kind; each wrong value is named.
    """
    try:
        text = path.read_text("utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise TrainingError(f"The recipe {path} can't be read: {error}.") from error
    return recipe_of(table, kind, f"The recipe {path}")


def recipe_of(table: dict[str, Any], kind: type[Recipe], where: str) -> Recipe:
    """A recipe from a table; `where` it stands is said if it is wrong.

    Raises:
        TrainingError: a key is missing, unknown, or has a value that it can't have.
    """
    try:
        return kind.model_validate_json(json.dumps(_renamed(table)))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:6])
        raise TrainingError(f"{where}: {wrong}. training/fit/recipe.py says what each key may be.") from error


def as_table(recipe: BaseModel) -> dict[str, Any]:
    """The recipe as JSON has it; what it leaves out stays out."""
    return recipe.model_dump(mode="json", exclude_none=True)


def with_settings(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with other values.

    Args:
        recipe: what it was.
        settings: `key=value`, or `stage.key=value` within a stage; values as in TOML, but words need no quotes.

    Raises:
        TrainingError: the recipe has no such key, or it can't have the value.
    """
    table = as_table(recipe)
    for setting in settings:
        name, equals, text = setting.partition("=")
        *stages, key = name.strip().split(".")
        inner: Any = table
        for stage in stages:
            inner = inner.get(stage, {}) if isinstance(inner, dict) else {}
        known = inner if stages else {**dict.fromkeys(type(recipe).model_fields), **table}
        if not equals or key not in known or isinstance(inner.get(key), dict):
            raise TrainingError(f"{setting!r}: the recipe has no {name!r}; it has {', '.join(_names(table))}.")
        inner[key] = _value(text.strip())
        recipe_of(table, type(recipe), f"--set {setting!r}")
    return recipe_of(table, type(recipe), "The recipe")


def keep_recipe(path: Path, kind: type[Recipe], settings: Iterable[str], out: Path) -> Path:
    """Write the recipe with its settings to OUT/recipe.json, with the name of its file as `file`, and say where it is.

    Raises:
        TrainingError: see `with_settings`; or OUT holds a run of another recipe.
    """
    recipe = with_settings(read_recipe(path, kind), settings)
    if "file" in kind.model_fields:
        recipe = recipe.model_copy(update={"file": path.name})
    kept = out / "recipe.json"
    begun = [name for name in ("checkpoint.pt", "last.pt") if (out / name).exists()]
    if begun and kept.exists() and (changed := changes(kept, recipe)):
        raise TrainingError(
            f"{out} holds a run of another recipe ({'; '.join(changed)}). A run folder belongs to one recipe: "
            f"choose another --out, or delete {out} to begin anew."
        )
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(as_table(recipe), indent=2) + "\n", "utf-8")
    return kept


def changes(kept: Path, recipe: Recipe) -> list[str]:
    """What a run's recipe.json says otherwise than a recipe, but for the name of its file.

    Keys that it leaves out count as their defaults.
    """
    before = _renamed(json.loads(kept.read_text("utf-8")))
    with suppress(ValidationError):  # of a version with other keys
        before = as_table(type(recipe).model_validate_json(json.dumps(before)))
    return differences(before, as_table(recipe))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of a recipe's table changed, but for the name of its file: "key 1 → 2" each."""
    old, new = _flat({**before, "file": ""}), _flat({**now, "file": ""})
    return [
        f"{key} {old.get(key, 'unset')} → {new.get(key, 'unset')}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
    ]


def _renamed(table: dict[str, Any]) -> dict[str, Any]:
    return {_OLDER_NAMES.get(key, key): value for key, value in table.items()}


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= {f"{key}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _names(table: dict[str, Any]) -> list[str]:
    return list(_flat(table))
