"""Define the client methods for models and their versions."""

from pathlib import Path

from reverie.methods.base import IMPORT_TIMEOUT_S, JSON, PNG, BaseMethods, ClientMethod, FilePath, Steps
from reverie.records import Model, SavedFile, Version
from reverie.requests import OCTET_STREAM, ApiRequest, ByteProgress, Upload, path_of

_ACTIVATION_TIMEOUT_S = 90.0


class ModelMethods(BaseMethods):
    """Client methods that list, share, delete, export and import models, and activate versions.

    They raise NotFoundError for unknown names and versions.
    """

    @ClientMethod
    def models(self) -> Steps[list[Model]]:
        """Return the model cards of all models that you may use, sorted by name."""
        return [Model(body) for body in (yield from self._get("models"))["data"]]

    @ClientMethod
    def model(self, name: str) -> Steps[Model]:
        """Return the model card of a model; `name` is the model's name, or name@version.

        Without a version it is the card of the active version.
        """
        return Model((yield from self._get("models", name)))

    @ClientMethod
    def save_model_sheet(self, name: str, path: FilePath) -> Steps[SavedFile]:
        """Save samples of a model, or of name@version, as one PNG file `path`.

        Raises NotFoundError if the model has no preview and cannot draw samples.
        """
        return (yield from self._download(ApiRequest("GET", path_of("models", name, "sheet")), path, PNG))

    @ClientMethod
    def versions(self, name: str) -> Steps[list[Version]]:
        """Return a model's versions, oldest first."""
        return [Version(body) for body in (yield from self._get("models", name, "versions"))["data"]]

    @ClientMethod
    def activate_version(self, name: str, version: str) -> Steps[Model]:
        """Make a version the active one of its model; return the model's card.

        Workers load the version before requests use it, so no request fails. Raises ConflictError
        if a worker cannot load it.
        """
        body = {"version": version}
        request = ApiRequest("PATCH", path_of("models", name), json=body, timeout_s=_ACTIVATION_TIMEOUT_S)
        return Model((yield from self._json(request)))

    @ClientMethod
    def share_model(self, name: str, shared: bool = True) -> Steps[Model]:
        """Let everybody use a model or, with `shared=False`, only its owner; return the model card."""
        return Model((yield from self._json(ApiRequest("PATCH", path_of("models", name), json={"shared": shared}))))

    @ClientMethod
    def delete_model(self, name: str) -> Steps[None]:
        """Delete a model with all its versions.

        Raises ConflictError if an unfinished job uses the model, or if the model was installed with
        the service.
        """
        yield from self._delete("models", name)

    @ClientMethod
    def delete_version(self, name: str, version: str) -> Steps[None]:
        """Delete a version of a model.

        Raises ConflictError if the version is active, if an unfinished job uses it, or if it was
        installed with the service.
        """
        yield from self._delete("models", name, "versions", version)

    @ClientMethod
    def export_version(
        self, name: str, path: FilePath, version: str | None = None, *, on_progress: ByteProgress | None = None
    ) -> Steps[SavedFile]:
        """Save a version, by default the active one, as the safetensors file `path`.

        The file's header has the version's card. `on_progress` is called with the number of bytes
        received.
        """
        if version is None:
            version = str((yield from self._get("models", name))["version"])
        request = ApiRequest("GET", path_of("models", name, "versions", version, "file"))
        return (yield from self._download(request, path, OCTET_STREAM, on_progress))

    @ClientMethod
    def import_version(
        self, name: str, file: FilePath, *, shared: bool | None = None, on_progress: ByteProgress | None = None
    ) -> Steps[Version]:
        """Upload an exported file as a version of the model `name`; return the version.

        The first version of a model becomes active, later ones do not. If the file was imported
        before, that version is returned. A new model is private unless `shared`. `on_progress` is
        called with the number of bytes sent. Raises InvalidError if the file is not a valid version
        of this model.
        """
        request = ApiRequest(
            "POST",
            path_of("models", name, "versions"),
            params={"shared": shared},
            headers={"Accept": JSON},
            upload=Upload({"file": Path(file)}, on_progress),
            timeout_s=IMPORT_TIMEOUT_S,
        )
        body = (yield from self._send_and_wait(request)).json()
        if "links" not in body:  # the result of the job that checked the file
            body = yield from self._get("models", name, "versions", body["version"])
        return Version(body)
