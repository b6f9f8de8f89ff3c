"""What is said of ranks that do not come, differ, or whose clocks do. Real ranks: tests/distributed/test_meeting.py."""

import socket
import threading
from datetime import timedelta

import pytest
import torch

from llm_lightning.launch.checks import MeetingError
from llm_lightning.preflight.meeting import roll_call
from llm_lightning.preflight.meeting.looking import Present
from llm_lightning.preflight.meeting.network import deviations
from llm_lightning.preflight.meeting.roll_call import RollCall
from llm_lightning.preflight.meeting.versions import CODE, differences, digest_of, versions_here


@pytest.fixture
def address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()


def test_ranks_that_did_not_come_are_named_with_the_hosts_where_they_should_be(address, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "host-a")
    limit = timedelta(seconds=0.5)
    first = RollCall(address, 0, 6, 2, limit)
    said = {}

    def other(rank: int) -> None:
        try:
            RollCall(address, rank, 6, 2, limit).answer()
        except MeetingError as error:
            said[rank] = error

    threads = [threading.Thread(target=other, args=(rank,)) for rank in (1, 2)]
    for thread in threads:
        thread.start()
    with pytest.raises(MeetingError, match=r"3 of 6 ranks did not come within 0\.5 s") as raised:
        first.answer()
    for thread in threads:
        thread.join()
    assert "rank 3 (host-a), rank 4 (node 2, of which none came), rank 5 (node 2" in str(raised.value)
    assert not raised.value.told_by_first
    assert said.keys() == {1, 2} and all(error.told_by_first for error in said.values())


def test_the_first_rank_says_whom_it_waits_for_and_goes_on_once_all_are_there(address, monkeypatch, capfd):
    monkeypatch.setattr(roll_call, "TELL_AFTER_S", 0.1)
    told = []
    monkeypatch.setattr(roll_call, "rank_zero_info", told.append)
    first = RollCall(address, 0, 2, 2, timedelta(seconds=20))
    last = RollCall(address, 1, 2, 2, timedelta(seconds=20))
    late = threading.Timer(0.4, last.answer)
    late.start()
    first.answer()
    late.join()
    assert told and told[0].startswith("Waiting for rank 1")
    first.ready()
    assert first.first_rank_joined() and "rank 1" in first.missing_from_group()
    last.ready()
    assert first.missing_from_group() == ""


def test_a_rank_waits_no_longer_than_the_first_one_does(address, monkeypatch):
    monkeypatch.setattr(roll_call, "READ_S", 0.2)
    store = RollCall(address, 0, 2, 2, timedelta(seconds=0.2))  # which is there, and says nothing
    with pytest.raises(MeetingError, match=r"Rank 1 on .* lost the first rank"):
        RollCall(address, 1, 2, 2, timedelta(seconds=0.2)).answer()
    assert store.rank == 0


def test_versions_are_those_of_this_process_and_differ_where_the_code_does(tmp_path, monkeypatch):
    here = versions_here()
    assert here["torch"] == torch.__version__ and {"Python", "lightning", "transformers", "peft", CODE} <= here.keys()
    assert digest_of(here) == digest_of(dict(reversed(here.items()))) < 2**63
    assert digest_of(here | {"peft": "0"}) != digest_of(here)
    (tmp_path / "llm_lightning").mkdir()
    (tmp_path / "llm_lightning" / "__init__.py").write_text("changed = True\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: _Spec([str(tmp_path / "llm_lightning")]))
    assert versions_here()[CODE] != here[CODE]


class _Spec:
    def __init__(self, folders: list[str]) -> None:
        self.submodule_search_locations = folders


def test_differences_name_package_versions_and_ranks():
    most = {"torch": "2.13", "peft": "0.18", "Python": "3.11.4"}
    groups = [
        (["ranks 0-7 (a)"], most),
        (["rank 8 (b)"], most | {"peft": "0.17"}),
        (["rank 9 (c)"], most | {"new": "1"}),
    ]
    assert differences(groups).splitlines() == [
        "  peft: 0.18 on ranks 0-7 (a), rank 9 (c); 0.17 on rank 8 (b)",
        "  new: absent on ranks 0-7 (a), rank 8 (b); 1 on rank 9 (c)",
    ]


def test_a_thousand_ranks_are_named_in_a_line():
    hosts = [f"n{rank // 8}" for rank in range(1000)]
    digests = [2 if rank in (9, 10, 500) else 1 for rank in range(1000)]
    most, few = (present := Present(digests, hosts)).groups()
    assert len(most) == 997 and present.named(few) == ["ranks 9-10 (n1)", "rank 500 (n62)"]
    assert present.named(most)[:2] == ["ranks 0-7 (n0)", "rank 8 (n1)"] and present.named(most)[-1] == "123 more"
    assert present.in_words() == "Ranks: 1000 on 125 hosts, of the same versions"


def test_only_clocks_that_must_be_wrong_deviate():
    together = torch.tensor([[100.0, 100.2], [100.1, 100.2], [100.15, 100.25], [97.0, 97.1]], dtype=torch.float64)
    ahead = deviations(together)
    assert ahead[:3].tolist() == [0, 0, 0] and ahead[3].item() == pytest.approx(-3.0, abs=0.11)
    waited = torch.tensor([[90.0, 100.0], [99.9, 100.0], [99.9, 100.1]], dtype=torch.float64)
    assert deviations(waited).tolist() == [0, 0, 0], "a rank that waited long is no clock that is wrong"
    hosts = Present([1] * 4, ["a", "a", "b", "c"])
    assert hosts.clocks_in_words(ahead) == "c 3.0 s behind"
