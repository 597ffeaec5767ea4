"""What of a source file is code."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import code


def of(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return code.of(path)


@pytest.mark.parametrize(
    "name, text, same, other",
    (
        (
            "op.py",
            '"""About."""\n\n\ndef f(x):\n    """Words."""\n    return x + 1  # one\n',
            "def f(x):\n    return x + 1\n",
            'def f(x):\n    "not " "words"[0]\n    return x + 1\n',
        ),
        ("op.py", 'class A:\n    """Words."""\n    x = "#y"\n', 'class A:\n    x = "#y"\n', 'class A:\n    x = "z"\n'),
        ("cpu.cpp", "int a; // one\n\n/* two\n three */\nint b;\n", "int a;\nint b;\n", "int a;\nint c;\n"),
        ("cpu.cpp", "int a = 1'000;  // it's\nint b;\n", "int a = 1'000;\nint b;\n", "int a = 1'000;\n"),
        ("cpu.cpp", 'f("//", \'"\');  // g\n', "f(\"//\", '\"');\n", "f(\"/\", '\"');\n"),
        ("cpu.cpp", 'f("\\" /* a */");\n', 'f("\\" /* a */");\n\n', 'f("\\" /* b */");\n'),
        ("cuda.cu", 'asm(R"(a // "b)"); // c\n', 'asm(R"(a // "b)");\n', 'asm(R"(a // "c)");\n'),
        ("cuda.cuh", "// one \\\n two\nint a;\n", "int a;\n", "int b;\n"),
        ("CMakeLists.txt", 'set(a "#b") # c\n# d\n', 'set(a "#b")\n', 'set(a "#c")\n'),
    ),
)  # fmt: skip
def test_words_about_code_are_none(tmp_path: Path, name: str, text: str, same: str, other: str) -> None:
    assert of(tmp_path, name, text) == of(tmp_path, name, same)
    assert of(tmp_path, name, text) != of(tmp_path, name, other)


def test_of_other_files_everything_counts(tmp_path: Path) -> None:
    assert of(tmp_path, "table.json", "1  // 2\n") == "1  // 2\n"
