"""The error for uploads of datasets that are refused."""


class UploadRejectedError(ValueError):
    """An upload that cannot be used: the field that is at fault, what is wrong and what would work,
    and the status.
    """

    def __init__(self, detail: str, field: str = "file", status: int = 422) -> None:
        super().__init__(detail)
        self.field = field
        self.status = status
