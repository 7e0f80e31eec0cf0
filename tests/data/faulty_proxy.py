"""A proxy in front of a real S3 server that fails as it is told to."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 88\r\nConnection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error> \n"
)


class FaultyProxy:
    """Stands between a client and the S3 server, and behaves as `mode` says."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self.mode = "fine"
        self.faults = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), closing(client), closing(socket.create_connection(self._server)) as server:
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()
            while request := client.recv(2**16):
                if self.mode != "fine":
                    self.faults += 1
                if self.mode == "busy":
                    client.sendall(_BUSY)
                    return
                if self.mode == "dead":
                    return
                if self.mode == "slow":
                    time.sleep(0.3)
                server.sendall(request)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while answer := server.recv(2**16):
                if self.mode == "cut" and len(answer) > 2000:
                    self.faults += 1
                    client.sendall(answer[:1000])
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)

    def close(self) -> None:
        self._listener.close()

    @contextmanager
    def misbehaving(self, mode: str, for_s: float) -> Iterator[None]:
        """Behaves as `mode` from now on, for a while."""
        self.mode = mode
        timer = threading.Timer(for_s, setattr, (self, "mode", "fine"))
        timer.start()
        yield
        timer.join()
