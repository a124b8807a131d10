"""Loading OpenSSL with the one setting that neither pyOpenSSL nor cryptography has a function for.

After each TLS 1.3 handshake OpenSSL sends two session tickets. The listener never accepts one, since whoever
comes must be verified; but the two cost a twentieth of the CPU of a new connection. `SSL_CTX_set_num_tickets`
is out of reach from Python. What is in reach is OpenSSL's own configuration file (config(5), "SSL
Configuration"), which it reads once, while it is loaded.
"""

from __future__ import annotations

import importlib
import os
import sys

_VARIABLE = "OPENSSL_CONF"
_CONFIGURATION = b"""\
openssl_conf = defender
[defender]
ssl_conf = contexts
[contexts]
system_default = every_context
[every_context]
NumTickets = 0
"""


def load_without_tickets() -> bool:
    """Load OpenSSL so that no context sends tickets; tell whether that was done.

    It is too late where OpenSSL was loaded before, and not ours to do where the environment names a
    configuration already: then tickets are sent, which does no harm.
    """
    if "OpenSSL" in sys.modules or "cryptography.hazmat.bindings._rust" in sys.modules:
        return False
    if _VARIABLE in os.environ:
        return False
    # A file without a name: nobody else can write to it, and nothing is left behind.
    number = os.memfd_create("openssl.cnf")
    try:
        os.write(number, _CONFIGURATION)
        os.environ[_VARIABLE] = f"/proc/self/fd/{number}"
        try:
            importlib.import_module("OpenSSL.SSL")
        finally:
            del os.environ[_VARIABLE]
    finally:
        os.close(number)
    return True
