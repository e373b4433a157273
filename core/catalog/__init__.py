"""Operations, models, versions and their options."""
