"""Keeps credentials out of the files, names and logs of a run.

A list of images may hold signed URLs, as there is no other way to read such images. The plan and the manifest keep
these URLs whole, so that an image can be fetched again. Nothing else shows their signatures.

A secret is known by the name of what holds it: a parameter of a URL, a header, a field. Some tokens are known by their
shape as well.
"""

import re
from urllib.parse import unquote, urlsplit

from asyrp.errors import UserError

# Matches user:password@ in any URL, but not a port before a path with an @ in it. Matches user@ in http(s) URLs, where
# a name alone can be a secret; container@account of Azure and user@host of SFTP are no secrets.
_USER = re.compile(
    r"(?P<scheme>[a-z0-9+.-]{1,20}://)(?:[^\s/?#'\"@:]*:(?!\d*/)[^\s'\"@]*|(?<=http://)[^\s/@]+|(?<=https://)[^\s/@]+)@",
    re.I,
)
_PARAMETER = re.compile(r"[?&;#](?P<name>[^?&;#=\s'\"]+)=(?=[^&#\s'\"])")
_VALUE = re.compile(r"[^&#\s'\"]+")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET_WORD = re.compile(
    r"(?:access|api|auth|secret|subscription)?(?:key|token)|auth(?:orization)?|bearer|credentials?|jwt"
    r"|pass(?:phrase|w(?:or)?d)?|pwd?|sas|secret|session(?:id)?|sid|sig(?:nature)?"
)
"""A parameter is secret if one word of its name is of this form: `api_key`, `X-Amz-Signature`, `accessToken`."""

_HEADER = re.compile(
    r"(?P<name>(?:authorization|cookie|x-(?:api-key|amz-security-token|auth-token))['\"]?\s*:\s*['\"]?)(?!\*\*\*)[^'\"\r\n]+",
    re.I,
)
_FIELD = re.compile(
    r"(?P<name>(?<!/)(?:passw(?:or)?d|passphrase|secret|(?:api|access|account|secret|private|shared)[-_]?key"
    r"|(?:access|auth|refresh|security|session)[-_]?token)(?:\s*=\s*|['\"]\s*:\s*)['\"]?)(?!\*\*\*)[^\s'\",;&#]+",
    re.I,
)
_SHAPES = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|gh[opsru]_\w{20,}|github_pat_\w{20,}|hf_[A-Za-z0-9]{20,}"
    r"|xox[a-z]-[\w-]{10,}|sk-[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*|(?<=Bearer )[\w.~+/=-]{8,})"
)


def redacted(text: str) -> str:
    """The text with its secrets replaced by ***."""
    text = _without_parameters(_USER.sub(r"\g<scheme>***@", text))
    for named in (_HEADER, _FIELD):
        text = named.sub(r"\g<name>***", text)
    return _SHAPES.sub("***", text)


def only_host(url: str) -> str:
    """The scheme and the host of a URL, for URLs whose path is a secret."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or '?'}"
    except ValueError:
        return f"{url.partition('://')[0]}://?"


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


def _without_parameters(text: str) -> str:
    parts, end = [], 0
    for parameter in _PARAMETER.finditer(text):
        value = _VALUE.match(text, parameter.end())
        if parameter.start() >= end and value and _is_secret(unquote(parameter["name"])):
            parts += [text[end : parameter.end()], "***"]
            end = value.end()
    return "".join([*parts, text[end:]])


def _is_secret(name: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(name)]
    return any(map(_SECRET_WORD.fullmatch, words))
