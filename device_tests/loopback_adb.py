"""An Android device on 127.0.0.1, as far as the adb client can tell: the device side of the ADB protocol, version 1.

It speaks messages of 24 bytes and a payload (CNXN, OPEN, OKAY, WRTE, CLSE), and the services `shell`, `shell,v2` (exit code, standard
error apart, standard input) and `sync` (STAT, LIST, SEND, RECV). Commands run on this machine, with /data/local/tmp below a folder of its
own. It authenticates nobody, so it listens on the loopback interface alone. `getprop ro.kernel.qemu` says 1: its times are no phone's.

Formats: protocol.txt and SYNC.TXT of the Android platform's adb.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

LARGEST_PAYLOAD = 256 * 1024
VERSION_WITHOUT_CHECKSUM = 0x01000001
BANNER = b"device::ro.product.name=loopback;ro.product.model=loopback;ro.product.device=loopback;features=shell_v2,cmd"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = 0, 1, 2, 3, 4
DEVICE_FOLDER = "/data/local/tmp"
GETPROP = """#!/bin/sh
case $1 in ro.kernel.qemu) echo 1;; ro.product.model) echo loopback;; esac
"""


class LoopbackAdb:
    """Context manager: a device that listens on `serial` until it is left or unplugged. `wrap` are words before every command, such as an
    emulator. `on_service` is told of every service that is opened, and may unplug."""

    def __init__(
        self, root: Path, wrap: tuple[str, ...] = (), on_service: Callable[[str], None] = lambda _: None
    ) -> None:
        self.root, self.wrap, self.on_service = root.resolve(), wrap, on_service
        self.received: list[str] = []
        """Paths of the files that were pushed, in order."""
        self._connections: list[Connection] = []
        self._unplugged = False
        for folder in (DEVICE_FOLDER, "/system/bin"):
            (self.root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        getprop = self.root / "system/bin/getprop"
        getprop.write_text(GETPROP, encoding="utf-8")
        getprop.chmod(0o755)

    def __enter__(self) -> LoopbackAdb:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unplug()

    def unplug(self) -> None:
        """Closes every connection and answers no other; what ran on the device ends."""
        self._unplugged = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            connection.close()

    def path(self, name: str) -> Path:
        """Of a file on the device. Raises OSError outside of it."""
        found = Path(os.path.normpath(f"{self.root}/{name}"))
        if not found.is_relative_to(self.root):
            raise PermissionError(1, "outside the device")
        return found

    def _accept(self) -> None:
        while not self._unplugged:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(client, self)
            self._connections.append(connection)
            threading.Thread(target=connection.serve, daemon=True).start()


class Connection:
    """One adb server: messages in, messages out, and the streams between them."""

    def __init__(self, client: socket.socket, device: LoopbackAdb) -> None:
        self.device, self._client = device, client
        self._sending, self._streams, self._next = threading.Lock(), dict[int, Stream](), 1
        self._checksums = True

    def send(self, command: bytes, first: int, second: int, payload: bytes = b"") -> None:
        checksum = sum(payload) & 0xFFFFFFFF if self._checksums else 0
        number = int.from_bytes(command, "little")
        header = struct.pack("<6I", number, first, second, len(payload), checksum, number ^ 0xFFFFFFFF)
        with self._sending:
            self._client.sendall(header + payload)

    def serve(self) -> None:
        try:
            while True:
                command, first, second, size, _, _ = struct.unpack("<4s5I", self._receive(24))
                self._take(command, first, second, self._receive(size))
        except (EOFError, OSError):
            pass  # the other side has gone, or we were unplugged
        finally:
            self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
        self._client.close()
        for stream in list(self._streams.values()):
            stream.close()

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.own, None)

    def _take(self, command: bytes, first: int, second: int, payload: bytes) -> None:
        if command == b"CNXN":
            self._checksums = first < VERSION_WITHOUT_CHECKSUM
            self.send(b"CNXN", VERSION_WITHOUT_CHECKSUM, LARGEST_PAYLOAD, BANNER)
        elif command == b"OPEN":
            stream = Stream(self, self._next, first)
            self._streams[self._next] = stream
            self._next += 1
            service = payload.rstrip(b"\0").decode()
            threading.Thread(target=stream.serve, args=(service,), daemon=True).start()
        elif second in self._streams:
            self._streams[second].take(command, payload)

    def _receive(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            part = self._client.recv(size - len(received))
            if not part:
                raise EOFError
            received += part
        return bytes(received)


class Stream:
    """One service. Each side sends a message and waits for its OKAY; what arrives goes through a pipe, so that services just read."""

    def __init__(self, connection: Connection, own: int, other: int) -> None:
        self.own, self.connection = own, connection
        self._other, self._closed = other, False
        self._out, self._in = os.pipe()
        self._acknowledged = threading.Semaphore(0)
        self._process: subprocess.Popen[bytes] | None = None

    def take(self, command: bytes, payload: bytes) -> None:
        if command == b"OKAY":
            self._acknowledged.release()
        elif command == b"WRTE" and not self._closed:
            os.write(self._in, payload)
            self.connection.send(b"OKAY", self.own, self._other)
        elif command == b"CLSE":
            self.close()

    def close(self) -> None:
        """Ends the service: input ends, and a process that still runs is stopped, as adbd does."""
        if self._closed:
            return
        self._closed = True
        os.close(self._in)
        self._acknowledged.release()
        self.connection.forget(self)
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGHUP)

    def serve(self, service: str) -> None:
        name, _, argument = service.partition(":")
        try:
            self.connection.device.on_service(service)
            self.connection.send(b"OKAY", self.own, self._other)
            if name.split(",")[0] in ("shell", "exec"):
                self._shell(argument, "v2" in name.split(","))
            elif name == "sync":
                Sync(self, self.connection.device).serve()
            self.connection.send(b"CLSE", self.own, self._other)
        except (EOFError, OSError):
            pass
        finally:
            self.close()
            os.close(self._out)

    def read(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            part = os.read(self._out, size - len(received))
            if not part:
                raise EOFError
            received += part
        return bytes(received)

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), LARGEST_PAYLOAD):
            if self._closed:
                raise EOFError
            self.connection.send(b"WRTE", self.own, self._other, data[start : start + LARGEST_PAYLOAD])
            self._acknowledged.acquire()

    def _shell(self, line: str, framed: bool) -> None:
        device = self.connection.device
        self._process = subprocess.Popen(
            [*device.wrap, "/bin/sh", "-c", line.replace(DEVICE_FOLDER, f"{device.root}{DEVICE_FOLDER}") or "exit"],
            cwd=device.root,
            env={**os.environ, "PATH": f"{device.root}/system/bin:{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if framed else subprocess.STDOUT,
            start_new_session=True,
        )
        if self._closed:
            os.killpg(self._process.pid, signal.SIGHUP)
        threading.Thread(target=self._feed, args=(self._process, framed), daemon=True).start()
        self._relay(self._process, framed)
        status = self._process.wait()
        if framed:
            self.write(struct.pack("<BIB", EXIT, 1, status if status >= 0 else 128 - status))

    def _feed(self, process: subprocess.Popen[bytes], framed: bool) -> None:
        """Standard input, until the host closes it or goes."""
        assert process.stdin is not None
        with suppress(EOFError, OSError, ValueError):
            while framed:
                kind, size = struct.unpack("<BI", self.read(5))
                data = self.read(size)
                if kind == CLOSE_STDIN:
                    break
                if kind == STDIN:
                    process.stdin.write(data)
                    process.stdin.flush()
            while not framed:
                process.stdin.write(self.read(1))
                process.stdin.flush()
        with suppress(OSError):
            process.stdin.close()

    def _relay(self, process: subprocess.Popen[bytes], framed: bool) -> None:
        with selectors.DefaultSelector() as ready:
            for stream, kind in ((process.stdout, STDOUT), (process.stderr, STDERR)):
                if stream is not None:
                    ready.register(stream, selectors.EVENT_READ, kind)
            while ready.get_map():
                for key, _ in ready.select():
                    data = os.read(key.fd, 65536)
                    if not data:
                        ready.unregister(key.fileobj)
                    else:
                        self.write(struct.pack("<BI", key.data, len(data)) + data if framed else data)


class Sync:
    """The file service: requests of four letters, a length and a name."""

    def __init__(self, stream: Stream, device: LoopbackAdb) -> None:
        self.stream, self.device = stream, device
        self._answers = {b"STAT": self._stat, b"LIST": self._list, b"RECV": self._receive, b"SEND": self._send}

    def serve(self) -> None:
        while True:
            request, size = struct.unpack("<4sI", self.stream.read(8))
            name = self.stream.read(size).decode()
            if request == b"QUIT":
                return
            try:
                self._answers[request](name)
            except (OSError, KeyError) as fault:
                reason = (getattr(fault, "strerror", None) or str(fault)).encode()
                self.stream.write(struct.pack("<4sI", b"FAIL", len(reason)) + reason)

    def _stat(self, name: str) -> None:
        try:
            found = os.lstat(self.device.path(name))
            values = (found.st_mode, min(found.st_size, 2**32 - 1), int(found.st_mtime))
        except OSError:
            values = (0, 0, 0)
        self.stream.write(struct.pack("<4s3I", b"STAT", *values))

    def _list(self, name: str) -> None:
        for entry in os.scandir(self.device.path(name)):
            found, label = entry.stat(), entry.name.encode()
            head = struct.pack("<4s4I", b"DENT", found.st_mode, found.st_size, int(found.st_mtime), len(label))
            self.stream.write(head + label)
        self.stream.write(struct.pack("<4s4I", b"DONE", 0, 0, 0, 0))

    def _receive(self, name: str) -> None:
        with self.device.path(name).open("rb") as file:
            while data := file.read(65536):
                self.stream.write(struct.pack("<4sI", b"DATA", len(data)) + data)
        self.stream.write(struct.pack("<4sI", b"DONE", 0))

    def _send(self, name_and_mode: str) -> None:
        """A file that is refused is read to its end all the same: the client listens for the reason only then."""
        name, _, mode = name_and_mode.rpartition(",")
        refusal: OSError | None = None
        try:
            path = self.device.path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            target = path
        except OSError as fault:
            refusal, target = fault, Path(os.devnull)
        with target.open("wb") as file:
            while (part := struct.unpack("<4sI", self.stream.read(8)))[0] == b"DATA":
                file.write(self.stream.read(part[1]))
        if refusal is not None:
            raise refusal
        target.chmod(int(mode) & 0o777)
        self.device.received.append(name)
        self.stream.write(struct.pack("<4sI", b"OKAY", 0))


def main() -> None:
    """python -m device_tests.loopback_adb FOLDER: a device until Ctrl-C, for trying out the adb path without a phone."""
    with LoopbackAdb(Path(sys.argv[1])) as device:
        print(f"adb connect {device.serial}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
