"""How long the networks take for one radiograph, by engine and precision.

    python -m benchmarks.inference [--repeats 5] [--images 16]

Lungs, gate, class and heat of drawn chests that are prepared beforehand; the median of the repetitions counts, in ms an image
for the batch sizes that a worker meets. "start" is from the weight files to the first answer. "memory" is the peak of a process
that does nothing but load the networks and analyse one radiograph; with OpenVINO, networks that an earlier process has converted.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_node.analyse.networks import Networks, load_networks
from cxr_node.analyse.pipeline import classifier_inputs, segment_batch
from cxr_node.demo.phantom import chest_phantom
from cxr_node.errors import SettingsError
from cxr_node.prepare.radiograph import prepare_dataset
from cxr_node.prepare.wrap_picture import radiograph_from_image
from cxr_node.settings import InferenceSettings

BATCH_SIZES = (1, 4, 8)
_PHANTOMS = 4


def engines() -> dict[str, tuple[Networks, float]]:
    """The networks by engine and precision, and the seconds until they answered first."""
    found = {}
    blank = [np.zeros((224, 224), np.uint8)]
    for engine, precision in itertools.product(("torch", "openvino"), ("fp32", "bf16", "int8")):
        started = time.perf_counter()
        settings = {"device": "cpu", "engine": engine, "precision": precision}
        try:
            networks = load_networks(InferenceSettings.model_validate(settings))
        except SettingsError as error:
            if engine == "openvino":
                print(f"{engine} {precision}: {error}")
            continue
        run(networks, blank)
        found[f"{engine} {precision}"] = (networks, time.perf_counter() - started)
    return found


def run(networks: Networks, images: list[NDArray[np.uint8]]) -> None:
    """What a worker asks of the networks for a batch."""
    lungs, _ = segment_batch(images, networks)
    networks.classify([crop.image for crop in classifier_inputs(images, lungs, networks)])


def peak_mb(name: str) -> float:
    """The peak memory of a process that analyses one radiograph, in MB; with OpenVINO of a second one, which converts nothing."""
    with tempfile.TemporaryDirectory() as converted:
        command = [sys.executable, "-m", "benchmarks.inference", "--analyse-once", *name.split(), converted]
        for _ in range(2):
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(said)


def _analyse_once(engine: str, precision: str, converted: str) -> None:
    settings = {"device": "cpu", "engine": engine, "precision": precision}
    networks = load_networks(InferenceSettings.model_validate(settings), stay=True, converted=Path(converted))
    run(networks, [prepare_dataset(radiograph_from_image(chest_phantom(seed=0))).network_image])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=16)
    arguments = parser.parse_args()
    from cxr_node.analyse.torch_engine import use_all_cores  # --analyse-once does without torch where the engine does

    use_all_cores()
    phantoms = [prepare_dataset(radiograph_from_image(chest_phantom(seed=seed))).network_image for seed in range(_PHANTOMS)]
    images = [phantoms[index % _PHANTOMS] for index in range(arguments.images)]
    loaded = engines()
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(arguments.repeats):
        for (name, (networks, _)), size in itertools.product(loaded.items(), BATCH_SIZES):
            run(networks, images[:size])
            started = time.perf_counter()
            for start in range(0, len(images), size):
                run(networks, images[start : start + size])
            taken.setdefault((name, size), []).append((time.perf_counter() - started) / len(images) * 1000)
    print(f"| | {' | '.join(f'batch of {size}' for size in BATCH_SIZES)} | start | memory |")
    print(f"|---|{'---|' * (len(BATCH_SIZES) + 2)}")
    for name, (_, start_s) in loaded.items():
        cells = [f"{statistics.median(taken[name, size]):.0f} ms" for size in BATCH_SIZES]
        print(f"| {name} | {' | '.join(cells)} | {start_s:.1f} s | {peak_mb(name):.0f} MB |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--analyse-once"]:
        _analyse_once(*sys.argv[2:])
    else:
        main()
