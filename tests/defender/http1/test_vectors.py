"""Every recorded request is read as the Engine reads it, or refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.actions import KNOWN_NAMES, OPERATIONS
from tests.defender.http1.reading import read_connection
from tests.vectors import FOLDER, GROUPS, REFUSED, SMUGGLED, VECTORS, Vector, expectation, read_decisions

_ACTIONS = {f"{operation.method} {operation.template}": operation.action for operation in OPERATIONS}
_BIG = 1 << 20


def _route(vector: Vector) -> str | None:
    """The action of the route that the newest Engine took for the first request, if that was recorded."""
    route = vector.facts.get("master", {}).get("route")
    if route is None:
        return None
    return "unknown" if route.startswith("OPTIONS ") else _ACTIONS[route]


def _taken(vector: Vector) -> bool:
    """Whether an Engine ran the first request."""
    status = str(vector.facts.get("engine_20_10_24", {}).get("status", ""))
    return _route(vector) is not None or status[9:10] in ("1", "2")


def _answers(vector: Vector) -> int:
    """How many requests the newest recorded server saw on the connection."""
    newest = vector.facts.get("master_go1_26")
    if newest is not None:
        return len([status for status in newest["statuses"] if status != "400"])
    return int(vector.facts.get("engine_20_10_24", {}).get("responses") or 0)


class DecisionTests(SynchronousTestCase):
    """The table of decisions agrees with the recorded facts."""

    def test_each_vector_is_decided_once(self) -> None:
        decisions = read_decisions((FOLDER / "expected.tsv").read_text("utf-8"))
        self.assertEqual(list(decisions), [vector.id for vector in VECTORS])
        self.assertEqual({vector.group for vector in VECTORS}, set(GROUPS))

    def test_outcomes_name_actions_and_end_at_a_refusal(self) -> None:
        for vector in VECTORS:
            self.assertTrue(vector.expected, vector.id)
            for outcome in expectation(vector):
                self.assertTrue(set(outcome) <= KNOWN_NAMES | {"unknown", REFUSED}, vector.id)
                self.assertNotIn(REFUSED, outcome[:-1], vector.id)

    def test_what_is_accepted_is_the_route_the_engine_takes(self) -> None:
        checked = 0
        for vector in VECTORS:
            route = _route(vector)
            for outcome in vector.expected:
                if route is not None and outcome[0] != REFUSED:
                    self.assertEqual(outcome[0], route, vector.id)
                    checked += 1
        self.assertGreater(checked, 60)

    def test_what_has_no_route_is_unknown_or_refused(self) -> None:
        for vector in VECTORS:
            body = str(vector.facts.get("engine_20_10_24", {}).get("body", ""))
            if (
                body.startswith('{"message":"page not found"}')
                and _route(vector) is None
                and not vector.reason
            ):
                for outcome in vector.expected:
                    self.assertIn(outcome[0], ("unknown", REFUSED), vector.id)

    def test_a_refusal_of_what_an_engine_runs_has_a_reason(self) -> None:
        for vector in VECTORS:
            if _taken(vector) and (("unknown",) in vector.expected or (REFUSED,) in vector.expected):
                self.assertTrue(vector.reason or _route(vector) == "unknown", vector.id)

    def test_a_smuggled_request_is_never_lost(self) -> None:
        """Where an Engine answers twice, the second request is seen, or something before it was refused."""
        smuggling = 0
        for vector in VECTORS:
            if SMUGGLED not in vector.request[:_BIG] or _answers(vector) < 2:
                continue
            smuggling += 1
            first = vector.expected[0]
            self.assertTrue(first[-1] == REFUSED or len(first) == 2, vector.id)
        self.assertGreater(smuggling, 25)


class VectorTests(SynchronousTestCase):
    """The readers decide as the table says."""

    def test_every_vector_has_an_expected_outcome(self) -> None:
        for vector in VECTORS:
            connection = read_connection([vector.request])
            self.assertIn(connection.outcome, vector.expected, f"{vector.id}: {connection.error}")

    def test_refusals_have_a_status_for_requests(self) -> None:
        for vector in VECTORS:
            error = read_connection([vector.request]).error
            if error is not None:
                self.assertIn(error.status, (400, 417, 501, 505), vector.id)

    def test_no_second_request_hides_in_a_body(self) -> None:
        for vector in VECTORS:
            if vector.facts.get("master_go1_26") is None or _answers(vector) < 2:
                continue
            for request in read_connection([vector.request]).requests:
                self.assertNotIn(SMUGGLED, request.body, vector.id)

    def test_one_byte_at_a_time_is_read_the_same(self) -> None:
        for vector in VECTORS:
            data = vector.request
            if len(data) > _BIG:
                continue
            pieces = read_connection([data[i : i + 1] for i in range(len(data))])
            self.assertEqual(pieces.outcome, read_connection([data]).outcome, vector.id)

    @given(st.data())
    def test_any_cut_is_read_the_same(self, data: st.DataObject) -> None:
        vector = data.draw(st.sampled_from(VECTORS))
        request = vector.request
        cuts = sorted(data.draw(st.lists(st.integers(0, min(len(request), 4096)), max_size=8)))
        bounds = zip([0, *cuts], [*cuts, len(request)], strict=True)
        pieces = read_connection([request[start:stop] for start, stop in bounds])
        whole = read_connection([request])
        self.assertEqual(pieces.outcome, whole.outcome, vector.id)
        self.assertEqual([seen.body for seen in pieces.requests], [seen.body for seen in whole.requests])

    def test_recorded_parameters_are_read_as_the_engine_reads_them(self) -> None:
        """The newest Engine's own decoding of the query, where it was recorded and we accept the request."""
        checked = 0
        for vector in VECTORS:
            form = vector.facts.get("master", {}).get("form")
            requests = read_connection([vector.request]).requests
            if form is None or not requests:
                continue
            ours: dict[str, list[str]] = {}
            for name, value in requests[0].target.query:
                ours.setdefault(name, []).append(value)
            self.assertEqual(ours, form, vector.id)
            checked += 1
        self.assertGreater(checked, 50)

    def test_recorded_variables_are_in_the_path(self) -> None:
        for vector in VECTORS:
            variables = vector.facts.get("master", {}).get("vars")
            requests = read_connection([vector.request]).requests
            if variables is None or not requests:
                continue
            target = requests[0].target
            version = None if target.version is None else f"{target.version[0]}.{target.version[1]}"
            self.assertEqual(version, variables.get("version"), vector.id)


class LoaderTests(SynchronousTestCase):
    """Recorded requests become real ones again."""

    def _vector(self, identifier: str) -> Vector:
        return next(vector for vector in VECTORS if vector.id == identifier)

    def test_padding_is_restored(self) -> None:
        request = self._vector("FORM-037").request
        self.assertEqual(len(request), 4213)
        self.assertTrue(request.endswith(b"&" * 4096 + b"isolation=zzz"))

    def test_a_silent_cut_is_restored(self) -> None:
        request = self._vector("FORM-048").request
        head, _, body = request.partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: %d" % len(body), head)

    def test_filters_are_encoded(self) -> None:
        request = self._vector("QRY-058").request
        self.assertIn(
            b"&filters=%7B%22label%22%3A%5B%22rsch%3D1%22%5D%7D HTTP/1.1\r\nHost: x\r\n\r\n", request
        )

    def test_exec_ids_are_placeholders(self) -> None:
        vector = self._vector("HIJ-003")
        self.assertEqual(vector.placeholders, ("EXEC",))
        self.assertIn(b"/exec/abc/start", vector.filled({"EXEC": "abc"}))
        self.assertNotIn(b"{", vector.request.partition(b"\r\n\r\n")[0])

    def test_lengths_fit_the_bodies(self) -> None:
        """A vector that announces a length brings that many bytes, but for the one that is about the
        length.
        """
        for vector in VECTORS:
            connection = read_connection([vector.request])
            if connection.error is None:
                for request in connection.requests:
                    self.assertTrue(request.complete or vector.id == "HTTP-018", vector.id)
