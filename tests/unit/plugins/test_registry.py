"""Which plugins there are, and that the configuration lets through exactly these."""

from __future__ import annotations

import pytest

from pyfrp.config import client_from_dict
from pyfrp.config.plugins import CLIENT_PLUGINS
from pyfrp.config.support import PLUGINS, TOLD_PLUGINS, unsupported
from pyfrp.plugins import PLUGIN_TYPES, make_plugin


def test_the_configuration_knows_what_is_registered():
    assert sorted(PLUGINS) == sorted(PLUGIN_TYPES)


@pytest.mark.parametrize("tag", CLIENT_PLUGINS)
def test_a_plugin_is_made_or_refused_by_its_type(tag, tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    needed = {"localPath": "/x", "unixPath": "/x", "localAddr": "127.0.0.1:1"}
    keys = {"static_file": ["localPath"], "unix_domain_socket": ["unixPath"]}.get(tag, [])
    if "http2" in tag or "https2" in tag or tag == "tls2raw":
        keys = ["localAddr"]
    table = {"type": tag, **{key: needed[key] for key in keys}}
    proxy = {"name": "p", "type": "tcp", "remotePort": 1, "plugin": table}
    cfg = client_from_dict({"serverAddr": "127.0.0.1", "proxies": [proxy]})
    problems = [str(problem.text) for problem in unsupported(cfg)]
    if tag in PLUGIN_TYPES:
        assert problems == []
        assert make_plugin(cfg.proxies[0].plugin).warnings is not None
    else:
        (problem,) = problems
        assert f'plugin.type = "{tag}" is not available in this release of pyfrp: use' in problem


@pytest.mark.parametrize("tag", TOLD_PLUGINS)
def test_a_plugin_with_a_plain_connection_to_its_service_may_tell_who_calls(tag):
    plugin = {"type": tag, "unixPath": "/x", "localAddr": "127.0.0.1:1"}
    del plugin["localAddr" if tag == "unix_domain_socket" else "unixPath"]
    proxy = {"name": "p", "type": "tcp", "remotePort": 1, "plugin": plugin}
    proxy["transport"] = {"proxyProtocolVersion": "v2"}
    assert unsupported(client_from_dict({"serverAddr": "127.0.0.1", "proxies": [proxy]})) == []
