"""The one exception a user sees: what is wrong, where, and what would mend it, in one line."""

import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches

# What moves a terminal's cursor, turns the direction of text, takes no room, or is no character of XML.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufffe\uffff]"
)


def printable(text: str) -> str:
    r"""Text with the characters that cannot be seen written out, as in ``\x1b``; lines and tabs stay."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


class GenboundError(Exception):
    """Wrong input or arguments.

    The message is a single line that names the cause, the place and the mend. The command line prints it
    after ``genbound: error:`` and exits with status 2.
    """

    def __init__(self, message: str):
        text = printable(" ".join(str(message).split()))
        # Values out of damaged files are quoted: the cause stands at the beginning and the mend at the end.
        super().__init__(text if len(text) <= 1000 else f"{text[:600]} … {text[-300:]}")


_follows = False


def let_another_tell() -> None:
    """From here on this process says nothing: it is one of several, and another one speaks for all."""
    global _follows
    _follows = True


def is_told_by_another() -> bool:
    """Whether this process is one that says nothing."""
    return _follows


def tell(message: str) -> None:
    """Say on standard error what a user should know and what stops nothing, in one line."""
    if not _follows:
        print(f"genbound: {' '.join(message.split())}", file=sys.stderr)


def first_line(error: BaseException) -> str:
    """What another library's exception says, as far as it fits into our one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """``" (did you mean NAME?)"`` where a known name is close, else nothing: to go behind the wrong one."""
    close = get_close_matches(wrong, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
