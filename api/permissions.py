"""Checks what callers may do with datasets and models.

Callers may use their own resources and shared ones; admins may use and change all resources. Owners
are stored in SQL. Each process caches them in memory and polls for changes twice a second, so that
a request for a small sample needs no database query.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from api.auth import Caller
from api.errors import ConflictError, ForbiddenError, InvalidError
from core.catalog.registry import ModelVersion, Registry
from core.datasets.store import Datasets
from core.resources import UNOWNED, Kind, Ownership, ResourceStore

log = logging.getLogger(__name__)

REFRESH_S = 0.5
_VACANT_S = 300.0  # seconds after which a claimed name is free again, if no resource and no job uses it


class VisibleModels:
    """A view of the registry with the models that a caller may use."""

    def __init__(self, registry: Registry, visible: Callable[[str], bool]) -> None:
        """Filter the registry; `visible` returns whether the caller may use the model of a name."""
        self._registry = registry
        self._visible = visible

    def find(self, ref: str) -> ModelVersion | None:
        """Return the model `name` or `name@version`; None if the caller may use no such model."""
        return self._registry.find(ref) if self._visible(ref.partition("@")[0]) else None

    def active(self) -> list[ModelVersion]:
        """Return the active versions of the models that the caller may use, sorted by name."""
        return [entry for entry in self._registry.active() if self._visible(entry.name)]

    def versions(self, name: str) -> list[str]:
        """Return a model's versions, oldest first; an empty list if the caller may not use it."""
        return self._registry.versions(name) if self._visible(name) else []


Models = Registry | VisibleModels


class Permissions:
    """Caches the owners of datasets and models, and checks what callers may do with them.

    In the methods, `kind` is "dataset" or "model", and `name` the name of such a resource.
    """

    def __init__(
        self,
        store: ResourceStore,
        registry: Registry,
        datasets: Datasets,
        busy: Callable[[Kind, str, str], Awaitable[bool]],
    ) -> None:
        """Read all owners from `store`.

        `busy(kind, name, owner)` returns whether an unfinished job of another owner than `owner`
        may store a resource; while one may, `owner` cannot become the owner of the name in its
        place.
        """
        self._store = store
        self._registry = registry
        self._datasets = datasets
        self._busy = busy
        self._owned: dict[tuple[str, str], Ownership] = {}
        self._count = -1
        self._loading = threading.Lock()
        self._load()

    def _load(self) -> None:
        """Read all owners from the database if they have changed since the last read."""
        with self._loading:  # so that an older read does not replace a newer one
            count = self._store.change_count()
            if count != self._count:
                self._owned = self._store.all()
                self._count = count

    async def refresh(self) -> None:
        """Read the owners again if this or another process has changed them."""
        await asyncio.to_thread(self._load)

    async def watch(self) -> None:
        """Keep the cached owners of datasets and models up to date, until cancelled.

        Every `REFRESH_S` seconds they are read again if the database has changed. Errors are logged.
        """
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except Exception:
                log.exception("owners not read")

    # --- what a caller may do ---

    def ownership(self, kind: Kind, name: str) -> Ownership:
        """Return a resource's owner and whether it is shared.

        A resource that is not in the database has no owner (None) and is shared.
        """
        return self._owned.get((kind, name), UNOWNED)

    def owned_by(self, kind: Kind, owner: str) -> list[str]:
        """Return the names of an owner's resources of one kind, in no particular order."""
        return [name for (of, name), own in self._owned.items() if of == kind and own.owner == owner]

    def can_use(self, kind: Kind, name: str, caller: Caller) -> bool:
        """Return whether a caller may see and use a resource.

        Its owner and admins may, and everybody if it is shared or has no owner.
        """
        own = self._owned.get((kind, name))
        return own is None or own.shared or caller.is_admin or own.owner == caller.name

    def can_change(self, kind: Kind, name: str, caller: Caller) -> bool:
        """Return whether a caller may change or delete a resource: its owner and admins may."""
        return caller.is_admin or self.ownership(kind, name).owner == caller.name

    def models(self, caller: Caller) -> Models:
        """Return a view of the registry with the models that a caller may use."""
        if caller.is_admin or not self._owned:
            return self._registry
        return VisibleModels(self._registry, lambda name: self.can_use("model", name, caller))

    def check_change(self, kind: Kind, name: str, caller: Caller) -> None:
        """Raise ForbiddenError unless a caller may change or delete a resource.

        Call it only if the caller may use the resource: the error says that the resource exists.
        """
        if self.can_change(kind, name, caller):
            return
        if self.ownership(kind, name).owner is None:
            detail = f"the {kind} {name} belongs to nobody (it came with the service, or from before there were keys)"
            raise ForbiddenError(f"{detail}; only a key with the role `admin` may change it")
        raise ForbiddenError(f"the {kind} {name} is shared with you, not yours; only its owner may change it")

    def describe(self, kind: Kind, name: str, caller: Caller) -> dict[str, Any]:
        """Return the fields `owner` and `shared` of a resource, for responses to the caller.

        `owner` is None for a caller that cannot change the resource.
        """
        own = self.ownership(kind, name)
        return {"owner": own.owner if self.can_change(kind, name, caller) else None, "shared": own.shared}

    # --- new names ---

    async def exists(self, kind: Kind, name: str, caller: Caller) -> bool:
        """Return whether a dataset or model with this name exists.

        Raises ConflictError if it exists and the caller may not use it, because the name is then
        not free.
        """
        await self.refresh()
        if kind == "model":
            exists = self._registry.find(name) is not None
        else:
            exists = await asyncio.to_thread(self._datasets.get, name) is not None
        if exists and not self.can_use(kind, name, caller):
            raise _taken(kind, name)
        return exists

    async def check_new(self, kind: Kind, name: str, caller: Caller) -> bool:
        """Check that a caller may store a resource under a name; return whether it exists already.

        Raises ConflictError if the name is that of a resource which the caller may not use, and
        ForbiddenError if the caller may use the resource but not change it.
        """
        exists = await self.exists(kind, name, caller)
        if exists:
            self.check_change(kind, name, caller)
        return exists

    async def claim(self, kind: Kind, name: str, caller: Caller, *, shared: bool | None) -> None:
        """Make the caller the owner of a new resource, before it is stored, and set `shared`.

        `shared` says whether everybody may use the resource. The owner of an existing resource
        stays, and its `shared` is set only if the parameter is not None. Raises ConflictError if
        the name is that of a resource which the caller may not use, ForbiddenError if the caller
        may use that resource but not change it, and InvalidError if `shared` is False and the
        resource has no owner.
        """
        exists = await self.check_new(kind, name, caller)
        own = self.ownership(kind, name)
        if not caller.name or (exists and own.owner is None):
            if shared is False:
                raise _always_shared(kind, name, caller)
            if not exists and own.owner is not None:  # the resource was deleted while the service had no keys
                await asyncio.to_thread(self._store.release, kind, name)
        elif exists and own.owner != caller.name:
            if shared is not None:
                await asyncio.to_thread(lambda: self._store.share(kind, name, shared=shared, owner=own.owner))
        else:
            busy = not exists and own.owner != caller.name and await self._busy(kind, name, caller.name)
            if busy and kind == "model" and own.owner is None:
                raise _taken(kind, name)  # otherwise the job would add its version to the caller's model
            after_s = _VACANT_S if not exists and not busy else None
            claim = partial(self._store.claim, kind, name, caller.name, shared=shared, vacant_after_s=after_s)
            if (await asyncio.to_thread(claim)).owner != caller.name:
                raise _taken(kind, name)
        await self.refresh()

    def check_share(self, kind: Kind, name: str, caller: Caller, *, shared: bool) -> None:
        """Raise InvalidError if `shared` is false and the resource has no owner.

        A resource without an owner stays shared. The message says why it has no owner: nobody has
        claimed it, or the service has no API keys.
        """
        if not shared and self.ownership(kind, name).owner is None:
            raise _always_shared(kind, name, caller)

    async def share(self, kind: Kind, name: str, caller: Caller, *, shared: bool) -> None:
        """Set whether everybody may use a resource; do nothing if it was deleted meanwhile.

        Raises ForbiddenError if the caller may not change it, and InvalidError if `shared` is False
        and the resource has no owner.
        """
        await self.refresh()
        self.check_change(kind, name, caller)
        self.check_share(kind, name, caller, shared=shared)
        owner = self.ownership(kind, name).owner
        if owner is None:
            return
        await asyncio.to_thread(lambda: self._store.share(kind, name, shared=shared, owner=owner))
        await self.refresh()

    async def check_deletion(self, kind: Kind, name: str, caller: Caller) -> Ownership:
        """Check that a caller may delete a resource; return its ownership, for `release`.

        Raises ForbiddenError as `check_change` does.
        """
        ownership = await asyncio.to_thread(self._store.get, kind, name)
        await self.refresh()
        self.check_change(kind, name, caller)
        return ownership

    async def release(self, kind: Kind, name: str, ownership: Ownership) -> None:
        """Delete the ownership of a deleted resource, so that its name is free again.

        The row stays if the name was claimed again since `check_deletion` returned `ownership`.
        """
        await asyncio.to_thread(self._store.release, kind, name, ownership)
        await self.refresh()


def _taken(kind: Kind, name: str) -> ConflictError:
    """Return the error for a name that belongs to a resource which the caller may not use."""
    return ConflictError(f"the name {name} is taken by another {kind}; choose another name")


def _always_shared(kind: Kind, name: str, caller: Caller) -> InvalidError:
    """Return the error for making a resource private that has no owner."""
    why = f"the {kind} {name} belongs to nobody" if caller.name else "without API keys nothing has an owner"
    detail = f"shared: {why}, and so everybody may use it"
    return InvalidError(detail, errors=[{"field": "shared", "detail": detail}])
