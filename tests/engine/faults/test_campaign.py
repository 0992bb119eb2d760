"""Every scenario, interrupted again and again, ends with the bits of the undisturbed one."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.faults.campaign import Campaign
from engine.faults.experiments import Scenario
from engine.faults.scenarios import SCENARIOS

# Interruptions of each scenario in the long form.
KILLS = int(os.environ.get("PROJ_TEST_KILLS", "15"))


def needs(scenario: Scenario) -> str:
    """Return what the scenario needs that is not installed, empty if it is."""
    return "a C++ compiler" if "compiled" in scenario.name and not shutil.which("g++") else ""


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_an_interrupted_scenario_ends_with_the_same_bits(
    scenario: Scenario, work: Path, record_property: Any
) -> None:
    if missing := needs(scenario):
        pytest.skip(f"torch.compile needs {missing}")
    campaign = Campaign(scenario, work)
    record_property("scenarios interrupted", 1)
    try:
        campaign.run(min(KILLS, scenario.most_kills))
    except AssertionError:
        record_property("scenarios lost", 1)
        raise
    finally:
        record_property("interruptions", campaign.kills)


@pytest.mark.parametrize("name", ["precision 32-true", "init of a table"])
def test_a_sample_of_the_scenarios(name: str, work: Path) -> None:
    (scenario,) = (scenario for scenario in SCENARIOS if scenario.name == name)
    assert Campaign(scenario, work).run(2) == 2
