#!/usr/bin/env python3
"""Waits until an HTTP server answers, and no longer than the process behind it lives.

usage: wait-ready.py [--once] [--pid PID] [--timeout SECONDS] http://HOST:PORT/PATH | unix:///SOCKET

A Unix socket is asked for /_ping. Any answer below 500 counts (a registry with passwords says 401).
Exit status: 0 it answers, 1 it does not (--once), 2 the process died, 3 time is over.
"""

import argparse
import http.client
import os
import socket
import sys
import time
import urllib.parse


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def answers(url):
    parts = urllib.parse.urlsplit(url)
    unix = parts.scheme == "unix"
    connection = UnixConnection(parts.path) if unix else http.client.HTTPConnection(parts.netloc, timeout=5)
    try:
        connection.request("GET", "/_ping" if unix else parts.path)
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("url")
    args = parser.parse_args()
    end = time.monotonic() + args.timeout
    while not answers(args.url):
        if args.once:
            sys.exit(1)
        if args.pid and not os.path.exists(f"/proc/{args.pid}"):
            sys.exit(2)
        if time.monotonic() > end:
            sys.exit(3)
        time.sleep(0.01)


if __name__ == "__main__":
    main()
