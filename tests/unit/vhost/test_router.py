"""Which proxy answers: host, then path, then HTTP user; held against a naive search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.errors import RefusedError
from pyfrp.vhost import router as module
from pyfrp.vhost.router import Router, wildcards

ROUTES = [
    ("a.b.example.com", "", "", "exact"),
    ("a.b.example.com", "/api", "", "exact /api"),
    ("a.b.example.com", "/api/v1", "", "exact /api/v1"),
    ("a.b.example.com", "", "ann", "exact ann"),
    ("a.b.example.com", "/ann", "ann", "exact /ann ann"),
    ("*.b.example.com", "", "", "wild b"),
    ("*.example.com", "/x", "", "wild example /x"),
    ("only.example.com", "/y", "", "only /y"),
    ("*", "/z", "", "all /z"),
]


@pytest.fixture
def router():
    made: Router[str] = Router()
    for domain, location, user, target in ROUTES:
        made.add(domain, location, user, target)
    return made


@pytest.mark.parametrize(
    ("host", "path", "user", "found"),
    [
        ("a.b.example.com", "/", "", "exact"),
        ("a.b.example.com", "/api", "", "exact /api"),
        ("a.b.example.com", "/apiary", "", "exact /api"),  # A string prefix, as in frp.
        ("a.b.example.com", "/api/v1/models", "", "exact /api/v1"),
        ("a.b.example.com", "/Api", "", "exact"),
        ("a.b.example.com", "/api", "ann", "exact ann"),  # The user's routes come first ...
        ("a.b.example.com", "/ann", "ann", "exact /ann ann"),
        ("a.b.example.com", "/api", "bob", "exact /api"),  # ... those for everybody after them.
        ("c.b.example.com", "/", "", "wild b"),
        ("d.c.b.example.com", "/", "", "wild b"),
        ("b.example.com", "/x/1", "", "wild example /x"),
        ("b.example.com", "/", "", None),
        ("only.example.com", "/y", "", "only /y"),
        ("only.example.com", "/x", "", "wild example /x"),  # No route for the path: go on.
        ("only.example.com", "/z", "", "all /z"),
        ("example.com", "/x", "", None),  # `*.example.com` is not for example.com.
        ("example.com", "/z", "", "all /z"),
        ("localhost", "/z", "", "all /z"),
        ("::1", "/z", "", "all /z"),
        ("a.b.example.com", "", "", "exact"),  # CONNECT has no path.
    ],
)
def test_requests_are_routed_as_by_frp(router, host, path, user, found):
    assert router.find(host, path, user) == found


def test_an_ipv6_address_may_have_the_brackets_of_a_url():
    router: Router[str] = Router()
    router.add("[2001:DB8::7]", "", "", "six")
    assert router.find("2001:db8::7", "/", "") == "six"
    assert router.knows("2001:db8::7")
    router.remove("[2001:DB8::7]", "", "")
    assert router.find("2001:db8::7", "/", "") is None


@pytest.mark.parametrize(
    ("host", "domains"),
    [
        ("a.b.example.com", ["*.b.example.com", "*.example.com", "*"]),
        ("www.example.com", ["*.example.com", "*"]),
        ("example.com", ["*"]),
        ("localhost", ["*"]),
        ("", ["*"]),
    ],
)
def test_hosts_are_widened_label_by_label_and_never_to_a_top_level(host, domains):
    assert list(wildcards(host)) == domains


def test_equal_routes_conflict_in_frps_words(router):
    with pytest.raises(RefusedError, match=r"^router config conflict$"):
        router.add("A.B.Example.com", "/api", "", "twice")
    assert router.find("a.b.example.com", "/api", "") == "exact /api"
    router.add("a.b.example.com", "/api", "bob", "another user")
    router.add("a.b.example.com", "/api2", "", "another location")


def test_a_removed_route_is_gone_and_may_be_added_again(router):
    for domain, location, user, _ in ROUTES:
        router.remove(domain.upper(), location, user)
    assert router.find("a.b.example.com", "/api", "") is None
    assert router._domains == {}
    for route in ROUTES:
        router.add(*route)
    assert router.find("a.b.example.com", "/api", "") == "exact /api"


def test_a_host_stays_known_after_its_last_route_went():
    router: Router[str] = Router()
    for domain in ("llm.test.example", "*.b.example.com"):
        router.add(domain, "", "", "x")
        router.remove(domain, "", "")
    assert router.knows("llm.test.example")
    assert router.knows("z.b.example.com")
    assert not router.knows("other.test.example")
    assert router.find("llm.test.example", "/", "") is None


def test_a_route_for_all_hosts_makes_all_hosts_known(router):
    assert router.knows("never.seen.test")


def test_a_request_is_missed_by_the_routes_that_would_have_taken_it():
    router: Router[str] = Router()
    for location, user in (("/v1", ""), ("/v2", ""), ("", "ann")):
        router.add("llm.test.example", location, user, "x")
    router.add("*.b.example.com", "/w", "", "x")
    # All of them are there: whatever finds none was never served.
    assert not router.misses("llm.test.example", "/other", "")
    assert not router.misses("llm.test.example", "/other", "bob")
    assert not router.misses("z.b.example.com", "/", "")
    router.remove("llm.test.example", "/v2", "")
    assert router.misses("llm.test.example", "/v2/models", "")
    assert not router.misses("llm.test.example", "/other", "")
    router.remove("llm.test.example", "", "ann")
    assert router.misses("llm.test.example", "/other", "ann")
    assert not router.misses("llm.test.example", "/other", "bob")
    router.remove("*.b.example.com", "/w", "")
    assert router.misses("z.b.example.com", "/w", "")
    assert not router.misses("z.other.example.com", "/w", "")


def test_only_so_many_routes_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "MAX_KNOWN", 3)
    router: Router[str] = Router()
    for number in range(10):
        router.add("llm.test", f"/{number}", "", "x")
        router.remove("llm.test", f"/{number}", "")
    missed = [router.misses("llm.test", f"/{number}", "") for number in range(10)]
    assert missed == [False] * 7 + [True] * 3


def test_only_so_many_hosts_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "MAX_KNOWN", 3)
    router: Router[str] = Router()
    for number in range(10):
        router.add(f"host{number}.test", "", "", "x")
        router.remove(f"host{number}.test", "", "")
    assert [router.knows(f"host{number}.test") for number in range(10)] == [False] * 7 + [True] * 3


# -- against a naive search ---------------------------------------------------------------------

labels = st.sampled_from(["a", "b", "com"])
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)
domains = st.one_of(hosts, hosts.map("*.{}".format), st.just("*"))
locations = st.sampled_from(["", "/", "/a", "/ab", "/a/b", "/b"])
users = st.sampled_from(["", "u", "v"])
routes = st.lists(st.tuples(domains, locations, users), max_size=12, unique=True)
paths = st.sampled_from(["", "/", "/a", "/abc", "/a/b/c", "/b", "/c", "*"])


def naive(table, host, path, user):
    """The rules as the specification lists them, by trying everything."""
    parts = host.split(".")
    order = [host]
    order += ["*." + ".".join(parts[n:]) for n in range(1, len(parts) - 1)]
    order.append("*")
    for domain in order:
        for name in dict.fromkeys((user, "")):
            fitting = [
                route
                for route in table
                if route[0] == domain and route[2] == name and path.startswith(route[1])
            ]
            if fitting:
                return max(fitting, key=lambda route: len(route[1]))
    return None


@given(routes, hosts, paths, users)
def test_the_search_finds_what_a_naive_one_finds(table, host, path, user):
    router: Router[tuple[str, str, str]] = Router()
    for route in table:
        router.add(*route, route)
    assert router.find(host, path, user) == naive(table, host, path, user)


@given(routes, st.data())
def test_removing_routes_leaves_the_others(table, data):
    router: Router[tuple[str, str, str]] = Router()
    for route in table:
        router.add(*route, route)
    gone = data.draw(st.lists(st.sampled_from(table), unique=True)) if table else []
    for route in gone:
        router.remove(*route)
    left = [route for route in table if route not in gone]
    host, path, user = data.draw(hosts), data.draw(paths), data.draw(users)
    assert router.find(host, path, user) == naive(left, host, path, user)
