"""Parts of documents that programs write, between a line that names the program and one that ends the part."""

from __future__ import annotations

END = "<!-- end -->\n"


def with_section(text: str, program: str, section: str) -> str:
    """The document with the program's part replaced."""
    begin = f"<!-- made by {program} -->\n"
    before, found, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"no lines {begin.strip()} and {END.strip()} for the tables to stand between")
    return before + begin + "\n" + section + "\n" + end + after
