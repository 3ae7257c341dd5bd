"""Ciphers and compression between two endpoints."""

from __future__ import annotations

import asyncio

import pytest

from pyfrp.errors import RemoteWireError
from pyfrp.net.filters import FilterEndpoint
from pyfrp.net.payload import wrap_payload
from pyfrp.wire.cfb import derive_key
from tests.unit.net.ends import Reader, memory_pair, turns
from tests.unit.wire.pieces import three_ways

KEY = derive_key("token")


def same(data: bytes) -> bytes:
    return data


def filtered(**settings):
    """A filter on one end of a pair in memory, its reader, and the far end with its reader."""
    near, far = memory_pair()
    settings.setdefault("outward", same)
    settings.setdefault("inward", same)
    endpoint = FilterEndpoint(near, **settings)
    reader = Reader()
    endpoint.set_protocol(reader)
    return endpoint, reader, near, far


async def test_bytes_are_changed_on_their_way_in_both_directions():
    endpoint, reader, _, far = filtered(outward=bytes.upper, inward=bytes.lower)
    endpoint.write(b"Out")
    far.write(b"In")
    await turns()
    assert far.get_protocol().data == b"OUT"
    assert reader.data == b"in"


async def test_what_a_filter_still_collects_is_no_data():
    endpoint, reader, _, far = filtered(inward=lambda data: b"" if len(data) < 3 else data)
    far.write(b"ab")
    await turns()
    assert reader.events == []
    far.write(b"cde")
    await turns()
    assert reader.data == b"cde"
    assert not endpoint.is_closing()


async def test_early_bytes_come_first_and_only_when_reading_begins():
    endpoint, reader, near, far = filtered(inward=bytes.upper, early=b"early ")
    near.pause_reading()
    far.write(b"late")
    await turns()
    assert reader.data == b""
    endpoint.resume_reading()
    endpoint.pause_reading()
    endpoint.resume_reading()
    await turns()
    assert reader.data == b"EARLY LATE"


async def test_a_reader_that_stops_at_the_early_bytes_is_left_alone():
    endpoint, reader, near, far = filtered(early=b"early")
    near.pause_reading()
    reader.on_data = lambda _: endpoint.pause_reading()
    far.write(b"late")
    endpoint.resume_reading()
    await turns()
    assert reader.data == b"early"
    assert near.paused
    reader.on_data = None
    endpoint.resume_reading()
    await turns()
    assert reader.data == b"earlylate"


async def test_ends_pass_through_in_both_directions():
    endpoint, reader, _, far = filtered()
    assert endpoint.can_write_eof()
    far.write_eof()
    endpoint.write_eof()
    await turns()
    assert reader.ends == 1
    assert far.get_protocol().ends == 1
    assert not endpoint.is_closing()


async def test_a_reader_that_does_not_stay_open_closes_the_link():
    endpoint, reader, _, far = filtered()
    reader.keep_open = False
    far.write_eof()
    await turns()
    assert endpoint.is_closing()
    assert reader.lost == [None]


async def test_a_link_that_cannot_end_one_way_says_so_through_the_filter():
    near, _ = memory_pair(can_end=False)
    assert not FilterEndpoint(near, outward=same, inward=same).can_write_eof()


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_closing_reaches_the_link_and_the_reader(how):
    endpoint, reader, near, far = filtered()
    getattr(endpoint, how)()
    assert endpoint.is_closing()
    far_reader = far.get_protocol()
    await turns()
    assert reader.lost == [None]
    assert near.aborted == (how == "abort")
    assert far_reader.events == (["lost"] if how == "abort" else ["eof"])


async def test_a_reset_of_the_link_reaches_the_reader_as_one():
    _, reader, _, far = filtered()
    far.abort()
    await turns()
    assert isinstance(reader.lost[0], ConnectionResetError)


async def test_nonsense_from_the_far_end_aborts_the_link_and_tells_the_reader_once():
    def fails(data: bytes) -> bytes:
        raise RemoteWireError("no snappy")

    endpoint, reader, near, far = filtered(inward=fails)
    far.write(b"x")
    far.write(b"y")
    await turns()
    assert [str(exc) for exc in reader.lost] == ["no snappy"]
    assert near.aborted
    assert endpoint.is_closing()


async def test_back_pressure_passes_through():
    endpoint, reader, _, far = filtered()
    endpoint.set_write_buffer_limits(high=100, low=10)
    far.pause_reading()
    endpoint.write(bytes(200))
    assert reader.choked
    assert endpoint.get_write_buffer_size() == 200
    far.resume_reading()
    await turns()
    assert not reader.choked


async def test_what_is_known_of_the_link_is_known_of_the_filter():
    endpoint, _, near, _ = filtered()
    assert endpoint.get_extra_info("peername") == near.extra["peername"]
    assert endpoint.get_extra_info("nothing", 7) == 7


# -- the layers of a payload --------------------------------------------------------------------


def wrapped(key, compress):
    near, far = memory_pair()
    near.pause_reading()
    far.pause_reading()
    ends = []
    for end in (near, far):
        endpoint, early = wrap_payload(end, b"", key=key, compress=compress)
        assert early == b""
        reader = Reader()
        endpoint.set_protocol(reader)
        ends.append((endpoint, reader))
    return ends, (near, far)


layers = pytest.mark.parametrize(
    ("key", "compress"), [(None, False), (KEY, False), (None, True), (KEY, True)]
)


@layers
async def test_both_ends_of_a_payload_understand_each_other(key, compress):
    ((near, near_reader), (far, far_reader)), raw = wrapped(key, compress)
    near.write(b"question " * 1000)
    far.write(b"answer " * 1000)
    near.resume_reading()
    far.resume_reading()
    await turns()
    assert far_reader.data == b"question " * 1000
    assert near_reader.data == b"answer " * 1000
    plain = raw[0].written == b"question " * 1000
    assert plain == (key is None and not compress)


async def test_a_payload_is_compressed_before_it_is_encrypted():
    """So the bytes on the wire are IV and ciphertext of a snappy stream (frp: cipher outermost)."""
    from pyfrp.wire.cfb import Decryptor
    from pyfrp.wire.snappy import IDENTIFIER

    ((near, _), _), raw = wrapped(KEY, True)
    near.write(b"x" * 500)
    assert Decryptor(KEY).decrypt(bytes(raw[0].written)).startswith(IDENTIFIER)


@three_ways
@layers
async def test_bytes_read_ahead_of_the_payload_are_part_of_it(key, compress, cut):
    (_, (far, far_reader)), _ = wrapped(key, compress)
    sender, receiver = memory_pair()
    plain, _ = wrap_payload(sender, b"", key=key, compress=compress)
    plain.write(b"first ")
    plain.write(b"second")
    stream = bytes(sender.written)
    for split in (0, 1, 10, 17, len(stream) // 2, len(stream)):
        fresh, raw = memory_pair()
        fresh.pause_reading()
        endpoint, early = wrap_payload(fresh, stream[:split], key=key, compress=compress)
        reader = Reader()
        endpoint.set_protocol(reader)
        # Without a layer the bytes come back, for the bridge to pass on.
        if early:
            reader.data_received(early)
        endpoint.resume_reading()
        for piece in cut(stream[split:]):
            if piece:
                raw.write(piece)
        await turns()
        assert reader.data == b"first second"
    assert far_reader.data == b""
    assert not far.is_closing()
    receiver.abort()
    await turns()


async def test_garbage_instead_of_a_compressed_payload_cuts_it():
    near, far = memory_pair()
    endpoint, _ = wrap_payload(near, b"", key=None, compress=True)
    reader = Reader()
    endpoint.set_protocol(reader)
    endpoint.resume_reading()
    far.write(b"GET / HTTP/1.1\r\n\r\n")
    await turns()
    assert isinstance(reader.lost[0], RemoteWireError)
    assert near.aborted


async def test_an_early_end_is_told_behind_the_early_bytes():
    endpoint, reader, near, far = filtered(early=b"all there is")
    near.pause_reading()
    far.write_eof()
    await asyncio.sleep(0)
    endpoint.resume_reading()
    await turns()
    assert reader.events == ["data", "eof"]
