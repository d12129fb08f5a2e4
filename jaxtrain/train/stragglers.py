"""Silences the remaining writes of a failed save.

Orbax gives a save up at the first write that fails. Nobody awaits the other writes any more, so each would print a
traceback around the one message that tells the user what happened. They may end at any later time, so they stay silent.
"""

import functools
import logging
import sys


@functools.cache
def silence() -> None:
    """Drop these reports, and no others, from now on; a second call does nothing."""
    logging.getLogger("asyncio").addFilter(_is_news)
    report = sys.unraisablehook
    sys.unraisablehook = lambda found: None if "Event loop is closed" in str(found.exc_value) else report(found)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not ("never retrieved" in text and ("orbax" in text or "OCDBT" in text))
