"""How a control connection begins, and its encryption, in either version of the wire protocol.

Version 1 has no hellos: its cipher is made from the token alone.

Source: frp `client/control_session.go`, `server/service.go`, `pkg/proto/wire` of 0.70.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from pyfrp.errors import BadMessage, RefusedError
from pyfrp.net.conn import MessageConn
from pyfrp.wire.version import V1, Hello

_AES = {
    # What a CPU calls its instructions for AES-GCM in /proc/cpuinfo.
    "x86_64": ("aes", "pclmulqdq"),
    "aarch64": ("aes", "pmull"),
}
_MACHINES = frozenset((*_AES, "amd64", "arm64", "s390x", "ppc64le"))
"""Those whose CPUs have such instructions nearly always."""


@cache
def preferred_algorithms() -> tuple[str, ...]:
    """The ciphers that there are, the faster one on this machine first."""
    import platform

    from pyfrp.wire.v2 import ALGORITHMS

    machine = platform.machine().lower()
    fast = machine in _MACHINES
    if machine in _AES:
        try:
            words = frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
        except (OSError, ValueError):
            pass  # Not a Linux; its machines have them.
        else:
            fast = words.issuperset(_AES[machine])
    return ALGORITHMS if fast else ALGORITHMS[::-1]


def client_hello(*, transport: str, tls: bool, tcp_mux: bool) -> Hello:
    """Make the hello that goes before the login of version 2; arguments as `v2.client_hello`."""
    from pyfrp.wire import v2
    from pyfrp.wire.gojson import encode_body

    hello = v2.client_hello(
        os.urandom(v2.RANDOM_SIZE),
        transport=transport,
        tls=tls,
        tcp_mux=tcp_mux,
        algorithms=preferred_algorithms(),
    )
    return Hello(kind=v2.CLIENT_HELLO, payload=encode_body(hello))


async def hear_hello(conn: MessageConn, ours: Hello) -> None:
    """Read the server's answer to our hello: `conn.agreement`.

    Raises:
        RefusedError: it turned us away; the text is its own.
        LinkError, WireError: it did not answer, or not as agreed.
    """
    from pyfrp.wire import v2
    from pyfrp.wire.gojson import decode_body
    from pyfrp.wire.v2crypto import Agreement, transcript_hash

    theirs = await conn.read()
    if not isinstance(theirs, Hello) or theirs.kind != v2.SERVER_HELLO:
        raise BadMessage(f"{type(theirs).__name__} in the place of the server's hello")
    algorithm = v2.check_server_hello(
        decode_body(v2.ServerHello, theirs.payload), decode_body(v2.ClientHello, ours.payload)
    )
    conn.agreement = Agreement(algorithm, transcript_hash(ours.payload, theirs.payload))


def answer_hello(conn: MessageConn, theirs: Hello) -> None:
    """Answer a client's hello: `conn.agreement`.

    Raises:
        RefusedError: nothing in it fits, which the client was told; close the connection.
        BadMessage: it is none.
    """
    from pyfrp.wire import v2
    from pyfrp.wire.gojson import decode_body, encode_body
    from pyfrp.wire.v2crypto import Agreement, transcript_hash

    if theirs.kind != v2.CLIENT_HELLO:
        raise BadMessage("a server's hello from a client")
    offered = decode_body(v2.ClientHello, theirs.payload)
    try:
        hello = v2.server_hello(offered, os.urandom(v2.RANDOM_SIZE))
    except RefusedError as exc:
        payload = encode_body(v2.refusal(str(exc)))
        conn.write(Hello(kind=v2.SERVER_HELLO, payload=payload))
        raise
    ours = Hello(kind=v2.SERVER_HELLO, payload=encode_body(hello))
    conn.write(ours)
    conn.agreement = Agreement(
        hello.selected.crypto.algorithm, transcript_hash(theirs.payload, ours.payload)
    )


def encrypt_control(conn: MessageConn, token: str, *, server: bool) -> None:
    """Encrypt a control connection from here on, which is right after the login.

    Args:
        conn: With an agreement, if it is of version 2.
        token: `auth.token`, whatever the method of authentication.
        server: Whether we are the server.
    """
    if conn.version is V1:
        from pyfrp.wire.cfb import Decryptor, Encryptor, derive_key

        key = derive_key(token)
        conn.secure(Encryptor(key).encrypt, Decryptor(key).decrypt)
        return
    from pyfrp.wire.v2crypto import CLIENT_TO_SERVER, SERVER_TO_CLIENT, Opener, Sealer

    assert conn.agreement is not None
    algorithm = conn.agreement.algorithm
    inward, outward = (CLIENT_TO_SERVER, SERVER_TO_CLIENT)[:: 1 if server else -1]
    sealer = Sealer(conn.agreement.key(token, outward), algorithm)
    opener = Opener(conn.agreement.key(token, inward), algorithm)
    conn.secure(sealer.seal, opener.open)
