#!/usr/bin/env python3
"""Measures overlay file systems against each other as an unprivileged user: the kernel's, ours, other FUSE programs, and the
bare file system below. `make bench-filesystems` (scripts/bench.sh) prepares and calls it; docs/benchmarks.md tells how to read it.

usage: filesystems.py [--fuse NAME COMMAND]... [--user NAME] [--place DIRECTORY] [--rounds N] [--only ROW]... [--quick]
                      [--skip NAME]... [--json FILE] [--output FILE] [--options OPTION,...] [--no-realtime]

  --fuse NAME COMMAND   a program that understands `COMMAND -o lowerdir=…,upperdir=…,workdir=… MOUNTPOINT`; may be repeated. The
                        first one is the one that the others are compared with.
  --place DIRECTORY     where everything is made, on the file system to measure (about 4 GiB; --quick 300 MiB)
  --options             further options for every FUSE mount

Everything runs as root of a user namespace with the user's subordinate ids. Every row gets a mount of its own on fresh directories;
"fresh" rows are the first use of a mount, "warm" rows the second. Candidates take turns within a round, so that other
work on the machine falls on all of them; the table shows medians, and ~ where the rounds differ by more than 40 %. Started by root,
it runs with SCHED_RR, and so do the FUSE servers, which keeps other work on the cores out of the figures; with --no-realtime (for
a machine that others need, or to see what users get) everything keeps its ordinary priority.
"""

import argparse
import json
import os
import pathlib
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time

LIMIT = 600  # seconds for one row: longer is a hang, and is reported as one
DOWN, UP = "s", "per s"


class Sizes:
    def __init__(self, quick):
        part = 10 if quick else 1
        self.tree, self.source, self.unpacked = 100_000 // part, 30_000 // part, 30_000 // part
        self.copied, self.packages, self.entries = 10_000 // part, 4_000 // part, 10_000 // part
        self.big = (1 << 30) // part
        self.random, self.operations = (256 << 20) // part, 200_000 // part
        self.versioned = 8_000 // part


def run(*words, **more):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=LIMIT, **more)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(map(str, words))[:200]}: {done.stderr.decode(errors='replace').strip()[-300:]}")


# ── the data ─────────────────────────────────────────────────────────────────────────────────────────────────────────

def content(rng, text):
    """Source-like bytes of a length that source files have."""
    size = rng.randrange(20_000, 40_000) if rng.randrange(40) == 0 else rng.randrange(100, 4_000)
    at = rng.randrange(len(text) - size)
    return text[at:at + size]


def filler():
    rng = random.Random(1)
    words = [f"{rng.getrandbits(36):x}" for _ in range(3000)]
    return " ".join(rng.choice(words) for _ in range(40_000)).encode()


def make_tree(directory, files, rng, text):
    for n in range(files):
        if n % 20 == 0:
            here = directory / f"group-{n // 2000}" / f"dir-{n // 20}"
            here.mkdir(parents=True, exist_ok=True)
        (here / f"file-{n}.c").write_bytes(content(rng, text))


def prepare(place, sizes):
    """Two lower directories (a big one and a thin one on top), an archive and a repository; made once for a place."""
    ready = place / f"ready-{sizes.tree}"
    if ready.exists():
        return
    # What another size left is not what this one measures.
    for left in place.glob("ready-*"):
        left.unlink()
    for name in ("lower1", "lower2", "unpacked", "repository"):
        shutil.rmtree(place / name, ignore_errors=True)
    rng, text = random.Random(2), filler()
    lower = place / "lower1"
    make_tree(lower / "tree", sizes.tree, rng, text)
    make_tree(lower / "source", sizes.source, rng, text)
    with open(lower / "big", "wb") as out:
        block = random.Random(3).randbytes(1 << 20)
        for _ in range(sizes.big >> 20):
            out.write(block)
    (place / "lower2/tree/group-0/dir-0").mkdir(parents=True)
    (place / "lower2/tree/group-0/dir-0/file-0.c").write_bytes(b"changed")
    (place / "lower2/added").write_bytes(b"added")
    unpacked = place / "unpacked"
    make_tree(unpacked, sizes.unpacked, rng, text)
    with tarfile.open(place / "archive.tar", "w") as archive:
        archive.add(unpacked, "unpacked")
    shutil.rmtree(unpacked)
    repository = place / "repository"
    make_tree(repository, sizes.versioned, rng, text)
    git = ["git", "-C", repository, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    run("git", "init", "-q", repository)
    run(*git, "add", ".")
    run(*git, "commit", "-q", "-m", "all of it")
    ready.touch()
    os.sync()


# ── the candidates ───────────────────────────────────────────────────────────────────────────────────────────────────

class Candidate:
    """Something that shows the lower directories, writable, at self.path."""

    def __init__(self, name, place):
        self.name, self.place = name, place
        self.work = place / f"work-{name.replace(' ', '-').replace('/', '-')}"
        self.path = self.work / "merged"

    def start(self):
        for name in ("upper", "work", "merged"):
            (self.work / name).mkdir(parents=True)
        self.mount()

    def again(self):
        """The same directories under a new mount."""
        self.unmount()
        self.mount()

    def end(self):
        self.unmount()
        shutil.rmtree(self.work)

    def lowers(self):
        return f"{self.place / 'lower2'}:{self.place / 'lower1'}"

    def options(self):
        return f"lowerdir={self.lowers()},upperdir={self.work / 'upper'},workdir={self.work / 'work'}"


class Bare(Candidate):
    """The file system below: rows that only read use the lower directory, others a copy of what they change."""

    def __init__(self, place):
        super().__init__("bare", place)

    def start(self):
        (self.work / "merged").mkdir(parents=True)

    def bring(self, *names):
        for name in names:
            run("cp", "-a", self.place / "lower1" / name, self.path / name)
        os.sync()

    def mount(self):
        pass

    def unmount(self):
        pass


class Kernel(Candidate):
    def __init__(self, place):
        super().__init__("kernel overlay", place)

    def mount(self):
        run("mount", "-t", "overlay", "overlay", "-o", self.options() + ",userxattr", self.path)

    def unmount(self):
        run("umount", self.path)


class Fuse(Candidate):
    def __init__(self, name, command, place, more):
        super().__init__(name, place)
        self.command, self.more, self.before = shlex.split(command), more, set()

    def options(self):
        return super().options() + ("," + self.more if self.more else "")

    def mount(self):
        # Not a pipe: a server that goes into the background keeps what it inherits.
        log = open(self.work / "log", "ab")
        self.process = subprocess.Popen([*self.command, "-o", self.options(), str(self.path)], stdin=subprocess.DEVNULL,
                                        stdout=log, stderr=log, start_new_session=True)
        log.close()
        end = time.monotonic() + 20
        while not os.path.ismount(self.path):
            if self.process.poll() not in (None, 0) or time.monotonic() > end:
                raise RuntimeError(f"{self.name} did not mount: {(self.work / 'log').read_text(errors='replace')[-300:]}")
            time.sleep(0.002)

    def unmount(self):
        if os.path.ismount(self.path):
            done = subprocess.run(["umount", self.path], capture_output=True)
            if done.returncode != 0:
                run("umount", "-l", self.path)
        # Its last writes belong to this row, and its work directory is removed next.
        end = time.monotonic() + 20
        for pid in servers(self.work):
            while time.monotonic() < end and alive(pid):
                time.sleep(0.005)
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def servers(work):
    """Processes whose command line names the directory: FUSE servers that went into the background."""
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if str(work).encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                yield int(entry.name)
        except OSError:
            pass


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ── the rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

def timed(work):
    os.sync()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def readable(candidate):
    return candidate.place / "lower1" if isinstance(candidate, Bare) else candidate.path


def bring(candidate, *names):
    if isinstance(candidate, Bare):
        candidate.bring(*names)


def untar_and_remove(candidate, sizes):
    yield "untar", timed(lambda: run("tar", "-C", candidate.path, "-xf", candidate.place / "archive.tar"))
    found = sum(len(files) for _, _, files in os.walk(candidate.path / "unpacked"))
    assert found == sizes.unpacked, found
    yield "rm", timed(lambda: run("rm", "-rf", candidate.path / "unpacked"))


def find(top, jobs):
    if jobs == 1:
        run("find", top / "tree", "-type", "f", "-size", "-100k", "-printf", "")
        return
    groups = sorted(str(path) for path in (top / "tree").iterdir())
    listing = "\0".join(groups).encode()
    done = subprocess.run(["xargs", "-0", "-n", "1", "-P", str(jobs), "sh", "-c", 'exec find "$0" -type f -size -100k -printf ""'],
                          input=listing, stdout=subprocess.DEVNULL, timeout=LIMIT)
    assert done.returncode == 0


def walk(candidate, sizes):
    top = readable(candidate)
    for jobs, name in ((1, "find"), (8, "find 8×")):
        candidate.again()
        yield f"{name} fresh", timed(lambda: find(top, jobs))
        yield f"{name} warm", timed(lambda: find(top, jobs))
    found = sum(len(files) for _, _, files in os.walk(top / "tree"))
    assert found == sizes.tree, found


def grep(candidate, sizes):
    def search():
        done = subprocess.run(["grep", "-rc", "no such text", readable(candidate) / "source"], stdout=subprocess.PIPE, timeout=LIMIT)
        assert done.returncode == 1 and done.stdout.count(b"\n") == sizes.source
    yield "grep fresh", timed(search)
    yield "grep warm", timed(search)


def copy_up(candidate, sizes):
    bring(candidate, "source", "big")
    names = [os.path.join(base, name) for base, _, files in os.walk(candidate.path / "source") for name in files][:sizes.copied]
    assert len(names) == sizes.copied

    def small():
        for name in names:
            os.close(os.open(name, os.O_RDWR))
            os.utime(name)
    yield "copy-up small", timed(small)

    def big():
        with open(candidate.path / "big", "ab") as file:
            file.write(b"x")
    yield "copy-up big", timed(big)
    assert (candidate.path / "big").stat().st_size == (sizes.big >> 20 << 20) + 1


def whiteouts(candidate, sizes):
    bring(candidate, "source")
    yield "rm lower", timed(lambda: run("rm", "-rf", candidate.path / "source"))
    assert not (candidate.path / "source").exists()


def packages(candidate, sizes):
    data = os.urandom(8192)
    directory = candidate.path / "usr"

    def install():
        directory.mkdir()
        for n in range(sizes.packages):
            if n % 40 == 0:
                (directory / f"package-{n // 40}").mkdir()
            final = directory / f"package-{n // 40}" / f"file-{n}"
            fd = os.open(f"{final}.dpkg-new", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
            os.write(fd, data)
            os.fsync(fd)
            os.fchmod(fd, 0o644)
            os.fchown(fd, 0, 0)
            os.utime(fd, (1, 1))
            os.close(fd)
            os.rename(f"{final}.dpkg-new", final)
    yield "packages", timed(install)


def metadata(candidate, sizes):
    """The calls one by one, each on so many entries."""
    top = candidate.path / "calls"
    top.mkdir()
    names = [str(top / f"n{n}") for n in range(sizes.entries)]

    def create():
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    def stat():
        for name in names:
            os.stat(name)

    def missing():
        for name in names:
            try:
                os.stat(name + "-missing")
            except FileNotFoundError:
                continue
            raise AssertionError(name)

    def opened():
        for name in names:
            os.close(os.open(name, os.O_RDONLY))

    def change():
        for name in names:
            os.chmod(name, 0o600)

    def rename():
        for name in names:
            os.rename(name, name + "r")

    def link():
        for name in names:
            os.link(name + "r", name)

    def listing():
        for _ in range(20):
            assert len(os.listdir(top)) == 2 * len(names)

    def unlink():
        for name in names:
            os.unlink(name)
            os.unlink(name + "r")

    def directories():
        for name in names:
            os.mkdir(name)
        for name in names:
            os.rmdir(name)
    for name, work in (("create", create), ("stat", stat), ("stat missing", missing), ("open", opened), ("chmod", change),
                       ("rename", rename), ("link", link), ("readdir", listing), ("unlink", unlink), ("mkdir rmdir", directories)):
        yield f"{name} ×{sizes.entries // 1000}k", timed(work)


def versions(candidate, sizes):
    def work():
        run("git", "clone", "-q", f"file://{candidate.place / 'repository'}", candidate.path / "clone")
        run("git", "-C", candidate.path / "clone", "status")
    yield "git clone+status", timed(work)


def sequential(candidate, sizes):
    path, block = candidate.path / "written", bytearray(os.urandom(1 << 20))

    def write():
        with open(path, "wb", buffering=0) as file:
            for _ in range(sizes.big >> 20):
                file.write(block)

    def read(path):
        with open(path, "rb", buffering=0) as file:
            total = 0
            while n := file.readinto(block):
                total += n
        assert total == sizes.big >> 20 << 20
    mib = sizes.big >> 20
    yield "write MiB/s", mib / timed(write)
    candidate.again()
    yield "read MiB/s", mib / timed(lambda: read(readable(candidate) / "big"))


def scattered(candidate, sizes):
    path = candidate.path / "random"
    with open(path, "wb") as file:
        for _ in range(sizes.random >> 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    rng = random.Random(4)
    places = [rng.randrange(sizes.random >> 20 << 8) << 12 for _ in range(sizes.operations)]
    buffer = bytearray(4096)

    def read():
        fd = os.open(path, os.O_RDONLY)
        for place in places:
            os.preadv(fd, [buffer], place)
        os.close(fd)

    def write():
        fd = os.open(path, os.O_WRONLY)
        for place in places[:sizes.operations // 4]:
            os.pwrite(fd, buffer, place)
        os.close(fd)
    yield "random read k/s", sizes.operations / timed(read) / 1000
    yield "random write k/s", sizes.operations / 4 / timed(write) / 1000


GROUPS = [untar_and_remove, walk, grep, copy_up, whiteouts, packages, metadata, versions, sequential, scattered]
METADATA = ("untar", "rm", "find", "copy-up small", "packages", "create", "stat", "open", "chmod", "rename", "link", "readdir", "unlink",
            "mkdir", "grep")


# ── rounds and table ─────────────────────────────────────────────────────────────────────────────────────────────────

def larger_is_better(row):
    return row.endswith("/s")


class Result:
    def __init__(self, names):
        self.names, self.rows, self.errors = names, {}, []

    def note(self, row, name, value):
        self.rows.setdefault(row, {}).setdefault(name, []).append(value)

    def table(self, header):
        fuse = [name for name in self.names if name not in ("bare", "kernel overlay")]
        ours, peers = fuse[0] if fuse else None, fuse[1:]
        head = ["", *self.names, *(["best peer / ours"] if peers else [])]
        lines, ratios = [head], {}
        for row, cells in self.rows.items():
            medians = {name: statistics.median(values) for name, values in cells.items()}
            line = [row]
            for name in self.names:
                if name not in medians:
                    line.append("–")
                    continue
                value, values = medians[name], cells[name]
                noisy = "~" if (max(values) - min(values)) > 0.4 * value else ""
                line.append(noisy + (f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.3f}"))
            known = [medians[name] for name in peers if name in medians]
            if known and ours in medians:
                ratio = medians[ours] / max(known) if larger_is_better(row) else min(known) / medians[ours]
                ratios[row] = ratio
                line.append(f"{ratio:.2f}×" + ("  ← slower" if ratio < 1 else ""))
            lines.append(line)
        widths = [max(len(line[n]) for line in lines if n < len(line)) for n in range(len(head))]
        text = header + "\n\n"
        for line in lines:
            text += "  ".join(cell.ljust(widths[n]) if n == 0 else cell.rjust(widths[n]) for n, cell in enumerate(line)).rstrip() + "\n"
        if ratios:
            behind = [row for row, ratio in ratios.items() if ratio < 1]
            thin = [row for row, ratio in ratios.items() if 1 <= ratio < 1.5 and row.startswith(METADATA)]
            text += f"\n{len(ratios) - len(behind)} of {len(ratios)} rows at least as fast as the best peer; slower: {', '.join(behind) or 'none'}"
            text += f"\nmetadata rows below 1.5×: {', '.join(thin) or 'none'}\n"
        for error in self.errors:
            text += f"✗ {error}\n"
        return text


def measure(candidates, sizes, args, header):
    result = Result([candidate.name for candidate in candidates])
    for n in range(args.rounds):
        for group in GROUPS:
            if args.only and not any(word in group.__name__ for word in args.only):
                continue
            for turn in range(len(candidates)):
                candidate = candidates[(turn + n) % len(candidates)]
                if sys.stderr.isatty():
                    print(f"\r\x1b[K{n + 1}/{args.rounds} {group.__name__} {candidate.name}", end="", file=sys.stderr, flush=True)
                try:
                    candidate.start()
                    for row, value in group(candidate, sizes):
                        result.note(row, candidate.name, value)
                except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
                    text = f"{candidate.name}, {group.__name__}: {type(error).__name__} {error}"
                    if text not in result.errors:
                        result.errors.append(text)
                finally:
                    try:
                        candidate.end()
                    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                        result.errors.append(f"{candidate.name}, end of {group.__name__}: {error}")
                        subprocess.run(["umount", "-l", candidate.path], capture_output=True, check=False)
                        shutil.rmtree(candidate.work, ignore_errors=True)
        text = result.table(header.replace("N rounds", f"{n + 1} of {args.rounds} rounds"))
        if args.output:
            pathlib.Path(args.output).write_text(text)
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps({"rows": result.rows, "errors": result.errors}, indent=1) + "\n")
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return text


def inside(args):
    place = pathlib.Path(args.place)
    sizes = Sizes(args.quick)
    for left in place.glob("work-*"):
        shutil.rmtree(left, ignore_errors=True)
    prepare(place, sizes)
    candidates = [Bare(place), Kernel(place)]
    candidates += [Fuse(name, command, place, args.options) for name, command in args.fuse]
    candidates = [candidate for candidate in candidates if candidate.name not in args.skip]
    header = (f"# {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, Linux {os.uname().release}, {os.cpu_count()} processors, N rounds, "
              f"seconds unless said, medians{', quick sizes' if args.quick else ''}"
              f"{', real-time' if os.sched_getscheduler(0) == os.SCHED_RR else ''}")
    print(measure(candidates, sizes, args, header))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuse", nargs=2, action="append", default=[], metavar=("NAME", "COMMAND"))
    parser.add_argument("--user")
    parser.add_argument("--place", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="groups whose name contains this: "
                        + ", ".join(group.__name__ for group in GROUPS))
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--options", default="")
    parser.add_argument("--no-realtime", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--output")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return inside(args)
    # Not sys.executable, which may be one that only its owner can reach.
    words = ["unshare", "--user", "--map-auto", "--map-root-user", "--mount", "--propagation", "private", "--",
             shutil.which("python3", path="/usr/bin:/bin") or sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--inside"]
    pathlib.Path(args.place).mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        if not args.user:
            sys.exit("filesystems: as root, say --user NAME: it measures what an unprivileged user gets")
        shutil.chown(args.place, args.user, args.user)
        words = ["setpriv", "--reuid", args.user, "--regid", args.user, "--clear-groups", "--", *words]
        if not args.no_realtime:
            try:
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
            except OSError as error:
                print(f"filesystems: no real-time priority ({error}); other work on the machine will show", file=sys.stderr)
    os.umask(0o022)
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
