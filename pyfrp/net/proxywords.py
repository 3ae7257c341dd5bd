"""What an operator is told of a proxy that does not let us through: who, what, and what to try.

The sentences stand together so that they can be read against each other; none holds a password.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from pyfrp.errors import DialError, ProxyError
from pyfrp.net.outproxy import Proxy
from pyfrp.wire.connectproxy import Answer, printable
from pyfrp.wire.httpauth import Challenge
from pyfrp.wire.socks5client import SocksRefusal

_NAMES = {"basic": "Basic", "digest": "Digest", "ntlm": "NTLM", "negotiate": "Negotiate"}
# Reply codes of RFC 1928, section 6.
_SOCKS_REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}


def unreachable(proxy: Proxy, exc: DialError) -> ProxyError:
    """It cannot be dialled."""
    failure = ProxyError(f"{proxy} cannot be reached: {exc}; check {proxy.named_by}")
    failure.errno = exc.errno
    return failure


def refused(proxy: Proxy, target: str, answer: Answer) -> ProxyError:
    """It answered CONNECT with neither a tunnel nor a question for credentials."""
    status = answer.status
    said = f"{status} {answer.reason}".strip()
    if status == 403:
        text = (
            f"{proxy} refuses a tunnel to {target} ({said}): have its administrators allow "
            f"CONNECT to {target}"
        )
        if not target.endswith(":443"):
            text += ", or let the server listen on port 443, which most allow"
    elif 300 <= status < 400 or status == 511:
        place = _host(answer.location)
        text = (
            f"{proxy} sends us to a login page ({said}{f', {place}' if place else ''}): log in "
            "there with a browser on this machine, or have its administrators exempt it"
        )
    elif status in (400, 404, 405, 501):
        text = (
            f"{proxy} does not make a tunnel to {target} ({said}): is it a forward proxy and not "
            f"a web server? check {proxy.named_by}"
        )
    elif status in (502, 503, 504):
        text = (
            f"{proxy} cannot reach {target} ({said}): check that the server runs there, that its "
            "firewall lets the proxy in, and that the proxy can resolve the name"
        )
    elif status < 500:
        text = f"{proxy} turns down a tunnel to {target} ({said}): ask its administrators why"
    else:
        text = (
            f"{proxy} failed to make a tunnel to {target} ({said}): check that the server runs "
            "there and that its firewall lets the proxy in, else tell the proxy's administrators"
        )
    return ProxyError(text, status)


def login_page(proxy: Proxy, target: str, answer: Answer) -> ProxyError:
    """It said yes to CONNECT, and what follows is a page."""
    return ProxyError(
        f"{proxy} answers CONNECT to {target} with a web page instead of a tunnel, probably to "
        "log in: open any page with a browser on this machine and log in there, or have its "
        "administrators exempt this machine",
        answer.status,
    )


def silent(proxy: Proxy, target: str, seconds: float) -> ProxyError:
    """It takes connections and does not answer."""
    return ProxyError(
        f"{proxy} takes the connection and does not answer the request for {target} within "
        f"{seconds:g} s: either it is no {proxy.scheme} proxy (check {proxy.named_by}), or it "
        f"waits for {target} without result: check that address"
    )


def hung_up(proxy: Proxy, target: str) -> ProxyError:
    """It closed the connection without an answer."""
    return ProxyError(
        f"{proxy} closed the connection without an answer to the request for {target}: is it a "
        f"proxy of the kind {proxy.scheme}, and may this machine use it? check {proxy.named_by}"
    )


def closed_tunnel(proxy: Proxy, target: str) -> ProxyError:
    """It said yes and closed the connection."""
    return ProxyError(
        f"{proxy} made a tunnel to {target} and closed it at once: check that the server runs "
        "there and that its firewall lets the proxy in",
        200,
    )


def garbage(proxy: Proxy, data: bytes, reason: str) -> ProxyError:
    """It answered with something that is not of its protocol."""
    if proxy.scheme.startswith("socks"):
        if data.startswith(b"HTTP/"):
            hint = f"it is an HTTP proxy: write http:// instead of {proxy.scheme}://"
        else:
            hint = f"is it a SOCKS5 proxy? check {proxy.named_by}"
        return ProxyError(f"{proxy} does not answer in SOCKS5: {hint}")
    if data[:2] in (b"\x15\x03", b"\x16\x03"):
        hint = "it speaks TLS: write https:// for its scheme"
    elif data[:1] in (b"\x00", b"\x05"):
        hint = "it seems to be a SOCKS proxy: write socks5:// for its scheme"
    else:
        hint = f"is it an HTTP proxy? check {proxy.named_by}"
    return ProxyError(f"{proxy} answers CONNECT with something else than HTTP ({reason}): {hint}")


def bad_host(proxy: Proxy, host: str) -> ProxyError:
    """The server's name cannot be sent to it."""
    return ProxyError(f"{proxy} cannot be asked for {printable(host, 60)!r}: it is not a host name")


# -- TLS to the proxy ---------------------------------------------------------------------------


def untrusted(proxy: Proxy, reason: str) -> ProxyError:
    """Its certificate does not pass."""
    return ProxyError(
        f"{proxy} shows a certificate that this machine does not trust ({reason}): add the "
        "authority that signed it to the system's, or name its file in the environment variable "
        "SSL_CERT_FILE, and write the proxy's host as the certificate has it"
    )


def no_tls(proxy: Proxy, reason: str) -> ProxyError:
    """The TLS handshake with it failed."""
    return ProxyError(
        f"TLS with {proxy} failed ({reason}): if it is a proxy without TLS, as most are, "
        "write http:// for its scheme"
    )


# -- authentication -----------------------------------------------------------------------------


def _offers(challenges: Iterable[Challenge]) -> str:
    names = (_NAMES.get(c.scheme, printable(c.scheme, 20)) for c in challenges)
    return ", ".join(dict.fromkeys(names))


def no_credentials(proxy: Proxy, challenges: list[Challenge]) -> ProxyError:
    """It wants a user, and we have none."""
    scheme = "http" if proxy.scheme == "ntlm" else proxy.scheme
    return ProxyError(
        f"{proxy} asks for a user and a password (407, it offers {_offers(challenges)}): write "
        f"them into {proxy.named_by}, as in {scheme}://USER:PASSWORD@{proxy.place}",
        407,
    )


def needs_kerberos(proxy: Proxy) -> ProxyError:
    """It takes only Kerberos, for which a package is missing."""
    return ProxyError(
        f"{proxy} asks for Kerberos (407, it offers Negotiate): install the package for it (pip "
        'install "pyfrp-tunnel[kerberos]") and get a ticket (kinit), or try a user and a '
        f"password in {proxy.named_by}, as in http://DOMAIN%5CUSER:PASSWORD@{proxy.place}",
        407,
    )


def unknown_schemes(proxy: Proxy, challenges: list[Challenge]) -> ProxyError:
    """It offers nothing that can be done here."""
    if not challenges:
        return ProxyError(
            f"{proxy} asks for credentials (407) without saying of which kind: ask its "
            "administrators to exempt this machine",
            407,
        )
    if proxy.scheme == "ntlm":
        return ProxyError(
            f"{proxy} does not offer NTLM (407, it offers {_offers(challenges)}): write http:// "
            "instead of ntlm://",
            407,
        )
    return ProxyError(
        f"{proxy} offers only {_offers(challenges)} (407) in a form that cannot be done here: "
        "have its administrators offer Basic, Digest, NTLM or Negotiate, or exempt this machine",
        407,
    )


def denied(proxy: Proxy, scheme: str) -> ProxyError:
    """It did not take the credentials."""
    name = _NAMES[scheme]
    text = f"{proxy} does not accept the user and the password of {proxy.named_by} (407, {name})"
    hint = "check both, with special characters written as %XX"
    if scheme in ("ntlm", "negotiate") and "\\" not in (proxy.user or ""):
        hint += ", and whether the user needs a domain: DOMAIN%5CUSER"
    return ProxyError(f"{text}: {hint}", 407)


def kerberos_denied(proxy: Proxy) -> ProxyError:
    """It did not take the ticket."""
    return ProxyError(
        f"{proxy} does not accept our Kerberos ticket (407, Negotiate): check with klist whose it "
        f"is, and that the proxy is named as its service principal has it: HTTP/{proxy.host}",
        407,
    )


def auth_failed(proxy: Proxy, scheme: str, reason: str) -> ProxyError:
    """The conversation went wrong before the proxy could judge."""
    name = _NAMES[scheme]
    return ProxyError(
        f"{name} with {proxy} failed: {printable(reason, 160)}; check {proxy.named_by}", 407
    )


def no_ticket(proxy: Proxy, reason: str) -> ProxyError:
    """Kerberos has nothing for this proxy."""
    return ProxyError(
        f"{proxy} asks for Kerberos (407), and there is no ticket for HTTP/{proxy.host} "
        f"({printable(reason, 160)}): get one with kinit, or write a user and a password into "
        f"{proxy.named_by}",
        407,
    )


def no_kerberos(proxy: Proxy, seconds: float) -> ProxyError:
    """Kerberos' own servers do not answer."""
    return ProxyError(
        f"{proxy} asks for Kerberos (407), and its servers gave no ticket for HTTP/{proxy.host} "
        f"within {seconds:g} s: check that this machine reaches those that /etc/krb5.conf or the "
        "DNS names for the realm",
        407,
    )


def missing_package(proxy: Proxy, scheme: str) -> ProxyError:
    """The library for NTLM is not installed."""
    return ProxyError(
        f"{proxy} asks for {_NAMES[scheme]} (407), for which the package pyspnego is missing: pip "
        "install pyspnego",
        407,
    )


def dropped_midway(proxy: Proxy, scheme: str) -> ProxyError:
    """It closed the connection that the conversation is bound to."""
    return ProxyError(
        f"{proxy} closed the connection in the middle of {_NAMES[scheme]}, which needs one: is "
        "there another proxy in front of it? ask its administrators for Basic or Digest",
        407,
    )


# -- SOCKS5 -------------------------------------------------------------------------------------


def socks_refused(proxy: Proxy, target: str, exc: SocksRefusal) -> ProxyError:
    """It said no."""
    if exc.denied:
        return ProxyError(
            f"{proxy} does not accept the user and the password of {proxy.named_by}: check both, "
            "with special characters written as %XX"
        )
    if exc.method is not None:
        if proxy.user is None:
            return ProxyError(
                f"{proxy} asks for a user and a password: write them into {proxy.named_by}, as "
                f"in {proxy.scheme}://USER:PASSWORD@{proxy.place}"
            )
        return ProxyError(
            f"{proxy} takes neither a user with a password nor nobody: it asks for a way to "
            "authenticate that cannot be done here"
        )
    said = f"reply {exc.code}: {_SOCKS_REPLIES.get(exc.code, 'unknown')}"
    if exc.code == 2:
        hint = f"have its administrators allow connections to {target}"
    elif exc.code in (7, 8):
        hint = "have its administrators allow CONNECT with names and addresses"
    else:
        hint = (
            "check that the server runs there, that its firewall lets the proxy in, and that the "
            "proxy can resolve the name"
        )
    verb = "refuses a connection to" if exc.code == 2 else "cannot reach"
    return ProxyError(f"{proxy} {verb} {target} ({said}): {hint}")


# -- inside the tunnel --------------------------------------------------------------------------


def cut_inside(proxy: Proxy, reason: str, protocol: str, *, tls: bool) -> str:
    """The tunnel was made, and nothing came back through it."""
    if protocol == "wss":
        hint = (
            "if the server is there and speaks wss, the proxy lets no traffic of ours pass: have "
            "its administrators exempt serverAddr from inspection"
        )
    else:
        inside = "TLS that is not HTTPS" if tls else "what is neither TLS nor HTTP"
        hint = (
            f"if the server is there, the proxy lets CONNECT through and cuts {inside}: try "
            'transport.protocol = "wss"'
        )
    return f"{reason} (through {proxy}); {hint}"


def idle_cut(proxy: Proxy, idle_s: float, key: str) -> str:
    """A link was lost after some silence."""
    least = max(1, int(idle_s / 2))
    return (
        f"nothing had come for {idle_s:.0f} s; if this repeats, {proxy} cuts what is idle: set "
        f"{key} = {least}"
    )


def age_cut(proxy: Proxy, age_s: float, target: str) -> str:
    """Two links in a row were lost at the same age."""
    return (
        f"two sessions in a row ended after {age_s:.0f} s, though bytes were moving: {proxy} seems "
        "to limit how long a tunnel lasts, which cuts the requests in it: have its administrators "
        f"raise the limit for {target}"
    )


def _host(url: str) -> str:
    """The host of a URL, fit for a log; "" if there is none."""
    try:
        return printable(urlsplit(url).hostname or "", 100)
    except ValueError:
        return ""
