"""The visitor types of a client; a new one is a file and a line here."""

from __future__ import annotations

from pyfrp.client.visitors.base import ClientVisitor
from pyfrp.client.visitors.stcp import STCPVisitor
from pyfrp.client.visitors.sudp import SUDPVisitor
from pyfrp.client.visitors.xtcp import XTCPVisitor

VISITOR_TYPES: dict[str, type[ClientVisitor]] = {
    "stcp": STCPVisitor,
    "sudp": SUDPVisitor,
    "xtcp": XTCPVisitor,
}
