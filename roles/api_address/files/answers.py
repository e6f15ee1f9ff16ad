#!/usr/bin/python3
"""Ends with 0 while the API server of this machine is ready. keepalived runs it; standard library only, Python 3.8 or newer."""

import ssl
import sys
import urllib.request

TLS = "/var/lib/rancher/k3s/server/tls"
SECONDS = 4


def answers(tls: str = TLS, url: str = "https://127.0.0.1:6443/readyz") -> bool:
    """Whether the API server at `url` says that it is ready, asked with the administrator's certificate that lies in `tls`."""
    try:
        context = ssl.create_default_context(cafile=f"{tls}/server-ca.crt")
        # Newer versions of Python ask for extensions that not every cluster's certificates have.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.load_cert_chain(f"{tls}/client-admin.crt", f"{tls}/client-admin.key")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(url, timeout=SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(0 if answers() else 1)
