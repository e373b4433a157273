"""Types of fields that several bodies share."""

from pydantic import BeforeValidator

from core.catalog.numbers import whole

WHOLE = BeforeValidator(whole)
"""For `Annotated[int, Field(ge=…), WHOLE]`, bounds first: an integer that JSON may write as 4.0.

4.5, `true`, text and non-finite numbers are rejected.
"""
