"""Real records with faults planted among them, so that it is known what each filter has to find.

All records come from the public sets of `shared/data` (Alpaca's demonstrations, GSM8K, MGSM, Don Quijote); what is
planted is drawn by a seed. Each case holds the filter, clean records, and faulty ones by kind.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.planted_personal import LOOKALIKES, personal
from datamodules.synthetic.candidate import Candidate, Message, Provenance
from datamodules.synthetic.filters import (
    Decontamination,
    ExactDuplicates,
    Filter,
    Format,
    Language,
    NearDuplicates,
    PersonalData,
    SeedSimilarity,
)
from datamodules.synthetic.funnel import Context, run_filters

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
Pair = tuple[str, str]  # prompt, answer


def alpaca(folder: Path) -> list[Pair]:
    records = json.loads((folder / "llamafactory" / "alpaca_en_demo.json").read_text())
    return [(f"{each['instruction']}\n{each['input']}".strip(), each["output"]) for each in records]


def gsm8k(folder: Path, split: str) -> list[Pair]:
    lines = (folder / "gsm8k" / f"{split}.jsonl").read_text().splitlines()
    return [(each["question"], each["answer"]) for each in map(json.loads, lines)]


def seed_tasks(folder: Path) -> list[Pair]:
    lines = (folder / "self_instruct" / "seed_tasks.jsonl").read_text().splitlines()
    return [
        (f"{each['instruction']}\n{instance['input']}".strip(), instance["output"])
        for each in map(json.loads, lines)
        for instance in each["instances"]
    ]


def spanish(folder: Path) -> list[Pair]:
    """Questions of MGSM, and paragraphs of Don Quijote as answers."""
    questions = [line.split("\t")[0] for line in (folder / "mgsm" / "es.tsv").read_text().splitlines()]
    words = (folder / "quijote" / "quijote.txt").read_text().split()
    paragraphs = [" ".join(words[i : i + 80]) for i in range(200, 40000, 80)]
    return list(zip(questions, paragraphs, strict=False))


def conversation(pair: Pair) -> list[Message]:
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


def candidate(number: int, pair: Pair, generator: str = "planted") -> Candidate:
    return Candidate(f"{number:08d}", conversation(pair), Provenance(generator))


@dataclass
class Case:
    """What a filter has to tell apart.

    Args:
        filter: under test.
        clean: records that have to stay; they come first.
        faulty: records that have to go, by kind.
        seeds: real training data.
        held_out: real validation and test data.
    """

    filter: Filter
    clean: list[Pair]
    faulty: dict[str, list[Pair]]
    seeds: list[Pair] = field(default_factory=list)
    held_out: list[Pair] = field(default_factory=list)

    def measure(self, folder: Path) -> dict[str, float]:
        """Precision, recall of all kinds together and of each, and the share of clean records that stay."""
        pairs = [*self.clean, *(pair for kind in self.faulty.values() for pair in kind)]
        records = [candidate(number, pair) for number, pair in enumerate(pairs)]
        context = Context(lambda: map(conversation, self.seeds), lambda: map(conversation, self.held_out), None, folder)
        funnel = run_filters([self.filter], lambda: iter(records), context)
        dropped = set(range(len(records))) - set(funnel.positions.tolist())
        lost = sum(number < len(self.clean) for number in dropped)
        found, recalls, start = 0, {}, len(self.clean)
        for kind, planted in self.faulty.items():
            hits = len(dropped & set(range(start, start + len(planted))))
            recalls[f"recall: {kind}"] = hits / len(planted)
            found, start = found + hits, start + len(planted)
        num_faulty = start - len(self.clean)
        return {
            "precision": found / max(1, len(dropped)),
            "recall": found / num_faulty,
            "clean_kept": 1 - lost / len(self.clean),
            "num_clean": len(self.clean),
            "num_faulty": num_faulty,
            **recalls,
        }


def respelled(text: str, generator: random.Random) -> str:
    """Other case, punctuation and spaces."""
    return re.sub(r"[.,;!](?=\s|$)", lambda _: generator.choice([" ", "", "!", " ,"]), text.upper()).replace(" ", "  ")


def edited(text: str, generator: random.Random, share: float, words: Sequence[str]) -> str:
    """Some of its words replaced by others, as many as `share` says and at least one."""
    parts = re.split(r"(\s+)", text)
    places = range(0, len(parts), 2)
    for place in generator.sample(places, max(1, round(share * len(places)))):
        parts[place] = generator.choice(words)
    return "".join(parts)


def twice(function: Callable[[str], str], pair: Pair) -> Pair:
    return function(pair[0]), function(pair[1])


def near_duplicates(folder: Path, count: int) -> Case:
    """Records, and what was made of some of them."""
    generator = random.Random(1)
    real = list({pair: None for pair in (*alpaca(folder), *gsm8k(folder, "train")) if len(pair[1]) > 80})
    generator.shuffle(real)
    clean = real[: 8 * count]
    words = " ".join(answer for _, answer in real[:200]).split()
    originals = [generator.sample(clean, count) for _ in range(4)]
    return Case(
        NearDuplicates(),
        clean,
        {
            "other case and punctuation": [twice(lambda t: respelled(t, generator), pair) for pair in originals[0]],
            "a word in twenty replaced": [
                twice(lambda t: edited(t, generator, 0.05, words), pair) for pair in originals[1]
            ],
            "a sentence more": [(f"Please help me. {prompt}", answer) for prompt, answer in originals[2]],
            "a word in ten replaced": [
                twice(lambda t: edited(t, generator, 0.1, words), pair) for pair in originals[3]
            ],
        },
    )


def exact_duplicates(folder: Path, count: int) -> Case:
    generator = random.Random(2)
    real = list(dict.fromkeys(alpaca(folder)))
    again = generator.sample(real, 2 * count)
    return Case(
        ExactDuplicates(),
        real,
        {
            "the same": again[:count],
            "other case and punctuation": [twice(lambda t: respelled(t, generator), pair) for pair in again[count:]],
        },
    )


def leaked(folder: Path, count: int) -> Case:
    """GSM8K's training records against its test records, with test records among them."""
    generator = random.Random(3)
    test = gsm8k(folder, "test")
    words = " ".join(question for question, _ in test[:200]).split()
    items = generator.sample(test, 5 * count)
    other = generator.sample(gsm8k(folder, "train"), len(items))
    parts = [list(zip(items[i::5], other[i::5], strict=True)) for i in range(5)]
    return Case(
        Decontamination(),
        gsm8k(folder, "train"),
        {
            "question and answer": [item for item, _ in parts[0]],
            "question with another answer": [(item[0], rest[1]) for item, rest in parts[1]],
            "question within a longer prompt": [
                (f"{rest[0]} And then answer this, too: {item[0]} Show all steps.", rest[1]) for item, rest in parts[2]
            ],
            "a word in ten of the question replaced": [
                (edited(item[0], generator, 0.1, words), rest[1]) for item, rest in parts[3]
            ],
            "answer alone": [(rest[0], item[1]) for item, rest in parts[4]],
        },
        held_out=test,
    )


def like_seeds(folder: Path, count: int) -> Case:
    """GSM8K's training records as seeds; Alpaca's and GSM8K's test records as new ones."""
    generator = random.Random(4)
    seeds = gsm8k(folder, "train") + seed_tasks(folder)
    words = " ".join(question for question, _ in seeds[:200]).split()
    chosen = generator.sample([pair for pair in seeds if len(pair[0].split()) > 5], 2 * count)
    return Case(
        SeedSimilarity(),
        alpaca(folder) + gsm8k(folder, "test"),
        {
            "a word in ten replaced": [
                (edited(prompt, generator, 0.1, words), answer) for prompt, answer in chosen[:count]
            ],
            "a word in five replaced": [
                (edited(prompt, generator, 0.2, words), answer) for prompt, answer in chosen[count:]
            ],
        },
        seeds=seeds,
    )


def other_languages(folder: Path, count: int) -> Case:
    real = [pair for pair in (*alpaca(folder), *gsm8k(folder, "test")[:count]) if pair[1].isascii()]
    foreign = spanish(folder)[:count]
    return Case(
        Language(["en"]),
        real,
        {
            "Spanish": foreign,
            "Spanish answers of ten words": [
                (real[i][0], " ".join(answer.split()[:10])) for i, (_, answer) in enumerate(foreign)
            ],
        },
    )


def personal_data(folder: Path, count: int) -> Case:
    """Records with a sentence more: one that gives something away, or one that only looks so."""
    generator = random.Random(6)
    real = alpaca(folder)
    faulty: dict[str, list[Pair]] = {}
    for _ in range(count):
        for kind, text in personal(generator).items():
            prompt, answer = generator.choice(real)
            faulty.setdefault(kind, []).append((prompt, f"{answer} You can use {text} for that."))
    lookalikes = [(prompt, f"{answer} {generator.choice(LOOKALIKES)}") for prompt, answer in real[:300]]
    return Case(PersonalData(), [*real, *gsm8k(folder, "test"), *lookalikes], faulty)


REFUSALS = (
    "I'm sorry, but I can't help with that.", "I\u2019m sorry, but I cannot assist with that request.",
    "As an AI language model, I do not have personal opinions.", "I cannot provide instructions for this.",
    "Unfortunately, I am unable to generate that content.", "Sorry, I can't do that.",
    "I am just an AI and have no access to the internet.", "Lo siento, pero no puedo ayudarte con eso.",
    "I apologize, but I cannot fulfill this request.", "As a large language model, I have never been to Paris.",
)  # fmt: skip
BLANKS = ("[Your Name]", "{{name}}", "<your name>")


def badly_formed(folder: Path, count: int) -> Case:
    """Answers that are refused, empty, cut, looped, or not filled in. Clean are those that no person would call so."""
    generator = random.Random(7)
    marks = re.compile(r"language model|(?:as|am|'m) an ai\b|\[[a-z' ]*(?:name|date|company)|^i'm sorry", re.IGNORECASE)
    real = [pair for pair in alpaca(folder) if not marks.search(pair[1])]
    long = [pair for pair in (*real, *gsm8k(folder, "train")) if len(pair[1].split()) > 40]

    def cut(pair: Pair) -> Pair:
        words = pair[1].split(" ")
        return pair[0], " ".join(words[: generator.randint(20, len(words) - 5)])

    def looped(pair: Pair) -> Pair:
        words = pair[1].split(" ")
        return pair[0], " ".join([*words[:10], *(words[10 : 10 + generator.randint(1, 12)] * 12)])

    drawn = [generator.sample(long, count) for _ in range(5)]
    return Case(
        Format(),
        real + gsm8k(folder, "test"),
        {
            "refusal": [(pair[0], REFUSALS[i % len(REFUSALS)]) for i, pair in enumerate(drawn[0])],
            "empty": [(pair[0], generator.choice(["", " ", "\n"])) for pair in drawn[1]],
            "looped": [looped(pair) for pair in drawn[2]],
            "open code fence": [(pair[0], f"```python\n{pair[1]}") for pair in drawn[3]],
            "blanks": [(pair[0], f"Dear {generator.choice(BLANKS)}, {pair[1]}") for pair in drawn[4]],
            "cut at any word": [cut(pair) for pair in drawn[0]],
        },
    )


CASES: dict[str, Callable[[Path, int], Case]] = {
    "format": badly_formed,
    "language": other_languages,
    "exact_duplicates": exact_duplicates,
    "near_duplicates": near_duplicates,
    "seed_similarity": like_seeds,
    "contamination": leaked,
    "personal_data": personal_data,
}
