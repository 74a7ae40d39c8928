#!/usr/bin/env python3
"""Makes images out of what the machine has (busybox from its own static busybox) and pushes them to a registry.

usage: images.py push REGISTRY [NAME...]      REGISTRY is HOST:PORT (plain HTTP); NAME: busybox (default), manyfiles

Why not a file from somewhere: a machine without internet must be able to build, run and test this engine, and a real
registry with a real image is the only honest way to exercise `docker pull`. Everything is done by hand on the registry's
HTTP API (https://distribution.github.io/distribution/spec/api/), so nothing has to be installed for it.

Both depend on the busybox binary alone: same machine, same digest.
Callers: scripts/registry.sh (for `make run`) and scripts/integration.sh (for the tests).
"""

import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.parse

EPOCH = 1735689600  # 2025-01-01: a fixed time, so that the digest does not change from run to run
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OCI = "application/vnd.oci.image"


class Layer:
    """A layer's tar, entry by entry."""

    def __init__(self):
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)

    def _entry(self, name, kind, mode, data=b"", link="", uid=0, gid=0):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
        info.uid, info.gid, info.mtime = uid, gid, EPOCH
        self.tar.addfile(info, io.BytesIO(data))

    def dir(self, name, mode=0o755, **owner):
        self._entry(name, tarfile.DIRTYPE, mode, **owner)

    def file(self, name, data, mode=0o644, **owner):
        self._entry(name, tarfile.REGTYPE, mode, data, **owner)

    def symlink(self, name, target):
        self._entry(name, tarfile.SYMTYPE, 0o777, link=target)

    def hardlink(self, name, target, mode):
        # The mode is the target's: some unpackers give the inode the mode of the last link entry.
        self._entry(name, tarfile.LNKTYPE, mode, link=target)

    def bytes(self):
        self.tar.close()
        return self.buffer.getvalue()


def busybox_layer():
    """All applets as hard links to one static binary, two users besides root, and the usual directories."""
    binary = shutil.which("busybox")
    if not binary:
        sys.exit("images.py: no busybox on this machine (Debian package busybox-static)")
    with open(binary, "rb") as file:
        program = file.read()
    if b"/ld-linux" in program[:4096]:
        sys.exit(f"images.py: {binary} is linked dynamically; the image needs busybox-static")
    applets = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.split()

    layer = Layer()
    for name in ("bin", "dev", "etc", "home", "proc", "sys", "usr", "usr/bin", "usr/sbin", "var"):
        layer.dir(name)
    layer.dir("root", 0o700)
    layer.dir("tmp", 0o1777)
    layer.dir("home/guest", 0o750, uid=405, gid=100)
    layer.file("bin/busybox", program, 0o755)
    for applet in sorted(set(applets) - {"busybox"}):
        layer.hardlink(f"bin/{applet}", "bin/busybox", 0o755)
    layer.symlink("sbin", "bin")
    layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"
                             b"www-data:x:33:33:www-data:/var:/bin/false\n"
                             b"guest:x:405:100:guest:/home/guest:/bin/sh\n"
                             b"nobody:x:65534:65534:nobody:/home:/bin/false\n")
    layer.file("etc/group", b"root:x:0:\nwww-data:x:33:\nusers:x:100:guest\nstaff:x:50:guest\nnogroup:x:65534:\n")
    layer.file("etc/os-release", b'NAME=BusyBox\nID=busybox\nPRETTY_NAME="BusyBox (made from this machine\'s own)"\n')
    return layer.bytes()


def manyfiles_layer():
    """98,304 small files in 2,048 directories, about 250 MB: what an unpacker finds hard. Text that gzip halves or so."""
    state = 1
    words = []
    for _ in range(4096):
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        words.append(format(state >> 24, "x")[: 3 + (state >> 60)].encode())
    layer = Layer()
    for directory in range(2048):
        layer.dir(f"files/{directory:04}")
        for number in range(48):
            state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
            start, count = state >> 33 & 4095, 20 + (state >> 45 & 511)
            text = b" ".join((words + words)[start:start + count])
            layer.file(f"files/{directory:04}/{number:02}.txt", text * (1 + (state >> 60 & 1)))
    return layer.bytes()


IMAGES = {
    "busybox": ([busybox_layer], {"Env": [PATH], "Cmd": ["sh"]}),
    "manyfiles": ([busybox_layer, manyfiles_layer], {"Env": [PATH], "Cmd": ["sh"]}),
}


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Registry:
    """The few calls of the registry's HTTP API that a push takes."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(address, timeout=60)

    def request(self, method, path, expected, body=None, **headers):
        self.connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status not in expected:
            sys.exit(f"images.py: {method} {path}: {answer.status} {answer.reason}: {text.decode(errors='replace')}")
        return answer

    def put_blob(self, name, data):
        if self.request("HEAD", f"/v2/{name}/blobs/{digest(data)}", (200, 404)).status == 200:
            return
        where = self.request("POST", f"/v2/{name}/blobs/uploads/", (202,)).headers["Location"]
        url = urllib.parse.urlsplit(where)
        query = urllib.parse.urlencode(urllib.parse.parse_qsl(url.query) + [("digest", digest(data))])
        self.request("PUT", f"{url.path}?{query}", (201,), data, Content_Type="application/octet-stream")

    def put_manifest(self, name, tag, manifest):
        data = json.dumps(manifest, sort_keys=True).encode()
        self.request("PUT", f"/v2/{name}/manifests/{tag}", (201,), data, Content_Type=manifest["mediaType"])
        return digest(data)


def push(registry, name):
    makers, config = IMAGES[name]
    tars = [make() for make in makers]
    layers = [gzip.compress(tar, 6, mtime=0) for tar in tars]
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = json.dumps({
        "architecture": architecture, "os": "linux", "created": "2025-01-01T00:00:00Z", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
        "history": [{"created": "2025-01-01T00:00:00Z", "created_by": f"{name} of this machine"} for _ in tars],
    }, sort_keys=True).encode()
    for blob in (*layers, config):
        registry.put_blob(name, blob)
    manifest = {
        "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json",
        "config": {"mediaType": f"{OCI}.config.v1+json", "digest": digest(config), "size": len(config)},
        "layers": [{"mediaType": f"{OCI}.layer.v1.tar+gzip", "digest": digest(layer), "size": len(layer)} for layer in layers],
    }
    # The tag gzip is what the benchmark asks for: an image may also be there as zstd.
    registry.put_manifest(name, "gzip", manifest)
    return registry.put_manifest(name, "latest", manifest)


def main():
    if len(sys.argv) < 3 or sys.argv[1] != "push":
        sys.exit(__doc__)
    registry = Registry(sys.argv[2])
    for name in sys.argv[3:] or ["busybox"]:
        print(f"{sys.argv[2]}/{name}:latest@{push(registry, name)}")


if __name__ == "__main__":
    main()
