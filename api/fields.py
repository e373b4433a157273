"""Types of fields that several requests have."""

from pydantic import BeforeValidator

from core.catalog.numbers import whole

WHOLE = BeforeValidator(whole)
"""For `Annotated[int, Field(ge=…), WHOLE]`, bounds first: an integer that JSON may write as 4.0.

4.5, `true`, text and numbers that are not finite are refused.
"""
