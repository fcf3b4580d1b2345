"""Rows as a user service keeps them: secrets in Fernet tokens of `cryptography`, under two keys, some of them bad.

Reads {"rows": N, "bad": M, "format": "csv" or "jsonl"} and prints {"keys": [...], "text": ..., "secrets": {id: secret},
"bad": [ids]}.
"""

import csv
import io
import json
import random
import string
import sys

from cryptography.fernet import Fernet

WAYS = 5


def spoil(way, token, stranger):
    """A token that is none, in one of the ways that rows go bad."""
    if way == 0:
        return stranger.encrypt(b"sk-of-a-key-that-is-lost").decode()
    if way == 1:
        middle = len(token) // 2
        return token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :]
    if way == 2:
        return token[: len(token) // 2]
    if way == 3:
        return "plain text, not a token"
    return ""


def main():
    asked = json.load(sys.stdin)
    keys = [Fernet.generate_key(), Fernet.generate_key()]
    writers = [Fernet(key) for key in keys]
    stranger = Fernet(Fernet.generate_key())
    alphabet = string.ascii_letters + string.digits
    chosen = random.sample(range(asked["rows"]), asked["bad"])
    bad = {number: i % WAYS for i, number in enumerate(chosen)}
    rows, secrets = [], {}
    for number in range(asked["rows"]):
        secret = "sk-" + "".join(random.choices(alphabet, k=48))
        token = writers[number % 2].encrypt(secret.encode()).decode()
        if number in bad:
            token = spoil(bad[number], token, stranger)
        else:
            secrets[f"u{number}"] = secret
        rows.append({"id": f"u{number}", "label": f'row "{number}"', "token": token})
    if asked["format"] == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, ["id", "label", "token"])
        writer.writeheader()
        writer.writerows(rows)
        text = out.getvalue()
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    answer = {
        "keys": [key.decode() for key in keys],
        "text": text,
        "secrets": secrets,
        "bad": sorted(f"u{number}" for number in bad),
    }
    json.dump(answer, sys.stdout)


main()
