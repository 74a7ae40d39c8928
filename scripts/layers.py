#!/usr/bin/env python3
"""`make layers`: the workspace's dependency edges against the drawing in ARCHITECTURE.md.

Three rules. Two are read from `cargo metadata` (normal and build dependencies; a test may look at anything below it):
  1. one of our crates may depend on another only when DRAWING allows the edge, and every crate is in the drawing;
  2. a crate in WRAPPERS may be a direct dependency only of its owners.
The third is read from the sources:
  3. a library reads neither the environment nor the home directory; the program passes in what they need.
deny.toml says rule 2 again for cargo-deny, which is slow to install; this script is the check that always runs,
and it fails when the two say different things.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

# crate -> those of our crates it may use. Bottom layer first: nothing may point upward or sideways.
DRAWING = {
    "skiff-sys": [],
    "skiff-archive": ["skiff-sys"],
    "skiff-fuse-overlay": ["skiff-sys"],
    "skiff-graphdrivers": ["skiff-sys", "skiff-archive", "skiff-fuse-overlay"],
    "skiff-storage-bench": ["skiff-sys", "skiff-archive", "skiff-graphdrivers"],
    "skiff-registry-client": [],
    "skiff-store": ["skiff-sys", "skiff-archive", "skiff-graphdrivers", "skiff-registry-client"],
    "skiff-core": ["skiff-sys", "skiff-store", "skiff-graphdrivers", "skiff-archive", "skiff-registry-client"],
    "skiff-runtime": ["skiff-core", "skiff-sys"],
    "skiff-network": ["skiff-core", "skiff-sys"],
    "skiff-api": ["skiff-core"],
    "skiffd": ["skiff-api", "skiff-core", "skiff-runtime", "skiff-network", "skiff-store", "skiff-registry-client",
               "skiff-graphdrivers", "skiff-archive", "skiff-fuse-overlay", "skiff-storage-bench", "skiff-sys"],
    # Black-box: it must not be able to agree with our bugs.
    "skiff-integration": [],
}

# outside crate -> the only crates of ours that may name it.
WRAPPERS = {
    "axum": ["skiff-api"],
    "reqwest": ["skiff-registry-client"],
    "libc": ["skiff-sys"],
    "fuse3": ["skiff-fuse-overlay"],
}


# Crates that may read the environment: the program, and the tests that start it.
ENVIRONMENT_READERS = ["skiffd", "skiff-integration"]
ENVIRONMENT = re.compile(r"\benv::(?:var|vars|var_os|vars_os|home_dir)\b")


def environment_reads(package):
    """Lines of a library's own sources that read the environment."""
    source = pathlib.Path(package["manifest_path"]).parent / "src"
    for path in sorted(source.rglob("*.rs")):
        if "tests" in path.relative_to(source).with_suffix("").parts:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if ENVIRONMENT.search(line) and not line.lstrip().startswith("//"):
                yield f"{package['name']} must not read the environment: {path.name}:{number}"


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    metadata = json.loads(subprocess.run(
        ["cargo", "metadata", "--format-version=1", "--no-deps", "--locked"], cwd=root, check=True, capture_output=True).stdout)
    faults, edges = [], 0
    for package in metadata["packages"]:
        name = package["name"]
        if name not in DRAWING:
            faults.append(f"{name} is not in the drawing: give it a place in scripts/layers.py and ARCHITECTURE.md")
            continue
        if name not in ENVIRONMENT_READERS:
            faults += environment_reads(package)
        for dependency in package["dependencies"]:
            other = dependency["name"]
            if dependency["kind"] == "dev" and name != "skiff-integration":
                continue
            if other in DRAWING:
                edges += 1
                if other not in DRAWING[name]:
                    faults.append(f"{name} must not depend on {other}")
            elif name not in WRAPPERS.get(other, [name]):
                faults.append(f"{name} must not depend on {other}: only {', '.join(WRAPPERS[other])} may")
    for name in DRAWING.keys() - {package["name"] for package in metadata["packages"]}:
        faults.append(f"{name} is in the drawing and not in the workspace")

    denied = tomllib.loads((root / "deny.toml").read_text())["bans"]["deny"]
    denied = {ban["crate"]: ban["wrappers"] for ban in denied if "wrappers" in ban}
    for crate, owners in WRAPPERS.items():
        ours = [owner for owner in denied.get(crate, []) if owner in DRAWING]
        if ours != owners:
            faults.append(f"deny.toml says wrappers = {ours} for {crate}, scripts/layers.py says {owners}")

    for fault in faults:
        print(f"layers: {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    print(f"  ✓ layers: {len(DRAWING)} crates, {edges} edges, all pointing downward")


if __name__ == "__main__":
    main()
