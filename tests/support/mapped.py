"""Imported after modules that map classes to tables with SQLAlchemy, it has them mapped, which would be done
at the first query of each process."""

from __future__ import annotations

from sqlalchemy.orm import configure_mappers

configure_mappers()
