"""Templates that loop, make gigabytes or fail: one sentence, in bounded time and memory."""

import json
import resource
import signal
import threading
import time

import pytest

from datamodules import DataError, InstructionDataModule, PreferenceDataModule, PromptDataModule
from datamodules.templates import chat_template
from datamodules.templates import limits as template_limits
from datamodules.templates.limits import CostError, bounded
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.datamodules.test_template_probe import ASSISTANT, USER, chatml, outcome, template

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}"
CALLS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
DOUBLES = "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(template_limits, "SECONDS", 0.3)


@pytest.mark.parametrize("jinja", [LOOPS, CALLS, "{{ 7 ** (9 ** 9) }}"], ids=["loops", "calls", "power"])
def test_a_template_that_does_not_end(jinja, quick):
    begin = time.process_time()
    assert "costs too much: it is not done after 0.3 seconds" in outcome(
        template(chatml(before=jinja)), USER, ASSISTANT
    )
    assert time.process_time() - begin < 5
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
    with pytest.raises(DataError, match=r"template: the chat template costs too much.*choose another one"):
        template(chatml(before=jinja)).end_of_turn()


GIGABYTES = {
    "times": "{{ 'a' * 10 ** 11 }}",
    "format": "{{ '{:>99999999999}'.format('') }}",
    "percent": "{{ '%099999999999d' % 1 }}",
    "doubles": DOUBLES,
    "a list": "{{ [1] * 10 ** 10 }}",
}


@pytest.mark.parametrize("name", GIGABYTES)
def test_a_template_that_makes_gigabytes(name, monkeypatch):
    monkeypatch.setattr(template_limits, "MEMORY", 1 << 27)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    assert outcome(template(chatml(before=GIGABYTES[name])), USER, ASSISTANT).endswith(
        "costs too much: it takes more than 128 MB of memory"
    )
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_a_template_that_makes_more_than_a_record_is_worth():
    one = template(chatml(before="{{ 'a' * 3000000 }}"))
    assert "it makes 3,000,0" in outcome(one, USER, ASSISTANT)
    assert outcome(one, USER | {"content": "b" * 60000}, ASSISTANT) == "Yes.<|im_end|>"


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("{{ 1 // 0 }}", "cannot write it: integer division or modulo by zero"),
        ("{{ range(10 ** 6) }}", "cannot write it: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot write it: maximum recursion depth"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot write it: "),
        ("{{ messages[0].content[99].x }}", "refuses it: "),
        ("{{ ''.__class__.__mro__ }}", "refuses it: access to attribute"),
        ("{{ messages.append(1) }}", "refuses it: "),
        ("{% include 'secret' %}", "cannot write it: no loader"),
        ("{{ raise_exception('no\nlines') }}", "refuses it: no lines"),
        ("{% if %}", "refuses it: Expected an expression"),
        ("{{ 'a' | truncate(1, x=2) }}", "cannot write it: "),
    ],
)
def test_a_template_that_fails_ends_in_a_sentence(jinja, reason):
    found = outcome(template(chatml(before=jinja)), USER, ASSISTANT)
    assert reason in found and "\n" not in found, found


def test_half_a_character_of_a_template_is_replaced():
    text = template(chatml(before="{{ '\\ud800' }}")).write([USER, ASSISTANT], None)
    assert text.startswith("\ufffd<|im_start|>")


def test_limits_leave_nothing_behind(quick):
    before = signal.getsignal(signal.SIGVTALRM)
    for seconds in (0, 1):
        begin = time.process_time()
        try:
            with bounded():
                while time.process_time() < begin + seconds:
                    pass
        except CostError:
            assert seconds == 1
        else:
            assert seconds == 0
        assert signal.getsignal(signal.SIGVTALRM) == before
        assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
    found = []
    thread = threading.Thread(target=lambda: found.append(outcome(template(chatml()), USER, ASSISTANT)))
    thread.start()
    thread.join()
    assert found == ["Yes.<|im_end|>"]


@pytest.mark.parametrize("kind", [InstructionDataModule, PreferenceDataModule, PromptDataModule])
def test_templates_are_rendered_in_the_main_thread_alone(kind, tmp_path, monkeypatch):
    """Where time is watched; loaders' workers have token ids to read."""
    seen = []

    def noted():
        seen.append(threading.current_thread())
        return bounded()

    monkeypatch.setattr(chat_template, "bounded", noted)
    chat_tokenizer("smollm2").save_pretrained(tmp_path / "tokenizer")
    pairs = [{"prompt": f"{n}?", "chosen": "Yes.", "rejected": "No.", "completion": "Yes."} for n in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache"), "num_workers": 2}
    data = kind(path=str(tmp_path / "data.jsonl"), template="chatml", batch_size=2, **settings)
    data.prepare_data()
    data.setup("fit")
    num_rendered = len(seen)
    for _, batch in zip(range(4), data.train_dataloader(), strict=False):
        assert batch
    assert num_rendered >= 40 and len(seen) == num_rendered
    assert set(seen) == {threading.main_thread()}
