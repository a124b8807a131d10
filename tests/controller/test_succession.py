"""Another fleet intermediate under a whole controller and real members; and the installer over its HTTPS."""

from __future__ import annotations

import ssl
import urllib.request

from twisted.internet.threads import deferToThread

from controller.cli.rotation import rotate
from defender.member import FleetMember
from tests.controller.test_service import ControllerCase, Running


class SuccessionTests(ControllerCase):
    async def again(self, running: Running, member: FleetMember, *steps: str) -> Running:
        """Stop, take these steps, start, and have the member come back."""
        ports = running.controller.https_port, running.controller.channel_port
        await self.stop(running)
        await self.until(lambda: member.link is not None and not member.link.connected)
        for step in steps:
            await deferToThread(rotate, self.state, "fleet", step, "ada")
        running = await self.started(self.write(https=ports[0], channel=ports[1]))
        link = member.link
        assert link is not None
        if link._call is not None:
            link._call.reset(0)
        await self.until(lambda: link.connected)
        return running

    async def test_a_member_follows_each_step(self) -> None:
        running = await self.started()
        admin = await self.admin(running)
        member, _, _ = await self.member(running, admin, "web1")
        assert member.member is not None
        [old] = member.member.anchors
        running = await self.again(running, member, "prepare")
        await self.until(lambda: member.member is not None and len(member.member.anchors) == 2)
        admin = await self.admin(running)

        async def told() -> bool:
            shown = (await admin.ask("GET", "/api/v1/defenders/web1")).document
            return bool(shown["streams"]["trust"]["state"] == "acked")

        while not await told():
            await self.passed()
        running = await self.again(running, member, "switch")
        authority = running.controller._authority
        self.assertNotEqual(authority.fleet, old)
        self.assertEqual(running.controller._identity.chain[1], authority.fleet)
        # A new host gets a certificate of the new one, and knows both.
        newcomer, _, _ = await self.member(running, await self.admin(running), "web2")
        assert newcomer.member is not None
        self.assertEqual(newcomer.member.anchors, authority.all_fleet)
        newcomer.member.certificate.verify_directly_issued_by(authority.fleet)

    async def test_whoever_knows_the_root_can_download_the_installer(self) -> None:
        running = await self.started()

        def download() -> bytes:
            context = ssl.create_default_context(cafile=str(self.state / "pki" / "root.pem"))
            address = f"https://127.0.0.1:{running.controller.https_port}/install/defender.sh"
            with urllib.request.urlopen(address, context=context, timeout=30) as answer:
                return bytes(answer.read())

        script = await deferToThread(download)
        self.assertTrue(script.startswith(b"#!/bin/sh\n"))
        self.assertIn(b":%d'\n" % running.controller.channel_port, script)
        self.assertNotIn(b"\nFLEET=''\n", script)
