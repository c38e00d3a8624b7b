"""Writes docs/settings.md and the generated tables of docs/conformance.md from the code.

    python -m scripts.generate_docs           write both
    python -m scripts.generate_docs --check   exit status 1 if one of them is out of date

`tests/unit/test_generated_docs.py` runs the check.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from cxr_node.settings import Settings
from scripts.conformance_tables import with_tables

REPOSITORY = Path(__file__).parents[1]
SETTINGS = REPOSITORY / "docs" / "settings.md"
CONFORMANCE = REPOSITORY / "docs" / "conformance.md"

_INTRODUCTION = """\
# Settings reference

Generated from `cxr_node/settings.py` by `python -m scripts.generate_docs`; don't edit it by hand.

Settings come from a TOML file (`--config FILE`, or `CXR_NODE_CONFIG=FILE`) and from the environment. Later wins:

1. the defaults below,
2. the TOML file,
3. `CXR_NODE__SECTION__KEY_FILE`, the path of a file that contains the value, for secrets,
4. `CXR_NODE__SECTION__KEY`.

In the environment a list of tables (`CXR_NODE__SENDERS`, `CXR_NODE__DESTINATIONS`, `CXR_NODE__ROUTES`) is one JSON text. An
unknown key is an error. `cxr-node check-config FILE` validates a file and tries it out. A change takes effect after a restart.

[`conf/cxr-node.example.toml`](../conf/cxr-node.example.toml) is a complete file to start from. Units are part of the key: `_s`
seconds, `_days` days, `_mb` MiB, `_px` pixels.
"""

_ABOUT = {
    "senders": "One table for each sender that the node knows. Several may have the same AE title, each with its own `hosts`.",
    "destinations": "One table for each PACS, archive or viewer that receives results.",
    "routes": "One table for each rule, tried in order; the first that matches an image decides. Without a match, results go to "
    "all destinations.",
    "tls": "DICOM over TLS, for the listener and towards destinations with `tls = true`.",
    "storage": "Where received instances and results are kept: the data folder, or a bucket that several hosts share.",
    "not_analysed": "Notices for destinations about images that were rejected. Default: none.",
}


def settings_page() -> str:
    """The whole of docs/settings.md."""
    parts = [_INTRODUCTION.rstrip()]
    for name, field in Settings.model_fields.items():
        is_list = not isinstance(field.default, BaseModel)
        (model,) = models_of(field.annotation) if is_list else (type(field.default),)
        parts += _section(name, model, "##", is_list=is_list)
    return "\n\n".join(parts) + "\n"


def _section(name: str, model: type[BaseModel], level: str, *, is_list: bool) -> list[str]:
    """The table of a section, and those of the sections within it."""
    title = f"{level} [[{name}]]" if is_list else f"{level} [{name}]"
    about = f"\n\n{_ABOUT[name]}" if name in _ABOUT else ""
    rows = [_row(key, field) for key, field in model.model_fields.items()]
    parts = [title + about + "\n\n" + "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])]
    for key, field in model.model_fields.items():
        for inner in models_of(field.annotation):
            parts += _section(f"{name}.{key}", inner, "###", is_list=get_origin(field.annotation) is tuple)
    return parts


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, such as X in tuple[X, ...] or X | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for item in get_args(annotation) for model in models_of(item)]


def _row(key: str, field: FieldInfo) -> str:
    cells = (f"`{key}`", _kind(field), _default(field), " ".join((field.description or "").split()))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _kind(field: FieldInfo) -> str:
    """The values that a key takes, in words."""
    return _in_words(field.annotation, list(field.metadata))


def _in_words(annotation: Any, metadata: list[Any]) -> str:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _in_words(inner, [*metadata, *more])
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_in_words(item, metadata) for item in get_args(annotation) if item is not type(None))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if models_of(annotation):
        return "list of tables" if get_origin(annotation) is tuple else "table"
    if get_origin(annotation) is tuple:
        return "list of texts"
    if get_origin(annotation) is dict:
        return "table"
    bounds = ", ".join(_bounds(metadata))
    known = {bool: "`true`, `false`", int: "integer", float: "number", Path: "path", SecretStr: "text (secret)"}
    return " ".join(part for part in (known.get(annotation, "text"), bounds) if part)


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for item in metadata:
        constraints = getattr(item, "metadata", None) or [item]
        for one in constraints:
            if isinstance(one, annotated_types.Ge):
                yield f"≥ {one.ge}"
            elif isinstance(one, annotated_types.Gt):
                yield f"> {one.gt}"
            elif isinstance(one, annotated_types.Le):
                yield f"≤ {one.le}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "absent"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    if isinstance(value, dict):
        return "`{}`"
    return f"`{value}`" if isinstance(value, int | float) else f'`"{value}"`'


def pages() -> dict[Path, str]:
    """What each document has to hold."""
    return {SETTINGS: settings_page(), CONFORMANCE: with_tables(CONFORMANCE.read_text("utf-8"))}


def main() -> int:
    """Write the documents, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a document is out of date")
    is_check = parser.parse_args().check
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        print(
            f"{path.relative_to(REPOSITORY)} {'is out of date: run python -m scripts.generate_docs' if is_check else 'written'}"
        )
        if not is_check:
            path.write_text(pages()[path], "utf-8")
    return 1 if is_check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
