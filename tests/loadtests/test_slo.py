import pytest

from loadtests.slo import CHUNK_GAP, TTFT, judge, read_objectives
from specserve.settings import StartError

GIVEN = {"HOLDCOURSE_SLO_TTFT_P95_MS": "200", "HOLDCOURSE_SLO_CHUNK_GAP_P95_MS": "50"}


def test_objectives_that_hold_are_silent() -> None:
    assert judge(read_objectives(GIVEN), {TTFT: 200.0, CHUNK_GAP: 12.0}, 0.0) == []


def test_each_objective_that_is_missed_is_told() -> None:
    broken = judge(read_objectives(GIVEN), {TTFT: 201.0, CHUNK_GAP: 51.0}, 1.5)
    assert len(broken) == 3
    assert any("201 is over HOLDCOURSE_SLO_TTFT_P95_MS=200" in sentence for sentence in broken)


def test_what_was_not_measured_is_missed() -> None:
    assert len(judge(read_objectives(GIVEN), {TTFT: 1.0}, None)) == 2


def test_failures_are_allowed_up_to_their_limit() -> None:
    assert judge(read_objectives({"HOLDCOURSE_SLO_FAILED_PERCENT": "5"}), {}, 4.0) == []
    assert judge(read_objectives({}), {}, 0.1) != []


@pytest.mark.parametrize("text", ["fast", "-1", "nan"])
def test_a_limit_must_be_a_number(text: str) -> None:
    with pytest.raises(StartError, match="HOLDCOURSE_SLO_TTFT_P95_MS"):
        read_objectives({"HOLDCOURSE_SLO_TTFT_P95_MS": text})


def test_a_misspelt_objective_is_not_ignored() -> None:
    with pytest.raises(StartError, match="no such objective"):
        read_objectives({"HOLDCOURSE_SLO_TTFT": "1"})
