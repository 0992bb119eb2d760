"""Every scenario, interrupted again and again, ends with the bits of the undisturbed one."""

import os
import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest

from engine.faults.campaign import Campaign
from engine.faults.experiments import Scenario, study
from engine.faults.scenarios import SCENARIOS
from engine.tuning.test_postgresql import server as server

# Interruptions of each scenario in the long form.
KILLS = int(os.environ.get("PROJ_TEST_KILLS", "15"))


def needs(scenario: Scenario) -> str:
    """Return what the scenario needs that is not installed, empty if it is."""
    return "a C++ compiler" if "compiled" in scenario.name and not shutil.which("g++") else ""


class DatabaseCampaign(Campaign):
    """A campaign whose study is in the database ``work`` of a server, empty for each run."""

    server: str

    def _copy(self) -> None:
        super()._copy()
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS work WITH (FORCE)")
            connection.execute("CREATE DATABASE work")


def interrupt(campaign: Campaign, record_property: Any) -> None:
    """Run a campaign, and record its numbers for the summary."""
    record_property("scenarios interrupted", 1)
    try:
        campaign.run(min(KILLS, campaign.scenario.most_kills))
    except AssertionError:
        record_property("scenarios lost", 1)
        raise
    finally:
        record_property("interruptions", campaign.kills)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_an_interrupted_scenario_ends_with_the_same_bits(
    scenario: Scenario, work: Path, record_property: Any
) -> None:
    if missing := needs(scenario):
        pytest.skip(f"torch.compile needs {missing}")
    interrupt(Campaign(scenario, work), record_property)


@pytest.mark.slow
def test_an_interrupted_study_in_postgresql_ends_with_the_same_trials(
    server: str, work: Path, record_property: Any
) -> None:
    url = server.replace("/postgres", "/work")
    # A killed process counts as dead after 20 seconds.
    scenario = study("tune in PostgreSQL", "--storage", url)._replace(most_kills=4)
    campaign = DatabaseCampaign(scenario, work)
    campaign.server = server
    interrupt(campaign, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_that_is_killed_at_any_operation_ends_with_the_same_bits(
    scenario: Scenario, work: Path
) -> None:
    if missing := needs(scenario):
        pytest.skip(f"torch.compile needs {missing}")
    Campaign(scenario, work).sweep(min(KILLS, scenario.most_kills))


@pytest.mark.long
@pytest.mark.parametrize("name", ["max_steps within an epoch", "callback a second ModelCheckpoint"])
def test_a_sample_of_operations(name: str, work: Path) -> None:
    (scenario,) = (scenario for scenario in SCENARIOS if scenario.name == name)
    Campaign(scenario, work).sweep(6)


@pytest.mark.parametrize("name", ["precision 32-true", "init of a table"])
def test_a_sample_of_the_scenarios(name: str, work: Path) -> None:
    (scenario,) = (scenario for scenario in SCENARIOS if scenario.name == name)
    assert Campaign(scenario, work).run(2) == 2
