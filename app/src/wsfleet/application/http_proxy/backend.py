"""A backend behind one HTTP endpoint, as the node's application."""

from typing import NoReturn

from wsfleet.application.http_proxy import answers
from wsfleet.application.http_proxy.http_client import MAX_IDLE, HTTPClient
from wsfleet.application.http_proxy.requests import Bodies, HeaderFields
from wsfleet.application.http_proxy.tls import client_context
from wsfleet.application.port import (
    BackendError,
    Client,
    ConnectCall,
    Connected,
    Disconnect,
    DisconnectedCall,
    Error,
    Failure,
    PublishCall,
    Published,
    RefreshCall,
    Renewed,
    RpcCall,
    SubRefreshCall,
    SubscribeCall,
    Subscribed,
)
from wsfleet.config.endpoint_url import EndpointURL
from wsfleet.config.proxy import Proxy

OK = 200
FAILURES: dict[int, Failure] = {500: "exception", 503: "unavailable", 504: "timeout"}
"""What a status tells of a failure (RFC 9110, section 15.6); any other answer is invalid."""


class HTTPProxy:
    """A backend that is asked by HTTP; `path` is the place of its options in the configuration.

    A call is one request, which is never sent twice. `max_idle` is that of its connections.

    Raises:
        ConfigError: a certificate or key is missing or invalid.
    """

    def __init__(
        self,
        options: Proxy,
        path: str,
        bodies: type[Bodies] = Bodies,
        max_idle: float = MAX_IDLE,
    ) -> None:
        url = EndpointURL.parse(options.endpoint)
        tls = options.http.tls
        self._client = HTTPClient(
            url,
            options.timeout,
            client_context(tls, f"{path}.http.tls") if url.tls else None,
            tls.server_name if tls.enabled else "",
            max_idle,
        )
        self._bodies = bodies(options)
        self._fields = HeaderFields(options)
        self._transforms = {
            each.status_code: each for each in reversed(options.http.status_to_code_transforms)
        }

    def close(self) -> None:
        """Close the idle connections, and each other one after its call."""
        self._client.close()

    async def connect(self, call: ConnectCall) -> Connected | None:
        """Identify a client; None if it has no credentials."""
        return answers.connected(await self._post(call.client, self._bodies.connect(call)))

    async def refresh(self, call: RefreshCall) -> Renewed:
        """Extend a connection; a refusal lets it expire."""
        return await self._renew(call.client, self._bodies.refresh(call))

    async def subscribe(self, call: SubscribeCall) -> Subscribed:
        """Let a client subscribe."""
        return answers.subscribed(await self._post(call.client, self._bodies.subscribe(call)))

    async def sub_refresh(self, call: SubRefreshCall) -> Renewed:
        """Extend a subscription; a refusal lets it expire."""
        return await self._renew(call.client, self._bodies.sub_refresh(call))

    async def publish(self, call: PublishCall) -> Published:
        """Let a client publish."""
        body = await self._post(call.client, self._bodies.publish(call))
        return answers.published(body, call.data)

    async def rpc(self, call: RpcCall) -> bytes:
        """Answer a call."""
        return answers.rpc_data(await self._post(call.client, self._bodies.rpc(call)))

    async def disconnected(self, call: DisconnectedCall) -> None:
        """Tell that a connection ended; any answer with status 200 will do."""
        await self._post(call.client, self._bodies.disconnect(call))

    async def _renew(self, client: Client, body: bytes) -> Renewed:
        try:
            return answers.renewed(await self._post(client, body))
        except (Error, Disconnect):
            return Renewed(expired=True)

    async def _post(self, client: Client, body: bytes) -> bytes:
        """Return the body of the answer.

        Raises:
            Error, Disconnect: the status has a transform.
            BackendError: there is no answer, or its status is not 200.
        """
        fields = self._fields.encode(client.headers, client.emulated_headers)
        answer = await self._client.post(fields, body)
        if answer.status != OK:
            self._refuse(answer.status)
        return answer.body

    def _refuse(self, status: int) -> NoReturn:
        transform = self._transforms.get(status)
        if transform is not None and (error := transform.to_error) is not None:
            raise Error(error.code, error.message, temporary=error.temporary)
        if transform is not None and (disconnect := transform.to_disconnect) is not None:
            raise Disconnect(disconnect.code, disconnect.reason)
        reason = FAILURES.get(status, "invalid")
        raise BackendError(f"the answer has status {status}", reason=reason)
