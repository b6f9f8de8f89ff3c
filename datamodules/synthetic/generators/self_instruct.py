"""Self-instruct: new instructions after the pattern of real ones, then responses to them."""

import re
from typing import Any

from datamodules.synthetic.generators.base import Draft, Dropped, RecordGenerator, Steps, check_template, fill, finished
from datamodules.synthetic.seeds import Seeds

TEMPLATE = """\
Here are tasks that people gave to an assistant:

{examples}

Write one more task of this kind, about something else. It must be complete, with any text or number that is needed to \
do it. Write the task alone, without its answer."""

MARK = re.compile(r"^\s*(?:(?:new )?(?:task|instruction)\s*\d*\s*:|\d+\s*[.):]|[-*])\s*", re.IGNORECASE)
SHORTEST_SENTENCE = 20  # characters
NEXT = re.compile(r"\n\s*(?:\d+[.)]|task\s*\d*\s*:|answer\s*:)", re.IGNORECASE)


class SelfInstruct(RecordGenerator):
    """Shows some real instructions, asks for a new one, and then for a response (Wang et al., arXiv:2212.10560).

    Unlike there, examples are real ones alone, and not generated ones too: so each record can be made by itself, and
    errors do not feed on errors.

    Args:
        count: instructions to ask for.
        num_shots: real instructions that are shown. The paper shows 8; three leave room in a small model's context.
        template: what is asked; `{examples}` stands for the numbered instructions.
        kwargs: see `RecordGenerator`.
    """

    def __init__(self, count: int = 1000, num_shots: int = 3, template: str = TEMPLATE, **kwargs: Any) -> None:
        super().__init__(count, num_shots, **kwargs)
        self.template = check_template(self, template, "examples")
        # Small models copy parts of what they are asked.
        parts = re.split(r"[.,:]\s|\{examples\}", template.lower())
        self._sentences = [part.strip() for part in parts if len(part.strip()) > SHORTEST_SENTENCE]

    def steps(self, number: int, seeds: Seeds) -> Steps:
        """Ask for an instruction, then for a response."""
        shots = self.shots(number, seeds)
        examples = "\n\n".join(f"{place}. {shot.question}" for place, shot in enumerate(shots, 1))
        [reply] = yield [self.ask(fill(self.template, examples=examples), number, 0)]
        instruction = instruction_of(finished(reply))
        if not instruction:
            raise Dropped("no instruction in the reply")
        if any(sentence in instruction.lower() for sentence in self._sentences):
            raise Dropped("repeats the request")
        [reply] = yield [self.ask(instruction, number, 1)]
        answer = {"role": "assistant", "content": finished(reply)}
        return [Draft([{"role": "user", "content": instruction}, answer], tuple(shots))]


def instruction_of(text: str) -> str:
    """The first task of a reply, without its number and without what a model likes to write behind it."""
    text = MARK.sub("", text.strip(), count=1)
    return NEXT.split(text, maxsplit=1)[0].strip().strip('"').strip()
