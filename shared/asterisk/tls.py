"""TLS contexts: for each Asterisk, the system's authorities are trusted, or a CA bundle and nothing else.

The only place that creates an SSLContext, for event sockets and for requests. Every context verifies all three: the
chain, the dates and the host name.
"""

from __future__ import annotations

import functools
import ssl

from shared import errors

#: One context for each connection of a large listener; one that falls out of the cache is created again when needed.
_KEPT = 4096
#: OpenSSL's X509_V_ERR_…, and what the operator of the Asterisk has to do.
_COMPLAINTS = {
    9: "a TLS certificate of this Asterisk is not valid yet: are the clocks right?",
    10: "a TLS certificate of this Asterisk, or of its authority, has expired: renew it",
    62: "the TLS certificate is for another host name than the endpoint's",
    64: "the TLS certificate is for another address than the endpoint's: write the endpoint with its host name",
}
#: Self-signed, alone or at the end of the chain; no issuer found; an issuer that is no authority.
_UNTRUSTED = {2, 18, 19, 20, 21, 24, 27, 28, 79}
#: OpenSSL's reasons when the peer does not speak TLS.
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}


@functools.lru_cache(maxsize=_KEPT)
def context(ca_bundle: str | None) -> ssl.SSLContext:
    """Return the context for a CA bundle in PEM, created once and shared; None for the system's authorities.

    Raises:
        InvalidConfiguration: A certificate of the bundle cannot be read.
    """
    if ca_bundle is None:
        return ssl.create_default_context()
    try:
        made = ssl.create_default_context(cadata=ca_bundle)
    except (ssl.SSLError, ValueError):
        raise errors.InvalidConfiguration(_unreadable("the CA bundle")) from None
    # Each certificate given is trusted by itself, be it a root, an intermediate or the Asterisk's own. Strict, which
    # Python 3.13 sets, would refuse private authorities made by older tools.
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return made


def check(ca_bundle: str | None, *, name: str = "the CA bundle") -> None:
    """Raise InvalidConfiguration if a certificate cannot be read; `name` is the name of the field in the error."""
    if ca_bundle is None:
        return
    try:
        context(ca_bundle)
    except errors.InvalidConfiguration:
        raise errors.InvalidConfiguration(_unreadable(name)) from None


def _unreadable(name: str) -> str:
    return f"{name} contains a certificate that cannot be read: `openssl x509 -noout -text` says what is wrong"


def complaint(exc: ssl.SSLError, *, with_bundle: bool) -> str:
    """Return what went wrong and what to do, in our own words: the peer's may be hostile."""
    if not isinstance(exc, ssl.SSLCertVerificationError):
        if exc.reason in _NO_TLS:
            return "the server there does not speak TLS: is the endpoint http:// and not https://?"
        return f"TLS failed: {exc.reason or type(exc).__name__}"
    if exc.verify_code in _UNTRUSTED:
        if with_bundle:
            return (
                "the TLS certificate is not signed by a certificate of the CA bundle: add its authority to the bundle"
            )
        return "the TLS certificate is not signed by an authority of this system: give its authority as the CA bundle"
    return _COMPLAINTS.get(exc.verify_code, f"the TLS certificate is not valid: {exc.verify_message}")


def was_refused(exc: ssl.SSLError) -> bool:
    """Whether it certainly failed before anything was sent: this side rejected the certificate."""
    return isinstance(exc, ssl.SSLCertVerificationError)
