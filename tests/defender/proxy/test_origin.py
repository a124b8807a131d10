"""Control groups of containers and of everything else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from defender.proxy.origin import is_contained

ID = "3f" * 32
OTHER = "a0" * 32

HOST = [
    "0::/",
    "0::/init.scope",
    "0::/user.slice/user-1000.slice/session-3.scope",
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-"
    "3b1f1e7a-1c1d-4f7e-9d53-1b2c3d4e5f60.scope",
    "0::/system.slice/docker.service",
    "0::/system.slice/containerd.service",
    "0::/system.slice/snap.docker.dockerd.service",
    "0::/user.slice/user-1000.slice/user@1000.service/app.slice/docker.service",
    "0::/system.slice/system-getty.slice/getty@tty1.service",
    "0::/system.slice/docker.socket",
    "0::/system.slice/k3s.service",
    "0::/machine.slice",
    "0::/lxc.monitor.web",
    "0::/process_api/8d98b80c43a4c9f6b3dbcdb2e0ebdcbd",
    "9:name=systemd:/\n8:pids:/\n4:memory:/process_api/8d98b80c43a4c9f6b3dbcdb2e0ebdcbd\n0::/",
    "12:pids:/user.slice/user-0.slice/session-1.scope\n1:name=systemd:/user.slice/user-0.slice/session-1.scope",
    "0::/system.slice/cron.service (deleted)",
    "0::/default",
    "0::/../../user.slice/user-1000.slice/session-3.scope",
]

CONTAINERS = {
    "docker, cgroupfs": f"12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/docker/{ID}",
    "docker, systemd": f"0::/system.slice/docker-{ID}.scope",
    "docker, inside of it": f"0::/system.slice/docker-{ID}.scope/init.scope",
    "docker, other parent": f"0::/team/{ID}",
    "docker, systemd, no systemd inside": f"0::/system.slice:docker:{ID}",
    "docker, short name below its folder": "0::/docker/web",
    "buildkit": "0::/docker/buildkit/u6yqsbt1hv8mcwcpuohmc3xj5",
    "buildkit, systemd": "0::/system.slice/docker-u6yqsbt1hv8mcwcpuohmc3xj5.scope",
    "rootless docker": f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
    "rootless podman": "0::/user.slice/user-1000.slice/user@1000.service/user.slice/"
    f"libpod-{ID}.scope/container",
    "podman": f"0::/machine.slice/libpod-{ID}.scope/container",
    "podman pod": "0::/machine.slice/machine-libpod_pod_3f3f.slice/x",
    "podman, cgroupfs": f"0::/libpod_parent/libpod-{ID}",
    "containerd": f"0::/system.slice/cri-containerd-{ID}.scope",
    "containerd, its own client": "0::/default/redis",
    "kubernetes, containerd": f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/"
    f"cri-containerd-{ID}.scope",
    "kubernetes, cgroupfs": f"11:cpu:/kubepods/burstable/pod0b1c/{ID}",
    "kubernetes, the pod itself": "0::/kubepods/burstable/pod0b1c",
    "kubernetes, containerd without systemd": f"0::/system.slice/containerd.service/"
    f"kubepods-burstable-pod1.slice:cri-containerd:{ID}",
    "cri-o": f"0::/kubepods.slice/crio-{ID}.scope",
    "lxc 4": "0::/lxc.payload.web/init.scope",
    "lxc 3": "4:memory:/lxc/web/user.slice",
    "libvirt-lxc": "4:memory:/machine/web.libvirt-lxc",
    "nspawn": "0::/machine.slice/machine-deb.scope/payload",
    "nspawn unit": "0::/machine.slice/systemd-nspawn@deb.service/payload",
    "seen from inside another namespace": f"0::/../docker-{ID}.scope",
    "v1, one controller only": f"3:cpuset:/\n2:cpu:/docker/{ID}\n0::/",
    "ended": f"0::/system.slice/docker-{ID}.scope (deleted)",
    "ecs": f"9:perf_event:/ecs/task/{ID}",
}


class Paths(SynchronousTestCase):
    def test_host(self) -> None:
        for text in HOST:
            self.assertFalse(is_contained(text + "\n"), text)

    def test_containers(self) -> None:
        for name, text in CONTAINERS.items():
            self.assertTrue(is_contained(text + "\n"), name)

    def test_what_cannot_be_read_proves_nothing(self) -> None:
        for text in ("", "\n", "garbage", "0:/", "x::/", "0::relative", "0::/\ngarbage"):
            self.assertTrue(is_contained(text), repr(text))

    def test_a_path_may_hold_colons(self) -> None:
        self.assertFalse(is_contained("0::/user.slice/a:b:c"))


class BesideTheDefender(SynchronousTestCase):
    def test_the_same_container_is_not_another_one(self) -> None:
        own = f"1:name=systemd:/docker/{ID}\n0::/docker/{ID}"
        self.assertFalse(is_contained(own, own))
        self.assertFalse(is_contained("0::/lxc/web/ns/user.slice", "0::/lxc/web/ns/system.slice/d.service"))

    def test_a_sibling_is(self) -> None:
        self.assertTrue(is_contained(f"0::/docker/{OTHER}", f"0::/docker/{ID}"))

    def test_one_within_is(self) -> None:
        self.assertTrue(is_contained(f"0::/docker/{ID}/docker/{OTHER}", f"0::/docker/{ID}"))

    def test_a_host_of_ours_does_not_excuse_anybody(self) -> None:
        for text in CONTAINERS.values():
            self.assertTrue(is_contained(text, "0::/system.slice/defender.service"))


class AnyText(SynchronousTestCase):
    @settings(max_examples=200)
    @given(st.text(max_size=200), st.text(max_size=50))
    def test_gives_a_verdict(self, text: str, own: str) -> None:
        self.assertIsInstance(is_contained(text, own), bool)

    @settings(max_examples=100)
    @given(
        st.text(alphabet="abcdef0189-./", max_size=40).map(lambda text: "/" + text),
        st.sampled_from(["docker-{}.scope", "{}", "libpod-{}", "x:{}", "cri-containerd-{}.scope"]),
    )
    def test_an_engines_container_is_found_below_any_path(self, parent: str, name: str) -> None:
        self.assertTrue(is_contained(f"0::{parent}/{name.format(ID)}\n"))
