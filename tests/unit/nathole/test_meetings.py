from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfrp.auth.token import auth_key
from pyfrp.errors import RefusedError
from pyfrp.nathole import meetings
from pyfrp.nathole.meetings import HEAD_START_S, JOIN_S, Coordinator
from pyfrp.wire.framing import encode
from pyfrp.wire.messages import NatHoleClient, NatHoleReport, NatHoleVisitor, PortsRange

SECRET = "spec-secret"
EASY_VISITOR = ["1.1.1.1:1000", "1.1.1.1:1000"]
EASY_CLIENT = ["2.2.2.2:2000", "2.2.2.2:2000"]


class Scene:
    """A coordinator, a clock, and what both sides were told."""

    def __init__(self, users=("bob",)):
        self.made = Coordinator(3600.0)
        self.now = 0.0
        self.invited: list[str] = []
        self.visitor: list = []
        self.client: list = []
        self.made.listen(
            "p", secret_key=SECRET, allow_users=users, invite=lambda sid: self.invited.append(sid)
        )

    def visit(self, *, name="p", secret=SECRET, user="bob", when=100, **fields):
        fields = {"mapped_addrs": EASY_VISITOR, "protocol": "kcp", **fields}
        msg = NatHoleVisitor(
            transaction_id="v-1",
            proxy_name=name,
            sign_key=auth_key(secret, when),
            timestamp=when,
            **fields,
        )
        self.made.visit(msg, user, self.visitor.append, self.now)

    def join(self, sid=None, **fields):
        fields = {"mapped_addrs": EASY_CLIENT, "assisted_addrs": ["10.0.0.2:2000"], **fields}
        msg = NatHoleClient(transaction_id="c-1", sid=sid or self.invited[-1], **fields)
        return self.made.join(msg, self.client.append, self.now)

    def later(self, seconds):
        self.now += seconds
        self.made.wake(self.now)


def test_both_sides_are_told_each_others_addresses():
    scene = Scene()
    scene.visit(assisted_addrs=["10.0.0.1:1000"])
    assert scene.visitor == []
    assert "mode 0, index 0, protocol: kcp" in scene.join()
    (to_visitor,) = scene.visitor  # The receiver, at once.
    assert scene.client == []  # The sender a second later.
    assert scene.made.deadline() == HEAD_START_S
    scene.later(HEAD_START_S)
    (to_client,) = scene.client
    assert (to_visitor.transaction_id, to_client.transaction_id) == ("v-1", "c-1")
    assert to_visitor.sid == to_client.sid == scene.invited[0]
    assert to_visitor.protocol == to_client.protocol == "kcp"
    # What follows each other is told once.
    assert to_visitor.candidate_addrs == ["2.2.2.2:2000"]
    assert to_client.candidate_addrs == ["1.1.1.1:1000"]
    assert to_visitor.assisted_addrs == ["10.0.0.2:2000"]
    assert to_client.assisted_addrs == ["10.0.0.1:1000"]
    assert (to_visitor.detect_behavior.role, to_visitor.detect_behavior.ttl) == ("receiver", 7)
    assert to_client.detect_behavior.role == "sender"
    assert to_visitor.detect_behavior.read_timeout_ms == 5000


def test_a_question_beforehand_is_answered_without_a_meeting():
    scene = Scene()
    scene.visit(pre_check=True, secret="not looked at")
    assert [(msg.transaction_id, msg.error) for msg in scene.visitor] == [("v-1", "")]
    assert scene.invited == []
    assert scene.made.deadline() is None


@pytest.mark.parametrize("pre_check", [True, False])
@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"name": "q"}, "xtcp server for [q] doesn't exist"),
        ({"user": "eve"}, "xtcp visitor user [eve] not allowed for [p]"),
    ],
)
def test_who_may_not_come_is_told_so_in_frps_words(pre_check, asked, error):
    scene = Scene()
    with pytest.raises(RefusedError) as caught:
        scene.visit(pre_check=pre_check, **asked)
    assert str(caught.value) == error
    assert [(msg.transaction_id, msg.error) for msg in scene.visitor] == [("v-1", error)]
    assert scene.invited == []


def test_a_wrong_secret_is_refused_before_anything_is_told_of_users():
    scene = Scene()
    with pytest.raises(RefusedError, match=r"^xtcp connection of \[p\] auth failed$"):
        scene.visit(secret="guess", user="eve")
    assert scene.invited == []


def test_anybody_may_come_where_the_owner_says_so():
    scene = Scene(users=("*",))
    scene.visit(user="eve")
    assert len(scene.invited) == 1


def test_a_name_is_taken_once_and_given_back():
    scene = Scene()
    with pytest.raises(RefusedError, match=r"^proxy \[p\] is repeated$"):
        scene.made.listen("p", secret_key="", allow_users=[], invite=print)
    scene.made.unlisten("p")
    scene.made.unlisten("p")
    scene.made.listen("p", secret_key="", allow_users=[], invite=print)
    assert len(scene.made) == 1


@pytest.mark.parametrize(
    ("visitor", "client", "error"),
    [
        (["1.1.1.1:1"], EASY_CLIENT, "classify visitor nat feature error: not enough addresses"),
        (EASY_VISITOR, [], "classify client nat feature error: not enough addresses"),
        (EASY_VISITOR, ["x", "y"], "classify client nat feature error: address x: no IP address"),
    ],
)
def test_addresses_that_tell_nothing_are_an_error_for_both(visitor, client, error):
    scene = Scene()
    scene.visit(mapped_addrs=visitor)
    assert error in scene.join(mapped_addrs=client)
    for (msg,), transaction in ((scene.visitor, "v-1"), (scene.client, "c-1")):
        assert msg.transaction_id == transaction
        assert msg.error.startswith(error)
    assert scene.made.meetings == 0


def test_a_client_that_does_not_come_in_time_comes_in_vain():
    scene = Scene()
    scene.visit()
    assert scene.made.deadline() == JOIN_S
    scene.later(JOIN_S)
    assert scene.made.meetings == 0
    assert scene.join() == ""
    assert scene.visitor == scene.client == []


def test_a_meeting_is_joined_once():
    scene = Scene()
    scene.visit()
    assert scene.join()
    assert scene.join() == ""
    assert scene.join(sid="unknown") == ""
    assert len(scene.visitor) == 1


def test_what_worked_is_used_again():
    scene = Scene()
    for expected in (0, 1, 1, 1):
        scene.visit()
        assert f"mode 0, index {expected}" in scene.join()
        report = NatHoleReport(sid=scene.invited[-1], success=expected == 1)
        said = scene.made.report(report, scene.now)
        assert said == f"mode 0, index {expected}"
        assert scene.made.report(report, scene.now) == ""  # It counts once.
    assert scene.made.meetings == 0


def test_a_report_before_the_answers_means_nothing():
    scene = Scene()
    scene.visit()
    report = NatHoleReport(sid=scene.invited[-1], success=True)
    assert scene.made.report(report, scene.now) == ""
    assert scene.join()


def test_a_meeting_without_a_report_is_forgotten():
    scene = Scene()
    scene.visit()
    scene.join()
    scene.later(HEAD_START_S + 5 + meetings.REPORT_S - 0.1)
    assert scene.made.meetings == 1
    scene.later(0.1)
    assert scene.made.meetings == 0
    assert scene.made.deadline() is None


def test_meetings_of_a_proxy_are_bounded(monkeypatch):
    monkeypatch.setattr(meetings, "MAX_MEETINGS", 2)
    scene = Scene()
    scene.visit()
    scene.visit()
    with pytest.raises(RefusedError, match="too many xtcp visitors"):
        scene.visit()
    scene.later(JOIN_S)
    scene.visit()


def test_what_a_peer_says_is_cut_before_it_is_told_back():
    scene = Scene()
    for asked in ({"name": "n" * 5000}, {"user": "u" * 5000}):
        with pytest.raises(RefusedError) as caught:
            scene.visit(**asked)
        assert len(str(caught.value)) < meetings.SHOWN + 100


@pytest.mark.parametrize(
    ("mapped", "first", "last"),
    [
        (["2.2.2.2:2000", "2.2.2.2:2003"], 1995, 2011),
        (["2.2.2.2:3", "2.2.2.2:2"], 1, 8),
        (["2.2.2.2:65534", "2.2.2.2:65535"], 65529, 65535),
    ],
)
def test_ports_are_guessed_around_the_last_one_seen(mapped, first, last):
    scene = Scene()
    scene.visit()
    assert "mode 1, index 0" in scene.join(mapped_addrs=mapped)
    (to_visitor,) = scene.visitor
    assert to_visitor.detect_behavior.role == "receiver"
    assert to_visitor.detect_behavior.candidate_ports == [PortsRange(first=first, last=last)]
    scene.later(HEAD_START_S)
    assert scene.client[0].detect_behavior.candidate_ports == []


def test_where_hundreds_of_ports_are_tried_there_is_more_time():
    scene = Scene()
    scene.visit()
    assert "mode 2, index 0" in scene.join(mapped_addrs=["2.2.2.2:1", "3.3.3.3:9"])
    (to_client,) = scene.client  # Behind the hard NAT: the receiver.
    assert to_client.detect_behavior.listen_random_ports == 256
    assert to_client.detect_behavior.read_timeout_ms == 38000
    scene.later(HEAD_START_S)
    behavior = scene.visitor[0].detect_behavior
    assert (behavior.send_random_ports, behavior.send_delay_ms) == (1000, 3000)
    assert behavior.read_timeout_ms == 35000


def test_an_end_forgets_what_was_going_on():
    scene = Scene()
    scene.visit()
    scene.join()
    scene.made.close()
    assert scene.made.deadline() is None
    scene.later(HEAD_START_S)
    assert scene.client == []


ADDRESSES = st.lists(
    st.builds("{}:{}".format, st.ip_addresses().map(str), st.integers(-1, 70000))
    | st.text(max_size=20),
    max_size=5,
)


@given(ADDRESSES, ADDRESSES, ADDRESSES, ADDRESSES, st.text(max_size=10))
def test_whatever_they_claim_both_get_one_answer(v_mapped, v_inner, c_mapped, c_inner, protocol):
    scene = Scene()
    scene.visit(mapped_addrs=v_mapped, assisted_addrs=v_inner, protocol=protocol)
    scene.join(mapped_addrs=c_mapped, assisted_addrs=c_inner)
    scene.later(HEAD_START_S)
    assert len(scene.visitor) == len(scene.client) == 1
    for msg in (*scene.visitor, *scene.client):
        encode(msg)
        assert msg.error or msg.candidate_addrs
