"""The reliability diagram, and predictions that go on where they were stopped."""

import datetime
import json
from decimal import Decimal
from types import SimpleNamespace

import pytest

from callbacks import Predictions, Reliability


class Bins(SimpleNamespace):
    def _asdict(self):
        return vars(self)


def trainer(folder, **changes):
    settings = {
        "default_root_dir": str(folder),
        "is_global_zero": True,
        "sanity_checking": False,
        "fast_dev_run": False,
    }
    return SimpleNamespace(**settings | changes)


BINS = Bins(confidence=[0.55, 0.8, 0.97], accuracy=[0.5, 0.7, 0.9], num_pairs=[10, 20, 5], ece=0.081)


def test_it_draws_and_writes_what_the_module_measured(tmp_path):
    Reliability().on_validation_end(trainer(tmp_path), SimpleNamespace(reliability=lambda: BINS))
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "reliability.json").read_text()) == vars(BINS)


@pytest.mark.parametrize("changes", [{"sanity_checking": True}, {"fast_dev_run": True}, {"is_global_zero": False}])
def test_it_draws_nothing_where_nothing_is_to_be_left(tmp_path, changes):
    Reliability().on_validation_end(trainer(tmp_path, **changes), SimpleNamespace(reliability=lambda: BINS))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [SimpleNamespace(), SimpleNamespace(reliability=lambda: None)])
def test_modules_without_a_diagram_are_left_alone(tmp_path, module):
    Reliability().on_validation_end(trainer(tmp_path), module)
    assert not list(tmp_path.iterdir())


class Scorer(SimpleNamespace):
    def prediction_key(self):
        return self.key

    def print(self, text):
        self.said.append(text)


def predict(folder, key, batches, stops=False):
    module = Scorer(key=key, said=[], finished=set())
    writer = Predictions()
    writer.setup(trainer(folder), module, "predict")
    writer.on_predict_start(trainer(folder), module)
    for batch in batches:
        rows = [{"index": i, "row": {"value": f"é{i}"}} for i in batch if i not in module.finished]
        writer.write_on_batch_end(trainer(folder), module, rows)
    if not stops:
        writer.on_predict_end(trainer(folder), module)
    return module


def test_predictions_go_on_and_come_out_in_order(tmp_path):
    predict(tmp_path, "a", [[5, 2], [0]], stops=True)
    part = tmp_path / "predictions.jsonl.part"
    part.write_bytes(part.read_bytes() + b'{"index": 3, "row')  # killed while it wrote
    module = predict(tmp_path, "a", [[5, 2], [0], [3, 1, 4]])
    assert module.finished == {5, 2, 0} and "Going on behind 3" in module.said[0]
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert rows == [{"value": f"é{i}"} for i in range(6)] and not part.exists()


def test_half_characters_of_a_record_stay_as_json_writes_them(tmp_path):
    row = {"note": "\ud83d", "é": [{"\udc00": 1}], "reward": 0.5}
    module, writer = Scorer(key="a", said=[], finished=set()), Predictions()
    writer.setup(trainer(tmp_path), module, "predict")
    writer.on_predict_start(trainer(tmp_path), module)
    writer.write_on_batch_end(trainer(tmp_path), module, [{"index": 1, "row": {"note": "é"}}, {"index": 0, "row": row}])
    writer.on_predict_end(trainer(tmp_path), module)
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [row, {"note": "é"}]
    assert lines[1] == '{"note": "é"}'


def test_records_of_any_values_are_json(tmp_path):
    record = {"when": datetime.datetime(2024, 1, 1), "price": Decimal("1.50"), "image": b"\xff", "score": float("nan")}
    module, writer = Scorer(key="a", said=[], finished=set()), Predictions()
    writer.setup(trainer(tmp_path), module, "predict")
    writer.on_predict_start(trainer(tmp_path), module)
    writer.write_on_batch_end(trainer(tmp_path), module, [{"index": 0, "row": record | {"reward": 0.5}}])
    writer.on_predict_end(trainer(tmp_path), module)
    assert (tmp_path / "predictions.jsonl").read_text() == (
        '{"when": "2024-01-01T00:00:00", "price": "1.50", "image": "/w==", "score": null, "reward": 0.5}\n'
    )


def test_other_weights_begin_anew(tmp_path):
    predict(tmp_path, "a", [[5, 2]], stops=True)
    module = predict(tmp_path, "b", [[0], [1]])
    assert module.finished == set()
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("place", [3, 12, 30])
def test_a_prediction_with_a_flipped_bit_is_made_again_and_no_other(tmp_path, place):
    predict(tmp_path, "a", [[5, 2], [0]], stops=True)
    part = tmp_path / "predictions.jsonl.part"
    first, second, *rest = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([first, second[:place] + bytes([second[place] ^ 2]) + second[place + 1 :], *rest]))
    module = predict(tmp_path, "a", [[5, 2], [0], [3, 1, 4]])
    assert module.finished == {2, 0} and "; 1 are damaged and made again" in module.said[0]
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert rows == [{"value": f"é{i}"} for i in range(6)] and not part.exists()
