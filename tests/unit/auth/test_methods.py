from __future__ import annotations

import inspect

import pytest

from pyfrp.auth import METHODS, Authenticator, Verifier, make_authenticator, make_verifier
from pyfrp.config import client_from_dict, server_from_dict

ENDPOINT = {"clientID": "x", "tokenEndpointURL": "https://idp.example/token"}


def _methods_of(seam: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(seam, inspect.isfunction) if name[0] != "_"}


@pytest.mark.parametrize("method", METHODS)
async def test_each_method_has_both_sides(method: str) -> None:
    client = client_from_dict({"auth": {"method": method, "oidc": ENDPOINT}})
    server = server_from_dict({"auth": {"method": method, "oidc": {"issuer": "https://x"}}})
    for seam, made in (
        (Authenticator, make_authenticator(client.auth)),
        (Verifier, make_verifier(server.auth)),
    ):
        for name in _methods_of(seam):
            wanted, found = getattr(seam, name), getattr(made, name)
            assert inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(wanted), name
