"""A DNS server for the checks, which knows the IPv4 addresses of some names."""

import asyncio
import collections
import socket
import struct


class Names(asyncio.DatagramProtocol):
    """Answers over UDP (RFC 1035, 4.1) from `addresses`, which may change, and records who has
    been asked for.
    """

    def __init__(self, addresses):
        self.addresses = addresses
        self.asked = collections.defaultdict(asyncio.Event)

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        name, question = ".".join(labels), data[12 : at + 5]
        address = self.addresses.get(name)
        # An A record is asked for, and not an AAAA, of which there is none.
        has_record = address is not None and question[-4:-2] == b"\0\1"
        # A response, with recursion; 3: no such name.
        flags = 0x8183 if address is None else 0x8180
        answer = struct.pack(">2sHHHHH", data[:2], flags, 1, has_record, 0, 0) + question
        if has_record:
            # A pointer to the name asked for; A, IN, for 1 s, 4 bytes.
            answer += struct.pack(">HHHIH4s", 0xC00C, 1, 1, 1, 4, socket.inet_aton(address))
        self.transport.sendto(answer, addr)
        self.asked[name].set()
