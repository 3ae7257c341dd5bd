"""Every capture of the official programs is decoded, and encoded again to the same bytes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from pyfrp.auth.token import auth_key, key_matches
from pyfrp.wire import (
    cfb,
    framing,
    kcp,
    proxyproto,
    snappy,
    sniff,
    stun,
    v2,
    v2crypto,
    websocket,
)
from pyfrp.wire import messages as m
from pyfrp.wire.gojson import decode_body, encode_body
from pyfrp.wire.version import MAGIC
from tests.vectors.load import vectors

Vector = dict[str, Any]
CHECKS: dict[str, Callable[[Vector], None]] = {}
ELSEWHERE = {"yamux_session", "yamux_ping"}  # test_yamux.py


def check(*names: str):
    def keep(function):
        CHECKS.update(dict.fromkeys(names, function))
        return function

    return keep


@pytest.mark.parametrize("name", sorted(vectors().keys() - ELSEWHERE))
def test_vector(name):
    assert name in CHECKS, "no test decodes this vector"
    CHECKS[name](vectors()[name])


def test_no_check_is_without_its_vector():
    assert CHECKS.keys() | ELSEWHERE == vectors().keys()


# --- helpers -----------------------------------------------------------------------------------


def same_frames(data: bytes, frames: list[list[str]]) -> bytes:
    """Read v1 frames from `data`, byte by byte; compare, encode, compare; return the rest."""
    decoder = framing.FrameDecoder()
    found: list[m.Message] = []
    for at in range(len(data)):
        decoder.feed(data[at : at + 1])
        while len(found) < len(frames) and (msg := decoder.next()) is not None:
            found.append(msg)
    rest = decoder.leftover()
    same_messages(found, frames)
    assert b"".join(map(framing.encode, found)) + rest == data
    return rest


def same_messages(found: list[m.Message], frames: list[list[str]]) -> None:
    shown = [(chr(m.TYPE_BYTES[type(msg)]), encode_body(msg).decode()) for msg in found]
    assert shown == [tuple(frame) for frame in frames]


def decrypted(data: bytes, secret: str) -> bytes:
    """Decrypt a stream; check that encrypting with its IV gives it back."""
    key = cfb.derive_key(secret)
    decryptor = cfb.Decryptor(key)
    plain = b"".join(decryptor.decrypt(data[at : at + 1]) for at in range(len(data)))
    assert cfb.Encryptor(key, data[:16]).encrypt(plain) == data
    return plain


def uncompressed(data: bytes) -> bytes:
    """Decompress a stream; check that compressing gives it back."""
    reader = snappy.SnappyReader()
    plain = b"".join(reader.decompress(data[at : at + 1]) for at in range(len(data)))
    assert snappy.SnappyWriter().compress(plain) == data
    return plain


def both_ways(vector: Vector) -> tuple[bytes, bytes]:
    """Read the frames of both directions; return what follows them."""
    return (
        same_frames(bytes.fromhex(vector["c2s_hex"]), vector["c2s_frames"]),
        same_frames(bytes.fromhex(vector["s2c_hex"]), vector["s2c_frames"]),
    )


def payloads(vector: Vector) -> tuple[bytes, bytes]:
    return vector["c2s_payload"].encode(), vector["s2c_payload"].encode()


def first(vector: Vector, side: str) -> Any:
    kind, body = vector[f"{side}_frames"][0]
    return decode_body(m.CLASSES[ord(kind)], body.encode())


# --- keys and control --------------------------------------------------------------------------


@check("auth_key", "auth_key_fixed", "auth_key_empty_token")
def _auth_key(vector):
    assert auth_key(vector["token"], vector["timestamp"]) == vector["key"]


@check("cfb_key")
def _cfb_key(vector):
    assert {s: cfb.derive_key(s).hex() for s in vector["secrets"]} == vector["secrets"]


@check("v1_login", "v1_login_resp", "v1_login_resp_error")
def _plain_message(vector):
    data = bytes.fromhex(vector["hex"])
    assert same_frames(data, [[vector["type"], vector["json"]]]) == b""
    decoder = framing.FrameDecoder()
    decoder.feed(data)
    msg = decoder.next()
    if isinstance(msg, m.Login):
        assert key_matches(vector["token"], msg.timestamp, msg.privilege_key)


@check("v1_control_c2s", "v1_control_s2c")
def _control(vector):
    assert cfb.derive_key(vector["token"]).hex() == vector["key"]
    plain = decrypted(bytes.fromhex(vector["hex"]), vector["token"])
    assert plain.hex() == vector["plaintext_hex"]
    assert same_frames(plain, vector["messages"]) == b""


@check("v1_control_messages_c2s", "v1_control_messages_s2c")
def _control_messages(vector):
    bodies = [(m.CLASSES[ord(kind)], body.encode()) for kind, body in vector["messages"]]
    same_messages([decode_body(cls, body) for cls, body in bodies], vector["messages"])


# --- work and visitor connections --------------------------------------------------------------


@check("v1_work_conn_tcp_plain")
def _work_plain(vector):
    assert both_ways(vector) == payloads(vector)
    msg = first(vector, "c2s")
    assert key_matches("spec-token", msg.timestamp, msg.privilege_key)
    assert first(vector, "s2c") == m.StartWorkConn(
        proxy_name="alice.t_plain",
        src_addr="127.0.0.1",
        dst_addr="127.0.0.1",
        src_port=39702,
        dst_port=17100,
    )


@check("v1_work_conn_tcp_enc_comp")
def _work_encrypted_and_compressed(vector):
    rests = both_ways(vector)
    for rest, side, payload in zip(rests, ("c2s", "s2c"), payloads(vector), strict=True):
        packed = decrypted(rest, vector["token"])
        assert packed.hex() == vector[f"{side}_decrypted_hex"]
        assert uncompressed(packed) == payload


@check("v1_work_conn_tcp_comp_only")
def _work_compressed(vector):
    assert tuple(map(uncompressed, both_ways(vector))) == payloads(vector)
    # The local service echoed the PROXY line that it got before the payload.
    line = payloads(vector)[0].removeprefix(b"E:")
    header, size = proxyproto.decode(line)
    start = first(vector, "s2c")
    assert header.source == (start.src_addr, start.src_port)
    assert header.destination == (start.dst_addr, start.dst_port)
    assert proxyproto.encode("v1", header.source, header.destination) == line[:size]


@check("v1_udp_work_conn", "v1_sudp_visitor", "v1_sudp_proxy_work_conn")
def _datagrams(vector):
    assert both_ways(vector) == (b"", b"")
    out, back = (
        decode_body(m.UDPPacket, vector[f"{side}_frames"][1][1].encode()) for side in ("s2c", "c2s")
    )
    if vector["name"] == "v1_sudp_visitor":
        out, back = back, out
        msg = first(vector, "c2s")
        assert key_matches(vector["secret_key"], msg.timestamp, msg.sign_key)
    assert back.content == b"U:" + out.content
    assert back.remote_addr == out.remote_addr
    assert (out.remote_addr.ip, out.local_addr) == ("127.0.0.1", None)


@check("v1_stcp_visitor_enc")
def _visitor(vector):
    rests = both_ways(vector)
    assert tuple(decrypted(rest, vector["secret_key"]) for rest in rests) == payloads(vector)
    msg = first(vector, "c2s")
    assert key_matches(vector["secret_key"], msg.timestamp, msg.sign_key)


@check("v1_stcp_proxy_work_conn")
def _visited(vector):
    assert both_ways(vector) == (b"E:hello stcp", b"hello stcp")


@check("v1_http_work_conn")
def _http_work(vector):
    answer, request = both_ways(vector)
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    head = request.decode().split("\r\n")
    assert head[0] == "GET /a/x?q=1 HTTP/1.1"
    assert head[-2:] == ["", ""]
    headers = dict(row.split(": ", 1) for row in head[1:-2])
    assert headers["Host"] == "rewritten.local"
    assert headers["X-Forwarded-For"] == "9.9.9.9, 127.0.0.1"
    start = first(vector, "s2c")
    assert (start.src_port, start.dst_addr, start.dst_port) == (57916, "", 0)


# --- transports --------------------------------------------------------------------------------


@check("websocket_session")
def _websocket(vector):
    events = [(side, bytes.fromhex(data)) for side, data in vector["events"]]
    assert [side for side, _ in events] == ["c2s", "s2c", "c2s", "s2c"]
    request, response, login, answer = (data for _, data in events)

    assert sniff.classify(request, http_here=True, https_here=True) is sniff.Kind.WEBSOCKET
    assert websocket.head_end(request) == len(request)
    key = websocket.decode_request(request)
    host = re.search(rb"Host: (\S+)", request)[1].decode()
    assert websocket.encode_request(host, key) == request
    websocket.check_response(response, key)
    assert websocket.encode_response(key) == response

    for data, masked, cls in ((login, True, m.Login), (answer, False, m.LoginResp)):
        decoder = websocket.FrameDecoder(masked=masked)
        plain = b"".join(decoder.decode(data[at : at + 1]) for at in range(len(data)))
        mask = data[4:8] if masked else b""
        assert websocket.encode_frame(plain, opcode=websocket.TEXT, mask=mask) == data
        frames = framing.FrameDecoder()
        frames.feed(plain)
        assert isinstance(msg := frames.next(), cls)
        assert framing.encode(msg) == plain


@check("tls_custom_byte")
def _tls_byte(vector):
    data = bytes.fromhex(vector["hex"])
    for shared in (True, False):
        kind = sniff.classify(data, http_here=shared, https_here=shared)
        assert kind is sniff.Kind.TLS_AFTER_BYTE
    assert sniff.classify(data[1:], http_here=True, https_here=False) is sniff.Kind.TLS


@check("kcp_session")
def _kcp(vector):
    streams: dict[tuple[str, int], bytes] = {}
    seqids: dict[tuple[str, int], list[int]] = {}
    for side, data in vector["datagrams"]:
        segments, seqid = same_datagram(bytes.fromhex(data))
        seqids.setdefault((side, segments[0].conv), []).append(seqid)
        for segment in segments:
            assert (segment.cmd == kcp.PUSH) == bool(segment.data)
            key = (side, segment.conv)
            streams[key] = streams.get(key, b"") + segment.data
    assert all(found == list(range(len(found))) for found in seqids.values())

    conv = next(conv for side, conv in streams if side == "c2s")
    control, answer = streams["c2s", conv], streams["s2c", conv]
    decoder = framing.FrameDecoder()
    decoder.feed(control)
    assert isinstance(login := decoder.next(), m.Login)
    assert key_matches("spec-token", login.timestamp, login.privilege_key)
    sealed = decoder.leftover()
    decoder.feed(decrypted(sealed, "spec-token"))
    assert isinstance(decoder.next(), m.NewProxy)
    decoder = framing.FrameDecoder()
    decoder.feed(answer)
    assert isinstance(decoder.next(), m.LoginResp)
    decoder.feed(decrypted(decoder.leftover(), "spec-token"))
    assert isinstance(decoder.next(), m.ReqWorkConn)


def same_datagram(data: bytes) -> tuple[list[kcp.Segment], int]:
    datagram = kcp.decode_datagram(data)
    assert datagram.kind == kcp.DATA
    assert datagram.seqid is not None
    segments = kcp.decode_segments(datagram.body)
    assert kcp.encode_segments(segments) == datagram.body
    assert kcp.encode_data(datagram.seqid, datagram.body) == data
    return segments, datagram.seqid


@check("rs_parity_rows_10_3")
def _rows(vector):
    assert [row.hex() for row in kcp.parity_rows()] == vector["rows"]


@check("xtcp_udp_kcp")
def _xtcp(vector):
    key = cfb.derive_key(vector["secret_key"])
    sids, tunnel = vector["datagrams"][:3], vector["datagrams"][3:]
    for datagram in sids:
        data = bytes.fromhex(datagram["hex"])
        frame = cfb.unseal(key, data)
        assert same_frames(frame, [datagram["plaintext"]]) == b""
        assert cfb.seal(key, frame, data[:16]) == data
    texts = [json.loads(datagram["plaintext"][1]) for datagram in sids]
    assert len({text["sid"] for text in texts}) == 1
    assert [text.get("response", False) for text in texts] == [False, False, True]

    payload = {"visitor": b"", "proxy": b""}
    for datagram in tunnel:
        segments, _ = same_datagram(bytes.fromhex(datagram["hex"]))
        assert {segment.conv for segment in segments} == {1}
        payload[datagram["from"]] += b"".join(segment.data for segment in segments)
    # The rest is yamux, after the frame that opens stream 1 or accepts it.
    assert payload["visitor"][24:] == b"via kcp"
    assert payload["proxy"][24:] == b"E:via kcp"


@check("stun_binding")
def _stun(vector):
    request, response = (bytes.fromhex(vector[name]) for name in ("request", "response"))
    transaction = stun.decode_request(request)
    assert stun.encode_request(transaction) == request
    binding = stun.decode_response(response)
    assert binding == stun.Binding(transaction, ("127.0.0.1", 34820), ("127.0.0.1", 17401))
    assert stun.encode_response(binding) == response


@check("proxy_protocol")
def _proxy_protocol(vector):
    for name in ("tcp_v1", "tcp_v2", "udp_v1", "udp_v2"):
        data = bytes.fromhex(vector[name])
        header, size = proxyproto.decode(data + b"payload")
        assert size == len(data)
        ends = header.source or ("10.0.0.1", 1), header.destination or ("10.0.0.2", 2)
        version, datagram = name[-2:], name.startswith("udp")
        assert proxyproto.encode(version, *ends, datagram=datagram) == data
        if name != "udp_v1":
            assert (header.source[0], header.datagram) == ("127.0.0.1", datagram)


# --- wire v2 -----------------------------------------------------------------------------------


@check("v2_control_aes_256_gcm", "v2_control_xchacha20_poly1305")
def _v2_control(vector):
    client, server = (vector[f"{side}_hello_payload"].encode() for side in ("client", "server"))
    clear = {side: bytes.fromhex(vector[f"{side}_clear_hex"]) for side in ("c2s", "s2c")}
    assert MAGIC.hex() == vector["magic"]
    assert clear["c2s"].startswith(MAGIC)

    frames = same_v2_frames(clear["c2s"].removeprefix(MAGIC))
    assert frames[0] == (v2.CLIENT_HELLO, client)
    assert isinstance(login := v2.decode_message(frames[1][1]), m.Login)
    assert key_matches(vector["token"], login.timestamp, login.privilege_key)
    frames = same_v2_frames(clear["s2c"])
    assert frames[0] == (v2.SERVER_HELLO, server)
    assert isinstance(v2.decode_message(frames[1][1]), m.LoginResp)

    ours = decode_body(v2.ClientHello, client)
    assert ours == v2.client_hello(
        bytes(range(32)), transport="tcp", tls=True, tcp_mux=True, algorithms=v2.ALGORITHMS
    )
    assert encode_body(ours) == client
    theirs = decode_body(v2.ServerHello, server)
    assert encode_body(theirs) == server
    algorithm = v2.check_server_hello(theirs, ours)
    assert vector["name"] == f"v2_control_{algorithm.replace('-', '_')}"
    if algorithm == v2.ALGORITHMS[0]:
        assert v2.server_hello(ours, bytes(range(32, 64))) == theirs

    transcript = v2crypto.transcript_hash(client, server)
    assert transcript.hex() == vector["transcript_hash"]
    for side, direction in (("c2s", "client-to-server"), ("s2c", "server-to-client")):
        key = v2crypto.control_key(vector["token"], transcript, algorithm, direction)
        assert key.hex() == vector[f"key_{direction.replace('-', '_')}"]
        sealed = bytes.fromhex(vector[f"{side}_aead_hex"])
        opener = v2crypto.Opener(key, algorithm)
        plain = b"".join(opener.open(sealed[at : at + 1]) for at in range(len(sealed)))
        assert plain.hex() == vector[f"{side}_plaintext_hex"]
        nonce = sealed[: v2crypto.NONCE_SIZES[algorithm]]
        sealer = v2crypto.Sealer(key, algorithm, nonce)
        # As Go does it: a record for the frame's header, and one for its payload.
        assert sealer.seal(plain[:8]) + sealer.seal(plain[8:]) == sealed
        same_v2_frames(plain)


def same_v2_frames(data: bytes) -> list[tuple[int, bytes]]:
    decoder = v2.FrameDecoder()
    found: list[tuple[int, bytes]] = []
    for at in range(len(data)):
        decoder.feed(data[at : at + 1])
        while (frame := decoder.next()) is not None:
            found.append(frame)
    assert decoder.leftover() == b""
    assert b"".join(v2.encode_frame(*frame) for frame in found) == data
    for kind, payload in found:
        if kind == v2.MESSAGE:
            assert v2.encode(v2.decode_message(payload)) == v2.encode_frame(kind, payload)
    return found


@check("v2_key_schedule_known")
def _v2_key(vector):
    key = v2crypto.control_key("token", b"\x44" * 32, "xchacha20-poly1305", "client-to-server")
    assert key.hex() == vector["key"]


@check("v2_work_conn")
def _v2_work(vector):
    out = bytes.fromhex(vector["c2s_hex"])
    assert out.startswith(MAGIC)
    ((_, payload),) = same_v2_frames(out.removeprefix(MAGIC))
    assert v2.decode_message(payload) == m.NewWorkConn(run_id="0123456789abcdef")
    ((_, payload),) = same_v2_frames(bytes.fromhex(vector["s2c_hex"]))
    assert isinstance(v2.decode_message(payload), m.StartWorkConn)


def test_randoms_of_the_captured_hellos_are_base64():
    hello = json.loads(vectors()["v2_control_aes_256_gcm"]["client_hello_payload"])
    random = base64.b64decode(hello["capabilities"]["crypto"]["clientRandom"])
    assert random == bytes(range(32))
