"""The commands of RESULTS.md lead to the shipped weights, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.fit.recipe import RECIPES
from training.reporting import report_commands
from training.reporting.report_commands import PHASES, all_commands


def shipping(monkeypatch: pytest.MonkeyPatch, training: dict[str, object], **others: object) -> list[str]:
    """The commands that are said to have made weights of such a description."""
    monkeypatch.setattr(report_commands, "network_description", lambda *_: {"version": "9", "training": training, **others})
    block = all_commands([], []).split("```")[1]
    return [line for line in block.splitlines() if line]


@pytest.mark.parametrize("phases", [1, 2, 3])
def test_each_leg_begins_with_what_the_last_one_made(monkeypatch, phases):
    commands = shipping(monkeypatch, {"recipe": {"file": PHASES[phases - 1]}, "begun_with": "digest" if phases > 1 else ""})
    trained = [command for command in commands if " classify " in command]
    assert [re.search(r"conf/(\S+)", command)[1] for command in trained] == list(PHASES[:phases])
    assert "--imagenet" in trained[0]
    made: set[str] = set()
    for command in commands[2:]:
        words = command.split()
        for option in ("--begin-with", "--classify"):
            if option in words:
                assert words[words.index(option) + 1] in made, command
        out = words[words.index("--out") + 1]
        made |= {out, f"{out}/last.pt"}
    assert commands[-1].endswith(
        "--version 9 --classify " + f"runs/{Path(PHASES[phases - 1]).stem}/last.pt --out cxr_node/nets/weights"
    )


def test_a_head_fitted_anew_and_int8_are_told(monkeypatch):
    commands = shipping(monkeypatch, {"recipe": {"file": PHASES[0], "head": {}}}, int8={})
    assert commands[-3].endswith("head --data DIR --classify runs/classify/last.pt --out runs/classify/refit.pt")
    assert "--classify runs/classify/refit.pt" in commands[-2]
    assert "quantise" in commands[-1]


@pytest.mark.parametrize(("begun_with", "option"), [("digest", "--begin-with WEIGHTS"), ("", "--imagenet ")])
def test_a_recipe_of_one_s_own_begins_with_what_the_weights_say(monkeypatch, begun_with, option):
    commands = shipping(monkeypatch, {"recipe": {"file": "own.toml"}, "begun_with": begun_with})
    trained = [command for command in commands if " classify " in command]
    assert len(trained) == 1
    assert "conf/own.toml" in trained[0]
    assert option in trained[0]


def test_the_legs_are_recipes_that_are_there():
    assert all((RECIPES / phase).is_file() for phase in PHASES)
