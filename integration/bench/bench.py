#!/usr/bin/env python3
"""Measures this engine, and others beside it, with the docker CLI: `make bench` (scripts/bench.sh prepares and calls it).

usage: bench.py --daemon PROGRAM [--user NAME] --registry HOST:PORT [--compare NAME SOCKET [REGISTRY]]...
                [--rounds N] [--only ITEM]... [--json FILE]

Items:
  start    from starting the program until /_ping answers (this engine only: others are given by their socket)
  memory   PSS of all processes of the idle engine, in MiB
  none     docker run --rm --network none busybox true
  bridge   docker run --rm busybox true
  pull     docker pull of one gzip layer with 98,304 small files
  rmi      docker rmi of it

Engines take turns within a round, so that other work on the machine falls on all of them; the table shows medians and, in
brackets, the ratio to this engine's. Figures of two different days cannot be compared: measure both sides in one run.
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

ITEMS = ["start", "memory", "none", "bridge", "pull", "rmi"]
UNITS = {"memory": "MiB"}


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

    def image(self, name):
        return f"{self.registry}/{name}"

    def server_pid(self):
        """The process that listens on the socket."""
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(self.socket)
            return struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def memory(self):
        """PSS of the engine's processes: the tree below the oldest ancestor in the listener's session."""
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
        total = 0
        for pid in tree:
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

    def __init__(self, program, user, registry):
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="skiff-bench-"))
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
        self.process = subprocess.Popen([self.program], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/",
                                        user=self.user, group=self.user, extra_groups=[] if self.user else None, start_new_session=True)
        while not ready(self.socket):
            if self.process.poll() is not None:
                sys.exit(f"bench: the daemon ended:\n{(self.base / 'log').read_text()[-3000:]}")
            time.sleep(0.001)
        return time.perf_counter() - began

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


class Bench:
    def __init__(self, engines, rounds):
        self.engines, self.rounds = engines, rounds
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
        if "pull" in only or "rmi" in only:
            for n in range(max(3, self.rounds // 3)):
                for engine in self.engines:
                    os.sync()
                    self.note("pull", engine, engine.docker("pull", "-q", engine.image("manyfiles")))
                for engine in self.engines:
                    os.sync()
                    self.note("rmi", engine, engine.docker("rmi", engine.image("manyfiles")))

    def table(self):
        names = [engine.name for engine in self.engines]
        lines = [["", *names]]
        for item in ITEMS:
            if item not in self.results:
                continue
            medians = {name: statistics.median(values) for name, values in self.results[item].items()}
            first = medians.get(names[0])
            row = [item]
            for name in names:
                if name not in medians:
                    row.append("–")
                    continue
                value = medians[name]
                text = f"{value:.1f} MiB" if UNITS.get(item) else f"{value * 1000:.0f} ms" if value < 10 else f"{value:.1f} s"
                row.append(text if name == names[0] or not first else f"{text} ({value / first:.2f}×)")
            lines.append(row)
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemon", required=True)
    parser.add_argument("--user")
    parser.add_argument("--registry", required=True)
    parser.add_argument("--compare", nargs="+", action="append", default=[], metavar="NAME SOCKET [REGISTRY]")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", action="append", choices=ITEMS)
    parser.add_argument("--json")
    args = parser.parse_args()
    engines = [OwnEngine(args.daemon, args.user, args.registry)]
    for name, path, *registry in args.compare:
        engines.append(Engine(name, path.removeprefix("unix://"), registry[0] if registry else args.registry))
    try:
        engines[0].start()
        bench = Bench(engines, args.rounds)
        bench.run(args.only or ITEMS)
        print(bench.table())
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps(bench.results, indent=1) + "\n")
    finally:
        for engine in engines:
            engine.close()


if __name__ == "__main__":
    main()
