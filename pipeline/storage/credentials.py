"""Keeps credentials in URLs out of the files, names and logs of a run.

A list of images may hold signed URLs, as there is no other way to read such images. The plan and the manifest keep
these URLs whole, so that an image can be fetched again. Nothing else shows their signatures.
"""

import re

from asyrp.errors import UserError

# Matches user:password@ in any URL, but not a port before a path with an @ in it. Matches user@ in http(s) URLs, where
# a name alone can be a secret; container@account of Azure and user@host of SFTP are no secrets.
_USER = re.compile(
    r"(?P<scheme>[a-z0-9+.-]{1,20}://)(?:[^\s/?#'\"@:]*:(?!\d*/)[^\s'\"@]*|(?<=http://)[^\s/@]+|(?<=https://)[^\s/@]+)@",
    re.I,
)
_SIGNATURE = re.compile(
    r"(?P<name>[?&](?:x-amz-signature|x-amz-security-token|x-goog-signature|signature|sig|token|access_token)=)[^&\s'\"]+",
    re.I,
)


def redacted(text: str) -> str:
    """The text with the secrets of its URLs replaced by ***."""
    return _SIGNATURE.sub(r"\g<name>***", _USER.sub(r"\g<scheme>***@", text))


def names_user(url: str) -> bool:
    """Whether a URL contains a user name or a password."""
    return _USER.search(url) is not None


def refuse_credentials(url: str) -> None:
    """Raise UserError if a URL that a run will record holds a password, a token or a signature."""
    if (shown := redacted(url)) != url:
        raise UserError(
            f"{shown} holds credentials, and the run would record them: leave them out and give them by the "
            "environment or the configuration files of the store's driver"
        )
