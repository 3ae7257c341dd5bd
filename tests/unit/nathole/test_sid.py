from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import BadMessage, RemoteWireError
from pyfrp.nathole.sid import MAX_SIZE, seal_knock, seal_reply, unseal_sid
from pyfrp.wire.cfb import derive_key, seal
from pyfrp.wire.framing import encode
from pyfrp.wire.messages import Ping

KEY = derive_key("spec-secret")
WORDS = st.text(max_size=40)


@given(WORDS, WORDS)
def test_knocks_and_their_answers_are_read_back(sid, transaction):
    knock = unseal_sid(KEY, seal_knock(KEY, sid, transaction))
    assert (knock.sid, knock.transaction_id, knock.response) == (sid, transaction, False)
    assert set(knock.nonce) <= {"0"}
    assert len(knock.nonce) < 20
    answer = unseal_sid(KEY, seal_reply(KEY, knock))
    assert answer.response
    assert (answer.sid, answer.nonce) == (knock.sid, knock.nonce)


def test_equal_knocks_do_not_look_alike():
    assert len({seal_knock(KEY, "s", "t") for _ in range(10)}) == 10


@given(st.binary(max_size=200))
def test_garbage_raises_remote_wire_error(data):
    with pytest.raises(RemoteWireError):
        unseal_sid(KEY, data)


def test_what_is_sealed_with_another_key_is_not_understood():
    with pytest.raises(RemoteWireError):
        unseal_sid(derive_key("guess"), seal_knock(KEY, "s", "t"))


def test_other_messages_and_long_datagrams_are_refused():
    with pytest.raises(BadMessage, match="no knock"):
        unseal_sid(KEY, seal(KEY, encode(Ping())))
    with pytest.raises(BadMessage, match="no knock"):
        unseal_sid(KEY, seal_knock(KEY, "s", "t")[:-1])
    with pytest.raises(BadMessage, match="instead of a knock"):
        unseal_sid(KEY, bytes(MAX_SIZE + 1))
