"""Questions about Python's standard library, answered by its own docstrings: instruction pairs with no download."""

import ast
import hashlib
import re
from collections.abc import Iterator

from datamodules.corpora import python_docs
from datamodules.corpora.python_docs import Definition

SHORTEST_ANSWER, LONGEST_ANSWER = 20, 600  # characters
LONGEST_SIGNATURE = 60  # characters; a longer one is left out of the question
# How to ask for what a docstring says. A hash of the name chooses, so that no one template is learned.
QUESTIONS = {
    "module": (
        "What is Python's `{}` module for?",
        "What does the module `{}` of Python's standard library offer?",
        "Describe the Python module `{}`.",
    ),
    "class": (
        "What is the class `{}` in Python?",
        "What is `{}` for?",
        "Describe the class `{}` of Python's standard library.",
    ),
    "function": (
        "What does `{}` do?",
        "Explain what the Python function `{}` does.",
        "In Python's standard library, what is `{}` for?",
    ),
    "method": (
        "What does the method `{}` do?",
        "Explain what `{}` does in Python.",
        "What is the method `{}` for?",
    ),
}
ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`~?([^`]+)`|``([^`]+)``")  # reStructuredText's :func:`name` and ``code``
# A line of a list, an example, a table or a signature, a heading's underline, or a note by or for the authors.
NO_PROSE = re.compile(
    r"^(?:[ \t]|[-*+|] |>>>|[=~-]{3}|@|\.\.|:\w[^`:]*:(?:\s|$)|\d+[.)]\s|[\w.]+(?:\(.*\))?(?: --? |\s*->|:\s*$))"
    r"|\b(?:XXX|TODO|FIXME)\b|^Written by|^\(c\)",
    re.MULTILINE,
)


def records() -> Iterator[dict[str, str]]:
    """{prompt, completion} for what is public and documented in prose, sorted by module; no answer comes twice."""
    answers: set[str] = set()
    for module, tree in python_docs.modules():
        if not _is_public(module):
            continue
        for kind, name, called, node in [("module", module, module, tree), *_definitions(tree, module)]:
            answer = _answer(ast.get_docstring(node) or "")
            if answer and answer not in answers:
                answers.add(answer)
                yield {"prompt": _question(kind, name, called), "completion": answer}


def _is_public(name: str) -> bool:
    return all(part.isidentifier() and not part.startswith("_") for part in name.split("."))


def _definitions(node: ast.Module | ast.ClassDef, owner: str) -> Iterator[tuple[str, str, str, Definition]]:
    """(kind, name, how it is written in a question, node) of the public classes, functions and methods."""
    for child in node.body:
        if not isinstance(child, Definition) or not _is_public(child.name):
            continue
        name = f"{owner}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield "class", name, name, child
            yield from _definitions(child, name)
        elif isinstance(node, ast.Module):
            yield "function", name, f"{name}{_signature(child.args)}", child
        elif not child.decorator_list:  # properties are not called
            yield "method", name, f"{name}{_signature(child.args)}", child


def _signature(arguments: ast.arguments) -> str:
    signature = re.sub(r"^(self|cls)(, |$)", "", ast.unparse(arguments))
    return f"({signature})" if len(signature) <= LONGEST_SIGNATURE else ""


def _question(kind: str, name: str, called: str) -> str:
    wordings = QUESTIONS[kind]
    choice = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return wordings[int.from_bytes(choice) % len(wordings)].format(called)


def _answer(docstring: str) -> str:
    """The docstring's leading paragraphs as far as they are prose and short enough; empty where that is too little."""
    answer = ""
    for paragraph in re.split(r"\n\s*\n", docstring.strip()):
        if NO_PROSE.search(paragraph):
            break
        prose = " ".join(ROLE.sub(lambda match: f"`{match[1] or match[2]}`", paragraph).split())
        longer = f"{answer}\n\n{prose}".strip()
        # Without a full stop it is a heading, or leads to a list or an example that is left out.
        if not prose.endswith(".") or len(longer) > LONGEST_ANSWER:
            break
        answer = longer
    # What begins with a small letter repeats the signature more often than not.
    return answer if len(answer) >= SHORTEST_ANSWER and not answer[0].islower() else ""
