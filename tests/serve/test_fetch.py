"""A server that fetches pictures cannot be led into its own network."""

import asyncio

import httpx
import pytest

from serve.api.errors import RequestError
from serve.ingress.fetch import fetch_image, is_listed, is_public, public_addresses

HOSTS = ("pictures.example", "*.cdn.example")
PUBLIC = "93.184.216.34"


def found(content: bytes) -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(content))


async def public(host: str, port: int) -> list[str]:
    return [PUBLIC]


def fetch(url: str, answer=lambda request: found(b"picture"), resolve=public, **options) -> bytes:
    transport = httpx.MockTransport(answer)
    arguments = {"hosts": HOSTS, "max_bytes": 1000, "timeout_s": 5.0, **options}
    return asyncio.run(fetch_image(url, resolve=resolve, transport=transport, **arguments))


def test_the_connection_goes_to_the_address_that_was_looked_at() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.host, request.headers["host"], request.extensions["sni_hostname"]))
        return found(b"picture")

    assert fetch("https://pictures.example/a.jpg?x=1", answer) == b"picture"
    assert asked == [(PUBLIC, "pictures.example", "pictures.example")]


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/a.jpg",
        "https://pictures.example.evil.example/a.jpg",
        "https://evilpictures.example/a.jpg",
        "https://cdn.example/a.jpg",
        "https://user@pictures.example/a.jpg",
        "https://pictures.example:22/a.jpg",
        "http://pictures.example:443/a.jpg",
        "ftp://pictures.example/a.jpg",
        "file:///etc/passwd",
        "https://127.0.0.1/a.jpg",
        "https://[::1]/a.jpg",
        "https://pictures.example\\@evil.example/a.jpg",
        "https://",
        "https://\x00",
    ],
)
def test_only_listed_hosts_at_their_own_ports_are_asked(url: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"asked {request.url}")

    with pytest.raises(RequestError) as caught:
        fetch(url, answer)
    assert (caught.value.status, caught.value.code) == (422, "image_not_fetched")


def test_nothing_is_fetched_without_a_list() -> None:
    with pytest.raises(RequestError, match="base64"):
        fetch("https://pictures.example/a.jpg", hosts=())


def test_each_redirect_is_judged_and_there_is_an_end() -> None:
    def to(place: str):
        return lambda request: httpx.Response(302, headers={"location": place})

    with pytest.raises(RequestError, match="not on this server's list"):
        fetch("https://pictures.example/a", to("http://169.254.169.254/latest/meta-data"))
    with pytest.raises(RequestError, match="more than 3 times"):
        fetch("https://pictures.example/a", to("/a"))

    def once(request: httpx.Request) -> httpx.Response:
        if request.headers["host"] == "pictures.example":
            return httpx.Response(301, headers={"location": "https://b.cdn.example/b"})
        return found(b"moved")

    assert fetch("https://pictures.example/a", once) == b"moved"


def test_a_redirect_to_a_listed_name_with_a_private_address_is_refused() -> None:
    async def inside(host: str, port: int) -> list[str]:
        return await public_addresses("localhost" if host == "b.cdn.example" else PUBLIC, port)

    with pytest.raises(RequestError, match="not on the public internet"):
        fetch(
            "https://pictures.example/a",
            lambda request: httpx.Response(302, headers={"location": "https://b.cdn.example/b"}),
            inside,
        )


def test_a_large_slow_or_missing_picture_is_an_error_of_the_request() -> None:
    with pytest.raises(RequestError) as caught:
        fetch("https://pictures.example/a", lambda request: found(b"x" * 1001))
    assert caught.value.status == 413
    with pytest.raises(RequestError, match="answers 404"):
        fetch("https://pictures.example/a", lambda request: httpx.Response(404))

    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(5)
        return httpx.Response(200)

    with pytest.raises(RequestError, match="within 0.1 s"):
        fetch("https://pictures.example/a", slow, timeout_s=0.1)

    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no")

    with pytest.raises(RequestError, match="ConnectError"):
        fetch("https://pictures.example/a", broken)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1%eth0", "fd00::1"]
    + ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::"],
)
def test_addresses_inside_are_known(address: str) -> None:
    assert not is_public(address)
    assert is_public(PUBLIC) and is_public("2606:2800:220:1:248:1893:25c8:1946")


def test_names_are_compared_whole() -> None:
    assert is_listed("A.CDN.example.", HOSTS) and is_listed("pictures.example", HOSTS)
    assert not is_listed("cdn.example", HOSTS) and not is_listed("acdn.example", HOSTS)
