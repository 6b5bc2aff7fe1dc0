"""URLs as they may be shown."""

import re


def shown(uri: str) -> str:
    """A URI without its password."""
    return re.sub(r"://([^:/@\s]*):[^\s/]*@", r"://\1:***@", uri)
