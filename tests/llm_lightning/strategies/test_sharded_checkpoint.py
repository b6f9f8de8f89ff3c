"""A sharded checkpoint is read without running what somebody planted in it."""

import io
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from llm_lightning.checkpoints.sharded_reader import PartsReader, load_parts
from llm_lightning.errors import UserError
from llm_lightning.strategies import FSDP2Strategy
from llm_lightning.strategies.trust import check_strategy, refuse_pickles

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed.checkpoint")


class Evil:
    """Creates the marker when it is unpickled."""

    def __init__(self, marker: Path, how: str = "touch") -> None:
        self.marker, self.how = marker, how

    def __reduce__(self):
        if self.how == "eval":
            return eval, (f"open({str(self.marker)!r}, 'w').close()",)
        return Path.touch, (self.marker,)


def trained(lr: float = 1e-3, steps: int = 1):
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.8, 0.95))
    for _ in range(steps):
        network(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    return network, optimizer


def state_of(network, optimizer):
    return {
        "state_dict": get_model_state_dict(network),
        "optimizer_0": get_optimizer_state_dict(network, optimizer),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "step=1.ckpt"
    dcp.save(state_of(*trained(lr=0.25, steps=3)), checkpoint_id=path)
    return path


@pytest.fixture
def checkpoint(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "step=1.ckpt"))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def load(path):
    state = state_of(*trained())
    load_parts(state, PartsReader(path))
    return state


def test_everything_comes_back(saved):
    wanted, got = state_of(*trained(lr=0.25, steps=3)), load(saved)
    torch.testing.assert_close(got["state_dict"], wanted["state_dict"], rtol=0, atol=0)
    assert got["optimizer_0"]["param_groups"] == wanted["optimizer_0"]["param_groups"]
    assert got["optimizer_0"]["param_groups"][0]["betas"] == (0.8, 0.95)
    torch.testing.assert_close(got["optimizer_0"]["state"], wanted["optimizer_0"]["state"], rtol=0, atol=0)


def test_metadata_are_those_that_torch_reads(saved):
    theirs, ours = dcp.FileSystemReader(saved).read_metadata(), PartsReader(saved).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


def metadata_of(path):
    return pickle.loads((path / ".metadata").read_bytes())


def assert_refused(path, marker, match):
    with pytest.raises(UserError, match=match):
        load(path)
    assert not marker.exists()


@pytest.mark.parametrize("how", ["touch", "eval"])
@pytest.mark.parametrize("field", ["planner_data", "storage_meta", "state_dict_metadata", "storage_data", "version"])
def test_code_in_the_metadata_is_not_run(checkpoint, marker, field, how):
    metadata = metadata_of(checkpoint)
    setattr(metadata, field, Evil(marker, how))
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(checkpoint, marker, r"\.metadata cannot be read safely: it names")
    pickle.loads((checkpoint / ".metadata").read_bytes())
    assert marker.exists()  # as torch would have read it


def test_a_pickle_that_is_no_metadata_is_not_run(checkpoint, marker):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Evil(marker)))
    assert_refused(checkpoint, marker, "it names")
    for data in (pickle.dumps({"a": 1}), b"", b"garbage", (checkpoint / ".metadata").read_bytes()[:40]):
        (checkpoint / ".metadata").write_bytes(data)
        assert_refused(checkpoint, marker, "cannot be read safely")


def test_the_metadata_of_one_rank_are_no_way_around(checkpoint, marker):
    """torch looks for them where the others cannot be read."""
    (checkpoint / ".metadata").unlink()
    (checkpoint / "__0.metadata").write_bytes(pickle.dumps(Evil(marker)))
    assert_refused(checkpoint, marker, "cannot be read")


def test_known_classes_cannot_be_bent(checkpoint, marker):
    """`BUILD` on an instance sets any attribute; on torch's own classes that would last."""
    state = (None, {"state_dict_metadata": {}, "__class__": MetadataIndex})
    bent = b"\x80\x04ctorch.distributed.checkpoint.metadata\nMetadata\n" + pickle.dumps(state)[2:-1] + b"b."
    (checkpoint / ".metadata").write_bytes(bent)
    assert_refused(checkpoint, marker, "cannot be read safely")
    assert "state_dict_metadata" not in vars(dcp.Metadata)


def plant(path, name, value):
    """Put `value` in place of the entry `name`, with all that belongs to it."""
    metadata = metadata_of(path)
    data = io.BytesIO()
    torch.save(value, data)
    (path / "planted.distcp").write_bytes(data.getvalue())
    index = next(index for index in metadata.storage_data if index.fqn == name)
    metadata.storage_data[index] = _StorageInfo("planted.distcp", 0, len(data.getvalue()))
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("how", ["touch", "eval"])
@pytest.mark.parametrize("entry", ["param_groups.weight.lr", "param_groups.weight.betas", "state.weight.exp_avg"])
def test_code_in_the_payload_is_not_run(checkpoint, marker, entry, how):
    names = {index.fqn for index in metadata_of(checkpoint).storage_data}
    name = f"optimizer_0.{entry}"
    if name not in names:  # as get_optimizer_state_dict writes groups
        name = name.replace("param_groups.weight", "param_groups.0")
    plant(checkpoint, name, Evil(marker, how))
    assert_refused(checkpoint, marker, "cannot be read")


def test_plain_values_pass(checkpoint):
    plant(checkpoint, "optimizer_0.param_groups.0.lr", torch.tensor(0.5))
    assert load(checkpoint)["optimizer_0"]["param_groups"][0]["lr"] == 0.5


@pytest.mark.parametrize("name", ["../step=0.ckpt/__0_0.distcp", "/etc/passwd", ".."])
def test_files_outside_are_not_read(checkpoint, marker, name):
    metadata = metadata_of(checkpoint)
    for info in metadata.storage_data.values():
        info.relative_path = name
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_refused(checkpoint, marker, "outside of its folder")


def test_a_missing_or_cut_part_is_said(checkpoint, marker):
    part = next(checkpoint.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-900])
    assert_refused(checkpoint, marker, "cannot be read")
    part.unlink()
    assert_refused(checkpoint, marker, "cannot be read")


def test_lightnings_own_sharded_strategies_are_refused():
    with pytest.raises(UserError, match=r"FSDPStrategy is Lightning's own.*trainer/fsdp\.yaml"):
        check_strategy(FSDPStrategy())
    check_strategy(FSDP2Strategy())


def test_deepspeeds_pickles_need_a_word(tmp_path):
    with pytest.raises(UserError, match="trust_checkpoints=true"):
        refuse_pickles(tmp_path, trusted=False)
    refuse_pickles(tmp_path, trusted=True)
