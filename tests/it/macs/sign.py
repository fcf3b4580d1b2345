"""MACs by the standard library of Python, which shares no code with the daemon.

Reads a JSON list of {"hash", "secret", "message"} (hex, but for the hash) from stdin, writes a list of MACs (hex).
"""

import hmac, json, sys

macs = [
    hmac.digest(bytes.fromhex(each["secret"]), bytes.fromhex(each["message"]), each["hash"]).hex()
    for each in json.load(sys.stdin)
]
json.dump(macs, sys.stdout)
