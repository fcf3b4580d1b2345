"""A mail server with STARTTLS and an account, for tests: prints its port, then one line of JSON for each message.

usage: smtp.py CERTIFICATE KEY USERNAME PASSWORD
"""

import json
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, SMTP


class Sink:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("refused"):
            return "550 nobody of this name"
        envelope.rcpt_tos.append(address)
        return "250 known"

    async def handle_DATA(self, server, session, envelope):
        line = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None,
            "authenticated": bool(session.authenticated),
            "data": envelope.content.decode("utf-8", "replace"),
        }
        print(json.dumps(line), flush=True)
        return "250 taken"


def main():
    certificate, key, username, password = sys.argv[1:]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    def authenticate(server, session, envelope, mechanism, data):
        good = (data.login, data.password) == (username.encode(), password.encode())
        return AuthResult(success=good, handled=good)

    class Server(Controller):
        def factory(self):
            return SMTP(
                self.handler,
                tls_context=tls,
                require_starttls=True,
                auth_required=True,
                authenticator=authenticate,
            )

    # Port 0 is chosen here: the controller wants to know it beforehand.
    import socket

    probe = socket.socket()
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    server = Server(Sink(), hostname="127.0.0.1", port=port)
    server.start()
    print(json.dumps({"port": port}), flush=True)
    # Until the test lets go of the pipe.
    sys.stdin.read()
    server.stop()


main()
