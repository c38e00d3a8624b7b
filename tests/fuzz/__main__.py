"""Fuzz for long: python -m tests.fuzz [--inputs N] [--pictures N] [--pdus N] [--seed N]."""

from __future__ import annotations

import argparse
import logging
import time
import warnings

import structlog

from tests.fuzz import decoder, listener, parser


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--inputs", type=int, default=1_000_000, help="for the parsers")
    options.add_argument("--pictures", type=int, default=20_000, help="for the decoders")
    options.add_argument("--pdus", type=int, default=100_000, help="for the listener")
    options.add_argument("--seed", type=int, default=int(time.time()))
    chosen = options.parse_args()
    warnings.simplefilter("ignore")  # as the node does: pydicom warns of each value
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # of each input a line or two
    print(f"seed {chosen.seed}", flush=True)
    for name, room, count in (
        ("parser", parser, chosen.inputs),
        ("decoder", decoder, chosen.pictures),
        ("listener", listener, chosen.pdus),
    ):
        if count:
            started = time.monotonic()
            outcomes = room.run(count, chosen.seed)
            print(f"{name}: {count} inputs in {time.monotonic() - started:.0f} s: {dict(outcomes)}", flush=True)


if __name__ == "__main__":
    main()
