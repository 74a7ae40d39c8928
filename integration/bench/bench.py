#!/usr/bin/env python3
"""Measures this engine, and others beside it, with the docker CLI: `make bench` (scripts/bench.sh prepares and calls it).

usage: bench.py --daemon PROGRAM [--user NAME] --registry HOST:PORT [--compare NAME SOCKET [REGISTRY]]...
                [--rounds N] [--only ITEM]... [--image NAME:TAG]... [--place DIRECTORY] [--realtime] [--json FILE] [-- FLAGS...]

Items:
  start    from starting the program until /_ping answers (this engine only: others are given by their socket)
  memory   PSS of all processes of the idle engine, in MiB
  none     docker run --rm --network none busybox true
  bridge   docker run --rm busybox true
  pull     docker pull of each image, cold; with it the peak of the resident memory of the engine's processes meanwhile
  rmi      removal of each image by the API
  change   of a container of manyfiles (98,304 files) with one file changed: create, diff, commit by the API
  save     docker save of manyfiles and py into a file, and docker load of it

Images that the registry does not have are left out and named. --place says where this engine's data lie (TMPDIR otherwise): the
engines it is compared with should have theirs on the same file system. --realtime runs this engine and the client with SCHED_RR;
whoever else takes part (the registry, other engines) should have been started like that. FLAGS go to the daemon.

Engines take turns within a round, so that other work on the machine falls on all of them; the table shows medians and, in
brackets, the ratio to this engine's (larger than 1: slower than we are); ~ marks rounds that differ by more than 40 %. Figures of
two different days cannot be compared: measure both sides in one run.
An engine that lives in another network namespace needs its own name for the registry (third word of --compare; rootless Docker
reaches the host's loopback at 10.0.2.2 when that is allowed).
"""

import argparse
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse

ITEMS = ["start", "memory", "none", "bridge", "pull", "rmi", "change", "save"]
IMAGES = ["debian:gzip", "debian:zstd", "manyfiles:gzip", "manyfiles:zstd", "big:gzip", "big:zstd", "py:gzip", "deep:gzip"]


def ready(path):
    """Whether the engine answers /_ping."""
    try:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(5)
            stream.connect(path)
            stream.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
            return b" 200 " in stream.recv(4096)
    except OSError:
        return False


def progress(text):
    """What is being measured, on a terminal only; replaced by the next."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("engine", timeout=900)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Engine:
    def __init__(self, name, path, registry):
        self.name, self.socket, self.registry = name, path, registry
        self.config = tempfile.mkdtemp(prefix="skiff-bench-cli-")

    def docker(self, *words):
        """Runs the docker CLI; gives the seconds it took."""
        env = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": self.config}
        began = time.perf_counter()
        done = subprocess.run(["docker", *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        took = time.perf_counter() - began
        if done.returncode != 0:
            sys.exit(f"bench: {self.name}: docker {' '.join(words)}: {done.stderr.strip()}")
        return took

    def request(self, method, path, expected):
        """One request of the API; gives the seconds it took, connecting included, and the answer."""
        began = time.perf_counter()
        connection = UnixConnection(self.socket)
        connection.request(method, path, headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        took = time.perf_counter() - began
        connection.close()
        if answer.status not in expected:
            sys.exit(f"bench: {self.name}: {method} {path}: {answer.status} {text.decode(errors='replace').strip()}")
        return took, text

    def remove_image(self, image):
        took, _ = self.request("DELETE", f"/images/{urllib.parse.quote(self.image(image), safe='')}?force=1", (200,))
        self.settle()
        return took

    def settle(self):
        """Waits until nothing is going on any more that the next measurement could feel."""
        os.sync()

    def image(self, name):
        return f"{self.registry}/{name}"

    def server_pid(self):
        """The process that listens on the socket."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(self.socket)
            return struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def processes(self):
        """The engine's processes: the tree below the oldest ancestor in the listener's session."""
        table = {}
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                table[int(stat.parent.name)] = (int(fields[1]), int(fields[3]))  # parent, session
            except OSError:
                pass
        root = self.server_pid()
        while table[root][0] in table and table[table[root][0]][1] == table[root][1]:
            root = table[root][0]
        tree, grown = {root}, True
        while grown:
            more = {pid for pid, (parent, _) in table.items() if parent in tree} - tree
            tree, grown = tree | more, bool(more)
        return tree

    def forget_peaks(self):
        for pid in self.processes():
            try:
                pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
            except OSError:
                pass

    def peak(self):
        """Largest resident memory of each of the processes since forget_peaks, added up, in MiB."""
        total = 0
        for pid in self.processes():
            try:
                for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        total += int(line.split()[1])
            except OSError:
                pass
        return total / 1024

    def memory(self):
        """Their PSS in MiB."""
        total = 0
        for pid in self.processes():
            try:
                for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
            except OSError:
                pass
        return total / 1024

    def close(self):
        shutil.rmtree(self.config, ignore_errors=True)


class OwnEngine(Engine):
    """This engine, started and stopped here, as an unprivileged user where we are root."""

    def __init__(self, program, user, registry, place, flags):
        self.flags = flags
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="skiff-bench-", dir=place))
        super().__init__("skiff", str(self.base / "run/docker.sock"), registry)
        self.program, self.user, self.process = program, user, None
        self.base.chmod(0o755)
        for name in ("run", "home"):
            (self.base / name).mkdir(mode=0o700)
            if user:
                shutil.chown(self.base / name, user, user)

    def start(self):
        env = {"HOME": str(self.base / "home"), "XDG_RUNTIME_DIR": str(self.base / "run"), "USER": self.user or os.environ.get("USER", ""),
               "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        log = open(self.base / "log", "ab")
        began = time.perf_counter()
        self.process = subprocess.Popen([self.program, *self.flags], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/",
                                        user=self.user, group=self.user, extra_groups=[] if self.user else None, start_new_session=True)
        while not ready(self.socket):
            if self.process.poll() is not None:
                sys.exit(f"bench: the daemon ended:\n{(self.base / 'log').read_text()[-3000:]}")
            time.sleep(0.001)
        return time.perf_counter() - began

    def settle(self):
        # Removal is a rename; what it leaves is freed in the background and would be in the way of whoever is next.
        trash = list((self.base / "home/.local/share/docker").glob("*/trash"))
        end = time.monotonic() + 120
        while any(any(path.iterdir()) for path in trash) and time.monotonic() < end:
            time.sleep(0.01)
        os.sync()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def close(self):
        self.stop()
        super().close()
        if os.geteuid() == 0:
            shutil.rmtree(self.base, ignore_errors=True)
        else:  # files of containers belong to subordinate ids
            subprocess.run(["unshare", "--map-auto", "--map-root-user", "rm", "-rf", str(self.base)], check=False)


def has_image(registry, image):
    name, _, tag = image.partition(":")
    connection = http.client.HTTPConnection(registry, timeout=10)
    connection.request("HEAD", f"/v2/{name}/manifests/{tag}", headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
    return connection.getresponse().status == 200


class Bench:
    def __init__(self, engines, rounds, images, place):
        self.engines, self.rounds, self.place = engines, rounds, place
        self.images = [image for image in images if has_image(engines[0].registry, image)]
        self.missing = [image for image in images if image not in self.images]
        self.results = {}

    def note(self, item, engine, value):
        self.results.setdefault(item, {}).setdefault(engine.name, []).append(value)

    def alternate(self, item, rounds, measure, engines=None):
        for n in range(rounds):
            progress(f"{item} {n + 1}/{rounds}")
            for engine in engines or self.engines:
                self.note(item, engine, measure(engine))
        progress("")

    def run(self, only):
        own = [engine for engine in self.engines if isinstance(engine, OwnEngine)]
        if "start" in only:
            def restart(engine):
                engine.stop()
                return engine.start()
            self.alternate("start", self.rounds, restart, own)
        if "memory" in only:
            # Idle, and not merely just started: each has done a run.
            for engine in self.engines:
                engine.docker("pull", "-q", engine.image("busybox"))
                engine.docker("run", "--rm", engine.image("busybox"), "true")
            self.alternate("memory", 3, lambda engine: engine.memory())
        for item, options in (("none", ["--network", "none"]), ("bridge", [])):
            if item in only:
                words = lambda engine: ["run", "--rm", *options, engine.image("busybox"), "true"]
                for engine in self.engines:
                    engine.docker("pull", "-q", engine.image("busybox"))
                    engine.docker(*words(engine))
                self.alternate(item, 3 * self.rounds, lambda engine: engine.docker(*words(engine)))
        few = max(3, self.rounds // 3)
        if "pull" in only or "rmi" in only:
            for n in range(few):
                for image in self.images:
                    progress(f"pull {image} {n + 1}/{few}")
                    self.pull_and_remove(image, n)
        if "change" in only and "manyfiles:gzip" in self.images:
            self.changes("manyfiles:gzip", few)
        if "save" in only:
            for image in ("manyfiles:gzip", "py:gzip"):
                if image in self.images:
                    self.save_and_load(image, few)
        progress("")

    def turns(self, n):
        """The engines, each time with another one first."""
        return self.engines[n % len(self.engines):] + self.engines[:n % len(self.engines)]

    def pull_and_remove(self, image, n):
        for engine in self.turns(n):
            engine.settle()
            engine.forget_peaks()
            self.note(f"pull {image}", engine, engine.docker("pull", "-q", engine.image(image)))
            self.note(f"peak {image} MiB", engine, engine.peak())
        for engine in self.turns(n):
            os.sync()
            self.note(f"rmi {image}", engine, engine.remove_image(image))

    def changes(self, image, rounds):
        for engine in self.engines:
            engine.docker("pull", "-q", engine.image(image))
            engine.settle()
        for n in range(rounds):
            progress(f"change {n + 1}/{rounds}")
            for engine in self.turns(n):
                name = f"bench-{n}"
                words = ["--name", name, "--network", "none", engine.image(image), "sh", "-c", "echo changed > /etc/changed"]
                self.note("create manyfiles", engine, engine.docker("create", *words))
                engine.docker("start", "-a", name)
                os.sync()
                took, text = engine.request("GET", f"/containers/{name}/changes", (200,))
                assert {"/etc/changed"} <= {change["Path"] for change in json.loads(text)}, text
                self.note("diff one change", engine, took)
                os.sync()
                took, _ = engine.request("POST", f"/commit?container={name}&repo=bench-commit&tag=t{n}", (201,))
                self.note("commit one change", engine, took)
                engine.docker("rm", name)
                engine.docker("rmi", f"bench-commit:t{n}")
        for engine in self.engines:
            engine.remove_image(image)

    def save_and_load(self, image, rounds):
        for n in range(rounds):
            progress(f"save {image} {n + 1}/{rounds}")
            for engine in self.turns(n):
                engine.docker("pull", "-q", engine.image(image))
                engine.settle()
                file = pathlib.Path(self.place or tempfile.gettempdir()) / f"skiff-bench-{os.getpid()}.tar"
                try:
                    self.note(f"save {image}", engine, engine.docker("save", "-o", str(file), engine.image(image)))
                    engine.remove_image(image)
                    self.note(f"load {image}", engine, engine.docker("load", "-q", "-i", str(file)))
                    engine.remove_image(image)
                finally:
                    file.unlink(missing_ok=True)

    def table(self):
        names = [engine.name for engine in self.engines]
        lines = [["", *names]]
        for item, results in self.results.items():
            medians = {name: statistics.median(values) for name, values in results.items()}
            first = medians.get(names[0])
            row = [item]
            for name in names:
                if name not in medians:
                    row.append("–")
                    continue
                value = medians[name]
                if item == "memory" or item.endswith("MiB"):
                    text = f"{value:.1f} MiB"
                else:
                    text = f"{value * 1000:.1f} ms" if value < 0.01 else f"{value * 1000:.0f} ms" if value < 10 else f"{value:.1f} s"
                if max(results[name]) - min(results[name]) > 0.4 * value:
                    text = "~" + text
                row.append(text if name == names[0] or not first else f"{text} ({value / first:.2f}×)")
            lines.append(row)
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        missing = f"\n  not in the registry: {', '.join(self.missing)}" if self.missing else ""
        return missing.lstrip("\n") + "\n" + "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--user")
    parser.add_argument("--registry", required=True)
    parser.add_argument("--compare", nargs="+", action="append", default=[], metavar="NAME SOCKET [REGISTRY]")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", action="append", choices=ITEMS)
    parser.add_argument("--image", action="append", metavar="NAME:TAG")
    parser.add_argument("--place")
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("flags", nargs="*", metavar="FLAGS")
    args = parser.parse_args()
    if args.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    engines = [OwnEngine(args.daemon, args.user, args.registry, args.place, args.flags)]
    for name, path, *registry in args.compare:
        engines.append(Engine(name, path.removeprefix("unix://"), registry[0] if registry else args.registry))
    # Told to end, it still stops what it started and shows what it has.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))
    bench = Bench(engines, args.rounds, args.image or IMAGES, args.place)
    try:
        engines[0].start()
        bench.run(args.only or ITEMS)
    finally:
        print(bench.table(), flush=True)
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps(bench.results, indent=1) + "\n")
        for engine in engines:
            engine.close()


if __name__ == "__main__":
    main()
