"""The text of an exception's traceback, as it is recorded and shown again."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

from asgi_durable.codec.raw_access import attributes_of

__all__ = [
    "TRACEBACK_ATTRIBUTE",
    "RecordedTraceback",
    "message_of",
    "traceback_note",
    "traceback_text",
    "without_credentials",
]

# Rebuilt exceptions have it, so that recording one again keeps the first traceback.
TRACEBACK_ATTRIBUTE = "durable_traceback"
MAX_LINE_CHARACTERS = 1_000
_OWN_CODE = f"{Path(__file__).parents[2]}{os.sep}"
_USERINFO = re.compile(r"(?<=://)[^/?#\s'\"<>]*@")
_NOTE_HEADING = "Recorded traceback, of where the error was raised first:"


class RecordedTraceback(str):
    """The note that shows a recorded traceback; it is not recorded as a note again."""

    __slots__ = ()


def traceback_text(error: BaseException) -> str:
    """Return where an exception was raised first, without the library's own frames."""
    kept = attributes_of(error).get(TRACEBACK_ATTRIBUTE)
    if isinstance(kept, str):
        return kept
    frames = _frames_of(error)
    # A cause is recorded with a traceback of its own, what was handled meanwhile is not.
    context = error.__context__
    if context is None or error.__suppress_context__ or not frames:
        return frames
    message = without_credentials(message_of(context))[:MAX_LINE_CHARACTERS]
    between = "While that was handled, another error was raised:"
    return f"{_frames_of(context)}{type(context).__qualname__}: {message}\n\n{between}\n\n{frames}"


def traceback_note(text: str) -> RecordedTraceback:
    """Return the note that shows a recorded traceback."""
    return RecordedTraceback(f"{_NOTE_HEADING}\n{text.rstrip()}")


def message_of(error: BaseException) -> str:
    """Return ``str()`` of an exception, or why there is none."""
    try:
        return str(error)
    except Exception as failure:
        return f"<no message: __str__ raised {type(failure).__name__}>"


def without_credentials(text: str) -> str:
    """Return a text without the user names and passwords of the URLs in it."""
    return _USERINFO.sub("", text) if "@" in text else text


def _frames_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    others = [frame for frame in frames if not frame.filename.startswith(_OWN_CODE)]
    if not frames:
        return ""
    lines = traceback.StackSummary.from_list(others or frames).format()
    return "".join(["Traceback (most recent call last):\n", *lines])
