"""/admin/workers: workers that come and go while the gateway runs."""

from typing import Any
from urllib.parse import parse_qs

from gateway.api.admin import read_change
from gateway.api.body import Fields
from gateway.api.reply import Scope, Send, send_json
from gateway.api.status import workers
from gateway.errors import BadRequest, NotFound
from gateway.gateway import Gateway
from gateway.http_loop import Receive
from gateway.routing import MAX_WEIGHT, ROLES, AddressError, NameTaken, Worker, WorkerAddress, role_problem

LEAST_WEIGHT = 0.001
CHANGEABLE = ("draining", "weight", "role", "labels")
MAX_LABELS = 64
MAX_LABEL = 256


class AdminWorkers:
    """GET all workers; POST `{"url": "step://host:port?weight=2", "name": …, "labels": {…}}` adds one, which is named
    after its URL unless it is given a name."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            worker = self._add(await read_change(scope, receive, self._gateway))
            await send_json(scope, send, described(self._gateway, worker), 201)
        else:
            await send_json(scope, send, {"workers": workers(self._gateway)})

    def _add(self, fields: Fields) -> Worker:
        try:
            address = WorkerAddress.parse(fields.text("url"))
        except AddressError as error:
            raise BadRequest(str(error), param="url") from error
        served = (*self._gateway.models, *self._gateway.aliases)
        if address.model is not None and address.model not in served:
            raise BadRequest(f"url names the model {address.model!r}, which is not served here", param="url")
        name = fields.text("name") if fields.has("name") else str(address)
        labels = labels_of(fields)
        try:
            return self._gateway.engine.connect(address, name, labels)
        except NameTaken as error:
            raise BadRequest(str(error), param="name" if fields.has("name") else "url") from error


class AdminWorker:
    """One worker, by its name. PATCH `{"draining": true}` gives it nothing new and lets it finish what it has, false
    takes that back; `{"weight": 2}` changes its share, `{"role": "prefill"}` what it does of a request, and
    `{"labels": {…}}` replaces what is noted of it. DELETE removes it when it has finished what it has, or with
    `?now=true` at once."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["name"]
        worker = find(self._gateway, name)
        if worker is None:
            raise NotFound(f"there is no worker {name!r}; GET /admin/workers lists them")
        if scope["method"] == "PATCH":
            self._change(worker, await read_change(scope, receive, self._gateway))
        elif scope["method"] == "DELETE":
            self._remove(worker, read_now(scope))
        await send_json(scope, send, described(self._gateway, worker))

    def _change(self, worker: Worker, fields: Fields) -> None:
        """All or nothing."""
        for name in fields.values:
            if name not in CHANGEABLE:
                fields.refuse(name, f"cannot be changed; {', '.join(CHANGEABLE)} can")
        weight = fields.number("weight", LEAST_WEIGHT, MAX_WEIGHT)
        draining = fields.boolean("draining") if fields.has("draining") else None
        role = self._role_for(worker, fields) if fields.has("role") else None
        labels = labels_of(fields)
        router = self._gateway.router
        if weight is not None:
            router.set_weight(worker, weight)
        if role is not None:
            router.set_role(worker, role)
        if fields.has("labels"):
            router.set_labels(worker, labels)
        if draining is not None:
            router.drain(worker, draining)

    def _role_for(self, worker: Worker, fields: Fields) -> str:
        role = fields.text("role")
        if role not in ROLES:
            fields.refuse("role", f"must be one of {', '.join(ROLES)}")
        state = self._gateway.router.state(worker)
        if state is None or state.info is None:
            fields.refuse("role", "can be changed once the worker has been reached; this one has not")
        if problem := role_problem(role, state.info):
            fields.refuse("role", f"cannot be {role!r}: {problem}")
        return role

    def _remove(self, worker: Worker, now: bool) -> None:
        self._gateway.router.leave(worker)
        if now:
            self._gateway.engine.disconnect(worker)


def labels_of(fields: Fields) -> dict[str, str]:
    """Empty when there are none."""
    if not fields.has("labels"):
        return {}
    labels = fields.values["labels"]
    if not isinstance(labels, dict) or len(labels) > MAX_LABELS:
        fields.refuse("labels", f"must be an object of at most {MAX_LABELS} texts")
    for name, text in labels.items():
        if not isinstance(text, str) or len(name) + len(text) > MAX_LABEL:
            fields.refuse(f"labels.{name}", f"must be a text; name and text have at most {MAX_LABEL} characters")
    return labels


def read_now(scope: Scope) -> bool:
    """The query's `now`; raises BadRequest."""
    given = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("now", ["false"])
    if given not in (["true"], ["false"]):
        raise BadRequest("now must be true or false", param="now")
    return given == ["true"]


def find(gateway: Gateway, name: str) -> Worker | None:
    return next((worker for worker in gateway.router.snapshot() if worker.name == name), None)


def described(gateway: Gateway, worker: Worker) -> dict[str, Any]:
    """As in the list; only its name once it is gone."""
    return next((each for each in workers(gateway) if each["name"] == worker.name), {"name": worker.name})
