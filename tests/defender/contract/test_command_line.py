"""Command lines as events show them: what runs stays readable, and no secret is among it."""

from __future__ import annotations

import shlex

from hypothesis import example, given, settings, strategies
from twisted.trial.unittest import SynchronousTestCase

from defender.contract.command_line import MAX_COMMAND, MAX_READ, redact_command, redact_script
from defender.contract.redaction import words_of
from defender.contract.secret_shapes import is_secret_name

CANARY = "xQ7canary"

#: A command in words, and what is shown of it; None: all of it, nothing is hidden.
SHOWN: tuple[tuple[str, str | None], ...] = (
    # Nothing to hide.
    ("ls -la /etc", None),
    ("docker run -p 80:80 nginx", None),
    ("mysql -p shop", None),
    ("find / -path /proc -prune -o -print", None),
    ("nginx -g 'daemon off;'", None),
    ("sh -c 'while true; do date; sleep 1; done'", None),
    ("docker pull nginx:1.25@sha256:" + "ab12" * 16, None),
    ("app --password-file /run/secrets/db --passive --keyboard us", None),
    ("kubectl get secret", None),
    ("ssh bob@host uptime", None),
    ("npm install @scope/package@1.2.3", None),
    # Options with a telling name.
    ("app --password=hunter2 -v", "app --password=*** -v"),
    ("app --password hunter2 -v", "app --password *** -v"),
    ("app --token hunter2 --api-key hunter2 --apiKey=hunter2", "app --token *** --api-key *** --apiKey=***"),
    ("influx -username a -password hunter2", "influx -username a -password ***"),
    ("java -Dspring.db.password=hunter2 -jar a.jar", "java -Dspring.db.password=*** -jar a.jar"),
    ("gpg --passphrase hunter2 --batch -d x", "gpg --passphrase *** --batch -d x"),
    ("openssl rsa -passin pass:hunter2 -in k", "openssl rsa -passin *** -in k"),
    ("docker run -e DB_PASSWORD=hunter2 nginx", "docker run -e DB_PASSWORD=*** nginx"),
    ("docker run -eDB_PASSWORD=hunter2 nginx", "docker run -eDB_PASSWORD=*** nginx"),
    ("helm install --set db.password=hunter2 x", "helm install --set db.password=*** x"),
    # Programs that have their own way.
    ("mysql -uroot -phunter2 shop", "mysql -uroot -p*** shop"),
    ("/usr/bin/mysqldump -phunter2 shop", "/usr/bin/mysqldump -p*** shop"),
    ("docker exec db mysqladmin -phunter2 password hunter2", "docker exec db mysqladmin -p*** password ***"),
    ("docker login -u bob -p hunter2 reg", "docker login -u bob -p *** reg"),
    ("sshpass -p hunter2 ssh a@b ls", "sshpass -p *** ssh a@b ls"),
    ("sshpass -phunter2 ssh a@b ls", "sshpass -p*** ssh a@b ls"),
    (
        "mongosh --authenticationDatabase admin -u x -p hunter2",
        "mongosh --authenticationDatabase admin -u x -p ***",
    ),
    ("redis-cli -h db -a hunter2 ping", "redis-cli -h db -a *** ping"),
    ("redis-cli AUTH hunter2", "redis-cli AUTH ***"),
    ("redis-cli config set requirepass hunter2", "redis-cli config set requirepass ***"),
    ("curl -u bob:hunter2 https://h/x", "curl -u bob:*** https://h/x"),
    ("curl -sSu bob:hunter2 https://h/x", "curl -sSu bob:*** https://h/x"),
    ("curl --user=bob:hunter2 https://h/x", "curl --user=bob:*** https://h/x"),
    ("curl -b session=hunter2 https://h/x", "curl -b *** https://h/x"),
    ("ldapsearch -x -w hunter2 -b dc=x", "ldapsearch -x -w *** -b dc=x"),
    ("sqlplus bob/hunter2@db", "sqlplus ***"),
    (
        "openssl enc -aes-256-cbc -k hunter2 -in x -keyout y",
        "openssl enc -aes-256-cbc -k *** -in x -keyout y",
    ),
    ("htpasswd -cb file bob hunter2", "htpasswd -cb *** *** ***"),
    ("vault login hunter2", "vault login ***"),
    ("rabbitmqctl add_user bob hunter2", "rabbitmqctl add_user *** ***"),
    ("aws configure set aws_secret_access_key hunter2", "aws configure set aws_secret_access_key ***"),
    (
        "kubectl create secret generic a --from-literal=k=hunter2",
        "kubectl create secret generic a --from-literal=k=***",
    ),
    ("smbclient -U bob%hunter2 //h/x", "smbclient -U bob%*** //h/x"),
    # Variables, URLs, headers, data.
    ("env PGPASSWORD=hunter2 psql", "env PGPASSWORD=*** psql"),
    ("env 'DB_PASS=hunter2 hunter2' app", "env DB_PASS=*** app"),
    ("pg_dump postgres://bob:hunter2@h:5432/db", "pg_dump postgres://***@h:5432/db"),
    ("git clone https://hunter2@h/a.git", "git clone https://***@h/a.git"),
    ("curl https://h/x?sig=hunter2", "curl 'https://h/x?sig=***'"),
    ("app bob:hunter2@h", "app ***@h"),
    ("curl -H 'Authorization: Bearer hunter2' https://x", "curl -H 'Authorization: ***' https://x"),
    ("curl '-HX-Api-Key: hunter2' https://x", "curl '-HX-Api-Key: ***' https://x"),
    ("curl '--header=Cookie: hunter2' https://x", "curl '--header=Cookie: ***' https://x"),
    ("""curl -d '{"user":"b","password":"hunter2"}' h""", """curl -d '{"user":"b","password":***' h"""),
    ("app Server=x;Password=hunter2;User=b", "app 'Server=x;Password=***'"),
    # Scripts.
    ("sh -c 'export TOKEN=hunter2 && ls -la /etc'", "sh -c 'export TOKEN=*** && ls -la /etc'"),
    ("bash -lc 'mysql -phunter2 shop; ls'", "bash -lc 'mysql -p*** shop; ls'"),
    ('bash -c \'X="a b" TOKEN="hunter2 b" run -v\'', "bash -c 'X=\"a b\" TOKEN=*** run -v'"),
    ("sh -c 'echo root:hunter2 | chpasswd; ls /x'", "sh -c 'echo *** | chpasswd; ls /x'"),
    (
        "sh -c 'echo hunter2 | docker login --password-stdin reg'",
        "sh -c 'echo *** | docker login --password-stdin reg'",
    ),
    ("sh -c 'cat <<< hunter2; ls'", "sh -c 'cat <<< ***; ls'"),
    ("sh -c 'mysql 2>&1 -phunter2'", "sh -c 'mysql 2>&1 -p***'"),
    ("sh -c \"sh -c 'app --token hunter2; ls'\"", "sh -c \"sh -c 'app --token ***; ls'\""),
    ("sh -c 'app --pass\"word\"=hunter2'", "sh -c 'app --password=***'"),
    (
        "psql -c \"CREATE USER x WITH PASSWORD 'hunter2'; SELECT 1\"",
        "psql -c 'CREATE USER x WITH PASSWORD ***'",
    ),
    ("mysql -e \"ALTER USER a IDENTIFIED BY 'hunter2'\"", "mysql -e 'ALTER USER a IDENTIFIED BY ***'"),
    ("echo password: hunter2 and more", "echo password: ***"),
    # What a shell runs next is not hidden by a secret before it.
    ("sh -c 'echo password: hunter2 b; rm -rf /x'", "sh -c 'echo password: *** ; rm -rf /x'"),
    ("sh -c 'echo \"token: hunter2; b\" && rm -rf /x'", "sh -c 'echo \"token: ***\" && rm -rf /x'"),
)

TOKENS = (
    "ghp_" + "a1" * 18,
    "github_pat_" + "a1B2" * 10,
    "glpat-" + "a1-B2" * 4,
    "xoxb-123456789012-abcdefABCDEF",
    "AKIAIOSFODNN7EXAMPLE",
    "AIza" + "aB3-" * 9,
    "sk-" + "aB3" * 12,
    "sk_live_" + "aB3" * 6,
    "npm_" + "aB3" * 10,
    "dckr_pat_" + "aB3" * 8,
    "hvs." + "aB3" * 8,
    "SWMTKN-1-" + "0a" * 25 + "-" + "1b" * 12,
    "SWMKEY-1-" + "aB3+/" * 8,
    "dft1." + "a2" * 8 + "." + "b3" * 16 + "." + "c4" * 26,
    "dfs1_" + "aB3-_" * 8 + "xyz",
    "dfa1_" + "a1b2c" * 8 + "xyz",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "aB3xY9" * 8 + "==",
)


#: Commands with a place for a secret, as words; `@` stands for it. The secret is one word of its own or the
#: end of one, so it may hold anything.
PLACES: tuple[tuple[str, ...], ...] = (
    ("app", "--password", "@"),
    ("app", "--password=@"),
    ("app", "--api-key=@", "x"),
    ("env", "SECRET_KEY=@", "app"),
    ("mysql", "-uroot", "-p@"),
    ("docker", "login", "-p", "@"),
    ("redis-cli", "-a", "@"),
    ("curl", "-u", "bob:@"),
    ("curl", "-H", "Authorization: Basic @"),
    ("curl", "-H", "X-Auth-Token: @"),
    ("curl", "-d", "token=@"),
    ("curl", "-d", '{"password": "@"}'),
    ("app", "Server=h;Password=@"),
    ("vault", "login", "@"),
    ("sshpass", "-p", "@", "ssh", "h"),
)
#: Scripts of a shell, where the secret is quoted as a shell needs it.
SCRIPT_PLACES = (
    "app --password @ -v; ls /etc",
    "app --password=@ -v; ls /etc",
    "export API_TOKEN=@; ls /etc",
    "FOO=1 DB_PASSWORD=@ app && ls /etc",
    "mysql -uroot -p@ shop; ls /etc",
    "echo @ | docker login --password-stdin h; ls /etc",
    "cat <<< @; ls /etc",
    "curl -u bob:@ h; ls /etc",
    "(sshpass -p @ ssh h); ls /etc",
    "a=$(curl --token @ h); ls /etc",
    "echo password: @; ls /etc",
    "echo password: @ | tee x; ls /etc",
    "cat <<EOF\npassword: @\nEOF\nls /etc",
)
_ANY = strategies.text(
    strategies.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=12
)


class Examples(SynchronousTestCase):
    def test_what_is_shown(self) -> None:
        for line, shown in SHOWN:
            with self.subTest(line=line):
                text, hidden = redact_command(shlex.split(line))
                self.assertEqual((text, hidden), (line if shown is None else shown, shown is not None))

    def test_tokens_are_known_by_their_shape(self) -> None:
        for token in TOKENS:
            for words in (["app", token], ["app", f"x={token}"], ["sh", "-c", f"app {token} && ls"]):
                with self.subTest(words=words):
                    text, hidden = redact_command(words)
                    self.assertNotIn(token[8:], text)
                    self.assertTrue(hidden)

    def test_a_key_in_pem_is_hidden_to_its_end(self) -> None:
        key = "-----BEGIN RSA PRIVATE KEY-----\nMIIhunter2\nhunter2\n-----END RSA PRIVATE KEY-----"
        for words in (["app", key], ["sh", "-c", f"echo '{key}' > /x"]):
            text, hidden = redact_command(words)
            self.assertNotIn("hunter2", text)
            self.assertTrue(hidden)

    def test_ids_and_digests_are_kept(self) -> None:
        line = "docker rm " + "0123456789abcdef" * 4
        self.assertEqual(redact_command(line.split()), (line, False))

    def test_names(self) -> None:
        for name in words_of(
            "DB_PASSWORD PGPASSWORD apiKey api-key AWS_SECRET_ACCESS_KEY X-Vault-Token MYSQL_PWD"
        ):
            self.assertTrue(is_secret_name(name), name)
        for name in words_of(
            "cred CREDENTIALS storepass authToken REDISCLI_AUTH db.passwd Cookie sessionToken"
        ):
            self.assertTrue(is_secret_name(name), name)
        for name in words_of("author keyboard passive token-file no-password path PORT USER"):
            self.assertFalse(is_secret_name(name), name)


class Bounds(SynchronousTestCase):
    def test_a_long_command_line_keeps_its_beginning(self) -> None:
        text, hidden = redact_command(["app", *["word"] * 5000])
        self.assertTrue(text.startswith("app word word"))
        self.assertIn("more words", text)
        self.assertLess(len(text), MAX_COMMAND)
        text, hidden = redact_command(["app", "a b " * 20_000])
        self.assertLess(len(text), MAX_COMMAND)
        self.assertFalse(hidden)

    def test_a_token_that_the_cut_goes_through_is_not_shown(self) -> None:
        for before in range(MAX_READ - 60, MAX_READ):
            text, _ = redact_script("--password=" + "p" * (before - 12) + " ghp_" + "a1" * 18)
            self.assertNotIn("ghp_", text)
            text, _ = redact_command(["sh", "-c", "--password=" + "p" * (before - 18) + " ghp_" + "a1" * 18])
            self.assertNotIn("ghp_", text)


class Canaries(SynchronousTestCase):
    @settings(max_examples=400, deadline=None)
    @given(strategies.sampled_from(PLACES), _ANY, _ANY)
    @example(PLACES[8], "a", "b c")
    def test_no_place_shows_its_secret(self, place: tuple[str, ...], before: str, after: str) -> None:
        secret = before.lstrip() + CANARY + after
        text, hidden = redact_command([word.replace("@", secret) for word in place])
        self.assertNotIn(CANARY, text)
        self.assertTrue(hidden)
        self.assertIn(place[0], text)

    @settings(max_examples=400, deadline=None)
    @given(strategies.sampled_from(SCRIPT_PLACES), _ANY, _ANY)
    def test_no_script_shows_its_secret(self, place: str, before: str, after: str) -> None:
        secret = CANARY + before + CANARY + after + CANARY
        script = place.replace("@", shlex.quote(secret))
        for text, hidden in (redact_script(script), redact_command(["bash", "-c", script])):
            self.assertNotIn(CANARY, text)
            self.assertTrue(hidden)

    @settings(max_examples=300, deadline=None)
    @given(strategies.lists(strategies.text(max_size=40), max_size=8))
    def test_anything_gives_a_bounded_text(self, words: list[str]) -> None:
        text, _ = redact_command(words)
        self.assertLess(len(text), MAX_COMMAND + 100)
        self.assertLess(len(redact_script(" ".join(words))[0]), MAX_COMMAND + 100)
