"""The messages of the control protocol, and the table of their type bytes in wire v1.

What makes a `Record` work (JSON form, zero values, `repr`) is in `gojson`.

Source: frp `pkg/msg/msg.go` (fields, their order and types).
"""

from __future__ import annotations

from pyfrp.wire.gojson import U16, Record, decode_body, each, encode_body, secret, wire

__all__ = ["CLASSES", "TYPE_BYTES", "decode_body", "encode_body"]

# --- parts of messages -----------------------------------------------------------------------


class ClientSpec(Record):
    """What kind of client logs in; only the SSH gateway's own clients fill it."""

    type: str = ""
    always_auth_pass: bool = False


class UDPAddr(Record):
    """An address as Go writes a `net.UDPAddr`: capitalised keys, all three always present."""

    ip: str = wire("IP", default="", always=True)
    port: int = wire("Port", default=0, always=True)
    zone: str = wire("Zone", default="", always=True)


class PortsRange(Record):
    """Ports `first` to `last`, both included."""

    first: int = wire("from", default=0)
    last: int = wire("to", default=0)


class DetectBehavior(Record):
    """How one side of an xtcp pair shall punch; delays and timeouts in milliseconds."""

    role: str = ""
    mode: int = 0
    ttl: int = 0
    send_delay_ms: int = 0
    read_timeout_ms: int = wire("read_timeout", default=0)
    candidate_ports: list[PortsRange] = each(factory=list)
    send_random_ports: int = 0
    listen_random_ports: int = 0


# --- messages --------------------------------------------------------------------------------


class Message(Record):
    """What may follow a type byte: one of `CLASSES`."""


class Login(Message):
    """First message of a control connection. `timestamp` in Unix seconds."""

    version: str = ""
    hostname: str = ""
    os: str = ""
    arch: str = ""
    user: str = ""
    privilege_key: str = secret(default="")
    timestamp: int = 0
    run_id: str = ""
    client_id: str = ""
    metas: dict[str, str] = each(factory=dict)
    client_spec: ClientSpec = each(factory=ClientSpec)
    pool_count: int = 0


class LoginResp(Message):
    """Answer to `Login`; a non-empty `error` means refused."""

    version: str = ""
    run_id: str = ""
    error: str = ""


class NewProxy(Message):
    """The client asks the server to open a proxy; which fields count depends on `proxy_type`."""

    proxy_name: str = ""
    proxy_type: str = ""
    use_encryption: bool = False
    use_compression: bool = False
    bandwidth_limit: str = ""
    bandwidth_limit_mode: str = ""
    group: str = ""
    group_key: str = secret(default="")
    metas: dict[str, str] = each(factory=dict)
    annotations: dict[str, str] = each(factory=dict)
    remote_port: int = 0
    custom_domains: list[str] = each(factory=list)
    subdomain: str = ""
    locations: list[str] = each(factory=list)
    http_user: str = ""
    http_pwd: str = secret(default="")
    host_header_rewrite: str = ""
    headers: dict[str, str] = each(factory=dict)
    response_headers: dict[str, str] = each(factory=dict)
    route_by_http_user: str = ""
    sk: str = secret(default="")
    allow_users: list[str] = each(factory=list)
    multiplexer: str = ""


class NewProxyResp(Message):
    """Answer to `NewProxy`: where it listens, or why not."""

    proxy_name: str = ""
    remote_addr: str = ""
    error: str = ""


class CloseProxy(Message):
    """The client withdraws a proxy."""

    proxy_name: str = ""


class NewWorkConn(Message):
    """First message of a work connection. Key and time only with the scope `NewWorkConns`."""

    run_id: str = ""
    privilege_key: str = secret(default="")
    timestamp: int = 0


class ReqWorkConn(Message):
    """The server asks for one more work connection."""


class StartWorkConn(Message):
    """The server hands a work connection to a proxy; addresses are the user's and our own."""

    proxy_name: str = ""
    src_addr: str = ""
    dst_addr: str = ""
    src_port: U16 = 0
    dst_port: U16 = 0
    error: str = ""


class NewVisitorConn(Message):
    """First message of a visitor connection; `sign_key` is made from the proxy's secret key."""

    run_id: str = ""
    proxy_name: str = ""
    sign_key: str = secret(default="")
    timestamp: int = 0
    use_encryption: bool = False
    use_compression: bool = False


class NewVisitorConnResp(Message):
    """Answer to `NewVisitorConn`."""

    proxy_name: str = ""
    error: str = ""


class Ping(Message):
    """Heartbeat of the client. Key and time only with the scope `HeartBeats`."""

    privilege_key: str = secret(default="")
    timestamp: int = 0


class Pong(Message):
    """Answer to `Ping`; an `error` ends the session."""

    error: str = ""


class UDPPacket(Message):
    """One datagram of a udp or sudp proxy; `remote_addr` is the user's, `local_addr` unused."""

    content: bytes = wire("c", default=b"")
    local_addr: UDPAddr | None = wire("l", default=None)
    remote_addr: UDPAddr | None = wire("r", default=None)


class NatHoleVisitor(Message):
    """An xtcp visitor asks for a meeting (or, with `pre_check`, whether it may)."""

    transaction_id: str = ""
    proxy_name: str = ""
    pre_check: bool = False
    protocol: str = ""
    sign_key: str = secret(default="")
    timestamp: int = 0
    mapped_addrs: list[str] = each(factory=list)
    assisted_addrs: list[str] = each(factory=list)


class NatHoleClient(Message):
    """The proxy side of an xtcp meeting reports its addresses."""

    transaction_id: str = ""
    proxy_name: str = ""
    sid: str = ""
    mapped_addrs: list[str] = each(factory=list)
    assisted_addrs: list[str] = each(factory=list)


class NatHoleResp(Message):
    """What the server tells each side of an xtcp meeting."""

    transaction_id: str = ""
    sid: str = ""
    protocol: str = ""
    candidate_addrs: list[str] = each(factory=list)
    assisted_addrs: list[str] = each(factory=list)
    detect_behavior: DetectBehavior = each(factory=DetectBehavior)
    error: str = ""


class NatHoleSid(Message):
    """Names an xtcp meeting: on a work connection, and in the punching datagrams themselves."""

    transaction_id: str = ""
    sid: str = ""
    response: bool = False
    nonce: str = ""


class NatHoleReport(Message):
    """The proxy side tells whether punching worked."""

    sid: str = ""
    success: bool = False


CLASSES: dict[int, type[Message]] = {
    ord("o"): Login,
    ord("1"): LoginResp,
    ord("p"): NewProxy,
    ord("2"): NewProxyResp,
    ord("c"): CloseProxy,
    ord("w"): NewWorkConn,
    ord("r"): ReqWorkConn,
    ord("s"): StartWorkConn,
    ord("v"): NewVisitorConn,
    ord("3"): NewVisitorConnResp,
    ord("h"): Ping,
    ord("4"): Pong,
    ord("u"): UDPPacket,
    ord("i"): NatHoleVisitor,
    ord("n"): NatHoleClient,
    ord("m"): NatHoleResp,
    ord("5"): NatHoleSid,
    ord("6"): NatHoleReport,
}
TYPE_BYTES: dict[type[Message], int] = {cls: byte for byte, cls in CLASSES.items()}
