from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import BadMessage
from pyfrp.wire import messages as m

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INT64 = st.integers(-(2**63), 2**63 - 1)
BY_KIND: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXT,
    "int": INT64,
    "U16": st.integers(0, 65535),
    "bool": st.booleans(),
    "bytes": st.binary(max_size=40),
    "list[str]": st.lists(TEXT, max_size=3),
    "dict[str, str]": st.dictionaries(TEXT, TEXT, max_size=3),
}


def records(cls: type[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {}, optional={name: BY_KIND[kind] for name, kind in cls.__annotations__.items()}
    ).map(lambda values: cls(**values))


BY_KIND["ClientSpec"] = records(m.ClientSpec)
BY_KIND["UDPAddr | None"] = st.none() | records(m.UDPAddr)
BY_KIND["list[PortsRange]"] = st.lists(records(m.PortsRange), max_size=3)
BY_KIND["DetectBehavior"] = records(m.DetectBehavior)

ANY_MESSAGE = st.sampled_from(list(m.TYPE_BYTES)).flatmap(records)
LEAF = st.none() | st.booleans() | INT64 | st.floats() | st.text(max_size=8)
JSON = LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(st.text(max_size=8), LEAF, max_size=2)


@given(ANY_MESSAGE)
def test_what_is_written_is_read_back(msg):
    assert m.decode_body(type(msg), m.encode_body(msg)) == msg


@given(st.sampled_from(list(m.TYPE_BYTES)), st.binary(max_size=200))
def test_garbage_raises_bad_message_or_nothing(cls, data):
    try:
        m.decode_body(cls, data)
    except BadMessage:
        pass


@given(st.data(), st.sampled_from(list(m.TYPE_BYTES)))
def test_any_json_value_in_any_field_raises_bad_message_or_nothing(data, cls):
    keys = st.sampled_from([*cls._readers, "unknown"])
    body = data.draw(st.dictionaries(keys, JSON, max_size=3))
    try:
        msg = m.decode_body(cls, json.dumps(body).encode())
    except BadMessage:
        return
    m.encode_body(msg)


def test_each_type_byte_has_one_class():
    assert len(m.TYPE_BYTES) == len(m.CLASSES) == 18
    assert {chr(byte) for byte in m.CLASSES} == set("o1p2cwrsv3h4uinm56")


def test_fields_are_written_in_order_and_empty_ones_left_out():
    msg = m.NewProxy(sk="s", proxy_name="n", remote_port=1, proxy_type="tcp")
    body = b'{"proxy_name":"n","proxy_type":"tcp","remote_port":1,"sk":"s"}'
    assert m.encode_body(msg) == body


def test_nested_objects_are_written_even_when_empty():
    assert m.encode_body(m.Login()) == b'{"client_spec":{}}'
    assert m.encode_body(m.NatHoleResp()) == b'{"detect_behavior":{}}'


def test_udp_address_is_written_with_all_three_keys():
    msg = m.UDPPacket(content=b"x", remote_addr=m.UDPAddr(ip="::1"))
    assert m.encode_body(msg) == b'{"c":"eA==","r":{"IP":"::1","Port":0,"Zone":""}}'


def test_maps_are_written_sorted_by_key():
    assert b'{"a":"1","b":"2"}' in m.encode_body(m.Login(metas={"b": "2", "a": "1"}))


def test_strings_are_escaped_as_go_escapes_them():
    msg = m.Pong(error='<a&b>\u2028\u2029"\\\n\t\x01\x7f한')
    body = '{"error":"\\u003ca\\u0026b\\u003e\\u2028\\u2029\\"\\\\\\n\\t\\u0001\x7f한"}'
    assert m.encode_body(msg) == body.encode()


def test_undecodable_system_bytes_are_written_as_the_replacement_character():
    assert m.encode_body(m.Login(hostname="h\udcff")).startswith('{"hostname":"h\ufffd"'.encode())


@pytest.mark.parametrize(
    "half", ["\\ud800", "\\udc00", "x\\ud83d", "\\ude00\\ud83d"], ids=lambda half: half[1:]
)
def test_half_of_a_surrogate_pair_is_read_as_the_replacement_character(half):
    msg = m.decode_body(m.Pong, f'{{"error":"{half}"}}'.encode())
    assert "\ufffd" in msg.error
    msg.error.encode()


def test_half_of_a_surrogate_pair_in_the_key_of_a_map_is_replaced():
    assert m.decode_body(m.Login, b'{"metas":{"\\ud800":"v"}}').metas == {"\ufffd": "v"}


def test_absent_and_null_fields_mean_the_zero_value():
    nulls = dict.fromkeys(m.Login._readers)
    assert m.decode_body(m.Login, json.dumps(nulls).encode()) == m.Login()
    assert m.decode_body(m.NatHoleVisitor, b'{"mapped_addrs":[null]}').mapped_addrs == [""]
    assert m.decode_body(m.Login, b'{"metas":{"k":null}}').metas == {"k": ""}
    behavior = b'{"detect_behavior":{"candidate_ports":[null]}}'
    assert m.decode_body(m.NatHoleResp, behavior).detect_behavior.candidate_ports == [
        m.PortsRange()
    ]


def test_zero_values_are_not_shared_between_messages():
    first, second = m.Login(), m.Login()
    first.metas["k"] = "v"
    first.client_spec.type = "t"
    assert second == m.Login(metas={}, client_spec=m.ClientSpec())


def test_unknown_fields_are_ignored():
    assert m.decode_body(m.Pong, b'{"later":{"x":[1.5]},"error":"e"}') == m.Pong(error="e")


def test_keys_match_in_any_case():
    assert m.decode_body(m.NewWorkConn, b'{"Run_ID":"r","TIMESTAMP":7}') == m.NewWorkConn(
        run_id="r", timestamp=7
    )
    assert m.decode_body(m.UDPPacket, b'{"R":{"ip":"1.2.3.4","PORT":9}}').remote_addr == m.UDPAddr(
        ip="1.2.3.4", port=9
    )


def test_white_space_around_the_object_is_allowed():
    assert m.decode_body(m.Pong, b' \t\r\n{ "error" : "e" }\n') == m.Pong(error="e")


BAD = {
    "empty": (m.Pong, b""),
    "blank": (m.Pong, b"  "),
    "not JSON": (m.Pong, b"{error}"),
    "cut": (m.Pong, b'{"error":"e"'),
    "two values": (m.Pong, b"{} {}"),
    "array": (m.Pong, b"[]"),
    "string": (m.Pong, b'"e"'),
    "number": (m.Pong, b"1"),
    "null": (m.Pong, b"null"),
    "byte order mark": (m.Pong, b"\xef\xbb\xbf{}"),
    "not UTF-8": (m.Pong, b'{"error":"\xff"}'),
    "UTF-16": (m.Pong, '{"error":"e"}'.encode("utf-16")),
    "NaN": (m.Ping, b'{"timestamp":NaN}'),
    "infinity in an unknown field": (m.Ping, b'{"x":-Infinity}'),
    "control character in a string": (m.Pong, b'{"error":"\n"}'),
    "number as string": (m.Pong, b'{"error":1}'),
    "list as string": (m.Pong, b'{"error":["e"]}'),
    "string as number": (m.Ping, b'{"timestamp":"1"}'),
    "boolean as number": (m.Ping, b'{"timestamp":true}'),
    "fraction": (m.Ping, b'{"timestamp":1.0}'),
    "exponent": (m.Ping, b'{"timestamp":1e3}'),
    "above 64 bits": (m.Ping, b'{"timestamp":9223372036854775808}'),
    "below 64 bits": (m.Ping, b'{"timestamp":-9223372036854775809}'),
    "thousands of digits": (m.Ping, b'{"timestamp":' + b"9" * 10000 + b"}"),
    "port above 16 bits": (m.StartWorkConn, b'{"src_port":65536}'),
    "negative port": (m.StartWorkConn, b'{"dst_port":-1}'),
    "number as boolean": (m.NewProxy, b'{"use_encryption":1}'),
    "string as list": (m.NewProxy, b'{"locations":"/"}'),
    "number in a list": (m.NewProxy, b'{"locations":["/",1]}'),
    "list as map": (m.Login, b'{"metas":[]}'),
    "number in a map": (m.Login, b'{"metas":{"k":1}}'),
    "string as object": (m.Login, b'{"client_spec":"ssh"}'),
    "wrong type in a nested object": (m.Login, b'{"client_spec":{"always_auth_pass":"yes"}}'),
    "object as list of ranges": (m.NatHoleResp, b'{"detect_behavior":{"candidate_ports":{}}}'),
    "wrong type in a range": (
        m.NatHoleResp,
        b'{"detect_behavior":{"candidate_ports":[{"from":"1"}]}}',
    ),
    "bad base64": (m.UDPPacket, b'{"c":"?"}'),
    "base64 without padding": (m.UDPPacket, b'{"c":"eA"}'),
    "base64 beyond ASCII": (m.UDPPacket, '{"c":"é"}'.encode()),
    "address as string": (m.UDPPacket, b'{"r":"1.2.3.4:5"}'),
    "same key twice in two cases": (m.Ping, b'{"timestamp":1,"Timestamp":2}'),
    "same key twice with null": (m.Ping, b'{"timestamp":null,"Timestamp":2}'),
    "deep and cut": (m.Pong, b"[" * 10240),
}


@pytest.mark.parametrize(("cls", "body"), BAD.values(), ids=BAD)
def test_bad_body_is_refused(cls, body):
    with pytest.raises(BadMessage, match=f"^{cls.__name__}: "):
        m.decode_body(cls, body)


@pytest.mark.parametrize(
    "body",
    [b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"x":' * 1700 + b"1" + b"}" * 1700],
    ids=["lists", "objects"],
)
def test_deep_nesting_is_refused_or_ignored_but_never_followed(body):
    # How deep Python's own parser goes depends on its version; Go's takes 10,000 levels.
    try:
        answer = m.decode_body(m.Pong, body)
    except BadMessage:
        return
    assert answer == m.Pong()


def test_error_names_the_field_and_keeps_its_value_to_itself():
    with pytest.raises(BadMessage) as caught:
        m.decode_body(m.Login, b'{"privilege_key":["hush"]}')
    assert "'privilege_key'" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_extreme_integers_are_read():
    assert m.decode_body(m.Ping, b'{"timestamp":-9223372036854775808}').timestamp == -(2**63)
    assert m.decode_body(m.Ping, b'{"timestamp":9223372036854775807}').timestamp == 2**63 - 1


def test_repr_shows_no_secret_and_no_empty_field():
    msg = m.Login(user="alice", privilege_key="hush")
    assert repr(msg) == "Login(user='alice', client_spec=ClientSpec())"
    assert "hush" not in repr(m.NewProxy(sk="hush", http_pwd="hush", group_key="hush"))


def test_record_refuses_fields_it_does_not_have():
    with pytest.raises(TypeError, match="Pong has no field eror"):
        m.Pong(eror="x")


def test_records_of_different_classes_differ_and_none_is_hashable():
    assert m.Pong() != m.ReqWorkConn()
    assert m.Pong() != "Pong()"
    with pytest.raises(TypeError, match="unhashable"):
        hash(m.Pong())
