"""Weight files: safetensors with a JSON description, verified before use.

`NAME.json` holds: name, version, architecture (arguments of the network), classes, own_classes (title and code of each class
that records.LABELS lacks: {NAME: {title, code: {value, scheme, meaning}}}), preprocessing, calibration,
indeterminate_below (optional, see `indeterminate_below`), answer (of networks that answer from evidence, see
`analyse.answer`), training (what data, which recipe), metrics, licence, and files
({name, sha256, size_bytes} each). A large network lies in several files, each under 50 MB.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_node.errors import WeightsError
from cxr_node.records import LABELS, FindingClass, Model

if TYPE_CHECKING:  # who only asks what the weights are called, such as `status`, loads no torch
    from torch import Tensor, nn

_FILE_LIMIT_BYTES = 45_000_000


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its JSON."""

    network: nn.Module
    description: dict[str, Any]


def shipped_folder() -> Path:
    """Where the weights lie that come with the program."""
    return Path(str(resources.files("cxr_node.nets") / "weights"))


def network_description(folder: Path, name: str) -> dict[str, Any]:
    """The JSON of a network.

    Raises:
        WeightsError: it is missing or not JSON.
    """
    path = folder / f"{name}.json"
    try:
        description: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"No weights at {path}: set inference.weights_dir to a folder that holds {name}.json.") from error
    except ValueError as error:
        raise WeightsError(f"{path} is damaged ({error}): install the weights again.") from error
    return description


def model_of(folder: Path) -> Model:
    """Name and version of the weights in a folder, without loading them."""
    description = network_description(folder, "cxrnet")
    checksums = [file["sha256"] for name in ("unet", "cxrnet") for file in network_description(folder, name)["files"]]
    classes, own = classes_of(description)
    told = "".join(checksums) + (json.dumps(description["own_classes"], sort_keys=True) if own else "")
    return Model(description["name"], description["version"], hashlib.sha256(told.encode()).hexdigest(), classes, own)


def classes_of(description: dict[str, Any]) -> tuple[tuple[str, ...], tuple[FindingClass, ...]]:
    """The classes of a network's JSON, in the order of its outputs, and what it says of those that LABELS lacks.

    Raises:
        WeightsError: "healthy" isn't the first, one is there twice, or one has neither a title and code here nor in the JSON.
    """
    names, told = tuple(description["classes"]), description.get("own_classes", {})
    where = f'"classes" in {description["name"]}\'s JSON, {list(names)},'
    if len(names) < 2 or names[0] != "healthy" or len(set(names)) < len(names):
        raise WeightsError(f'{where} must begin with "healthy" and name each class once: export the weights again.')
    own = []
    for name in names:
        if name in LABELS:
            continue
        try:
            title, code = told[name]["title"], told[name]["code"]
            own.append(FindingClass(name, title, code["value"], code["scheme"], code["meaning"]))
        except (KeyError, TypeError) as error:
            raise WeightsError(
                f'{where} has {name!r}, which this program doesn\'t know: "own_classes" must give it a title and a code '
                "(value, scheme, meaning), as `python -m training export` writes them."
            ) from error
    return names, tuple(own)


def load_unet(folder: Path) -> LoadedNetwork:
    """The lung U-Net, in evaluation mode, float32.

    Raises:
        WeightsError: a file is missing, damaged, or of another architecture.
    """
    from cxr_node.nets.unet import UNet

    description = network_description(folder, "unet")
    architecture = description["architecture"]
    network = UNet(tuple(architecture["widths"]), architecture["patch"])
    _fill(network, folder, description)
    return LoadedNetwork(network, description)


def load_cxrnet(folder: Path) -> LoadedNetwork:
    """CXRNet, in evaluation mode, float32.

    Raises:
        WeightsError: a file is missing, damaged, of another architecture, or for classes that nothing is known of.
    """
    from cxr_node.nets.cxrnet import CXRNet
    from cxr_node.nets.encoders import ENCODERS

    description = network_description(folder, "cxrnet")
    classes, _ = classes_of(description)
    architecture = description["architecture"]
    if architecture["encoder"] not in ENCODERS:
        raise WeightsError(
            f"{folder / 'cxrnet.json'} is of the encoder {architecture['encoder']!r}; the node knows {', '.join(ENCODERS)}: "
            "train on one of these."
        )
    network = CXRNet(
        architecture["encoder"],
        len(classes),
        architecture["representation"],
        tuple(architecture["decoder_channels"]),
        architecture.get("answer", "image"),
    )
    _fill(network, folder, description)
    return LoadedNetwork(network, description)


def indeterminate_below(description: dict[str, Any]) -> dict[str, float]:
    """The probability that each class needs to be named where it is the likeliest; 0: any is enough.

    The JSON holds one number for all classes, or {class: number}, or nothing.

    Raises:
        WeightsError: it holds something that is no probability, or not one for each class.
    """
    given, classes = description.get("indeterminate_below", 0.0), description["classes"]
    limits = given if isinstance(given, dict) else dict.fromkeys(classes, given)
    for value in limits.values():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise WeightsError(f'"indeterminate_below" in {description["name"]}\'s JSON is {value!r}: it must be from 0 to 1.')
    if set(limits) != set(classes):
        raise WeightsError(
            f'"indeterminate_below" in {description["name"]}\'s JSON is of {", ".join(limits)}: it must be of '
            f"{', '.join(classes)}, or one number."
        )
    return {name: float(limits[name]) for name in classes}


def save(folder: Path, name: str, network: nn.Module, description: dict[str, Any]) -> None:
    """Write a network as fp16 (but for vectors, such as batch normalisation's statistics) with its JSON.

    Args:
        folder: made if missing; older files of the same name are replaced.
        name: "unet" or "cxrnet".
        network: what to write.
        description: the JSON's content but for `files`.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    filled_bytes = 0
    for key, tensor in network.state_dict().items():
        packed = tensor.half() if tensor.ndim > 1 else tensor
        size_bytes = packed.numel() * packed.element_size()
        if filled_bytes + size_bytes > _FILE_LIMIT_BYTES:
            shards.append({})
            filled_bytes = 0
        shards[-1][key] = packed.contiguous()
        filled_bytes += size_bytes
    files = []
    for index, shard in enumerate(shards, start=1):
        path = folder / (f"{name}.safetensors" if len(shards) == 1 else f"{name}-{index}.safetensors")
        save_file(shard, path)
        path.chmod(0o644)
        content = path.read_bytes()
        files.append({"name": path.name, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)})
    (folder / f"{name}.json").write_text(json.dumps({**description, "files": files}, indent=2) + "\n")


def _fill(network: nn.Module, folder: Path, description: dict[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    tensors: dict[str, Tensor] = {}
    for file in description["files"]:
        path = folder / file["name"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"{path} can't be read ({error.strerror}): install the weights again.") from error
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise WeightsError(f"{path} is damaged (its SHA-256 is not the one in its JSON): install the weights again.")
        try:
            tensors.update(load(content))
        except SafetensorError as error:
            raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    widened = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    try:
        network.load_state_dict(widened)
    except RuntimeError as error:
        raise WeightsError(f"{folder}: the weights don't fit the architecture that their JSON names: {error}") from error
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
