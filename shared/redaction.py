"""What a log, an error or a trace may not show: secrets, by name and by value, and telephone numbers.

Values are those of this process: its own settings' and each tenant's password, from the moment it is opened.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from urllib.parse import quote, quote_plus, unquote, urlsplit

REDACTED = "[redacted]"

_NAMED = r"(?:api_key|token|password|secret(?:_key)?)"
#: A key whose value is a secret.
SECRET_KEY = re.compile(rf".*(?:{_NAMED}|authorization)", re.IGNORECASE | re.DOTALL)
#: user:password@ in a URL and in what is dialled, the credentials of an Authorization header, named secrets in a repr,
#: in JSON and in a query.
#: A letter may precede a name, as in `ari_password` or `%2Ctoken%3D`.
_SECRETS = re.compile(
    r"(?P<url>://[^/\s:@]*:)[^/\s]*(?=@)"
    r"|(?P<dialled>\b(?:IAX2?|SIP)(?:/|%2F)(?!sips?:)[^/\s:@%]{1,80}(?::|%3A))[^/\s@]*?(?=@|%40)"
    r"|(?P<auth>\b(?:Basic|Bearer)\s+)[A-Za-z0-9+/=._~-]{4,}"
    rf"|(?P<quoted>{_NAMED}[\"']?\s*[:=]\s*(?P<mark>[\"']))(?:\\.|(?!(?P=mark)).)*"
    rf"|(?P<query>{_NAMED}(?:=|%3D|%253D))[^&\s)\"']+",
    re.IGNORECASE,
)

# ── secrets by value ─────────────────────────────────────────────────────────────────────────────────────────────────

#: What a URL has in place of a character, of which RFC 3986 takes both cases for the same.
_ESCAPE = re.compile(r"%[0-9A-F]{2}")
#: A shorter secret is found by its name only: as a text it may be part of any word.
SHORTEST = 6
#: Most secrets that are known at a time; the ones told first are forgotten first. A process has 2,000 tenants or so.
MOST_SECRETS = 5_000


class Secrets:
    """The values that no text may have, each in the spellings in which it may come. For all threads.

    They are found by their first characters, so that the price of a text does not depend on their number.
    """

    def __init__(self, most: int = MOST_SECRETS) -> None:
        self._most = most
        self._lock = threading.Lock()
        #: Secret → its spellings, the one told last at the end.
        self._known: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        #: First characters of a spelling → the spellings that begin so, the longest first.
        self._beginning: dict[str, tuple[str, ...]] = {}

    def add(self, secret: str) -> None:
        """Know a secret from now on."""
        if len(secret) < SHORTEST or secret in self._known:
            return
        spellings = _spellings(secret)
        with self._lock:
            self._known[secret] = spellings
            for spelling in spellings:
                others = self._beginning.get(spelling[:SHORTEST], ())
                self._beginning[spelling[:SHORTEST]] = tuple(sorted({*others, spelling}, key=len, reverse=True))
            if len(self._known) > self._most:
                self._forget(*self._known.popitem(last=False))

    def add_url(self, url: str) -> None:
        """Know the password in a URL, if it has one."""
        try:
            password = urlsplit(url).password
        except ValueError:
            return
        for spelling in {password or "", unquote(password or "")}:
            self.add(spelling)

    def redact(self, text: str) -> str:
        """Return the text without them."""
        beginning = self._beginning
        if not beginning:
            return text
        at = 0
        parts: list[str] = []
        for start in [n for n in range(len(text) - SHORTEST + 1) if text[n : n + SHORTEST] in beginning]:
            if start < at:
                continue
            for spelling in beginning.get(text[start : start + SHORTEST], ()):
                if text.startswith(spelling, start):
                    parts += text[at:start], REDACTED
                    at = start + len(spelling)
                    break
        return "".join([*parts, text[at:]]) if parts else text

    def _forget(self, _secret: str, spellings: tuple[str, ...]) -> None:
        for spelling in spellings:
            left = tuple(each for each in self._beginning.get(spelling[:SHORTEST], ()) if each != spelling)
            if left:
                self._beginning[spelling[:SHORTEST]] = left
            else:
                self._beginning.pop(spelling[:SHORTEST], None)


def _spellings(secret: str) -> tuple[str, ...]:
    """Return a secret as it is, and as it is written in URLs, in JSON and in a repr."""
    quoted = {quote(secret), quote(secret, safe=""), quote_plus(secret)}
    spelled = {secret} | quoted | {_ESCAPE.sub(lambda match: match[0].lower(), each) for each in quoted}
    return tuple(spelled | {json.dumps(secret)[1:-1], repr(secret)[1:-1], repr(secret.encode())[2:-1]})


#: Those of this process.
SECRETS = Secrets()


def redact(text: str) -> str:
    """Return the text without credentials."""
    return SECRETS.redact(redact_named(text))


def redact_named(text: str) -> str:
    """Return the text without the credentials that their surroundings tell."""
    return _SECRETS.sub(_without_secret, text)


def _without_secret(match: re.Match[str]) -> str:
    return (match["url"] or match["dialled"] or match["auth"] or match["quoted"] or match["query"]) + REDACTED


# ── telephone numbers ────────────────────────────────────────────────────────────────────────────────────────────────

_MASK = "*"
#: What names a number, in a key or in a text before it.
_OF_NUMBERS = (
    r"(?:(?:caller|called|phone|from|to|dialled|dialed|destination)_?(?:number|num)"
    r"|caller_?id(?:_?num)?|exten(?:sion)?|dnid|number)"
)
NUMBER_KEY = re.compile(rf"{_OF_NUMBERS}|caller|called|dial_endpoint|endpoint_dialled", re.IGNORECASE)
#: The groups that follow the first digits of a number: `-30-1234567`. A channel's suffix has eight digits.
_GROUPS = r"(?:[.-]\d{1,7}(?![\dA-Fa-f]))*"
#: The same in a URI, which may have parentheses: `tel:+1-(555)-123-4567`.
_URI_GROUPS = r"(?:[().-]{1,2}\d{1,7}(?![\dA-Fa-f])){0,6}"
#: A host is no number.
_NO_ADDRESS = r"(?!\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d))"
#: A number of a country, with the zero that is dialled before the area, and with its groups apart: `030 / 1234 567`. A
#: day of a date has two digits.
_APART = r"(?: ?[/-] ?| )"
_IN_BRACKETS = rf"\d{{2,5}}\){_APART}?\d{{2,8}}(?:{_APART}\d{{2,8}}){{0,4}}"
_NATIONAL = rf"(?:0\d{{2,4}}(?:{_APART}\d{{2,8}}){{1,5}}|\({_IN_BRACKETS})"
#: `555.123.4567`: the last part of an address of a host has three digits at most.
_AMERICAN = r"(?:1[ .-])?(?:\d{3}|\(\d{3}\))[ .-]{1,2}\d{3,4}[ .-]\d{4}"
#: An id, an address, a time, a version, an amount is none: what is beside it tells. Of a number without a sign seven
#: digits are needed, unless a name, a technology or a scheme stands before it. What may repeat has a bound: a peer
#: chooses the text, and no other thread of the process runs meanwhile.
_NUMBERS = re.compile(
    r"(?P<sign>(?<![\w.])(?:\+|%2B))(?P<signed>\d(?:[ ()./-]{0,3}(?!\d{4}-\d\d-)\d){5,17})(?!\w)"
    rf"|(?P<scheme>\b(?:sips?|tel|callto|sms|fax)(?::|%3A)(?:\+|%2B)?|<\+?(?=\d{{3,20}}>)){_NO_ADDRESS}"
    rf"(?P<uri>(?:\d{{3,}}|\d{{1,2}}(?=[().-])){_URI_GROUPS})"
    r"|(?P<technology>\b(?:PJSIP|SIP|IAX2|Local|DAHDI)(?:/|%2F)(?:[^/\s%\"']{1,80}(?:/|%2F))?(?:\+|%2B)?)"
    rf"{_NO_ADDRESS}(?P<endpoint>\d{{3,}}{_GROUPS})"
    rf"|(?P<name>(?<![A-Za-z])(?:{_OF_NUMBERS}[\\\"']{{0,8}}\s{{0,8}}[:=]?|(?:caller|called)[\\\"']{{0,8}}\s{{0,8}}[:=])"
    rf"\s{{0,8}}[\\\"'(<]{{0,8}}\+?)(?P<named>{_NATIONAL}|{_IN_BRACKETS}|{_AMERICAN}|\d{{3,}}{_GROUPS})(?!\w|[.:]\d)"
    r"|(?:(?P<plain>(?<![\w.:/+@#=-])(?<![\"']: )(?<![\"']:)(?<!\bid )(?<!\brun )(?<!\bcall )(?<!\bchannel )"
    r"(?<!\bconnection )"
    r"(?<!\borganization )(?<!\bworkflow )(?<!\bterm )(?<!\bepoch )(?<!\bpid )(?<!\bversion )"
    r"\d{7,15})"
    rf"|(?P<formed>(?<![\w./+@#-])(?:{_NATIONAL}|{_AMERICAN})))"
    r"(?![\w/%=-]|[.:]\d| (?:m?s|ms|bytes|events|calls|messages)\b)",
    re.IGNORECASE,
)


#: Digits of a number that nothing but its form tells.
_LEAST_DIGITS, _MOST_DIGITS = 7, 15


def mask_number(number: str) -> str:
    """Return a number with its last digits only: two to four, by its length."""
    digits = sum(char.isdigit() for char in number)
    shown = 4 if digits >= 10 else 3 if digits >= 7 else 2
    hidden = max(digits - shown, min(digits, 1))
    masked = []
    for char in number:
        if char.isdigit() and hidden:
            masked.append(_MASK)
            hidden -= 1
        else:
            masked.append(char)
    return "".join(masked)


def mask_numbers(text: str) -> str:
    """Return running text with its telephone numbers masked."""
    return _NUMBERS.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    whole: str = match[0]
    for before, number in (("sign", "signed"), ("scheme", "uri"), ("technology", "endpoint"), ("name", "named")):
        if match[number]:
            return str(match[before]) + mask_number(match[number])
    is_number = _LEAST_DIGITS <= sum(char.isdigit() for char in whole) <= _MOST_DIGITS
    return mask_number(whole) if is_number else whole
