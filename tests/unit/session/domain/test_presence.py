"""Rules of presence one by one; `test_presence_model.py` checks them in combination."""

from __future__ import annotations

from services.session.domain.arbiter import CLAIM_MS, MAX_WAITING
from services.session.domain.effects import Decide, Effect, Evict, Forget, Probe, PublishWills
from services.session.domain.events import Event, Fold
from services.session.domain.presence import SLICE, Presence
from services.session.domain.records import Will

GRACE_MS = 5_000
INSTANCE, CLIENT = "mqtt-demo", "GID_A@@@1"


def a_will(channel: str, payload: bytes = b"gone") -> Will:
    return Will(INSTANCE, CLIENT, channel, "t", payload, qos=1, retain=False, clean_session=True)


class Scene:
    """A presence with edges A and B linked, and a clock."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.presence = Presence(edge_grace_ms=GRACE_MS)
        self.fold = Fold()
        for edge in ("A", "B"):
            self.presence.open_edge(edge, "1", self.now_ms, resumed=False)
            self.presence.complete_snapshot(edge, self.now_ms)

    def open(
        self,
        edge: str,
        channel: str,
        *,
        takeover: bool = False,
        established_ms: int = 0,
        client: str = CLIENT,
        will: bool = False,
    ) -> list[str]:
        self.presence.open(
            edge,
            INSTANCE,
            client,
            channel,
            "10.0.0.1:1",
            self.now_ms,
            established_ms=established_ms,
            takeover=takeover,
            will=a_will(channel) if will else None,
        )
        return self.effects()

    def lose(self, edge: str) -> list[str]:
        """Have an edge die, and return what follows when its grace is over."""
        self.presence.break_edge(edge, "1", self.now_ms)
        return self.after(GRACE_MS)

    def close(self, edge: str, channel: str, *, disconnected: bool = False, connect_time_ms: int = 1) -> list[str]:
        self.presence.close(
            edge,
            INSTANCE,
            CLIENT,
            channel,
            "10.0.0.1:1",
            self.now_ms,
            connect_time_ms=connect_time_ms,
            disconnected=disconnected,
        )
        return self.effects()

    def probed(self, edge: str, channel: str, *, alive: bool) -> list[str]:
        self.presence.probed(edge, channel, self.now_ms, alive=alive)
        return self.effects()

    def after(self, ms: int) -> list[str]:
        self.now_ms += ms
        self.presence.expire(self.now_ms)
        return self.effects()

    def effects(self) -> list[str]:
        return [self._text(effect) for effect in self.presence.take_effects()]

    def _text(self, effect: Effect) -> str:
        match effect:
            case Event():
                self.fold.apply(effect)
                return f"{effect.tag} {effect.channel_id}"
            case Decide():
                return f"{'accept' if effect.accepted else 'refuse'} {effect.channel_id}"
            case Probe():
                return f"probe {effect.edge_id} {effect.channel_id}"
            case Evict():
                return f"evict {effect.edge_id} {effect.channel_id}"
            case Forget():
                return f"forget {effect.edge_id}"
            case PublishWills():
                return " ".join(["wills", *(will.channel_id for will in effect.wills)])

    def online(self) -> list[str]:
        return [c.channel_id for c in self.presence.connections(INSTANCE, CLIENT)]


def test_a_free_client_id_is_given_at_once() -> None:
    scene = Scene()
    assert scene.open("A", "c1") == ["connect c1", "accept c1"]
    assert scene.online() == ["c1"]


def test_a_second_connection_is_refused_while_the_first_is_alive() -> None:
    scene = Scene()
    scene.open("A", "c1")
    assert scene.open("B", "c2") == ["probe A c1"]
    assert scene.probed("A", "c1", alive=True) == ["refuse c2"]
    assert scene.online() == ["c1"]


def test_a_dead_connection_makes_room() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2")
    assert scene.probed("A", "c1", alive=False) == ["tcpclean c1", "connect c2", "accept c2"]
    assert scene.close("A", "c1") == []


def test_a_probe_without_an_answer_refuses() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2")
    assert scene.after(CLAIM_MS - 1) == []
    assert scene.after(1) == ["refuse c2"]


def test_one_probe_answers_all_claims_and_only_eight_wait() -> None:
    scene = Scene()
    scene.open("A", "c1")
    assert scene.open("B", "w0") == ["probe A c1"]
    for index in range(1, MAX_WAITING):
        assert scene.open("B", f"w{index}") == []
    assert scene.open("B", "extra") == ["refuse extra"]
    assert scene.probed("A", "c1", alive=False) == [
        "tcpclean c1",
        "connect w0",
        "accept w0",
        *(f"refuse w{index}" for index in range(1, MAX_WAITING)),
    ]


def test_takeover_waits_for_the_closing_of_the_old_one() -> None:
    scene = Scene()
    scene.open("A", "c1")
    assert scene.open("B", "c2", takeover=True) == ["evict A c1"]
    assert scene.close("A", "c1") == ["tcpclean c1", "connect c2", "accept c2"]


def test_takeover_waits_three_seconds_at_most_however_often_it_is_tried() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2", takeover=True)
    scene.after(CLAIM_MS - 1)
    assert scene.open("B", "c3", takeover=True) == ["refuse c2"]
    assert scene.after(1) == ["tcpclean c1", "connect c3", "accept c3"]
    assert scene.close("A", "c1") == []


def test_takeover_displaces_plain_claims_and_refuses_later_ones() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2")
    assert scene.open("B", "c3", takeover=True) == ["refuse c2", "evict A c1"]
    assert scene.open("B", "c4") == ["refuse c4"]


def test_disconnect_comes_before_tcpclean() -> None:
    scene = Scene()
    scene.open("A", "c1")
    assert scene.close("A", "c1", disconnected=True) == ["disconnect c1", "tcpclean c1"]
    assert scene.close("A", "c1", disconnected=True) == []


def test_a_claim_that_leaves_is_never_announced() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2")
    assert scene.close("B", "c2", connect_time_ms=0) == []
    assert scene.close("A", "c1") == ["tcpclean c1"]


def test_a_closing_after_a_refusal_is_never_announced() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2")
    scene.probed("A", "c1", alive=True)
    assert scene.close("B", "c2", connect_time_ms=0) == []


def test_an_unknown_connection_that_was_let_in_is_announced_whole() -> None:
    scene = Scene()
    assert scene.close("A", "c9", disconnected=True) == ["connect c9", "disconnect c9", "tcpclean c9"]
    assert scene.close("A", "c9", disconnected=True) == []
    assert scene.close("A", "c8", connect_time_ms=0) == []


def test_an_edge_is_given_up_after_its_grace() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.presence.break_edge("A", "1", scene.now_ms)
    assert not scene.presence.is_certain(INSTANCE, CLIENT)
    assert scene.after(GRACE_MS - 1) == []
    assert scene.after(1) == ["forget A", "tcpclean c1"]
    assert scene.presence.is_certain(INSTANCE, CLIENT)


def test_an_edge_that_resumes_in_time_keeps_its_connections() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.presence.break_edge("A", "1", scene.now_ms)
    scene.presence.open_edge("A", "1", scene.now_ms + 1, resumed=True)
    assert scene.after(2 * GRACE_MS) == []
    assert scene.online() == ["c1"]


def test_a_new_process_of_an_edge_ends_the_connections_of_the_old_one_at_once() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.presence.open_edge("A", "2", scene.now_ms, resumed=False)
    assert scene.effects() == ["forget A", "tcpclean c1"]


def test_an_edge_given_up_that_comes_back_has_its_old_connections_evicted() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.presence.break_edge("A", "1", scene.now_ms)
    scene.after(GRACE_MS)
    scene.presence.open_edge("A", "1", scene.now_ms, resumed=False)
    assert scene.open("A", "c1", established_ms=1_000) == ["evict A c1"]
    assert scene.open("A", "never-announced", established_ms=1_000) == ["evict A never-announced"]
    assert scene.close("A", "c1", connect_time_ms=1_000) == []
    assert scene.open("A", "c2") == ["connect c2", "accept c2"]


def test_the_clients_of_a_lost_edge_get_in_elsewhere_before_their_ends_were_announced() -> None:
    scene = Scene()
    for index in range(SLICE + 10):
        scene.open("A", f"x{index}", client=f"x{index}")
    scene.open("A", "c1")
    scene.presence.close_edge("A", scene.now_ms)
    assert len(scene.effects()) == SLICE + 1
    assert scene.presence.is_clearing
    assert scene.presence.connections(INSTANCE, "x0") == []
    assert scene.open("B", "x0-again", client="x0") == ["tcpclean x0", "connect x0-again", "accept x0-again"]
    scene.after(0)
    assert set(scene.fold.opened) == {"x0-again"}


def test_what_a_snapshot_does_not_name_is_gone() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("A", "other", client="GID_A@@@2")
    scene.presence.open_edge("A", "1", scene.now_ms, resumed=False)
    assert not scene.presence.is_synchronized
    assert scene.open("A", "other", established_ms=1_000, client="GID_A@@@2") == []
    scene.presence.complete_snapshot("A", scene.now_ms)
    assert scene.effects() == ["tcpclean c1"]
    assert scene.presence.is_synchronized


def test_a_restart_knows_the_connections_and_waits_for_their_edges() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2", client="GID_A@@@2")
    restarted = Scene()
    restarted.presence = Presence(edge_grace_ms=GRACE_MS)
    restarted.presence.restore(scene.fold, restarted.now_ms)
    assert restarted.online() == ["c1"]
    assert not restarted.presence.is_synchronized
    restarted.presence.open_edge("A", "1", restarted.now_ms, resumed=False)
    assert restarted.open("A", "c1", established_ms=1_000) == []
    restarted.presence.complete_snapshot("A", restarted.now_ms)
    assert not restarted.presence.is_synchronized
    assert restarted.after(GRACE_MS) == ["forget B", "tcpclean c2"]
    assert restarted.presence.is_synchronized


def test_a_decision_lost_in_a_restart_is_repeated_and_not_announced_again() -> None:
    scene = Scene()
    scene.open("A", "c1")
    restarted = Scene()
    restarted.presence = Presence(edge_grace_ms=GRACE_MS)
    restarted.presence.restore(scene.fold, restarted.now_ms)
    restarted.presence.open_edge("A", "1", restarted.now_ms, resumed=False)
    assert restarted.open("A", "c1") == ["accept c1"]


def test_a_takeover_that_a_restart_interrupted_is_finished() -> None:
    scene = Scene()
    assert scene.open("B", "c2", established_ms=900, takeover=True) == ["connect c2"]
    assert scene.open("A", "c1", established_ms=800, takeover=True) == ["connect c1", "evict A c1"]


def test_probes_and_evictions_are_asked_again_after_a_reset() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2")
    scene.presence.open_edge("A", "1", scene.now_ms, resumed=False)
    assert scene.open("A", "c1", established_ms=1_000) == ["probe A c1"]
    scene.presence.evict(INSTANCE, CLIENT)
    scene.presence.open_edge("A", "1", scene.now_ms, resumed=False)
    assert "evict A c1" in scene.open("A", "c1", established_ms=1_000)


def test_event_times_do_not_follow_a_clock_that_goes_back() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.now_ms = 10
    scene.presence.close("A", INSTANCE, CLIENT, "c1", "", scene.now_ms, connect_time_ms=1, disconnected=False)
    times = [e.time_ms for e in scene.presence.take_effects() if isinstance(e, Event)]
    assert times == [1_000]


# Wills


def test_the_wills_of_a_lost_edge_are_published_once() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.open("A", "c2", client="GID_A@@@2")
    scene.open("A", "c3", client="GID_A@@@3", will=True)
    scene.open("B", "c4", client="GID_A@@@4", will=True)
    effects = scene.lose("A")
    assert effects[:2] == ["wills c1 c3", "forget A"]
    assert sorted(effects[2:]) == ["tcpclean c1", "tcpclean c2", "tcpclean c3"]
    assert scene.after(10 * GRACE_MS) == []


def test_a_new_process_of_an_edge_has_the_wills_of_the_old_one_published() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.presence.open_edge("A", "2", scene.now_ms, resumed=False)
    assert scene.effects() == ["wills c1", "forget A", "tcpclean c1"]


def test_a_closing_leaves_the_will_to_the_edge_that_lives() -> None:
    for disconnected in (True, False):
        scene = Scene()
        scene.open("A", "c1", will=True)
        assert not any("will" in effect for effect in scene.close("A", "c1", disconnected=disconnected))
        assert scene.lose("A") == ["forget A"]


def test_an_edge_that_resumes_in_time_keeps_its_wills() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.presence.break_edge("A", "1", scene.now_ms)
    scene.presence.open_edge("A", "1", scene.now_ms + 1, resumed=True)
    assert scene.after(2 * GRACE_MS) == []
    assert scene.lose("A") == ["wills c1", "forget A", "tcpclean c1"]


def test_a_goodbye_has_no_wills_published() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.presence.close_edge("A", scene.now_ms)
    assert scene.effects() == ["forget A", "tcpclean c1"]


def test_a_connection_that_was_never_let_in_has_no_will() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2", will=True)
    assert scene.lose("B") == ["refuse c2", "forget B"]
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2", will=True)
    scene.presence.open_edge("B", "2", scene.now_ms, resumed=False)
    assert scene.effects() == ["forget B"]


def test_a_claim_that_waited_has_its_will_kept() -> None:
    scene = Scene()
    scene.open("A", "c1")
    scene.open("B", "c2", will=True)
    scene.probed("A", "c1", alive=False)
    assert scene.lose("B") == ["wills c2", "forget B", "tcpclean c2"]


def test_an_edge_that_does_not_close_what_was_taken_over_owes_the_will_until_it_is_lost() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.open("B", "c2", takeover=True)
    assert scene.after(CLAIM_MS) == ["tcpclean c1", "connect c2", "accept c2"]
    assert scene.lose("A") == ["wills c1", "forget A"]


def test_an_edge_that_closes_what_was_taken_over_late_has_sent_the_will() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.open("B", "c2", takeover=True)
    scene.after(CLAIM_MS)
    scene.close("A", "c1")
    assert scene.lose("A") == ["forget A"]


def test_an_edge_that_dies_before_it_closed_a_dead_connection_owes_the_will() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.open("B", "c2")
    scene.probed("A", "c1", alive=False)
    assert scene.lose("A") == ["wills c1", "forget A"]


def test_a_snapshot_brings_wills_again_and_drops_those_it_does_not_name() -> None:
    scene = Scene()
    for number in (1, 2, 3):
        scene.open("A", f"c{number}", client=f"GID_A@@@{number}", will=True)
    scene.presence.open_edge("A", "1", scene.now_ms, resumed=False)
    scene.open("A", "c1", established_ms=1_000, client="GID_A@@@1", will=True)
    scene.open("A", "c2", established_ms=1_000, client="GID_A@@@2")
    scene.presence.complete_snapshot("A", scene.now_ms)
    assert scene.effects() == ["tcpclean c3"]
    assert scene.lose("A")[0] == "wills c1"


def test_an_edge_lost_in_the_middle_of_its_snapshot_has_all_wills_published() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.open("A", "c2", client="GID_A@@@2", will=True)
    scene.presence.open_edge("A", "1", scene.now_ms, resumed=False)
    scene.open("A", "c1", established_ms=1_000, will=True)
    assert scene.lose("A")[0] == "wills c1 c2"


def test_wills_of_a_snapshot_are_known_after_a_restart() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.open("B", "c2", client="GID_A@@@2", will=True)
    restarted = Scene()
    restarted.presence = Presence(edge_grace_ms=GRACE_MS)
    restarted.presence.restore(scene.fold, restarted.now_ms)
    restarted.presence.open_edge("A", "1", restarted.now_ms, resumed=False)
    restarted.open("A", "c1", established_ms=1_000, will=True)
    restarted.presence.complete_snapshot("A", restarted.now_ms)
    assert restarted.after(GRACE_MS) == ["forget B", "tcpclean c2"]  # died with its session process: lost
    assert restarted.lose("A") == ["wills c1", "forget A", "tcpclean c1"]


def test_the_will_of_a_connection_evicted_across_a_restart_is_owed_until_it_is_closed() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.open("B", "c2", takeover=True)
    scene.after(CLAIM_MS)
    restarted = Scene()
    restarted.now_ms = scene.now_ms
    restarted.presence = Presence(edge_grace_ms=GRACE_MS)
    restarted.presence.restore(scene.fold, restarted.now_ms)
    restarted.presence.open_edge("A", "1", restarted.now_ms, resumed=False)
    assert restarted.open("A", "c1", established_ms=1_000, will=True) == ["evict A c1"]
    restarted.presence.complete_snapshot("A", restarted.now_ms)
    assert "wills c1" in restarted.lose("A")


def test_an_edge_given_up_that_comes_back_has_no_will_published_twice() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    assert "wills c1" in scene.lose("A")
    scene.presence.open_edge("A", "1", scene.now_ms, resumed=False)
    assert scene.open("A", "c1", established_ms=1_000, will=True) == ["evict A c1"]
    scene.presence.complete_snapshot("A", scene.now_ms)
    assert scene.lose("A") == ["forget A"]


def test_a_snapshot_drops_the_will_of_a_dead_connection_that_it_does_not_name() -> None:
    scene = Scene()
    scene.open("A", "c1", will=True)
    scene.open("B", "c2")
    scene.probed("A", "c1", alive=False)
    scene.presence.open_edge("A", "1", scene.now_ms, resumed=False)
    scene.presence.complete_snapshot("A", scene.now_ms)
    assert scene.lose("A") == ["forget A"]
