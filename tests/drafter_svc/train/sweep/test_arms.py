"""Training arms as they are written on the command line."""

import pytest

from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.sweep.arms import parse_arms

BASE = TrainSettings(target="t", data=["d"], out="o", stride=3)


def test_an_arm_is_the_base_with_changes_of_their_types() -> None:
    base, changed = parse_arms(
        ["base", "deep: layers=2, norm_output=false, chain_steps=2 4, learning_rate=2e-3"], BASE
    )
    assert base.settings == BASE
    assert base.changes == {}
    assert changed.name == "deep"
    assert changed.settings.stride == 3
    assert changed.settings.layers == 2
    assert changed.settings.norm_output is False
    assert changed.settings.chain_steps == [2, 4]
    assert changed.settings.learning_rate == 2e-3
    assert changed.changes["chain_steps"] == "2 4"


@pytest.mark.parametrize(
    ("arms", "complaint"),
    [
        (["a: layer=2"], "no setting 'layer'"),
        (["a: layers=two"], "layers is 'two': "),
        (["a: norm_output"], "norm_output is '': "),
        (["a: loss=l2"], "'kl' or 'lk'"),
        (["a: stride=0"], "arm a: stride must be at least 1"),
        (["a: batch_tokens=10"], "batch_tokens is one for all"),
        (["a: chain_steps="], "chain_steps must be"),
        ([": layers=2"], "is written as"),
        (["a", "b", "a: layers=2"], "different names, got a twice"),
    ],
)
def test_what_is_no_arm_is_refused(arms: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_arms(arms, BASE)
