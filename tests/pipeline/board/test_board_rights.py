"""Who may do what on the board, as an attacker would try it: over HTTP, and in a browser."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from urllib.parse import quote, urlsplit

import msgspec
import pytest
from local_services import PATIENCE, wait_until

from edge_client.contract.documents import encode_document
from edge_client.contract.errors import InputError
from luigi_tasks.board.access.tokens import TokenList, Tokens
from tests.fakes.command_fleet import CommandFleet
from tests.fakes.path_proxy import PathProxy
from tests.fakes.running_board import RunningBoard
from tests.pipeline.board.conftest import board_settings

JSON = {"Accept": "application/json"}
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
# Loopback has many addresses: of the proxy, of a person, of attackers who must not lock out that person.
PROXY, PERSON, GUESSER, OTHER = "127.0.0.9", "127.0.0.1", "127.0.0.4", "127.0.0.5"
CSRF = re.compile(r'name="csrf" value="([^"]+)"')
WRONG = "efb_000000000000_" + "A" * 43
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
HEAD = b"POST %s HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Length: %d\r\n"
HOSTS = ("127.0.0.1:1", "[::1]", "localhost", "LOCALHOST.", "a.localhost", "board.example")
PLACES = (
    "https://evil.example/",
    "//evil.example",
    "/fleet//evil.example/%0d%0aX:1",
    "/fleet\\evil",
    "/fleet/\r\nX-Injected: 1",
    "javascript:alert(1)",
    "/other/",
    "/fleet/sign-out",
)
PATHS = (
    "static/../page.py",
    "static/..%2f..%2fpage.py",
    "static/%2e%2e/page.py",
    "static//etc/passwd",
    "static/%00",
    "static/",
    "devices/..%2f..%2fetc%2fpasswd",
    "devices/%00",
    "devices/%0d%0aX-Injected:%201",
    "rollouts/%0d%0aX-Injected:%201/x",
    "releases/%ff%fe",
    "releases/" + "a" * 8000,
    "%2e%2e/%2e%2e/etc/passwd",
)
EVIL = """<form id=f method=post action="{url}sign-out" target=i></form><iframe name=i id=i></iframe>
<iframe src="{url}"></iframe><script>document.getElementById("f").submit();
fetch("{url}sign-out", {{method: "POST", credentials: "include", mode: "no-cors"}}).catch(() => 0)</script>"""


class Site:
    """A board behind two proxies, one that strips the path and one that does not."""

    def __init__(self, board, folder, proxies):
        self.board, self.folder, (self.stripping, self.keeping) = board, folder, proxies
        self.shown = []

    def command(self, *arguments):
        """Return what `edge-fleet board-token` writes to standard output."""
        environment = {**os.environ, "LUIGI_CONFIG_PATH": str(self.folder / "board.cfg")}
        command = [sys.executable, "-m", "luigi_tasks.edge_fleet", "board-token", *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout

    def token(self, role, name):
        """Return a new token."""
        shown, _ = Tokens(self.folder / "board").issue(name, role, 1)
        self.shown.append(shown)
        return shown

    def tokens(self, change):
        """Change the file of tokens, as the clock does or a person with an editor."""
        path = self.folder / "board/tokens.json"
        tokens = msgspec.json.decode(path.read_bytes(), type=TokenList).tokens
        path.with_suffix(".new").write_bytes(encode_document(TokenList(tokens=tuple(map(change, tokens)))))
        path.with_suffix(".new").replace(path)

    def expire(self, name):
        """Let a token expire."""
        self.tokens(lambda one: msgspec.structs.replace(one, ends_at=1.0) if one.name == name else one)

    def ask(self, method, path, headers=None, body=None, peer=PERSON):
        """Return what the board answers to exactly these headers, from this address."""
        url = urlsplit(self.board.url)
        connection = http.client.HTTPConnection(
            url.hostname, url.port, timeout=60 * PATIENCE, source_address=(peer, 0)
        )
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            return Answer(connection.getresponse())

    def sign_in(self, token, peer=PERSON, **fields):
        """Return the answer to a token that is pasted into the form."""
        csrf = self.csrf()
        form = "&".join(f"{name}={value}" for name, value in {"csrf": csrf, "token": token, **fields}.items())
        return self.ask("POST", "/sign-in", {**OWN_PAGE, **FORM}, form, peer)

    def csrf(self, headers=None, peer=PERSON):
        """Return the token in the forms of who has these headers."""
        found = CSRF.search(self.ask("GET", "/sign-in", headers, peer=peer).text)
        assert found
        return found[1]

    def acts(self, token):
        """Return the history, newest first."""
        return self.ask("GET", "/audit", {**JSON, "Authorization": f"Bearer {token}"}).json["acts"]


class Answer:
    """What the board answered."""

    def __init__(self, answer):
        self.status, self.headers, self.body = answer.status, answer.headers, answer.read()

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def cookie(self):
        """The cookie that was set, as a browser sends it back."""
        return {"Cookie": self.headers["Set-Cookie"].partition(";")[0]}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A board over a bucket with keys, for all tests of this file."""
    folder = tmp_path_factory.mktemp("rights")
    with contextlib.ExitStack() as held:
        patch = held.enter_context(pytest.MonkeyPatch.context())
        proxies = [
            held.enter_context(PathProxy("/fleet", is_stripped=one, address=PROXY)) for one in (True, False)
        ]
        settings = board_settings(
            CommandFleet(folder, patch),
            folder,
            "hosts = board.example",
            f"url = {proxies[0].url}",
            f"trusted_proxies = {PROXY}",
            "proxy_user_header = X-Forwarded-User",
            "proxy_groups_header = X-Forwarded-Groups",
            "operators = olga, @ops",
            "labellers = *",
        )
        board = held.enter_context(RunningBoard(settings))
        for one in proxies:
            one.behind = board.url
        yield Site(board, folder, proxies)


@pytest.mark.parametrize("host", ["rebound.example", "127.0.0.1.rebound.example", "localhost@x", "", "a b"])
def test_a_name_that_somebody_gave_the_boards_address_is_refused(site, host):
    answer = site.ask("GET", "/", {**JSON, "Host": host})
    assert answer.status in {400, 421}
    if answer.status == 421:
        assert "[board] url or hosts" in answer.json["error"]


@pytest.mark.parametrize("name", ["X-Forwarded-Host", "Forwarded", "X-Original-Host"])
def test_no_other_header_makes_a_foreign_name_ours(site, name):
    headers = {**JSON, "Host": "rebound.example", name: "127.0.0.1"}
    assert site.ask("GET", "/", headers, peer=PROXY).status == 421
    assert site.ask("GET", "/", {**JSON, "X-Forwarded-Host": "rebound.example"}, peer=PROXY).status == 421


@pytest.mark.parametrize("host", HOSTS)
def test_addresses_and_own_names_are_answered(site, host):
    assert site.ask("GET", "/", {**JSON, "Host": host}).status == 200


FOREIGN = {
    "another site": {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"},
    "another host of the same site": {"Sec-Fetch-Site": "same-site"},
    "an origin": {"Origin": "https://evil.example"},
    "a sandboxed frame": {"Origin": "null"},
    "an origin that begins like ours": {"Origin": "http://127.0.0.1.evil.example"},
    "an origin with a name in front": {"Origin": "http://127.0.0.1@evil.example"},
    "another port": {"Origin": "http://127.0.0.1:444"},
    "another scheme": {"Origin": "https://127.0.0.1"},
    "a page": {"Referer": "https://evil.example/http://127.0.0.1/"},
    "nothing said": {},
}


@pytest.mark.parametrize("said", FOREIGN.values(), ids=FOREIGN)
def test_a_change_that_no_page_of_the_board_sent_is_refused(site, said):
    answer = site.ask("POST", "/fleet/sign-out", {**JSON, "Host": "127.0.0.1", **said}, b"csrf=")
    assert answer.status == 403
    assert "not of this board" in answer.json["error"] or "Bearer" in answer.json["error"]


def test_a_form_needs_the_token_of_its_own_person(site):
    ann, ben = (site.sign_in(site.token("viewer", name)).cookie for name in ("ann", "ben"))
    for cookie, of, status in ((ann, ben, 403), (ann, {}, 403), (ann, ann, 303)):
        csrf = site.csrf(of)
        answer = site.ask("POST", "/sign-out", {**OWN_PAGE, **cookie, "X-Board-Csrf": csrf}, b"")
        assert answer.status == status
    answer = site.ask("POST", "/fleet/label", {**OWN_PAGE, **FORM}, "csrf=old&why=%3Cb%3E")
    assert answer.status == 403
    assert 'name="why" value="&lt;b&gt;"' not in answer.text, "without the right to do it, sign in first"
    answer = site.ask("POST", "/fleet/sign-out", {**OWN_PAGE, **FORM, **ben}, "csrf=old&why=%3Cb%3E")
    assert 'name="why" value="&lt;b&gt;"' in answer.text, "what was typed can be sent again"


def test_other_sites_may_link_to_the_board_and_load_nothing_of_it(site):
    for mode, status in (("navigate", 200), ("no-cors", 403), ("cors", 403)):
        said = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode}
        assert site.ask("GET", "/fleet/", said).status == status


def test_who_has_no_token_reads_and_is_told_what_acts_need(site):
    assert site.ask("GET", "/", JSON).status == 200
    answer = site.ask("GET", "/audit", JSON)
    assert (answer.status, answer.json["needs"], answer.json["role"]) == (403, "operator", "viewer")
    assert 'name="token"' in site.ask("GET", "/audit").text


def test_tokens_are_kept_as_hashes_and_end_at_once(site):
    token = site.command("--role", "operator", "--name", "olaf").strip()
    site.shown.append(token)
    bearer = {**JSON, "Authorization": f"Bearer {token}"}
    cookie = site.sign_in(token).cookie
    assert (
        site.ask("GET", "/audit", bearer).status
        == site.ask("GET", "/audit", {**JSON, **cookie}).status
        == 200
    )
    path = site.folder / "board/tokens.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert token.split("_", 2)[2] not in path.read_text()
    assert cookie["Cookie"].partition("=")[2] not in (site.folder / "board/sessions.json").read_text()
    listed = json.loads(site.command("--list", "--json"))
    assert [one["role"] for one in listed if one["name"] == "olaf"] == ["operator"]
    with pytest.raises(InputError, match="--revoke"):
        site.token("viewer", "olaf")
    site.command("--revoke", "olaf")
    assert site.ask("GET", "/audit", bearer).status == 401
    answer = site.ask("GET", "/audit", {**JSON, **cookie})
    assert (answer.status, answer.json["error"]) == (403, "you are signed out: your token was revoked")


@pytest.mark.parametrize("shown", ["", "efb_", WRONG, "Bearer", "\x00", "ü" * 60])
def test_what_is_no_token_opens_nothing(site, shown):
    headers = {**JSON, "Authorization": f"Bearer {shown}".encode("latin-1")}
    assert site.ask("GET", "/", headers, peer=OTHER).status in {400, 401, 429}


@pytest.mark.parametrize("content", [b"", b"{", b'{"tokens": [{"id": "x", "role": "admin"}]}', b"\xff"])
def test_a_file_of_tokens_that_cannot_be_read_opens_nothing(site, content):
    path = site.folder / "board/tokens.json"
    before = path.read_bytes()
    token = site.token("operator", "otto")
    try:
        path.write_bytes(content)
        answer = site.ask("GET", "/audit", {**JSON, "Authorization": f"Bearer {token}"}, peer="127.0.0.6")
        assert answer.status == 401
    finally:
        path.with_suffix(".new").write_bytes(before)
        path.with_suffix(".new").replace(path)


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites_and_paths(site):
    token = site.token("labeller", "lea")
    answer = site.sign_in(token, next="//evil.example/")
    assert answer.headers["Location"] == "/fleet/"
    cookie = answer.headers["Set-Cookie"]
    parts = {one.strip() for one in cookie.split(";")[1:]}
    assert {"HttpOnly", "SameSite=Strict", "Path=/fleet/"} <= parts
    assert "Secure" not in parts
    assert token not in cookie
    own, name = answer.cookie["Cookie"], cookie.partition("=")[0]
    for both in (f"{name}=tossed; {own}", f"{own}; {name}=tossed"):  # by another host of the domain
        assert site.ask("GET", "/sign-in", {**JSON, "Cookie": both}).json["name"] == "lea"
    csrf = site.csrf()
    proxied = {**OWN_PAGE, **FORM, "X-Forwarded-Proto": "https", "X-Board-Csrf": csrf}
    secure = site.ask("POST", "/sign-in", proxied, f"token={token}", peer=PROXY)
    assert "Secure" in secure.headers["Set-Cookie"]


@pytest.mark.parametrize("address", PLACES)
def test_a_sign_in_leads_to_no_other_place(site, address):
    token = site.token("viewer", f"guest-{PLACES.index(address)}")
    answer = site.sign_in(token, next=quote(address))
    target = answer.headers["Location"]
    assert target.startswith("/fleet/")
    assert "X-Injected" not in answer.headers
    assert target == "/fleet/" or "evil" not in urlsplit(target).netloc


def test_guesses_are_slowed_down_and_lock_nobody_else_out(site):
    token = site.token("viewer", "vera")
    answers = [site.sign_in(WRONG, peer=GUESSER) for _ in range(12)]
    assert [one.status for one in answers][-1] == 429
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert site.sign_in(token, peer=GUESSER).status == 429, "a right guess is not told from a wrong one"
    assert site.sign_in(token).status == 303


def test_only_the_proxy_says_who_somebody_is(site):
    said = {**JSON, "X-Forwarded-User": "olga"}
    assert site.ask("GET", "/audit", said).status == 403
    assert site.ask("GET", "/audit", said, peer=PROXY).status == 200
    wait_until(lambda: "none of [board] trusted_proxies" in site.board.log, "a line in the log")
    labeller = site.ask("GET", "/audit", {**JSON, "X-Forwarded-User": "@ops"}, peer=PROXY)
    assert (labeller.status, labeller.json["role"]) == (403, "labeller")
    groups = {**JSON, "X-Forwarded-User": "gil", "X-Forwarded-Groups": "users, ops"}
    assert site.ask("GET", "/audit", groups, peer=PROXY).status == 200


def test_two_names_from_the_proxy_are_nobodys(site):
    said = b"X-Forwarded-User: olga\r\nX-Forwarded-User: ann\r\n\r\n"
    with raw(site, PROXY) as connection:
        connection.sendall(b"GET /audit HTTP/1.0\r\nHost: localhost\r\n" + said)
        assert connection.makefile("rb").readline().split()[1] == b"403"


def test_a_body_is_refused_before_it_is_read(site):
    for path, size, status in ((b"/sign-in", 10**9, b"413"), (b"/rollouts/x/pause", 200_000, b"403")):
        with raw(site) as connection:
            connection.sendall(HEAD % (path, size) + b"Expect: 100-continue\r\n\r\n")
            assert connection.makefile("rb").readline().split()[1] == status
    chunked = HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") % b"/label/decisions"
    with raw(site) as connection:
        connection.sendall(chunked + b"\r\n")
        assert connection.makefile("rb").readline().split()[1] == b"403"


def test_bodies_that_never_come_hold_up_nobody(site):
    with contextlib.ExitStack() as held:
        for _ in range(50):
            held.enter_context(raw(site)).sendall(HEAD % (b"/sign-in", 1000) + b"\r\nx")
        assert site.ask("GET", "/healthz").text == "ok\n"


def test_pictures_that_never_end_take_the_place_of_nobody_else(site):
    with contextlib.ExitStack() as held:
        for _ in range(6):
            slow = held.enter_context(raw(site, GUESSER))
            slow.sendall(HEAD % (b"/try", 1000) + b"\r\nx")
        wait_until(lambda: site.ask("POST", "/try", JSON, b"x", peer=GUESSER).status == 429, "a refusal")
        assert site.ask("POST", "/try", JSON, b"x").status == 400, "no picture"
    wait_until(lambda: site.ask("POST", "/try", JSON, b"x", peer=GUESSER).status == 400, "places given back")


@pytest.mark.parametrize("path", PATHS)
def test_hostile_paths_lead_nowhere(site, path):
    answer = site.ask("GET", f"/fleet/{path}", JSON)
    assert answer.status in {200, 400, 403, 404, 503}
    assert "X-Injected" not in answer.headers
    assert b"root:" not in answer.body
    assert b"class Page" not in answer.body


@pytest.mark.parametrize(
    "path", ["", "nowhere", "audit", "healthz", "static/board.css", "sign-in", "sign-out"]
)
def test_every_answer_has_the_headers_against_frames_and_guesses(site, path):
    for method in ("GET", "POST"):
        headers = site.ask(method, f"/fleet/{path}").headers
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Server" not in headers
        assert "Access-Control-Allow-Origin" not in headers


def test_monitors_are_told_only_that_it_runs(site):
    answer = site.ask("GET", "/healthz", {"Host": "10.1.2.3:8090"})
    assert (answer.status, answer.text) == (200, "ok\n")
    assert site.ask("HEAD", "/healthz").status == 200


def test_refusals_push_no_act_out_of_the_history(site):
    token, reader = site.token("viewer", "vic"), site.token("operator", "ora")
    path = f"/rollouts/{'x' * 2000}/pause"
    for _ in range(60):
        assert site.ask("POST", path, {"Authorization": f"Bearer {token}"}, b"").status == 403
    refused = [one for one in site.acts(reader) if one["who"] == "vic"]
    assert 20 < len(refused) < 40
    assert all(len(one["what"]) <= 500 for one in refused)


def test_each_act_stands_in_the_history_with_who_and_from_where(site):
    token = site.token("operator", "oda")
    said = {**OWN_PAGE, "X-Forwarded-For": "198.51.100.9, 203.0.113.7", "X-Forwarded-User": "<b>olga\x9b"}
    csrf = site.csrf(said, PROXY)
    site.ask("POST", "/rollouts/stable/pause", {**said, "X-Board-Csrf": csrf}, b"why=slow", peer=PROXY)
    newest = site.acts(token)[0]
    assert newest["who"].startswith("<b>olga")
    assert newest["who"].isprintable()
    assert newest["address"] == "203.0.113.7", "the last that the proxy itself saw"
    assert (newest["role"], newest["by"]) == ("labeller", "proxy")
    assert newest["what"] == "POST rollouts/stable/pause"
    assert newest["result"].startswith("refused: 403")
    page = site.ask("GET", "/audit", {"Authorization": f"Bearer {token}"}).text
    assert "&lt;b&gt;olga" in page
    assert "<b>olga" not in page
    forged = {**JSON, "X-Forwarded-For": "198.51.100.9", "Authorization": f"Bearer {token}"}
    site.ask("POST", "/sign-out", forged, b"")
    assert site.acts(token)[0]["address"] == PERSON


@pytest.mark.parametrize("form", ["stripping", "keeping"])
def test_all_works_below_a_path_of_a_proxy(site, tab, form):
    proxy = getattr(site, form)
    token = site.token("operator", f"pia of {form}")
    sign_in(tab, proxy.url, token)
    assert tab.get_by_role("cell", name=f"pia of {form}").count()
    assert all(one["path"] == "/fleet/" for one in tab.context.cookies())
    assert tab.evaluate("getComputedStyle(document.body).margin") == "0px", "the style sheet is there"
    tab.locator("[data-kind=connection]").wait_for(state="detached")
    first = "(await (await fetch(document.body.dataset.streams)).body.getReader().read()).value.length"
    assert tab.evaluate(f"(async () => {first})()") > 0, "events come at once"
    tab.get_by_role("button", name="Sign out").click()
    tab.wait_for_url(proxy.url)
    assert tab.context.cookies() == []


def test_what_was_typed_outlives_a_token_that_ended_under_the_page(site, tab):
    token = site.token("operator", "eve")
    sign_in(tab, site.board.url, token)
    tab.evaluate(
        """() => {
          const form = document.createElement("form");
          form.method = "post"; form.action = "/fleet/rollouts/stable/none/pause";
          const fields = {csrf: document.body.dataset.csrf, why: 'too slow, "<b>" & ü', events: "1"};
          for (const [name, value] of Object.entries(fields)) {
            const input = document.createElement("input");
            input.name = name; input.value = value; form.append(input);
          }
          document.querySelector("main").append(form);
        }"""
    )
    site.expire("eve")
    tab.evaluate("document.querySelector('main form').submit()")
    tab.get_by_text("Your token has expired").wait_for()
    tab.get_by_label("Token").fill(site.token("operator", "eve"))
    with tab.expect_navigation():
        tab.get_by_role("button", name="Sign in").click()
    assert tab.get_by_text('too slow, "<b>" & ü').count()
    with tab.expect_request(lambda one: one.url.endswith("/pause")) as sent:
        tab.get_by_role("button", name="Send").click()
    assert "too+slow" in sent.value.post_data
    assert sent.value.response().status == 404, "past all rights; there is no such rollout"


def test_a_website_in_the_operators_browser_changes_nothing_and_frames_nothing(site, chromium):
    token = site.token("operator", "hanna")
    with contextlib.closing(chromium.new_context()) as context, evil(EVIL.format(url=site.board.url)) as url:
        tab = context.new_page()
        sign_in(tab, site.board.url, token)
        # Another port of the same host is the same site: SameSite=Strict lets its requests have the cookie.
        with tab.expect_response(lambda one: one.url.endswith("sign-out")) as answer:
            tab.goto(url)
        assert answer.value.status == 403
        assert [one.get_by_role("navigation").count() for one in tab.frames[1:]] == [0, 0]
        tab.goto(site.board.url + "audit")
        assert tab.get_by_role("heading", name="History").count(), "still signed in"
    assert "sign-out" not in [one["what"] for one in site.acts(token) if one["who"] == "hanna"]


def test_a_board_for_known_people_alone_shows_others_a_sign_in_and_follows_links(tmp_path, site, chromium):
    settings = (site.folder / "board.cfg").read_text().replace(f"{site.folder}/board", f"{tmp_path}/board")
    settings = settings.replace(f"url = {site.stripping.url}", "anonymous = none")
    (tmp_path / "board.cfg").write_text(settings)
    with (
        RunningBoard(tmp_path / "board.cfg") as board,
        contextlib.closing(chromium.new_context()) as context,
        evil(f'<a href="{board.url}audit">history</a> <a href="{board.url}pipeline">runs</a>') as elsewhere,
    ):
        closed = Site(board, tmp_path, (site.stripping, site.keeping))
        token = closed.token("viewer", "nora")
        for path in ("/", "/rollouts", "/streams", "/devices/x"):
            answer = closed.ask("GET", path, JSON)
            assert (answer.status, answer.json["needs"]) == (403, "viewer")
        assert closed.ask("GET", "/static/board.css").status == closed.ask("GET", "/healthz").status == 200
        tab = context.new_page()
        tab.goto(board.url + "pipeline")
        tab.get_by_label("Token").fill(token)
        tab.get_by_role("button", name="Sign in").click()
        tab.get_by_role("heading", name="Pipeline").wait_for()
        # Another site: its link brings no cookie (SameSite=Strict), and the page loads itself once more.
        tab.goto(elsewhere.replace("127.0.0.1", "localhost"))
        tab.get_by_role("link", name="runs").click()
        tab.get_by_role("heading", name="Pipeline").wait_for()
        tab.goto(elsewhere.replace("127.0.0.1", "localhost"))
        tab.get_by_role("link", name="history").click()
        tab.get_by_role("heading", name="This needs the role operator; nora is viewer").wait_for()


def sign_in(tab, url, token):
    """Sign in, in a browser, and go to the history."""
    tab.goto(url + "audit")
    tab.get_by_label("Token").fill(token)
    tab.get_by_role("button", name="Sign in").click()
    tab.get_by_role("heading", name="History").wait_for()


def raw(site, peer=PERSON):
    """Return a connection to the board."""
    url = urlsplit(site.board.url)
    return socket.create_connection((url.hostname, url.port), 10 * PATIENCE, source_address=(peer, 0))


@contextlib.contextmanager
def evil(page):
    """Serve a page from another origin."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def test_no_token_reaches_the_log_or_the_history(site):
    """Runs last: it looks at what all others left."""
    kept = site.board.log + "".join(
        one.read_text(errors="replace") for one in (site.folder / "board").glob("*.json*")
    )
    assert site.shown
    assert not [one for one in site.shown if one in kept or one.split("_", 2)[2] in kept]
