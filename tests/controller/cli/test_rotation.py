"""An intermediate follows another: no step before all defenders are ready for it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from cryptography.hazmat.primitives.serialization import Encoding

from controller.cli.rotation import rotate
from controller.pki.authority import Authority, certificate_pem
from controller.pki.custody import new_private_key
from controller.pki.kept import keep_certificates
from controller.pki.renewals import Certificates, name_of
from controller.pki.storage import create_authority, open_authority
from controller.publisher_steps import Authorities
from controller.store import trail
from defender.contract.contents import TrustContent
from defender.contract.peer_check import check_defender
from defender.contract.trust import TRUST
from tests.controller.cli.test_at_rest import AtRestCase
from tests.controller.publisher_fleet import Host, ident


class RotationTests(AtRestCase):
    def authority(self) -> Authority:
        found = open_authority(self.directory, datetime.now(UTC))
        self.authorities = Authorities(
            *(
                tuple(certificate_pem(each).decode() for each in those)
                for those in ((found.root,), found.all_fleet, found.all_users)
            )
        )
        return found

    async def again(self, *hosts: Host) -> Authority:
        """Start it; these hosts come."""
        authority = self.authority()
        await self.begin()
        for host in hosts:
            self.desk.connect(host)
        await self.calm()
        return authority

    async def issue(self, authority: Authority, name: str) -> None:
        """Have a defender use a certificate of today."""
        issued = authority.issue_defender_client(
            new_private_key().public_key(), ident(name), name, now=datetime.now(UTC)
        )
        used = name_of(check_defender(issued.leaf, authority.trust_domain))
        chain = {used.fingerprint: issued.chain_pem}
        assert self.database is not None
        await self.database.write(keep_certificates, ident(name), Certificates(used), chain, 1)

    def listed(self, host: Host) -> int:
        content = host.content[TRUST]
        assert isinstance(content, TrustContent)
        return len(content.fleet)

    async def test_from_one_to_the_other(self) -> None:
        create_authority(self.directory, "defender.fleet", datetime.now(UTC))
        first = self.authority()
        web1 = await self.found()
        web2 = await self.enroll("web2")
        await self.calm()
        await self.issue(first, "web1")
        await self.issue(first, "web2")
        await self.crash()
        self.assertIn("no second one", self.run_command("rotate-ca", "fleet", "switch", code=1))
        self.assertIn("Start the controller", self.run_command("rotate-ca", "fleet", "prepare"))
        self.assertIn("is not published yet", self.run_command("rotate-ca", "fleet", "switch", code=1))

        await self.again(web1)
        self.assertEqual((self.listed(web1), self.listed(web2)), (2, 1))
        self.assertIn("runs", self.run_command("rotate-ca", "fleet", "switch", code=1))
        await self.crash()
        said = self.run_command("rotate-ca", "fleet", "switch", code=1)
        self.assertIn("web2 do not know the other one yet", said)
        await self.again(web1, web2)
        await self.crash()
        told = json.loads(self.run_command("rotate-ca", "fleet", "switch", "--json"))
        self.assertEqual(told, {"which": "fleet", "step": "switch"})

        authority = await self.again(web1, web2)
        self.assertNotEqual(authority.fleet, first.fleet)
        await self.issue(authority, "web1")
        await self.crash()
        said = self.run_command("rotate-ca", "fleet", "retire", code=1)
        self.assertIn("web2 still have a certificate of it", said)
        await self.again(web1, web2)
        await self.issue(authority, "web2")
        await self.crash()
        self.run_command("rotate-ca", "fleet", "retire")
        authority = await self.again(web1, web2)
        self.assertEqual((len(authority.all_fleet), self.listed(web1), self.listed(web2)), (1, 1, 1))
        assert self.database is not None
        batch = await self.database.read(trail.pending, lambda epoch: 0, 100)
        assert batch is not None
        self.assertEqual(batch.records.count(b"ca_rotate"), 3)
        issuer = authority.fleet.public_bytes(Encoding.DER)
        self.assertNotEqual(issuer, first.fleet.public_bytes(Encoding.DER))

    async def test_those_of_users_and_against_advice(self) -> None:
        create_authority(self.directory, "defender.fleet", datetime.now(UTC))
        first = self.authority()
        await self.found()
        await self.crash()
        rotate(self.directory, "users", "prepare", "ada")
        await self.again()
        await self.crash()
        self.assertIn("web1", self.run_command("rotate-ca", "users", "switch", code=1))
        self.run_command("rotate-ca", "users", "switch", "--even-now")
        self.assertNotEqual(self.authority().users, first.users)
        self.run_command("rotate-ca", "users", "retire")
        self.assertEqual(len(self.authority().all_users), 1)
