#!/usr/bin/env python3
"""The shop's services: HTTP on 8080 that says who answered and whom it saw, and a price ticker on TCP 9000.

Usage: app.py NAME [VERSION]
"""
import json
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import socket

NAME = sys.argv[1]
VERSION = sys.argv[2] if len(sys.argv) > 2 else "v1"


class Shop(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self):
        length = int(self.headers.get("content-length") or 0)
        if length:
            self.rfile.read(length)
        body = json.dumps({
            "service": NAME,
            "version": VERSION,
            "method": self.command,
            "path": self.path,
            "client_address": self.client_address[0].removeprefix("::ffff:"),
        }).encode() + b"\n"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer

    def log_message(self, *args):
        pass


class Web(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 256

    def server_bind(self):
        # The standard one looks the host's name up, which waits long where there is no DNS.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "shop", self.server_address[1]


class Ticker(socketserver.BaseRequestHandler):
    def handle(self):
        count = 0
        try:
            while True:
                count += 1
                self.request.sendall(f"price {count}\n".encode())
                time.sleep(0.2)
        except OSError:
            pass


class Prices(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


threading.Thread(target=Prices(("::", 9000), Ticker).serve_forever, daemon=True).start()
Web(("::", 8080), Shop).serve_forever()
