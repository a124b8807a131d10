"""A controller that was restored from a backup, and the locks that its defenders hold and it forgot."""

from __future__ import annotations

import shutil
from pathlib import Path

from controller.publisher_orders import Orders
from controller.store import locks
from controller.store.locks import LockRow
from defender.contract.contents import LocksContent
from defender.contract.locks import make_lock
from defender.contract.trust import LOCKS, POLICY
from tests.controller.publisher_fleet import Host
from tests.controller.test_publisher import PublisherCase


class Recalls(PublisherCase):
    async def restore(self, copy: Path) -> Orders:
        """Begin with a copy of the store; no host has a mark, as after a new start of its own."""
        await self.crash()
        for path in (self.directory / "store").iterdir():
            path.unlink()
        shutil.copy(copy, self.directory / "store" / "control.db")
        for host in self.desk.hosts.values():
            host.mark = None
        return await self.begin()

    def locked(self, host: Host) -> set[str]:
        content = host.content[LOCKS]
        assert isinstance(content, LocksContent)
        return {lock.value for lock in content.locks.locks}

    async def test_no_lock_is_forgotten(self) -> None:
        orders = await self.begin()
        hosts = [await self.enroll(f"web{n}") for n in range(2)]
        await orders.add_lock(make_lock("user", "eve"), "", "ada")
        await self.calm()
        assert self.database is not None
        copy = self.directory / "backup.db"
        await self.database.backup(copy)
        for each in range(600):
            row = LockRow(
                f"g{each}", "group", f"{each} of a group with a {'long ' * 15}name", "", "", "ada", 1.0
            )
            await self.database.write(locks.add, row)
        await orders.add_lock(make_lock("user", "bruce"), "", "ada")
        await self.calm()
        for early in (False, True):
            before = hosts[0].held[LOCKS].version
            orders = await self.restore(copy)
            while early and orders.rollout(LOCKS, "").version < before:
                # The number that the hosts hold is given to other locks before they are back.
                await orders.add_lock(make_lock("user", f"carl{len(await orders.locks())}"), "", "ada")
            for host in hosts:
                self.desk.connect(host)
            await self.calm()
            for host in hosts:
                self.assertLessEqual({"eve", "bruce", row.value}, self.locked(host))
                self.assertEqual("carl1" in self.locked(host), early)
                self.assertEqual(host.held[LOCKS].version, before + 1)
            self.assertGreater(len(self.desk.asked), 2)  # in several parts

    async def test_what_is_not_proved_locks_nobody(self) -> None:
        orders = await self.begin()
        host = await self.enroll("web1")
        await self.calm()
        assert self.database is not None
        copy = self.directory / "backup.db"
        await self.database.backup(copy)
        await orders.add_lock(make_lock("user", "bruce"), "", "ada")
        await self.calm()
        good = host.signed[LOCKS]
        older = next(data for stream, _, data in host.pushed if stream == LOCKS)
        for data, lies in (
            (good.replace(b"bruce", b"boris"), {}),
            (older, {}),
            (host.signed[POLICY], {}),
            (good, {"size": 2**40}),
            (good, {"size": True}),
            (good, {"data": "="}),
            (good, {"data": None}),
        ):
            host.signed[LOCKS], self.desk.lies = data, lies
            orders = await self.restore(copy)
            self.desk.asked.clear()
            self.desk.connect(host)
            await self.calm()
            self.assertEqual(len(self.desk.asked), 1)
            self.assertEqual(await orders.locks(), [])
            self.assertEqual(host.held[LOCKS].version, 2)
        host.signed[LOCKS], self.desk.lies = good, {}
        await self.restore(copy)
        self.desk.connect(host)
        await self.calm()
        self.assertEqual((self.locked(host), host.held[LOCKS].version), ({"bruce"}, 3))
