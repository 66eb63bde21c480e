"""Tells texts that can be stored from names that are not Unicode."""


def is_text(name: str) -> bool:
    """Whether a name can be written in UTF-8. One from a disk with another encoding reaches Python with surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
