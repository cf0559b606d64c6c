"""Finds words and sentences that a reader has to read twice.

``python tests/project/words.py PATH...`` lists them for files and folders.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

__all__ = ["BANNED", "findings"]

# Each with the words to use instead.
BANNED = {
    r"twins?": "duplicate",
    r"answers?": "response, respond, return",
    r"pieces?": "chunk, part",
    r"told": "returned, raised, passed",
    r"figures?": "metric, number",
    r"patience": "retry timeout",
    r"endings?": "end, outcome",
    r"gone": "disconnected, removed, lost",
    r"kept": "stored, recorded",
    r"farewells?": "closing message",
    r"acquit\w*": "clear the crash count",
    r"(?:a|the|this|each|every|one|another|first|last|next|later|earlier) tr(?:y|ies)": "attempt",
    r"(?:goes|go|went|going) on": "continue, resume",
    r"other than by": "unless",
    r"whoever|whichever": "name the subject",
}
_BANNED = {re.compile(rf"\b{word}\b", re.IGNORECASE): use for word, use in BANNED.items()}
_FOR_EXAMPLE = re.compile(r"[,(] say\b|\bsay[,:)]")
# A sentence names its subject.
_SUBJECT = re.compile(r"(?:^|(?<=[.!?:] ))(What|Who|Whose|Whom|That)\b(?!\?)")
_CODE = re.compile(r"``[^`]*``|`[^`]*`|\"[^\"]*\"|https?://\S+|\]\([^)]*\)")


def findings(path: Path) -> Iterator[str]:
    """Yield a line for each banned word in a file: its place, the word and what to use."""
    texts = _markdown(path) if path.suffix == ".md" else _python(path)
    for line, text in texts:
        for found, use in _found_in(text):
            yield f"{path}:{line}: {found!r}: {use}"


def _found_in(text: str) -> Iterator[tuple[str, str]]:
    plain = re.sub(r"\s+", " ", _CODE.sub("x", text)).strip()
    for word, use in _BANNED.items():
        for match in word.finditer(plain):
            yield match[0], use
    for match in _FOR_EXAMPLE.finditer(plain):
        yield match[0], "for example"
    for match in _SUBJECT.finditer(plain):
        yield plain[match.start() : match.start() + 40], "name the subject"


def _python(path: Path) -> Iterator[tuple[int, str]]:
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and ast.get_docstring(node):
                for number, paragraph in _paragraphs(ast.get_docstring(node, clean=True) or ""):
                    yield body[0].lineno + number, paragraph
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            # Lines of one comment belong together.
            if comments and comments[-1][0] + comments[-1][1].count("\n") + 1 == token.start[0]:
                comments[-1] = (comments[-1][0], f"{comments[-1][1]}\n{text}")
            else:
                comments.append((token.start[0], text))
    yield from comments


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    number, lines = 0, text.split("\n")
    paragraph: list[str] = []
    for index, line in enumerate(lines):
        # An argument's description begins anew.
        described = re.match(r"\s+[*\w]+: (.*)", line)
        if (not line.strip() or described) and paragraph:
            yield number, "\n".join(paragraph)
            paragraph = []
        if line.strip():
            number = number if paragraph else index
            paragraph.append(described[1] if described else line.strip())
    if paragraph:
        yield number, "\n".join(paragraph)


def _markdown(path: Path) -> Iterator[tuple[int, str]]:
    is_code = False
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            for cell in line.strip(" |").split(" | "):
                yield number, cell.strip("#-*0123456789. ")


def _main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        files = sorted([*path.rglob("*.py"), *path.rglob("*.md")]) if path.is_dir() else [path]
        for file in files:
            for line in findings(file):
                sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    _main()
