"""A Kubeflow Pipelines server: who we are to it, and the one place where it is called.

kfp's client finds the server and the credentials; the calls are those of the generated client
under it, which take time-outs and retries.
"""

import contextlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import kfp_server_api
import urllib3
from kfp_server_api import rest

from pipelines import signing_in
from trainer.errors import ServerError, UsageError

PAGE_SIZE = 100
# Answers after which the same call may do better.
PASSING = (429, 500, 502, 503, 504)
# What a call that changes something may end with and have been taken all the same; or, a
# conflict, another's may have been.
UNSETTLED = (0, 409, *PASSING)
ADVICE = {
    301: "it has moved; give --host as it is now",
    302: "it sends us elsewhere, perhaps to sign in; docs/submitting.md says how",
    401: "docs/submitting.md says how to sign in",
    403: "whoever signed in may not do that",
    429: "too many calls; try again later",
}
# What stood in the way, the particular before the general.
CAUSES: dict[type[Exception], str] = {
    urllib3.exceptions.ReadTimeoutError: "did not answer in time",
    urllib3.exceptions.NameResolutionError: "there is no such host",
    urllib3.exceptions.NewConnectionError: "could not be reached",
    urllib3.exceptions.ConnectTimeoutError: "could not be reached in time",
    urllib3.exceptions.SSLError: "its certificate is not to be trusted, or it speaks no TLS",
    UnicodeDecodeError: "answers with what is no text",
}
# A call that was not answered in time may be taken even now.
SLOW = 504
# Of what the server says of its refusal.
LONGEST = 300

Found = TypeVar("Found")


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for; times in seconds.

    A call that may be repeated is made `attempts` times, with waits of `backoff`, twice that,
    and so on between; `poll` is the time from one look at a run to the next, and `outage` how
    long a server may be away while a run is waited for.
    """

    connect: float = 10.0
    read: float = 60.0
    attempts: int = 4
    backoff: float = 1.0
    poll: float = 5.0
    outage: float = 300.0


class Refusal(ServerError):
    """What a call ended with: the HTTP status, SLOW where no answer came in time, 0 where none came."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Server:
    """A server that has answered once, and to which we are somebody.

    `namespace` is None where the server has no users.

    Raises:
      UsageError: no host, one that is no address, or credentials that no header can hold.
      ServerError: the server cannot be reached, refuses, or is no Kubeflow Pipelines.
    """

    def __init__(self, host: str | None, patience: Patience = Patience()) -> None:
        self.patience = patience
        self._given = host
        self._identity = signing_in.sign_in(host)
        self._client = self._identity.api_client
        # It tells of each attempt; the generated client sets its level when it is made.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self._client.configuration.retries = urllib3.Retry(
            total=patience.attempts - 1,
            backoff_factor=patience.backoff / 2,
            status_forcelist=PASSING,
            allowed_methods=("GET", "DELETE"),  # what deletes twice finds nothing to delete
            retry_after_max=round(patience.read),
            raise_on_status=False,
            redirect=False,  # to a page to sign in at, headers and all
        )
        self._client.rest_client = rest.RESTClientObject(self._client.configuration)
        self._known = False
        self.pipelines = kfp_server_api.PipelineServiceApi(self._client)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(self._client)
        self.experiments = kfp_server_api.ExperimentServiceApi(self._client)
        self.runs = kfp_server_api.RunServiceApi(self._client)
        self.recurring_runs = kfp_server_api.RecurringRunServiceApi(self._client)
        self.namespace = self._greeted()

    def call(self, method: Callable, *arguments: Any, **keywords: Any) -> Any:
        """What the server answers to one of its API's calls; only what reads or deletes is repeated.

        Raises:
          Refusal: it refused, did not answer in time, or with something else than its API has.
        """
        for attempt in itertools.count():
            try:
                answer = method(*arguments, **keywords, _request_timeout=self._timeout)
                break
            except kfp_server_api.ApiException as error:
                if error.status == 401 and self._known and attempt == 0:
                    # What has been accepted runs out within the hour, with some.
                    self._identity.renew(self._given)
                    continue
                raise self._refusal(error.status or 0, error.reason, error.body) from error
            except (urllib3.exceptions.HTTPError, UnicodeDecodeError) as error:
                raise self._unanswered(error) from error
        self._check_json()
        self._known = True
        return answer

    def pages(self, method: Callable, items: str, **keywords: Any) -> Iterator[Any]:
        """What is in the list `items` of the answers to a call, page after page."""
        token = ""
        while True:
            answer = self.call(method, page_token=token, page_size=PAGE_SIZE, **keywords)
            yield from getattr(answer, items) or ()
            token = answer.next_page_token
            if not token:
                return

    def ensure(self, find: Callable[[], Found | None], make: Callable[[], Found]) -> tuple[Found, bool]:
        """What `find` finds or else `make` makes, and whether it had to be made.

        A call to make that may have been taken is looked up before it is made again, and not made
        again where it may still be under way.

        Raises:
          Refusal: the last one, when `make` has been refused for good or too often.
        """
        refused: Refusal | None = None
        for attempt in range(self.patience.attempts):
            if (found := find()) is not None:
                return found, refused is not None
            try:
                if refused is None or refused.status != SLOW:
                    return make(), True
            except Refusal as refusal:
                if refusal.status not in UNSETTLED:
                    raise
                refused = refusal
            time.sleep(self.patience.backoff * 2**attempt)
        if (found := find()) is not None:
            return found, True
        raise refused or AssertionError("no attempt was made")

    def where(self, **values: str) -> str:
        """The filter of a list: those whose fields have these values."""
        return self.filtered(kfp_server_api.V2beta1PredicateOperation.EQUALS, *values.items())

    def filtered(self, operation: str, *predicates: tuple[str, str]) -> str:
        """The filter of a list: those for whose fields and these values `operation` holds."""
        terms = [
            kfp_server_api.V2beta1Predicate(key=key, operation=operation, string_value=value)
            for key, value in predicates
        ]
        return json.dumps(self._client.sanitize_for_serialization(kfp_server_api.V2beta1Filter(predicates=terms)))

    def read(self, path: str, **query: str) -> Iterator[str]:
        """The lines of a text that is no part of the API's models; nothing where there is no such text."""
        try:
            response = self._client.call_api(
                path,
                "GET",
                query_params=list(query.items()),
                header_params={"Accept": "text/plain"},
                auth_settings=["Bearer"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=self._timeout,
            )
            with contextlib.closing(response):
                if "html" not in response.headers.get("content-type", ""):
                    yield from _lines(response)
        except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError, AttributeError):
            return

    @property
    def host(self) -> str:
        """The server's address."""
        return self._client.configuration.host

    def page(self, place: str) -> str:
        """The address of a page for people; nothing where only the API's address is known."""
        return f"{self._identity.pages}/#/{place}" if self._identity.pages else ""

    @property
    def _timeout(self) -> tuple[float, float]:
        return self.patience.connect, self.patience.read  # of one number that is no int, it takes no notice

    def _greeted(self) -> str | None:
        """The namespace that we are in; as kfp's client has it, but asked for with time-outs and retries."""
        greeting = self.call(kfp_server_api.HealthzServiceApi(self._client).healthz_service_get_healthz)
        if greeting.multi_user is None:
            raise ServerError(f"{self.host}: answers, but is no Kubeflow Pipelines; see --host")
        if not greeting.multi_user:
            return None
        if not self._identity.namespace:
            raise UsageError(f"{self.host} has many users: {signing_in.NO_NAMESPACE}")
        return self._identity.namespace

    def _check_json(self) -> None:
        """The generated client takes a page for a model without fields."""
        try:
            said = json.loads(self._client.last_response.data)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            problem = "answers with a page, not as Kubeflow Pipelines; are you signed in, and is it the right --host?"
            raise Refusal(f"{self.host}: {problem}", 0)

    def _unanswered(self, error: Exception) -> Refusal:
        reason = getattr(error, "reason", None)  # what is at the bottom of urllib3's own retries
        cause = reason if isinstance(reason, Exception) else error
        kind = next((kind for kind in CAUSES if isinstance(cause, kind)), None)
        text = CAUSES[kind] if kind else "the connection broke"
        return Refusal(f"{self.host}: {text}", SLOW if kind is urllib3.exceptions.ReadTimeoutError else 0)

    def _refusal(self, status: int, reason: str | None, body: str | None) -> Refusal:
        try:
            content = json.loads(body or "")
            said = next(str(content[key]) for key in ("message", "error_message", "error") if content.get(key))
        except (ValueError, AttributeError, StopIteration):
            said = ""
        said = " ".join(self._identity.redacted(said).split())
        shown = f"{said[:LONGEST]}…" if len(said) > LONGEST else said
        parts = [f"{self.host}: {status or reason}", *filter(None, (shown, ADVICE.get(status, "")))]
        return Refusal("; ".join(parts), status)


def _lines(response: Any) -> Iterator[str]:
    rest_of_line = b""
    for chunk in response.stream(2**16):
        *whole, rest_of_line = (rest_of_line + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest_of_line:
        yield rest_of_line.decode(errors="replace")
