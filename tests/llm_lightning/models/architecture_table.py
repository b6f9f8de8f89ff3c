"""How every causal architecture of the installed transformers is run: the table in docs/architectures.md.

    python -m tests.llm_lightning.models.architecture_table [--write]

finds it out anew, each architecture in a process of its own, prints what differs from the table that stands there and
writes it, if that is asked for. Minutes on one core.
"""

import argparse
import difflib
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from datamodules.serving.layout import SpanLayout
from llm_lightning.errors import UserError
from llm_lightning.models.attention import ATTENTION
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.examination.examination import Examination, examine
from llm_lightning.models.examination.miniature import SPECIAL_FROM, VOCABULARY, randomize
from llm_lightning.models.examination.on_the_side import on_the_side
from llm_lightning.models.heads import head_scaling, hidden_states, language_loss, output_head, prepare_batch
from llm_lightning.models.rewards import prepare_texts, rewards
from llm_lightning.models.running.behaviour import Behaviour, behaviour_of
from llm_lightning.models.tasks import LANGUAGE, REWARD, Task
from tests.llm_lightning.conftest import pack, stack

PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"
BEGIN, END = "<!-- begin of the generated table -->", "<!-- end of the generated table -->"

COLUMNS = {"how it is run": LANGUAGE, "reward": REWARD}

CPU_SECONDS, SECONDS = 60, 600
"""Of one architecture; what takes longer is a row too."""

LENGTHS = (11, 26, 5, 17)
"""Of the texts that are compared; two share a row."""

SHARED = 3
"""Tokens of a prompt that two texts have in common, which then stands once in their row."""

LOSS_TOLERANCE, LOGITS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3, 3e-3
"""In float32: nats a token (relative above 1), parts of the largest logit or reward, parts of the largest gradient.

Rounding makes up to 4e-4 in logits (Gemma 3n) and 1e-3 in gradients (Gemma 4); a leak makes 1e-2 and more.
"""

ONLY_FORWARD = {"reformer"}
"""Its backward pass refuses to run without its dropout."""

DECODER = {"is_decoder": True}
HYBRID = {"layer_types": ["conv", "conv", "full_attention"] * 8}
INDEXER = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}  # fmt: skip
SETTINGS = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2": {"full_attn_idxs": [2, 5, 8]},
    "lfm2_moe": {"num_hidden_layers": 24} | HYBRID,
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "xlm": {"causal": True},
    "xmod": DECODER | {"default_language": "en_XX"},
} | dict.fromkeys(
    (
        "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
        "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta",
        "xlm-roberta-xl",
    ),
    DECODER,
)  # fmt: skip
"""What a usable config says where its class's defaults do not: they lack a number, or describe an encoder."""

REFUSALS = {
    "look at the tokens": "refused: it looks at the tokens that it is to predict",
    "learn something else": "refused: its loss in transformers is not that of the next token",
    "neither packed nor": "refused: no way gives what a text alone gives",
    "output_router_logits": "refused: it asks for a loss of its router that it does not have",
    "transformers has no reward model": "none in transformers",
    "no linear head": "refused: transformers gives it a head of another kind",
}
NOT_TRIED = re.compile(
    r"cannot be tried out before training.*?\((?:\w+: )?(.*)\)\. Choose|take no texts alone.*?\((.*)\)"
)
WRONG = "WRONG"
"""What no row of the committed table begins with."""


def table() -> str:
    """In Markdown, with a row for each architecture."""
    print(f"{len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)} architectures", file=sys.stderr)
    rows = []
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        cells = (apart(lambda kind=kind, task=task: way_of(kind, task)) for task in COLUMNS.values())
        rows.append(f"| {kind} | {' | '.join(cells)} |")
        print(rows[-1], file=sys.stderr, flush=True)
    head = [f"| architecture | {' | '.join(COLUMNS)} |", "| --- " * (1 + len(COLUMNS)) + "|"]
    return "\n".join([f"transformers {transformers.__version__}:", "", *head, *rows])


def apart(answer: Callable[[], str]) -> str:
    """What a function says in a process of its own, whatever becomes of that one."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            os.write(writer, answer().encode())
        except BaseException:
            os.write(writer, f"{WRONG}: {traceback.format_exc().splitlines()[-1][:200]}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said or f"{WRONG}: its process ended by {signal.Signals(-status).name if status < 0 else status}"


def way_of(kind: str, task: Task) -> str:
    """How an architecture is run with the head of a task, in a few words."""
    try:
        config = task.configure(CONFIG_MAPPING[kind](**SETTINGS.get(kind, {})))
    except Exception as error:
        return f"not tried: transformers makes no config of it by default ({_short(error)})"
    try:
        behaviour = examine(config, ATTENTION, task)
    except UserError as error:
        return _refusal(str(error))
    with on_the_side():
        small = Examination(config, task).config
    wrong = "; ".join(differences(small, task, behaviour, kind not in ONLY_FORWARD))
    return f"{WRONG}: {wrong}" if wrong else _in_words(behaviour)


def differences(
    config: transformers.PreTrainedConfig, task: Task, behaviour: Behaviour, gradients: bool
) -> Iterator[str]:
    """Between what we make of texts and what transformers' own network makes of each one alone."""
    torch.manual_seed(1)
    ours = Backbone(config=config).build(task=task).eval()
    if (found := behaviour_of(ours)) != behaviour:
        yield f"its miniature is run otherwise ({_in_words(found)})"
    randomize(ours)
    theirs = task.auto_class.from_config(config, dtype=torch.float32).eval()
    theirs.load_state_dict(ours.state_dict())
    texts = [(torch.randperm(SPECIAL_FROM - 10)[:length] + 10).tolist() for length in LENGTHS]

    own, expected = yield from (_language if task.head is None else _reward)(ours, theirs, texts)
    if not gradients:
        return
    own.backward()
    expected.backward()
    pairs = [(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    largest = max(float(b.abs().max()) for _, b in pairs if b is not None)
    apart = max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None) / largest
    if not apart <= GRADIENT_TOLERANCE:
        yield f"gradients of packed documents differ by {apart:.1e} of the largest"


def _language(ours: Any, theirs: Any, texts: list[list[int]]) -> Generator[str, None, tuple[Tensor, Tensor]]:
    """Losses and logits; returns the summed loss of all texts, ours and transformers'."""
    alone = [theirs(input_ids=torch.tensor([text]), labels=torch.tensor([text])) for text in texts]
    for text, expected in zip(texts, alone, strict=True):
        loss = language_loss(ours, prepare_batch(pack([text], len(text)))).loss.item() / (len(text) - 1)
        if not abs(loss - expected.loss.item()) <= LOSS_TOLERANCE * max(1.0, expected.loss.item()):
            yield f"the loss of a text is {loss:.6f}, in transformers {expected.loss.item():.6f}"

    packed = prepare_batch(stack(pack(texts[:2], 40), pack(texts[2:], 40)))
    logits = head_scaling(ours)(output_head(ours)(hidden_states(ours, packed))).detach()
    places = [(0, 0), (0, LENGTHS[0]), (1, 0), (1, LENGTHS[2])]
    for (row, start), length, expected in zip(places, LENGTHS, alone, strict=True):
        there = expected.logits[0].detach()
        apart = float((logits[row, start : start + length] - there).abs().max() / there.abs().max())
        if not apart <= LOGITS_TOLERANCE:
            yield f"logits of a packed document differ by {apart:.1e} of the largest"
    total = sum(output.loss * (length - 1) for output, length in zip(alone, LENGTHS, strict=True))
    return language_loss(ours, packed).loss, total


def _reward(ours: Any, theirs: Any, texts: list[list[int]]) -> Generator[str, None, tuple[Tensor, Tensor]]:
    """Rewards, two of them of answers to one prompt; returns their squares' sum, so that each text weighs otherwise."""
    first, second, third, fourth = texts
    fourth = third[:SHARED] + [token for token in fourth if token not in third[:SHARED]]
    layout = SpanLayout(2, 40, VOCABULARY - 1)
    ends = [layout.add(row, np.array(text)) for row, text in ((0, first), (0, second), (1, third))]
    ends.append(layout.add(1, np.array(fourth[SHARED:]), slice(0, SHARED)))
    found = rewards(ours, prepare_texts(layout.batch() | {"ends": torch.tensor(ends)}))["ends"]
    alone = torch.cat([theirs(input_ids=torch.tensor([text])).logits[0] for text in (first, second, third, fourth)])
    apart = float(((found - alone).abs().max() / alone.abs().max()).detach())
    if not apart <= LOGITS_TOLERANCE:
        yield f"rewards of packed texts differ by {apart:.1e} of the largest"
    return found.square().sum(), alone.square().sum()


def _in_words(behaviour: Behaviour) -> str:
    attention = "our attention" if behaviour.attention == ATTENTION else behaviour.attention
    where = "packed" if behaviour.packs else "one document a row"
    return f"{where}, {attention}" + (", its own logits" if behaviour.own_logits else "")


def _refusal(message: str) -> str:
    for words, meaning in REFUSALS.items():
        if words in message:
            return meaning
    if (found := NOT_TRIED.search(message)) is None:
        return f"{WRONG}: {message}"
    return f"refused, since it cannot be tried: {_short(next(filter(None, found.groups())))}"


def _short(error: object) -> str:
    words = " ".join(str(error).replace("|", "/").split())
    return words if len(words) <= 90 else f"{words[:87]}..."


def committed(page: str) -> str:
    """The table that stands in a page."""
    return page.split(BEGIN)[1].split(END)[0].strip()


def main() -> int:
    """Print what differs, and write it where that is asked for; 1 where a row differs or is wrong."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--write", action="store_true", help="write the table into docs/architectures.md")
    write = arguments.parse_args().write
    torch.set_num_threads(1)
    page = PAGE.read_text()
    before, found = committed(page), table()
    print("\n".join(difflib.unified_diff(before.splitlines(), found.splitlines(), "committed", "found", lineterm="")))
    if write:
        PAGE.write_text(page.replace(f"{BEGIN}\n{before}" if before else BEGIN, f"{BEGIN}\n{found}"))
    return int(WRONG in found or (found != before and not write))


if __name__ == "__main__":
    sys.exit(main())
