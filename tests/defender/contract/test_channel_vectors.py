"""The test vectors of docs/specification/channel.md: bytes that were not made by the code that is tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from defender.contract.codec import decode, encode
from defender.contract.controller_session import ControllerSession
from defender.contract.defender_session import DefenderSession
from defender.contract.framing import FrameError, Framer
from defender.contract.message_bytes import decode_message, encode_message, type_of
from defender.contract.messages import (
    NEWEST,
    OLDEST,
    Ack,
    Cmd,
    Commit,
    Error,
    EvAck,
    Events,
    GoAway,
    Hello,
    Message,
    MessageError,
    Nack,
    Ping,
    Pong,
    Push,
    Renew,
    Renewed,
    Result,
    Snapshot,
    Status,
    Welcome,
)
from defender.contract.session import Close, Outputs, Pushed, Send
from defender.contract.spool import Place, SegmentHeader, scan

FOLDER: Final = Path(__file__).resolve().parents[2] / "data" / "channel"


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text("utf-8"))


def plain(value: Any) -> Any:
    """A value of the vectors: `{"hex": ...}` is bytes."""
    if isinstance(value, dict):
        if value.keys() == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


class Bytes(SynchronousTestCase):
    vectors: Final = load("messages.json")

    def test_messages(self) -> None:
        seen = set()
        for vector in self.vectors["messages"]:
            payload, revision = bytes.fromhex(vector["hex"]), vector["revision"]
            message = decode_message(payload, revision)
            assert message is not None
            self.assertEqual(type(message).__name__.upper(), vector["name"])
            self.assertEqual(type_of(type(message)), vector["type"])
            self.assertEqual(encode_message(message, revision), payload)
            self.assertEqual(decode(payload, canonical=True), [vector["type"], *plain(vector["fields"])])
            self.assertEqual(encode([vector["type"], *plain(vector["fields"])]), payload)
            seen.add(type(message))
        self.assertEqual(len(seen), 18)

    def test_other_forms(self) -> None:
        for vector in self.vectors["other_forms"]:
            found = decode_message(bytes.fromhex(vector["hex"]), vector["revision"])
            self.assertEqual(found, decode_message(bytes.fromhex(vector["same_as"])), vector["why"])

    def test_what_is_ignored(self) -> None:
        for payload in self.vectors["ignored"]:
            for revision in range(OLDEST, NEWEST + 1):
                self.assertIsNone(decode_message(bytes.fromhex(payload), revision))

    def test_what_is_refused(self) -> None:
        for vector in self.vectors["refused"]:
            with self.assertRaises(MessageError, msg=vector["why"]):
                decode_message(bytes.fromhex(vector["hex"]), vector["revision"])

    def test_records_are_those_of_a_spool(self) -> None:
        """The EVENTS of the vectors hold records that a reader of spools takes."""
        header = SegmentHeader("web1", 1, 1, bytes(32))
        for vector in self.vectors["messages"]:
            events = decode_message(bytes.fromhex(vector["hex"]), vector["revision"])
            if isinstance(events, Events):
                found = scan(events.records, header, Place(0, events.first_seq - 1, events.previous))
                self.assertEqual(
                    [record.seq for record in found.records],
                    list(range(events.first_seq, events.first_seq + events.count)),
                )
                self.assertEqual((found.damage, found.torn), ([], ""))

    def test_frames(self) -> None:
        vectors = load("frames.json")
        for vector in vectors["good"]:
            found = Framer(vector["limit"]).feed(bytes.fromhex(vector["hex"]))
            self.assertEqual([payload.hex() for payload in found], vector["payloads"])
        for vector in vectors["refused"]:
            framer = Framer(vector["limit"])
            framer.add(bytes.fromhex(vector["hex"]))
            for payload in vector["payloads"]:
                self.assertEqual(framer.next(), bytes.fromhex(payload))
            with self.assertRaises(FrameError, msg=vector["why"]):
                framer.next()


class Peer:
    """One of our sessions, made to say what a recording says."""

    def __init__(self, revision: int) -> None:
        self.now = 0.0
        self.revision = revision
        self.heard: list[Any] = []
        self.closed: Close | None = None

    def take(self, outputs: Outputs) -> bytes:
        """Keep what the caller was told; give what is sent."""
        data = b""
        for output in outputs:
            if isinstance(output, Send):
                data += output.data
            elif isinstance(output, Close):
                self.closed = output
            else:
                self.heard.append(output)
        return data


class OurController(Peer):
    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.session = ControllerSession(self.now, newest=revision)

    def say(self, message: Message, recorded: bytes) -> Outputs:
        session = self.session
        match message:
            case Welcome():
                return session.welcome(
                    self.now,
                    generation=message.generation,
                    version=message.version,
                    time=message.time,
                    cursor=message.cursor,
                )
            case Push():
                return session.push(message.stream, message.nonce, [recorded])
            case Snapshot():
                return session.show(recorded)
            case EvAck():
                return session.acknowledge_events(message.epoch, message.through, message.chain)
            case Renewed():
                return session.renewed(message.chain, message.server_chain)
            case Cmd():
                return session.command(self.now, message.verb, message.arguments, message.timeout)[1]
            case GoAway():
                return session.go_away(self.now, message.code, message.detail, message.window)
        raise AssertionError(message)


class OurDefender(Peer):
    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.session: DefenderSession | None = None

    def say(self, message: Message, recorded: bytes) -> Outputs:
        if isinstance(message, Hello):
            self.session = DefenderSession(self.now, message)
            return self.session.start()
        session = self.session
        assert session is not None
        match message:
            case Ack():
                return session.acknowledge(message.stream, message.nonce, message.position)
            case Nack():
                return session.refuse(
                    message.stream, message.nonce, message.code, message.detail, message.kept
                )
            case Events():
                first, last = message.first_seq, message.first_seq + message.count - 1
                found = scan(
                    message.records,
                    SegmentHeader("web1", 1, 1, bytes(32)),
                    Place(0, first - 1, message.previous),
                )
                assert found.records[-1].seq == last
                return session.send_events(
                    *(message.epoch, first, message.count, message.previous, message.records),
                    found.records[-1].chain,
                    opening=message.opening,
                    lost=message.lost,
                )
            case Status():
                return session.report(message.state)
            case Result():
                return session.answer(message.number, message.ok, message.value)
            case Renew():
                return session.renew(message.request, message.server_request)
            case Commit():
                return session.commit(message.serial)
        raise AssertionError(message)


class Conversations(SynchronousTestCase):
    """Recorded peers, of this revision and of the one before, against ours."""

    conversations: Final = load("conversations.json")

    def play(self, recording: dict[str, Any], ours: OurController | OurDefender, side: str) -> None:
        """Say to ours what the other side said, and hold what ours says against the recording."""
        said = b""
        for each in recording["frames"]:
            frame = bytes.fromhex(each["hex"])
            where = f"{recording['why']}: {each['by']} {each['name']}"
            (payload,) = Framer(2**21).feed(frame)
            revision = ours.session.revision if ours.session is not None else NEWEST
            message = decode_message(payload, revision)
            assert message is not None
            ours.now += 1.0
            if each["by"] != side:
                assert ours.session is not None
                self.assertEqual(said, b"", f"{where}: something else was said before it")
                said = ours.take(ours.session.bytes_received(frame, ours.now))
                if isinstance(message, Push):
                    self.assertIn(Pushed(message.stream, message.nonce, message.chunk), ours.heard)
                elif not isinstance(message, (Ping, Pong, Error)) and (ours.closed is None or ours.heard):
                    # A HELLO without a common revision ends the session: nobody is told of it.
                    self.assertIn(message, ours.heard, where)
                continue
            if isinstance(message, Ping):
                assert ours.session is not None
                ours.now = ours.session.wake_at
                said = ours.take(ours.session.tick(ours.now))
            elif not isinstance(message, (Pong, Error)):
                said = ours.take(ours.say(message, frame))
            self.assertEqual(said.hex(), each["hex"], where)
            said = b""

    def test_our_controller(self) -> None:
        played = 0
        for recording in self.conversations:
            ours = OurController(recording["controller"])
            self.play(recording, ours, "controller")
            played += 1
            last = recording["frames"][-1]["name"]
            if last == "ERROR":
                assert ours.closed is not None
                self.assertEqual(ours.closed.code, "revision")
            else:
                self.assertIsNone(ours.closed)
        self.assertEqual(played, 5)

    def test_our_defender(self) -> None:
        played = 0
        for recording in self.conversations:
            ours = OurDefender(recording["defender"])
            self.play(recording, ours, "defender")
            assert ours.closed is not None
            last = recording["frames"][-1]["name"]
            self.assertEqual(ours.closed.code, "revision" if last == "ERROR" else "leaving")
            self.assertTrue(ours.closed.by_peer)
            played += 1
        self.assertEqual(played, 5)

    def test_the_revision_before_is_among_them(self) -> None:
        recorded = {(each["defender"], each["controller"]) for each in self.conversations}
        self.assertLessEqual({(NEWEST - 1, NEWEST), (NEWEST, NEWEST - 1)}, recorded)
