"""Per-call settings of a connection, and the rules for numbers and dial templates.

Read again for each call: a change touches no event socket and takes effect with the next call. The platform's adapter
reads the settings from the tenant's configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared import errors

_PLACEHOLDER = "{number}"
DEFAULT_DIAL_TEMPLATE = f"PJSIP/{_PLACEHOLDER}"
#: One technology and one resource: `&` would ring a second party, a comma begins the options of Dial.
_TEMPLATE = re.compile(r"[A-Za-z0-9]{1,32}/[A-Za-z0-9@._:+*#/-]{0,180}", re.ASCII)
#: Digits, extensions and names, and nothing that means something in an endpoint: no `@`, `/`, `&`, `,`, blank.
_NUMBER = re.compile(r"[A-Za-z0-9+*#][A-Za-z0-9+*#._-]{0,63}", re.ASCII)
LONGEST_CALL_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """Per-call settings from a tenant's configuration: everything except the address of its Asterisk."""

    #: The client of websocket_client.conf that connects to the voice agent.
    media_client: str
    #: The longest a call may be connected; None for the setting CALL_SECONDS.
    call_seconds: float | None
    #: The endpoint to dial for a number, with `{number}` in place of the number.
    dial_template: str
    #: Shown to the called party unless a request names another; None for Asterisk's default.
    caller_id: str | None


def dial_template(template: object, *, name: str = "the dial template") -> str:
    """Return a dial template as configured, or the default if there is none.

    Args:
        name: The field's name, for the error.

    Raises:
        InvalidConfiguration: It is not one technology, a resource, and one `{number}`.
    """
    if template in (None, ""):
        return DEFAULT_DIAL_TEMPLATE
    plain = template.replace(_PLACEHOLDER, "", 1) if isinstance(template, str) else ""
    if not isinstance(template, str) or plain == template or not _TEMPLATE.fullmatch(plain):
        raise errors.InvalidConfiguration(
            f"{name} is not like PJSIP/{_PLACEHOLDER}, PJSIP/{_PLACEHOLDER}@trunk or Local/{_PLACEHOLDER}@context"
        )
    return template


def is_number(text: str) -> bool:
    """Whether a text is a number that has no other meaning inside an endpoint."""
    return _NUMBER.fullmatch(text) is not None


def number(text: str) -> str:
    """Return a number to dial or to show, stripped; it has no other meaning inside an endpoint.

    Raises:
        InvalidRequest: It has other characters than letters, digits, `+ * # . _ -`, or is too long.
    """
    stripped = text.strip()
    if not is_number(stripped):
        raise errors.InvalidRequest(
            f"{text[:80]!r} is no number: 1 to 64 letters, digits or + * # . _ - without blanks, as in +4930123456"
        )
    return stripped


def endpoint(template: str, called: str) -> str:
    """Return the endpoint that Asterisk dials for a number."""
    return template.replace(_PLACEHOLDER, number(called))
