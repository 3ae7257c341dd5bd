"""Proxies of type stcp: local TCP services for the visitors of other clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfrp.client.proxies.base import ClientProxy
from pyfrp.wire.messages import NewProxy

if TYPE_CHECKING:
    from pyfrp.config.proxies import SecretProxy


class STCPProxy(ClientProxy):
    """Type stcp."""

    cfg: SecretProxy

    def request(self) -> NewProxy:
        msg = super().request()
        msg.sk = self.cfg.secret_key
        msg.allow_users = list(self.cfg.allow_users)
        return msg
