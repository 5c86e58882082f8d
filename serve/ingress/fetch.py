"""Pictures by URL: only from hosts that the server's owner has named, and never from inside the network.

A server that fetches what strangers name can be used to reach what only it can reach. So hosts must be on a list, a
host's addresses must all be public, the connection goes to the very address that was looked at, and each redirect is
judged as if it had been asked for.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

import httpx

from serve.api.errors import RequestError

MOST_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def public_addresses(host: str, port: int) -> list[str]:
    """Addresses of a host.

    Raises:
        RequestError: 422, it has none, or one of them lies inside a network.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _refused(f"the host {host} is not known") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise _refused(f"the host {host} is not on the public internet")
    return addresses


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, whatever form it is written in."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        # An IPv4 address inside: mapped, 6to4, or NAT64's prefix, behind which a gateway reaches it.
        inside = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            inside = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(str(inside))
    return parsed.is_global and not parsed.is_multicast


def is_listed(host: str, hosts: Sequence[str]) -> bool:
    """Whether a host is on a list; ``*.example.org`` stands for everything below ``example.org``."""
    host = host.lower().rstrip(".")
    return any(host == entry.lower() or (entry[:2] == "*." and host.endswith(entry[1:].lower())) for entry in hosts)


async def fetch_image(
    url: str,
    hosts: Sequence[str],
    max_bytes: int,
    timeout_s: float,
    resolve: Resolve = public_addresses,
    transport: httpx.AsyncBaseTransport | None = None,
) -> bytes:
    """The bytes behind a URL.

    Args:
        url: ``https://`` or ``http://``, at the scheme's own port.
        hosts: from which pictures are taken.
        max_bytes: largest file.
        timeout_s: within which it must have come whole, redirects included.
        resolve: gives the addresses of a host and port, or raises.
        transport: how to connect; None = as httpx does.

    Raises:
        RequestError: 422, it is not fetched, or could not be; 413, it is too large.
    """
    if not hosts:
        raise _refused("this server fetches no pictures; send the file's bytes in base64")
    try:
        async with asyncio.timeout(timeout_s), httpx.AsyncClient(transport=transport, trust_env=False) as client:
            for _ in range(MOST_REDIRECTS + 1):
                answer = await _get(client, url, hosts, max_bytes, resolve)
                if isinstance(answer, bytes):
                    return answer
                url = answer
    except TimeoutError as error:
        raise _refused(f"it did not come within {timeout_s:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _refused(type(error).__name__) from error
    raise _refused(f"it redirects more than {MOST_REDIRECTS} times")


async def _get(
    client: httpx.AsyncClient, url: str, hosts: Sequence[str], max_bytes: int, resolve: Resolve
) -> bytes | str:
    """Content, or where it has moved to."""
    asked = httpx.URL(url)
    port = _PORTS.get(asked.scheme)
    if port is None or asked.port not in (None, port) or asked.userinfo:
        raise _refused("only plain http:// and https:// addresses at their own ports are")
    if not is_listed(asked.host, hosts):
        raise _refused(f"the host {asked.host} is not on this server's list")
    addresses = await resolve(asked.host, port)
    # The address that was looked at, so that the name cannot mean another one a moment later.
    request = client.build_request(
        "GET",
        asked.copy_with(host=addresses[0]),
        headers={"Host": asked.host, "Accept": "image/*", "Accept-Encoding": "identity"},
        extensions={"sni_hostname": asked.host},
    )
    answer = await client.send(request, stream=True)
    try:
        if answer.is_redirect:
            return str(asked.join(answer.headers["location"]))
        if answer.status_code != 200:
            raise _refused(f"{asked.host} answers {answer.status_code}")
        parts, received = [], 0
        async for part in answer.aiter_raw():
            received += len(part)
            if received > max_bytes:
                raise RequestError(413, "image_too_large", f"The picture has more than {max_bytes / 1e6:g} MB.")
            parts.append(part)
        return b"".join(parts)
    finally:
        await answer.aclose()


def _refused(why: str) -> RequestError:
    return RequestError(422, "image_not_fetched", f"The picture is not fetched: {why}.")
