"""The datagrams with which the two sides knock at each other's NATs.

A `NatHoleSid` in a frame of wire v1, whatever the control connection speaks, sealed with the
proxy's secret key.

Source: frp `pkg/nathole/utils.go` and `sendSidMessage` in `pkg/nathole/nathole.go`.
"""

from __future__ import annotations

import random

from pyfrp.errors import BadMessage
from pyfrp.wire.cfb import seal, unseal
from pyfrp.wire.framing import FrameDecoder, encode
from pyfrp.wire.messages import NatHoleSid

MAX_SIZE = 1024
"""Official peers read no more of a datagram."""
_PADDING = 20


def seal_knock(key: bytes, sid: str, transaction_id: str) -> bytes:
    """Write a knock, of a random length.

    Args:
        key: From `derive_key`, of the proxy's secret key.
    """
    nonce = "0" * random.randrange(_PADDING)
    return seal(key, encode(NatHoleSid(transaction_id=transaction_id, sid=sid, nonce=nonce)))


def seal_reply(key: bytes, knock: NatHoleSid) -> bytes:
    """Write the answer to a knock: the same with a mark."""
    return seal(
        key,
        encode(
            NatHoleSid(
                transaction_id=knock.transaction_id, sid=knock.sid, response=True, nonce=knock.nonce
            )
        ),
    )


def unseal_sid(key: bytes, data: bytes) -> NatHoleSid:
    """Read a knock or an answer.

    Raises:
        RemoteWireError: It is something else, or sealed with another key.
    """
    if len(data) > MAX_SIZE:
        raise BadMessage(f"datagram of {len(data)} bytes instead of a knock")
    decoder = FrameDecoder()
    decoder.feed(unseal(key, data))
    msg = decoder.next()
    if not isinstance(msg, NatHoleSid):
        raise BadMessage("no knock")
    return msg
