"""reStructuredText as Markdown."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.ingest.extract import extract
from whimbrel.ingest.rst import to_markdown

DATA = Path(os.environ.get("WHIMBREL_TEST_DATA", "/nowhere"))


@pytest.mark.parametrize(
    ("rst", "markdown"),
    [
        (
            "=====\nGuide\n=====\n\nInstall\n-------\n\nLinux\n~~~~~\n\nUse\n---\n",
            "# Guide\n\n## Install\n\n### Linux\n\n## Use\n",
        ),
        ("Title\n=====\ntext\n", "# Title\n\ntext\n"),
        ("# Title\n\ntext\n", "# Title\n\ntext\n"),
        ("above\n\n----\n\nbelow\n", "above\n\n---\n\nbelow\n"),
        ("a ``literal`` and *more*\n", "a `literal` and *more*\n"),
        (
            "see `the site <https://example.com/>`__ or :doc:`the guide </a/b>`\n",
            "see [the site](https://example.com/) or the guide\n",
        ),
        (":ref:`docs/x:What is it?` and :py:class:`~a.b.Name` and :math:`x^2`\n", "What is it? and `Name` and $x^2$\n"),
        (".. note:: Mind this.\n", "**Note:** Mind this.\n"),
        (".. warning::\n\n   Mind this.\n\n   And that.\n", "**Warning:** Mind this.\n\nAnd that.\n"),
        (
            ".. code-block:: python\n   :linenos:\n\n   x = 1\n\n   y = 2\n\ntext\n",
            "```python\nx = 1\n\ny = 2\n```\n\ntext\n",
        ),
        ("As follows::\n\n   make it\n\ntext\n", "As follows:\n\n```\nmake it\n```\n\ntext\n"),
        (">>> 1 + 1\n2\n\ntext\n", "```python\n>>> 1 + 1\n2\n```\n\ntext\n"),
        (".. image:: a/b.png\n   :alt: A robot\n   :width: 50%\n", "![A robot](a/b.png)\n"),
        (".. figure:: b.png\n   :alt: A cat\n\n   What it shows.\n", "![A cat](b.png)\n\nWhat it shows.\n"),
        (".. toctree::\n   :maxdepth: 1\n\n   a\n   b\n\ntext\n", "text\n"),
        (".. _target:\n\n.. a comment\n   of two lines\n\ntext\n", "text\n"),
        (
            ".. |name| replace:: Whimbrel\n\n|name| it is, and |other| is not.\n",
            "Whimbrel it is, and |other| is not.\n",
        ),
        (
            ".. tab-set::\n\n   .. tab-item:: Java\n\n      one\n\n   .. tab-item:: C++\n\n      two\n",
            "**Java**\n\none\n\n**C++**\n\ntwo\n",
        ),
        (".. math::\n\n   x = 1\n", "$$\nx = 1\n$$\n"),
        (".. remoteinclude:: https://example.com/x\n   :lines: 1-2\n\ntext\n", "text\n"),
        ("| a line\n| of verse\n", "a line  \nof verse  \n"),
        ("#. one\n#. two\n", "1. one\n1. two\n"),
        ("```python\n.. note:: no note\n```\n", "```python\n.. note:: no note\n```\n"),
    ],
)
def test_what_it_becomes(rst: str, markdown: str) -> None:
    assert to_markdown(rst) == markdown


TABLE = "| a | b |\n| --- | --- |\n| 1 | two words |\n| 3 | x \\| y |\n"


@pytest.mark.parametrize(
    "rst",
    [
        "===  =========\na    b\n===  =========\n1    two words\n3    x | y\n===  =========\n",
        "===  =========\na    b\n===  =========\n1    two\n     words\n3    x | y\n===  =========\n",
        ".. list-table::\n   :header-rows: 1\n\n"
        "   * - a\n     - b\n   * - 1\n     - two words\n   * - 3\n     - x | y\n",
        '.. csv-table::\n   :header: "a", "b"\n\n   1, two words\n   3, "x | y"\n',
    ],
)
def test_tables(rst: str) -> None:
    assert to_markdown(rst) == TABLE


def test_a_drawn_table() -> None:
    drawn = "+---+-----+\n| a | b   |\n+===+=====+\n| 1 | two |\n|   | w   |\n+---+-----+\n| both    |\n+---+-----+\n"
    assert to_markdown(drawn) == "| a | b |\n| --- | --- |\n| 1 | two w |\n| both |  |\n"


def test_a_table_under_its_directive_keeps_its_caption() -> None:
    made = to_markdown(".. table:: Prices\n\n   ===  ===\n   a    b\n   ===  ===\n   1    2\n   ===  ===\n")
    assert made == "**Prices**\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"


PARTS = [".. ", "::", "   ", "note", "\n", "====", "a  b", "+--+", "|", "``", "`", "<x>", ":x:", "- ", "..", "* - "]


@given(st.lists(st.sampled_from(PARTS)))
def test_whatever_it_is_something_comes_out(parts: list[str]) -> None:
    assert isinstance(to_markdown("".join(parts)), str)


def test_directives_in_directives_come_to_an_end() -> None:
    deep = "".join(f"{' ' * 3 * level}.. note::\n\n" for level in range(300)) + " " * 900 + "the text\n"
    assert "the text" in to_markdown(deep)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "docs" / "frc-docs").is_dir(), reason="WHIMBREL_TEST_DATA is not set")
def test_real_documentation_loses_no_words() -> None:
    """Of the prose: what of it is no directive, option, role or path is found again."""
    for path in sorted((DATA / "docs" / "frc-docs").rglob("*.rst"))[::7]:
        source = path.read_text(encoding="utf-8")
        made = extract(path, name=path.name)
        prose = [line for line in source.split("\n") if re.match(r"[A-Z][\w ,'-]+$", line)]
        for line in prose:
            assert line.strip() in made.text, (path.name, line)
        assert made.title
