#!/usr/bin/env python3
"""An HTTP server before a binary cache, or a directory: notes what is asked, and breaks off.

    between.py PORT DIRECTORY CONTROL

serves DIRECTORY for the steps of a scenario, which control it by files: the server appends each request
to CONTROL/requests, and each line of CONTROL/faults is `WHAT AFTER TIMES PATH`: as many times, the body of
the answer to PATH breaks off after so many bytes, and then

    break    the connection ends;
    stop     the server ends;
    stall    nothing comes while the line is there; then the rest does.
"""

import http.client
import http.server
import os
import socket
import sys
import threading
import time
from pathlib import Path


class Between:
    """Serves what is at the port `port` of this machine, or in `directory`."""

    def __init__(self, port=None, directory=None, listen=0):
        between = self
        self.requests = []
        # Bodies of these paths break off after so many bytes, so many times.
        self.break_off = {}
        self.lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                part = self.headers.get("Range")
                between.note(" ".join(filter(None, [self.command, self.path, part])))
                if port:
                    upstream = http.client.HTTPConnection("127.0.0.1", port)
                    passed = {name: value for name, value in self.headers.items()
                              if name.lower() not in ("host", "connection")}
                    upstream.request(self.command, self.path, body, passed)
                    answer = upstream.getresponse()
                    status, headers, content = answer.status, answer.getheaders(), answer.read()
                else:
                    status, headers, content = between.of_directory(directory, self.path, part)
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "content-length", "connection", "date"):
                        self.send_header(name, value)
                size = dict((name.lower(), value) for name, value in headers).get("content-length")
                self.send_header("Content-Length", size or str(len(content)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                after = between.breaks_after(self.path, len(content))
                self.wfile.write(content[:after])
                self.wfile.flush()
                if after is None:
                    return
                if between.goes_on(self.path):
                    self.wfile.write(content[after:])
                    return
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_HEAD = do_PUT = answer

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", listen), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def of_directory(directory, path, part):
        file = directory / path.lstrip("/")
        if not file.is_file():
            return 404, [], b""
        content = file.read_bytes()
        if not part:
            return 200, [("Accept-Ranges", "bytes")], content
        start = int(part.removeprefix("bytes=").rstrip("-"))
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, [("Content-Range", span)], content[start:]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def note(self, request):
        with self.lock:
            self.requests.append(request)

    def take(self):
        with self.lock:
            taken, self.requests = self.requests, []
        return taken

    def breaks_after(self, path, length):
        """How many of `length` bytes are sent before the answer to `path` breaks off; none if it does not."""
        with self.lock:
            after, times = self.break_off.get(path, (None, 0))
            if times == 0 or length <= after:
                return None
            self.break_off[path] = (after, times - 1)
            return after

    def goes_on(self, path):
        """Whether the rest of an answer that broke off comes, perhaps later."""
        return False


class Controlled(Between):
    """One that the steps of a scenario control."""

    def __init__(self, listen, directory, control):
        self.log, self.faults = control / "requests", control / "faults"
        # What happens at a path whose answer is breaking off.
        self.happens = {}
        super().__init__(directory=directory, listen=listen)

    def note(self, request):
        with self.lock, self.log.open("a", encoding="utf-8") as log:
            log.write(f"{request}\n")

    def read_faults(self):
        lines = self.faults.read_text(encoding="utf-8").splitlines() if self.faults.exists() else []
        return [line.split(" ") for line in lines]

    def write_faults(self, faults):
        new = self.faults.with_suffix(".new")
        new.write_text("".join(f"{' '.join(fault)}\n" for fault in faults), encoding="utf-8")
        new.rename(self.faults)

    def breaks_after(self, path, length):
        with self.lock:
            faults = self.read_faults()
            for fault in faults:
                what, after, times, where = fault
                if where == path and int(times) > 0 and length > int(after):
                    # A stall lasts as long as its line.
                    if what != "stall":
                        fault[2] = str(int(times) - 1)
                        self.write_faults(faults)
                    self.happens[path] = what
                    return int(after)
            return None

    def goes_on(self, path):
        match self.happens.pop(path):
            case "stop":
                os._exit(1)
            case "stall":
                while any(fault[0] == "stall" and fault[3] == path for fault in self.read_faults()):
                    time.sleep(0.05)
                return True
        return False


def main():
    port, directory, control = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    Controlled(port, directory, control)
    # From here on it answers.
    (control / "requests").touch()
    threading.Event().wait()


if __name__ == "__main__":
    main()
