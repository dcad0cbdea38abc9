#!/usr/bin/env python3
"""Stands in for the machine host: tells what it was asked, one thread a call, and no guest at all.

It notes every call in `<root>/calls`, and answers with the call itself and the length of its input.
"""
import argparse
import json
import os
import socketserver
import sys
import threading


class Call(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        header = self.rfile.readline()
        if not header:
            return
        call = json.loads(header)
        answer = {"argv": call["argv"], "faults": call["faults"], "stdin": len(self.rfile.read())}
        os.makedirs(call["root"], exist_ok=True)
        with open(os.path.join(call["root"], "calls"), "a") as file:
            file.write(json.dumps(answer) + "\n")
        output = json.dumps(answer).encode()
        self.wfile.write(json.dumps({"exit": 0, "length": len(output)}).encode() + b"\n" + output)


class Host(socketserver.ThreadingUnixStreamServer):
    request_queue_size = 1024
    daemon_threads = True


parser = argparse.ArgumentParser()
parser.add_argument("--guest")
parser.add_argument("--socket")
host = Host(parser.parse_args().socket, Call)
threading.Thread(target=host.serve_forever, daemon=True).start()
sys.stdin.read()
