#!/usr/bin/env python3
"""`make posix`, second half: what pjdfstest said on our mount against what it said on the bare file system.

    posix.py DIRECTORY EXPECTED

DIRECTORY/<leg>/pjdfstest/<what>/result is the output of one run; `bare` and `ours` are compared, other names are only
counted. EXPECTED has a line for each test that differs:

    <leg>  <test>  <on the bare file system> <on ours>  # why

where a result is ok, FAILED or skipped. Beside `result` there may be `null`: the tests of character devices, made as another
device than the suite's 0:0; there nothing may differ. A difference that is not listed fails, and so does a line that no longer applies
to a leg that was run.
"""

import pathlib
import re
import sys

LINE = re.compile(r"^(\S+::\S+)\s+(ok|FAILED|skipped)$")
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
# pjdfstest 0.2.2 has 398 on Linux, 43 of them with character devices; fewer are a broken run, not a good one.
TESTS = 398
DEVICE_TESTS = 43


def results(path, fewest=TESTS):
    """Test → result, and test → what the suite said about a failure."""
    found, said, last = {}, {}, None
    for line in ESCAPE.sub("", path.read_text(errors="replace")).splitlines():
        if match := LINE.match(line):
            last = match[1]
            found[last] = match[2]
        elif last and line.startswith("\t"):
            said.setdefault(last, line.strip())
    if len(found) < fewest:
        sys.exit(f"{path}: only {len(found)} tests were run")
    return found, said


def counts(found):
    count = {word: list(found.values()).count(word) for word in ("ok", "FAILED", "skipped")}
    return f"{count['ok']} passed, {count['FAILED']} failed, {count['skipped']} skipped"


def expectations(path):
    """(leg, test) → (bare, ours)."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words, _, why = line.partition("#")
        if not words.strip():
            continue
        words = words.split()
        if len(words) != 4 or not why.strip():
            sys.exit(f"{path}:{number}: expected: leg test bare ours # why")
        found[words[0], words[1]] = (words[2], words[3])
    return found


def main():
    directory, expected_path = map(pathlib.Path, sys.argv[1:])
    expected = expectations(expected_path)
    faults = []
    for leg in ("user", "root"):
        runs = directory / leg / "pjdfstest"
        if not runs.is_dir():
            continue
        bare, _ = results(runs / "bare" / "result")
        ours, said = results(runs / "ours" / "result")
        for test in sorted(bare.keys() | ours.keys()):
            pair = (bare.get(test, "absent"), ours.get(test, "absent"))
            known = expected.pop((leg, test), None)
            if pair[0] != pair[1] and known != pair:
                faults.append(f"{leg} {test}: bare {pair[0]}, ours {pair[1]}: {said.get(test, '')}")
            elif pair[0] == pair[1] and known:
                faults.append(f"{leg} {test}: listed as different, and is not")
        faults += [f"{leg} {test}: listed, and there is no such test" for of, test in expected if of == leg]
        if (runs / "bare" / "null").exists():
            bare, _ = results(runs / "bare" / "null", DEVICE_TESTS)
            ours, said = results(runs / "ours" / "null", DEVICE_TESTS)
            faults += [
                f"{leg} {test} with device 1:3: bare {bare[test]}, ours {ours.get(test, 'absent')}: {said.get(test, '')}"
                for test in bare
                if bare[test] != ours.get(test)
            ]
        for run in sorted(path for path in runs.iterdir() if path.is_dir()):
            found, _ = results(run / "result")
            text = counts(found)
            if (run / "null").exists():
                text += f" | devices as 1:3: {counts(results(run / 'null', DEVICE_TESTS)[0])}"
            print(f"    pjdfstest {leg:5} {run.name:15} {text}")
    if faults:
        sys.exit("  ✗ pjdfstest differs from what is expected:\n    " + "\n    ".join(faults))
    print("  ✓ pjdfstest as expected")


if __name__ == "__main__":
    main()
