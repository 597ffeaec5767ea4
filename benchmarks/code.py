"""What of a source file decides what it does: its text without comments, docstrings and blank lines."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

# Literals come first in each: what looks like a comment inside one is none. In C++ a ' between digits is no quote.
_QUOTED = r""""(?:\\.|[^"\\])*"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'"""
_C = re.compile(
    rf'R"(?P<mark>[^(\s]*)\((?s:.*?)\)(?P=mark)"|{_QUOTED}|(?P<comment>//(?:\\\n|[^\n])*|/\*(?s:.*?)\*/)'
)
_CMAKE = re.compile(r'\[(?P<mark>=*)\[(?s:.*?)\](?P=mark)\]|"(?:\\.|[^"\\])*"|(?P<comment>#[^\n]*)')
_BY_SUFFIX = {**dict.fromkeys((".h", ".cpp", ".cu", ".cuh"), _C), ".txt": _CMAKE, ".cmake": _CMAKE}


def of(path: Path) -> str:
    """The file's code; of a kind of file that is not known, all of its text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return python(text)
    pattern = _BY_SUFFIX.get(path.suffix)
    return without_comments(text, pattern) if pattern else text


def python(text: str) -> str:
    """Without comments, docstrings and blank lines. Text, as dumped trees differ between versions of Python."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            for row in range(docstring.lineno - 1, docstring.end_lineno):
                lines[row] = ""
    return _tight(lines)


def without_comments(text: str, pattern: re.Pattern[str]) -> str:
    """Without comments, blank lines and white space at the ends of lines; literals as they are."""
    bare = pattern.sub(lambda found: " " if found["comment"] is not None else found[0], text)
    return _tight(bare.splitlines())


def _tight(lines: list[str]) -> str:
    return "\n".join(line for line in map(str.rstrip, lines) if line)
