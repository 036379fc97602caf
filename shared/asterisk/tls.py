"""Whose certificates are trusted for an Asterisk: the system's authorities, or a CA bundle and nobody else.

The only place that makes an SSLContext, for the event sockets as for the requests. None verifies less than the whole:
the chain, the dates and the host name.
"""

from __future__ import annotations

import functools
import ssl

from shared import errors

#: One for each connection of a large listener; one that falls out is made anew when next needed.
_KEPT = 4096
#: OpenSSL's X509_V_ERR_…, and what its operator has to do.
_COMPLAINTS = {
    9: "a TLS certificate of this Asterisk is not valid yet: are the clocks right?",
    10: "a TLS certificate of this Asterisk, or of its authority, has expired: renew it",
    62: "the TLS certificate is for another host name than the one in ari_endpoint",
    64: "the TLS certificate is for another address than the one in ari_endpoint: name it by its host name",
}
#: Self-signed, alone or at the end of the chain; no issuer found; an issuer that is no authority.
_UNTRUSTED = {2, 18, 19, 20, 21, 24, 27, 28, 79}
#: What a peer that does not speak TLS brings about.
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}


@functools.lru_cache(maxsize=_KEPT)
def context(ca_bundle: str | None) -> ssl.SSLContext:
    """The context for a CA bundle in PEM, made once and shared; None for the system's authorities.

    Raises:
        InvalidConfiguration: A certificate of the bundle cannot be read.
    """
    if ca_bundle is None:
        return ssl.create_default_context()
    try:
        made = ssl.create_default_context(cadata=ca_bundle)
    except (ssl.SSLError, ValueError):
        raise errors.InvalidConfiguration(
            "ari_ca_bundle holds a certificate that cannot be read: `openssl x509 -noout -text` says what is wrong"
        ) from None
    # What was given is trusted as it is, be it a root, an intermediate or the Asterisk's own certificate. Strict, which
    # Python 3.13 sets, would refuse private authorities made by older tools.
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return made


def check(ca_bundle: str | None) -> None:
    """Raises InvalidConfiguration when a certificate of the bundle cannot be read."""
    if ca_bundle is not None:
        context(ca_bundle)


def complaint(exc: ssl.SSLError, *, with_bundle: bool) -> str:
    """What went wrong, and what to do, in plain words and never in the peer's."""
    if not isinstance(exc, ssl.SSLCertVerificationError):
        if exc.reason in _NO_TLS:
            return "what answers there does not speak TLS: is it http:// and not https://?"
        return f"TLS failed: {exc.reason or type(exc).__name__}"
    if exc.verify_code in _UNTRUSTED:
        if with_bundle:
            return "the TLS certificate is not signed by a certificate in ari_ca_bundle: give its authority there"
        return "the TLS certificate is not signed by an authority of this system: give its authority in ari_ca_bundle"
    return _COMPLAINTS.get(exc.verify_code, f"the TLS certificate is not valid: {exc.verify_message}")


def was_refused(exc: ssl.SSLError) -> bool:
    """Whether it surely failed before anything was sent: we looked at the certificate and said no."""
    return isinstance(exc, ssl.SSLCertVerificationError)
