"""What the ablation concludes from its runs."""

import pytest

from llm_lightning.commands.ablate import interval, last_value, run, table
from llm_lightning.errors import UserError


def test_the_interval_is_students():
    # By hand: mean 2, standard deviation 1, t(2) = 4.303.
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / 3**0.5))


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([(2.0, 1.9), (2.1, 1.99), (2.0, 1.91)], "it helps"),
        ([(2.0, 2.1), (2.1, 2.21), (2.0, 2.09)], "it hurts"),
        ([(2.0, 2.1), (2.1, 1.9), (2.0, 2.0)], "no difference is seen"),
    ],
)
def test_the_verdict(losses, verdict):
    assert table(losses).endswith(verdict)


def test_the_last_value_counts(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n1,3,\n2,,2.5\n4,,2.25\n5,1,\n")
    assert last_value(tmp_path / "metrics.csv", "val/loss") == 2.25
    with pytest.raises(UserError, match="nothing was validated"):
        last_value(tmp_path / "metrics.csv", "val/accuracy")


def test_one_seed_makes_no_interval(capsys):
    assert run(["--seeds", "1", "--config", "x.yaml"]) == 2
    assert "an interval needs 2" in capsys.readouterr().err
