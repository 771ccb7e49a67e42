"""Filters of the card templates: text from outside made inert, numbers, code."""

import re
from html import escape

from hfmega.errors import printable


def inert(value: object) -> str:
    """A value from outside as Markdown text in one line: shown as it is, starting no markup, table cell, HTML or link.

    What could start something becomes a character reference, which is never structure (CommonMark 0.31, section 2.5).
    Addresses are links without any markup (GFM 0.29, section 6.9), so they lose a character in the same way.
    """
    line = "".join(c for c in " ".join(str(value).split()) if c.isprintable())
    structure = r"[&<>|`*\\~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\])[(:\[]|^[-+#=]"
    structure += r"|(?<=^\d)[.)](?!\S)|(?<=^\d\d)[.)](?!\S)|:(?=//)|(?<=www)\.|@(?=\S*\.)"
    return re.sub(structure, lambda found: f"&#{ord(found[0])};", line)


def code(text: str) -> str:
    """A shell command as a block of code, also if it holds what would end the block or move a terminal's cursor."""
    return block(printable(text), "bash")


def block(text: str, language: str) -> str:
    """Printable lines as a block of code, also if they hold what would end it."""
    text = printable(text.rstrip("\n"))
    if re.search(r"[<`\r]", text) or (language == "bash" and "\n" in text):
        return f"<pre><code>{escape(text, quote=False)}</code></pre>"
    return f"```{language}\n{text}\n```"


def number(value: float | None) -> str:
    """Four decimals, or a dash where there is no value."""
    return "-" if value is None else f"{value:.4f}"


def percent(value: float, bare: bool = False) -> str:
    """A share in per cent, to one decimal."""
    return f"{100 * value:.1f}" + ("" if bare else " %")


def short(spelled: str) -> str:
    """A slice of a dataset; of one with very many parts only the first, and how many follow."""
    first, *rest = spelled.split("+")
    return spelled if len(spelled) <= 60 else f"{first}+... ({len(rest)} more parts)"
