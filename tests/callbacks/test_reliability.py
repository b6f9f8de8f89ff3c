"""The reliability diagram, and predictions that go on where they were stopped."""

import datetime
import json
from decimal import Decimal
from typing import NamedTuple

import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from callbacks import Predictions, Reliability
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer


class Bins(NamedTuple):
    confidence: list[float]
    accuracy: list[float]
    num_pairs: list[int]
    ece: float


BINS = Bins(confidence=[0.55, 0.8, 0.97], accuracy=[0.5, 0.7, 0.9], num_pairs=[10, 20, 5], ece=0.081)


class Measured(TinyModule):
    def __init__(self, bins):
        super().__init__()
        self.bins = bins

    def reliability(self):
        return self.bins


class SecondRank(SingleDeviceStrategy):
    is_global_zero = False


def test_it_draws_and_writes_what_the_module_measured(tmp_path):
    tiny_trainer(tmp_path, callbacks=[Reliability()]).validate(Measured(BINS), TinyData())
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "reliability.json").read_text()) == BINS._asdict()


@pytest.mark.parametrize("changes", [{"fast_dev_run": True}, {"strategy": SecondRank("cpu")}])
def test_it_draws_nothing_where_nothing_is_to_be_left(tmp_path, changes):
    tiny_trainer(tmp_path, callbacks=[Reliability()], **changes).validate(Measured(BINS), TinyData())
    assert not list(tmp_path.iterdir())


def test_it_draws_nothing_of_the_sanity_check(tmp_path):
    trainer = tiny_trainer(tmp_path, callbacks=[Reliability()], num_sanity_val_steps=1, max_steps=1)
    trainer.fit(Measured(BINS), TinyData())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [TinyModule(), Measured(None)])
def test_modules_without_a_diagram_are_left_alone(tmp_path, module):
    tiny_trainer(tmp_path, callbacks=[Reliability()]).validate(module, TinyData())
    assert not list(tmp_path.iterdir())


class StoppedError(Exception):
    pass


class Scorer(LightningModule):
    """Predicts the rows of the indices in a batch."""

    def __init__(self, key, rows, stops):
        super().__init__()
        self.key, self.rows, self.stops = key, rows, stops
        self.finished = set()

    def prediction_key(self):
        return self.key

    def predict_step(self, batch):
        return [{"index": i, "row": self.rows[i]} for i in batch if i not in self.finished]

    def on_predict_epoch_end(self):
        if self.stops:
            raise StoppedError


VALUES = [{"value": f"é{i}"} for i in range(6)]


def predict(folder, key, batches, rows=VALUES, stops=False):
    module = Scorer(key, rows, stops)
    trainer = tiny_trainer(folder, callbacks=[Predictions()])
    try:
        trainer.predict(module, DataLoader(batches, batch_size=None), return_predictions=False)
    except StoppedError:
        assert stops
    return module


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_predictions_go_on_and_come_out_in_order(tmp_path, capsys):
    predict(tmp_path, "a", [[5, 2], [0]], stops=True)
    part = tmp_path / "predictions.jsonl.part"
    part.write_bytes(part.read_bytes() + b'{"index": 3, "row')  # killed while it wrote
    module = predict(tmp_path, "a", [[5, 2], [0], [3, 1, 4]])
    assert module.finished == {5, 2, 0} and "Going on behind 3" in capsys.readouterr().out
    assert rows_of(tmp_path / "predictions.jsonl") == VALUES and not part.exists()


def test_half_characters_of_a_record_stay_as_json_writes_them(tmp_path):
    row = {"note": "\ud83d", "é": [{"\udc00": 1}], "reward": 0.5}
    predict(tmp_path, "a", [[1, 0]], [row, {"note": "é"}])
    assert rows_of(tmp_path / "predictions.jsonl") == [row, {"note": "é"}]
    assert (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[1] == '{"note": "é"}'


def test_records_of_any_values_are_json(tmp_path):
    record = {"when": datetime.datetime(2024, 1, 1), "price": Decimal("1.50"), "image": b"\xff", "score": float("nan")}
    predict(tmp_path, "a", [[0]], [record | {"reward": 0.5}])
    assert (tmp_path / "predictions.jsonl").read_text() == (
        '{"when": "2024-01-01T00:00:00", "price": "1.50", "image": "/w==", "score": null, "reward": 0.5}\n'
    )


def test_other_weights_begin_anew(tmp_path):
    predict(tmp_path, "a", [[5, 2]], stops=True)
    module = predict(tmp_path, "b", [[0], [1]])
    assert module.finished == set()
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("place", [3, 12, 30])
def test_a_prediction_with_a_flipped_bit_is_made_again_and_no_other(tmp_path, capsys, place):
    predict(tmp_path, "a", [[5, 2], [0]], stops=True)
    part = tmp_path / "predictions.jsonl.part"
    first, second, *rest = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([first, second[:place] + bytes([second[place] ^ 2]) + second[place + 1 :], *rest]))
    module = predict(tmp_path, "a", [[5, 2], [0], [3, 1, 4]])
    assert module.finished == {2, 0} and "; 1 are damaged and made again" in capsys.readouterr().out
    assert rows_of(tmp_path / "predictions.jsonl") == VALUES and not part.exists()
