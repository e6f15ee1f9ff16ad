"""The site's start page: what is installed, where it is, whether it answers, and how people get in.

    start_page.py --config /etc/start-page/page.json --ca /etc/start-page/ca.crt

Each component is asked again and again in the background, so a page never waits for one. No password and no key passes
through here: the page names the Secrets that hold them. /ca.crt is public on purpose, everything else is for the
ingress in front to protect. /status.json has the same as the page, for programs.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import json
import re
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HEALTHY, SILENT, UNKNOWN, UNCHECKED = "healthy", "not answering", "not checked yet", "not checked"
# A health answer is short; what is longer is not read.
ANSWER = 1 << 16

STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #1b2430; --soft: #55606f; --line: #d9dee5;
  --link: #0b57b0; --good: #116b37; --bad: #b3261e; --code: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --back: #11161d; --card: #1a212b; --text: #e6eaf0; --soft: #a3afbe;
  --line: #2e3947; --link: #8ab8ff; --good: #6fd69a; --bad: #ff9a92; --code: #232c38; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
main, header, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.25rem; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 2.25rem 0 .75rem; font-size: 1.2rem; }
h3 { margin: 0; font-size: 1.1rem; }
p { margin: .35rem 0; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 3px; }
.soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem;
  margin: 0; padding: 0; list-style: none; }
.cards > li { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 1rem 1.15rem; }
.top { display: flex; justify-content: space-between; align-items: baseline; gap: .75rem; }
.version { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; text-align: right; }
.state { font-weight: 600; }
.state::before { content: "\\25CF"; margin-right: .4em; }
[data-state="healthy"] { color: var(--good); }
[data-state="not answering"] { color: var(--bad); }
[data-state="not answering"]::before { content: "\\25B2"; }
[data-state^="not checked"] { color: var(--soft); font-weight: 400; }
.open { font-weight: 600; }
.aside { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
details { margin-top: .5rem; }
summary { cursor: pointer; color: var(--link); }
code { font: .85rem/1.5 ui-monospace, "Liberation Mono", monospace; background: var(--code); border-radius: 5px; padding: .1rem .3rem;
  overflow-wrap: anywhere; }
pre { margin: .4rem 0; overflow-wrap: anywhere; white-space: pre-wrap; }
pre code { display: block; padding: .5rem .65rem; user-select: all; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line); }
th, td { text-align: left; padding: .45rem .8rem; border-top: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
footer { padding-top: 1.5rem; padding-bottom: 2rem; font-size: .9rem; }
"""

# Without it the page is as right, but only as fresh as its last loading.
SCRIPT = """
const told = document.getElementById("told");
async function look() {
  try {
    const answer = await fetch("/status.json", {cache: "no-store"});
    if (!answer.ok) throw new Error("HTTP " + answer.status);
    for (const item of (await answer.json()).components) {
      const line = document.getElementById("state-" + item.name);
      if (line && line.textContent !== item.text) { line.textContent = item.text; line.dataset.state = item.state; }
    }
    told.textContent = "";
  } catch (error) { told.textContent = "This page cannot reach the site at the moment; what it shows may be old."; }
}
setInterval(look, 5000);
"""

ICON = (
    "data:image/svg+xml;base64,"
    + base64.b64encode(
        b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path fill="#0b57b0" d="M1 9h14l-3 5H4zM7 1h2v7H3z"/></svg>'
    ).decode()
)


def csp_hash(text: str) -> str:
    """How a Content-Security-Policy names one inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = "; ".join(
    [
        "default-src 'none'",
        f"style-src {csp_hash(STYLE)}",
        f"script-src {csp_hash(SCRIPT)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


@dataclass(frozen=True)
class Credentials:
    """Where a user's name and password are: in a Secret, under these keys."""

    namespace: str
    secret: str
    key: str
    user: str = ""
    user_key: str = ""

    def command(self, key: str) -> str:
        """The command that shows a value."""
        path = key.replace(".", "\\.")
        return f"kubectl -n {self.namespace} get secret {self.secret} -o jsonpath='{{.data.{path}}}' | base64 -d; echo"


@dataclass(frozen=True)
class Component:
    """One installed part, as the configuration has it."""

    name: str
    title: str
    description: str = ""
    version: str = ""
    url: str = ""
    command: str = ""
    health: str = ""
    credentials: Credentials | None = None

    @property
    def has_more(self) -> bool:
        """Whether there is more to show than what it is."""
        return bool(self.url or self.command or self.health)


@dataclass(frozen=True)
class Page:
    """The configuration: a site and its components."""

    site: str
    domain: str
    # Files on the machine of the installation, seen from the folder that it was started from.
    kubeconfig: str
    ca: str
    components: tuple[Component, ...]

    @classmethod
    def load(cls, path: Path) -> Page:
        """Read it from JSON; ends the program with the reason where it is wrong."""
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            components = []
            for item in data.pop("components"):
                credentials = item.pop("credentials", None)
                for url in filter(None, (item.get("url"), item.get("health"))):
                    if urlsplit(url).scheme not in ("http", "https"):
                        raise ValueError(f"{url!r} is no http or https URL")
                components.append(Component(**item, credentials=Credentials(**credentials) if credentials else None))
            return cls(**data, components=tuple(components))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(f"start_page: {path}: {error}") from error


@dataclass(frozen=True)
class State:
    """How a component is, since when, and what is wrong with it."""

    state: str
    since: float = 0
    reason: str = ""

    @property
    def text(self) -> str:
        """The state in words."""
        if self.state != SILENT:
            return self.state.capitalize()
        moment = datetime.fromtimestamp(self.since, UTC).strftime("%d %b %Y, %H:%M:%S UTC")
        return f"Not answering since {moment}: {self.reason}"


def ask(url: str, timeout: float, context: ssl.SSLContext | None = None) -> str:
    """Ask a component once; the reason why it does not answer as it should, empty if it does."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.netloc, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    try:
        connection.request("GET", target, headers={"User-Agent": "slipway-start-page", "Connection": "close"})
        answer = connection.getresponse()
        answer.read(ANSWER)
    except TimeoutError:
        return f"no answer within {timeout:g} s"
    except socket.gaierror:
        return f"the name {parts.hostname} is not known"
    except ConnectionRefusedError:
        return "the connection is refused"
    except ssl.SSLError as error:
        return f"TLS: {error.reason or error}"
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return f"it answers HTTP {answer.status} {answer.reason}".rstrip() if answer.status >= 400 else ""


class Probe:
    """Asks one component again and again, in a thread of its own, and knows how it is."""

    def __init__(
        self, component: Component, interval: float, timeout: float, asks: Callable[[], str], clock: Callable[[], float]
    ) -> None:
        """Prepare it.

        Args:
            component: whom to ask.
            interval: seconds between two questions.
            timeout: seconds that one question may take.
            asks: asks once, as `ask` does.
            clock: seconds since the epoch.
        """
        self.component = component
        self._interval = interval
        self._timeout = timeout
        self._asks = asks
        self._clock = clock
        self._lock = threading.Lock()
        self._state = State(UNKNOWN if component.health else UNCHECKED, clock())
        self._answered = clock()

    def look(self) -> None:
        """Ask once and remember the answer."""
        reason = self._asks()
        now = self._clock()
        state = SILENT if reason else HEALTHY
        with self._lock:
            since = self._state.since if self._state.state == state else now
            self._state = State(state, since, reason)
            self._answered = now

    @property
    def state(self) -> State:
        """How the component is now, at once. A question that hangs (name resolution has no limit) counts as no answer."""
        with self._lock:
            state, answered = self._state, self._answered
        if state.state == UNCHECKED or self._clock() - answered <= self._interval + 2 * self._timeout:
            return state
        return state if state.state == SILENT else State(SILENT, answered, "the question is still waiting")

    def run(self, stop: threading.Event) -> None:
        """Ask until told to stop."""
        while not stop.is_set():
            self.look()
            stop.wait(self._interval)


class Watch:
    """All components with their states."""

    def __init__(
        self,
        page: Page,
        interval: float = 5,
        timeout: float = 3,
        context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.page = page
        self.stop = threading.Event()
        self.probes = [
            Probe(
                component,
                interval,
                timeout,
                lambda url=component.health: ask(url, timeout, context),  # type: ignore[misc]
                clock,
            )
            for component in page.components
        ]

    def start(self) -> None:
        """Begin to ask."""
        for probe in self.probes:
            if probe.component.health:
                threading.Thread(target=probe.run, args=(self.stop,), daemon=True).start()

    def states(self) -> list[tuple[Component, State]]:
        """Each component with how it is now."""
        return [(probe.component, probe.state) for probe in self.probes]


def status(page: Page, states: Sequence[tuple[Component, State]]) -> dict[str, Any]:
    """The same as the page, for programs."""
    return {
        "site": page.site,
        "domain": page.domain,
        "components": [
            {
                "name": component.name,
                "version": component.version,
                "url": component.url,
                "state": state.state,
                "since": datetime.fromtimestamp(state.since, UTC).isoformat(timespec="seconds"),
                "reason": state.reason,
                "text": state.text,
            }
            for component, state in states
        ],
    }


def fingerprint(pem: str) -> str:
    """SHA-256 of the first certificate, as browsers and openssl show it; empty where there is none."""
    found = re.search(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", pem, re.DOTALL)
    if not found:
        return ""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).digest().hex(":").upper()


def render(page: Page, states: Sequence[tuple[Component, State]], authority: str) -> str:
    """The page in HTML."""
    cards = "\n".join(card(component, state) for component, state in states if component.has_more)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(item.title)}</th><td>{escape(item.version)}</td><td>{escape(item.description)}</td></tr>'
        for item, _ in states
        if not item.has_more
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.site)} - Slipway</title>
<link rel="icon" href="{ICON}">
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(page.site)}</h1>
<p class="soft">MLOps platform at {escape(page.domain)}</p>
</header>
<main>
<p id="told" role="status" aria-live="polite"></p>
<h2 id="components">Components</h2>
<ul class="cards" aria-labelledby="components">
{cards}
</ul>
{f"<h2>Also installed</h2><table><tbody>{rows}</tbody></table>" if rows else ""}
{trust(page.ca, authority)}
<h2>Command line</h2>
<p>Credentials are in the cluster only; the commands above need kubectl with the site's kubeconfig. It was written by the installation,
on the machine and in the folder that it was started from:</p>
<pre><code>export KUBECONFIG={escape(page.kubeconfig)}</code></pre>
</main>
<footer class="soft"><p>The states are renewed every few seconds. For programs: <a href="/status.json">status.json</a></p></footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def card(component: Component, state: State) -> str:
    """One component."""
    lines = [
        "<li>",
        f'<div class="top"><h3>{escape(component.title)}</h3><span class="version">{escape(component.version)}</span></div>',
        f"<p>{escape(component.description)}</p>" if component.description else "",
        f'<p class="state" id="state-{escape(component.name)}" data-state="{escape(state.state)}">{escape(state.text)}</p>',
    ]
    if component.url:
        shown = urlsplit(component.url)
        text = shown.netloc + shown.path.rstrip("/")
        lines.append(f'<p class="open"><a href="{escape(component.url)}">{escape(text)}</a></p>')
    if component.command:
        lines.append(f"<pre><code>{escape(component.command)}</code></pre>")
    if found := component.credentials:
        # Who hears the page hears which one.
        lines.append(
            f'<details><summary>How to log in<span class="aside"> to {escape(component.title)}</span></summary>'
        )
        if found.user_key:
            lines.append(f"<p>User:</p><pre><code>{escape(found.command(found.user_key))}</code></pre>")
        elif found.user:
            lines.append(f"<p>User: <code>{escape(found.user)}</code></p>")
        lines.append(f"<p>Password:</p><pre><code>{escape(found.command(found.key))}</code></pre></details>")
    return "\n".join([*filter(None, lines), "</li>"])


def trust(path: str, authority: str) -> str:
    """How people come to trust the certificates of the site; nothing where everybody does."""
    if not fingerprint(authority):
        return ""
    return f"""<h2>Trust</h2>
<p>Certificates of this site are issued by its own authority. <a href="/ca.crt" download>Download its certificate</a> and add it to the
authorities that your browser and your system trust, once you have compared the fingerprint with the one on the machine of the
installation:</p>
<pre><code>openssl x509 -noout -fingerprint -sha256 -in {escape(path)}</code></pre>
<p>SHA-256: <code>{fingerprint(authority)}</code></p>"""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    # Longer than the ingress keeps an idle connection, so that it never sends a request into one that just closed.
    timeout = 120
    server: Server

    def do_GET(self) -> None:
        """Answer what there is."""
        path = self.path.partition("?")[0]
        watch = self.server.watch
        if path == "/":
            html = render(watch.page, watch.states(), self.server.authority())
            self.answer(200, "text/html; charset=utf-8", html)
        elif path == "/status.json":
            self.answer(200, "application/json", json.dumps(status(watch.page, watch.states()), indent=1) + "\n")
        elif path == "/healthz":
            self.answer(200, "text/plain; charset=utf-8", "ok\n")
        elif path == "/ca.crt" and (authority := self.server.authority()):
            name = re.sub(r"[^a-z0-9.-]", "-", watch.page.domain.lower())
            self.answer(200, "application/x-x509-ca-cert", authority, f'attachment; filename="{name}-ca.crt"')
        elif path == "/ca.crt":
            self.answer(404, "text/plain; charset=utf-8", "This site has no authority of its own.\n")
        else:
            self.answer(404, "text/plain; charset=utf-8", "There is no such page.\n")

    do_HEAD = do_GET

    def answer(self, code: int, kind: str, text: str, disposition: str = "") -> None:
        """Send it."""
        data = text.encode()
        self.send_response(code)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            **({"Content-Disposition": disposition} if disposition else {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def version_string(self) -> str:
        """What the header Server says."""
        return "slipway"

    def log_message(self, format: str, *args: object) -> None:
        """One line on stderr, without the probes of the kubelet."""
        # A line that is no request has no path.
        if getattr(self, "path", "") != "/healthz":
            super().log_message(format, *args)


class Server(ThreadingHTTPServer):
    """The server; each connection has its own thread."""

    daemon_threads = True

    def __init__(self, port: int, watch: Watch, ca: Path | None = None) -> None:
        """Listen; `ca` is the file of the authority's certificate, if there is one."""
        super().__init__(("", port), Handler)
        self.watch = watch
        self._ca = ca

    def authority(self) -> str:
        """The authority's certificate, empty where there is none."""
        try:
            return self._ca.read_text() if self._ca else ""
        except OSError:
            return ""


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="JSON file with the site and its components")
    parser.add_argument("--ca", type=Path, help="certificate of the site's authority; the file may be missing")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--interval", type=float, default=5, help="seconds between two questions to a component")
    parser.add_argument("--timeout", type=float, default=3, help="seconds that a component has to answer")
    arguments = parser.parse_args()
    context = ssl.create_default_context()
    if arguments.ca and arguments.ca.is_file():
        context.load_verify_locations(arguments.ca)
    watch = Watch(Page.load(arguments.config), arguments.interval, arguments.timeout, context)
    server = Server(arguments.port, watch, arguments.ca)
    # The first process of a container gets no default action for a signal.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    watch.start()
    print(f"start_page: serves {arguments.config} on port {arguments.port}", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
