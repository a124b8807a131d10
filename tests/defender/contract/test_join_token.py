"""Join tokens: one spelling each, and no word of the secret."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.join_token import (
    ENTROPY,
    TOKEN_LETTERS,
    JoinToken,
    JoinTokenError,
    check_token_id,
    format_token,
    new_token,
    parse_token,
    pin_of,
)
from tests.fakes.authority import TestAuthority

PKI = TestAuthority()
VECTORS = Path(__file__).parents[2] / "data" / "join.json"
TOKEN = new_token(bytes(range(ENTROPY)), PKI.root)
TEXT = format_token(TOKEN)


class TokenTests(SynchronousTestCase):
    """What a person pastes."""

    def test_form(self) -> None:
        head, identifier, secret, pin = TEXT.split(".")
        self.assertEqual((head, len(identifier), len(secret), len(pin)), ("dft1", 16, 32, 52))
        self.assertEqual(len(TEXT), TOKEN_LETTERS)
        self.assertEqual((identifier, secret), ("aaaqeayeaudaocaj", "bifqydiob4ibceqtcqkrmfyydenbwha5"))
        self.assertEqual(len(TOKEN.secret) * 8, 160)

    def test_it_pins_the_root(self) -> None:
        """By its key: another root, with another key, has another pin."""
        key = PKI.root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.assertEqual(TOKEN.pin, sha256(key).digest())
        self.assertNotEqual(pin_of(TestAuthority().root), TOKEN.pin)

    def test_the_controller_keeps_a_digest(self) -> None:
        self.assertEqual(TOKEN.digest, sha256(TOKEN.secret).digest())

    def test_white_space_around_it(self) -> None:
        self.assertEqual(parse_token(f"  {TEXT}\n"), TOKEN)

    def test_its_secret_is_not_shown(self) -> None:
        for shown in (repr(TOKEN), str(TOKEN), f"{TOKEN}", repr([TOKEN])):
            self.assertIn(TOKEN.id, shown)
            self.assertNotIn(repr(TOKEN.secret), shown)
            self.assertNotIn(TEXT.split(".")[2], shown)

    def test_refused(self) -> None:
        head, identifier, secret, pin = TEXT.split(".")
        for text, word in (
            ("", "there is no join token"),
            ("hunter2", "this is no join token"),
            (f"dft2.{identifier}.{secret}.{pin}", "newer form"),
            (f"{head}.{identifier}.{secret}", "cut off"),
            (TEXT + ".x", "four parts"),
            (TEXT[:-1], "cut off"),
            (TEXT.upper().replace("DFT1", "dft1"), "lower case"),
            (f"{head}.{identifier}.{'1' * 32}.{pin}", "lower case and 2 to 7"),
            (f"{head}.{identifier}.{'é' * 32}.{pin}", "lower case and 2 to 7"),
            (f"{head}.{identifier}.{secret}.{pin[:-1]}b", "lower case and 2 to 7"),
        ):
            with self.assertRaises(JoinTokenError) as caught:
                parse_token(text)
            self.assertIn(word, str(caught.exception), text)
            self.assertNotIn(secret[:8], str(caught.exception))

    def test_vectors(self) -> None:
        """The specification's examples."""
        for vector in json.loads(VECTORS.read_text())["tokens"]:
            token = parse_token(vector["text"])
            shown = (token.id, token.secret.hex(), token.digest.hex(), token.pin.hex())
            self.assertEqual(shown, (vector["id"], vector["secret"], vector["digest"], vector["pin"]))
            self.assertEqual(format_token(token), vector["text"])

    def test_ids(self) -> None:
        check_token_id(TOKEN.id)
        for text in ("", TOKEN.id[:-1], TOKEN.id.upper(), "0" * 16):
            self.assertRaises(JoinTokenError, check_token_id, text)

    def test_entropy(self) -> None:
        self.assertRaises(ValueError, new_token, b"short", PKI.root)

    @given(st.binary(min_size=ENTROPY, max_size=ENTROPY), st.binary(min_size=32, max_size=32))
    def test_each_token_has_one_spelling(self, entropy: bytes, pin: bytes) -> None:
        token = JoinToken(new_token(entropy, PKI.root).id, entropy[10:], pin)
        self.assertEqual(parse_token(format_token(token)), token)

    @given(st.one_of(st.text(), st.text("abcdefgh234567.", max_size=120).map(lambda text: "dft1." + text)))
    def test_whatever_is_pasted(self, text: str) -> None:
        """A token that is read is spelled as it was read, and nothing but JoinTokenError is raised."""
        try:
            token = parse_token(text)
        except JoinTokenError:
            return
        self.assertEqual(format_token(token), text.strip())
