"""Docstrings of this house, Markdown with named sections, as Markdown or as reStructuredText.

A docstring is paragraphs, formulas (paragraphs indented by four) and sections: a line such as
`Args:` with an indented body. Nothing here needs Sphinx.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator

HEADS = ("Args", "Attributes", "Example", "Raises", "Reference", "Returns")
SECTION = re.compile(rf"^({'|'.join(HEADS)}):\s*$")
PIECES = re.compile(  # code, links, *emphasis*
    r"(``[^`]+``|`[^`]+`|https?://[^\s<>]*[^\s<>.,;:)]"
    r"|(?<![\w*])\*\*?(?=[^\s*])[^*`()]*[^\s*`()]\*\*?(?![\w*]))"
)


def sections(text: str) -> dict[str, str]:
    """Return a docstring's sections by name, their bodies dedented; what stands outside is `""`.

    >>> sections("Sums.\\n\\nArgs:\\n    a: one.\\n\\nReference: none.")
    {'': 'Sums.\\n\\nReference: none.', 'Args': 'a: one.'}
    """
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in inspect.cleandoc(text).splitlines():
        head = SECTION.match(line)
        if head:
            name = head[1]
            found[name] = []
        else:
            if line and not line.startswith(" "):
                name = ""
            found[name].append(line)
    return {k: inspect.cleandoc("\n" + "\n".join(v)) for k, v in found.items()}


def entries(body: str) -> list[tuple[str, str]]:
    """Return the names and texts of a section's list, `name: text` with indented lines after it.

    >>> entries("a, b: two\\n    numbers.\\nc: one.")
    [('a, b', 'two numbers.'), ('c', 'one.')]
    """
    found: list[tuple[str, str]] = []
    for line in body.splitlines():
        if line.startswith(" ") and found:
            name, text = found[-1]
            found[-1] = name, f"{text} {line.strip()}"
        elif line.strip():
            name, _, text = line.partition(": ")
            found.append((name, text))
    return found


def markdown(text: str) -> str:
    """Return paragraphs and formulas as Markdown; of marks it keeps code, links and emphasis.

    >>> print(markdown("A *word*, p(x*) and `x*`.\\n\\n    x = f(u)"))
    A *word*, p(x\\*) and `x*`.
    <BLANKLINE>
    ```text
    x = f(u)
    ```
    """

    def formula(block: str) -> str:
        return f"```text\n{block}\n```"

    return _blocks(text, formula, _markdown_inline)


def rst(text: str) -> str:
    """Return paragraphs and formulas as reStructuredText.

    >>> print(rst("Of `Model`s, x_ and *."))
    Of ``Model``\\ s, x\\_ and \\*.
    """

    def formula(block: str) -> str:
        return "::\n\n" + "\n".join(f"    {line}".rstrip() for line in block.splitlines())

    return _blocks(text, formula, rst_inline)


def _blocks(text: str, formula: Callable[[str], str], inline: Callable[[str], str]) -> str:
    return "\n\n".join(
        formula(inspect.cleandoc("\n" + block)) if indented else inline(block)
        for indented, block in _paragraphs(text)
    )


def _paragraphs(text: str) -> Iterator[tuple[bool, str]]:
    """Yield paragraphs and whether they are indented; indented neighbours are one."""
    held: list[str] = []
    for block in re.split(r"\n[ \t]*\n", text.strip("\n")):
        if all(line.startswith("    ") for line in block.splitlines()):
            held.append(block)
            continue
        if held:
            yield True, "\n\n".join(held)
            held = []
        if block.strip():
            yield False, block
    if held:
        yield True, "\n\n".join(held)


def _markdown_inline(text: str) -> str:
    pieces = PIECES.split(text)
    for i in range(0, len(pieces), 2):
        pieces[i] = re.sub(r"([\\*_<>\[\]{}$|])", r"\\\1", pieces[i])
    for i in range(1, len(pieces), 2):
        if pieces[i].startswith("http"):
            pieces[i] = f"<{pieces[i]}>"
    return "".join(pieces)


def rst_inline(text: str) -> str:
    """Return text in which code is literal and nothing else is special, as reStructuredText."""
    pieces = PIECES.split(text)
    for i in range(0, len(pieces), 2):
        plain = re.sub(r"([\\*|`])", r"\\\1", pieces[i])
        pieces[i] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", plain)
    for i in range(1, len(pieces), 2):
        if pieces[i].startswith("`"):
            code = "``" + pieces[i].strip("`") + "``"
            before = "" if re.search(r"(^|[\s(\[{<'\"/:-])$", pieces[i - 1]) else "\\ "
            after = "" if re.match(r"($|[\s)\]}>'\"/:.,;!?-])", pieces[i + 1]) else "\\ "
            pieces[i] = before + code + after
    return "".join(pieces)


def autodoc(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText that napoleon reads on.

    Raises stays napoleon's; Returns becomes a field, as its text may hold colons that are no
    type's; Args and Attributes become lists, as an entry may name several.
    """
    found = sections("\n".join(lines))
    parts = [rst(found.pop(""))]
    for name, body in found.items():
        if name == "Raises":
            listed = [f"    {k}: {rst_inline(text)}" for k, text in entries(body)]
            parts.append("\n".join([f"{name}:", *listed]))
        elif name in ("Args", "Attributes"):
            head = "Arguments" if name == "Args" else name
            listed = [f"- ``{k}``: {rst_inline(text)}" for k, text in entries(body)]
            parts.append("\n".join([f".. rubric:: {head}", "", *listed]))
        elif name == "Returns":
            parts.append(":returns: " + " ".join(rst_inline(body).split()))
        elif name == "Reference":
            parts.append("Reference: " + " ".join(rst_inline(body).split()))
        else:
            parts.append("\n".join([".. rubric:: Example", "", body]))
    return [*"\n\n".join(parts).splitlines(), ""]
