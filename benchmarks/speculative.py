"""Speed of drafts in the sampler, on texts that are copied and on texts that are not, against `transformers.generate`.

    python benchmarks/speculative.py --model SmolLM2-135M-Instruct --json results.jsonl
    python benchmarks/speculative.py --model SmolLM2-135M-Instruct --costs     (of a pass over several tokens)

One process writes with the same weights, greedily and at temperature 0.7 with top-p 0.95. With one slot: the sampler
without drafts, with PromptLookup and with a DraftModel; `generate`, also with its prompt lookup (10 tokens) and with
assisted decoding, both of which take one text at a time. With more slots: the sampler alone. Contenders run in turns,
and every answer of the sampler is compared with the one without drafts. The draft is `--draft`, or else the model
without some of its middle layers and without any recovery: a bad one.
"""

import argparse
import inspect
import json
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.runner import Metric, json_lines, machine

METRICS = [
    Metric("tokens_per_cpu_s", "tokens/s", "tokens/CPU-s", 14, ".2f"),
    Metric("tokens_per_s", "tokens/s", "tokens/s", 11, ".2f"),
]
PLAIN, LOOKUP, DRAFT = "plain", "PromptLookup", "DraftModel"
TASKS = {
    "copy": "Repeat the following text word for word, and write nothing else.\n\n{}",
    "open": "What is the following text about, and what else should one know of it? Use words of your own.\n\n{}",
}


def texts() -> list[str]:
    """Of the standard library, which is there wherever this runs."""
    modules = (argparse, statistics, textwrap, inspect, json, tempfile, time, textwrap)
    functions = (statistics.median, textwrap.dedent, textwrap.shorten, inspect.getdoc, json.dumps, statistics.fmean)
    docs = [inspect.getdoc(each) or "" for each in (*functions, *modules)]
    return [" ".join(doc.split()[:90]) for doc in docs if len(doc.split()) > 30]


Write = Callable[[list[Any], Any, int], list[list[int]]]
"""From prompts, sampling and seed to answers."""


def samplers(network: Any, ends: list[int], draft: str, num_slots: int) -> dict[str, Write]:
    """The sampler, without drafts and with."""
    from llm_lightning.rollouts import DraftModel, PromptLookup, Sampler

    def writer(speculative: Any) -> Write:
        def write(prompts: list[Any], sampling: Any, seed: int) -> list[list[int]]:
            sampler = Sampler(sampling, ends, num_slots, speculative=speculative)
            keys = [[(seed, number)] for number in range(len(prompts))]
            return [one.tokens.tolist() for one in sampler.sample(network, prompts, keys)]

        return write

    return {PLAIN: writer(None), LOOKUP: writer(PromptLookup()), DRAFT: writer(DraftModel(draft))}


def generates(network: Any, ends: list[int], draft: str) -> dict[str, Write]:
    """transformers', one text at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    assistant = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32).eval()

    def writer(options: dict[str, Any]) -> Write:
        def write(prompts: list[Any], sampling: Any, seed: int) -> list[list[int]]:
            torch.manual_seed(seed)
            drawn = {"do_sample": False}
            if sampling.temperature:
                drawn = {"do_sample": True, "top_k": 0, "top_p": sampling.top_p, "temperature": sampling.temperature}
            shared = {"max_new_tokens": sampling.max_new_tokens, "eos_token_id": ends, "pad_token_id": ends[0]}
            answers = []
            for prompt in prompts:
                ids = prompt[None]
                mask = torch.ones_like(ids)
                row = network.generate(ids, attention_mask=mask, use_cache=True, **shared, **drawn, **options)[0]
                answers.append(row[len(prompt) :].tolist())
            return answers

        return write

    return {
        "generate": writer({}),
        "generate, lookup": writer({"prompt_lookup_num_tokens": 10}),
        "generate, assisted": writer({"assistant_model": assistant}),
    }


def without_layers(model: str, folder: Path) -> str:
    """The model without the third of its layers that is in the middle, as a folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    layers = network.model.layers
    third = len(layers) // 3
    network.model.layers = torch.nn.ModuleList([*layers[:third], *layers[-third:]])
    network.config.num_hidden_layers = 2 * third
    if getattr(network.config, "layer_types", None):
        network.config.layer_types = network.config.layer_types[: 2 * third]
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


def costs(network: Any) -> Iterator[str]:
    """Milliseconds of a pass, head and draw over so many tokens of one slot."""
    import torch

    from llm_lightning.models.heads import output_head
    from llm_lightning.rollouts import Sampling
    from llm_lightning.rollouts.sampling import draw
    from llm_lightning.rollouts.slots import Slots, rollout_mode

    sampling = Sampling(temperature=0.7, top_p=0.95)
    with torch.no_grad(), rollout_mode(network):
        slots = Slots(network)
        list(slots.admit([torch.arange(100, 200)], 1, 8192))
        for count in (1, 2, 3, 5, 9, 17, 33, 65):
            times = []
            for _ in range(9):
                start = time.process_time()
                tokens, counts = torch.arange(count) + 100, torch.tensor([count])
                states = slots.append(tokens) if count == 1 else slots.extend(tokens, counts)
                draw(output_head(network)(states).float(), torch.rand(count), sampling)
                times.append(time.process_time() - start)
                slots.take_back(counts)
            yield f"{count:3} tokens {1000 * min(times):8.1f} ms at least {1000 * statistics.median(times):8.1f} median"


def compare(task: str, prompts: list[Any], writers: dict[str, Write], sampling: Any, args: argparse.Namespace) -> Any:
    """Figures of all contenders, in turns; the sampler's answers are compared."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in writers}
    different = 0
    for turn in range(args.repeats):
        plain: list[list[int]] = []
        for name, write in writers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            answers = write(prompts, sampling, turn)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            count = sum(map(len, answers))
            figures[name].append({"tokens_per_cpu_s": count / cpu, "tokens_per_s": count / wall})
            if name == PLAIN:
                plain = answers
            elif name in (LOOKUP, DRAFT):
                different += sum(one != other for one, other in zip(answers, plain, strict=True))
    base = {name: median(figures, PLAIN if "generate" not in name else "generate") for name in writers}
    print(f"\n{task}, {len(prompts)} prompts, {different} answers differ from those without drafts")
    for name, rows in figures.items():
        values = {metric.name: statistics.median(row[metric.name] for row in rows) for metric in METRICS}
        line = "".join(f"{values[metric.name]:>{metric.width}{metric.format}}" for metric in METRICS)
        print(f"{name:20}{line}   {values['tokens_per_cpu_s'] / base[name]:.2f}x", flush=True)
    return figures


def median(figures: dict[str, list[dict[str, float]]], name: str) -> float:
    """Tokens a CPU-second."""
    return statistics.median(row["tokens_per_cpu_s"] for row in figures[name])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or hub id with a chat template")
    parser.add_argument("--draft", help="a folder or hub id with the same tokenizer")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--longest", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="these contenders, and plain")
    parser.add_argument("--costs", action="store_true", help="time passes over several tokens, and nothing else")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a metric")
    args = parser.parse_args(argv)

    import torch
    from transformers import AutoModelForCausalLM

    from llm_lightning.rollouts import LocalEngine, Sampling
    from llm_lightning.run.precision import use_fast_float32

    use_fast_float32()
    engine = LocalEngine(args.model, dtype="float32", device="cpu")
    settings = machine("cpu") | {"threads": torch.get_num_threads(), "longest": args.longest, "prompts": args.prompts}
    print(f"{args.model}, {settings['threads']} threads, {settings['machine']}, torch {settings['torch']}")
    if args.costs:
        print("\n".join(costs(engine.network)))
        return 0
    with tempfile.TemporaryDirectory(prefix="speculative-") as folder:
        draft = args.draft or without_layers(args.model, Path(folder))
        for num_slots in args.slots:
            writers = samplers(engine.network, engine.eos_token_ids, draft, num_slots)
            if num_slots == 1:
                network = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
                writers |= generates(network.eval(), engine.eos_token_ids, draft)
            writers = {n: w for n, w in writers.items() if not args.only or n == PLAIN or n in args.only}
            for task in args.tasks:
                count = max(args.prompts, num_slots)
                asked = [[{"role": "user", "content": TASKS[task].format(text)}] for text in texts()[:count]]
                prompts = [engine._ids(messages, reply=True) for messages in asked]
                for temperature in (0.0, 0.7):
                    name = f"{task}, temperature {temperature}, slots {num_slots}"
                    sampling = Sampling(args.longest, temperature, top_p=1.0 if temperature == 0 else 0.95)
                    figures = compare(name, prompts, writers, sampling, args)
                    if args.json:
                        lines = json_lines("speculative", name, figures, METRICS, settings)
                        with args.json.open("a") as file:
                            file.writelines(f"{line}\n" for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
