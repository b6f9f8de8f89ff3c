"""The documentation inside the running Python: about 2 MB of real English prose, with no download."""

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Tests document nothing; lib2to3 and idlelib are gone or going; site-packages are not the standard library.
LEFT_OUT = {"test", "tests", "idle_test", "lib2to3", "idlelib", "site-packages", "dist-packages", "__pycache__"}
SHORTEST_DOCUMENT = 80  # characters; below that a module's docstrings are a title without prose

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def library_folder() -> str:
    """Where the standard library lies."""
    return sysconfig.get_path("stdlib")


def records() -> Iterator[dict[str, str]]:
    """The documents as records."""
    for text in documents():
        yield {"text": text}


def documents() -> Iterator[str]:
    """The language reference's topics, then each module's docstrings as one document, sorted by name."""
    yield from _topics()
    for name, tree in modules():
        if len(text := _docstrings_of(tree, name)) >= SHORTEST_DOCUMENT:
            yield text


def modules() -> Iterator[tuple[str, ast.Module]]:
    """(dotted name, syntax tree) of each module of the standard library that can be parsed, sorted by path."""
    root = Path(library_folder())
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if LEFT_OUT.isdisjoint(inside.parts):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue  # templates and deliberately broken files lie among the sources
            yield ".".join(inside.with_suffix("").parts).removesuffix(".__init__"), tree


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name].strip() + "\n"


def _docstrings_of(tree: ast.Module, name: str) -> str:
    """A module's docstrings, each under the signature it belongs to; empty where there are none."""
    parts = [f"{title}\n\n{inspect.cleandoc(text)}\n" for title, text in _docstrings(tree, name)]
    return "\n".join(parts)


def _docstrings(node: ast.Module | Definition, name: str) -> Iterator[tuple[str, str]]:
    if text := ast.get_docstring(node, clean=False):
        yield _title(node, name), text
    for child in node.body:
        if isinstance(child, Definition):
            yield from _docstrings(child, f"{name}.{child.name}")


def _title(node: ast.AST, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {name}"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"{name}({ast.unparse(node.args)})"
    return name
