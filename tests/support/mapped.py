"""Import this after modules that map classes to tables with SQLAlchemy: it configures the mappers, which each
process would otherwise do at its first query."""

from __future__ import annotations

from sqlalchemy.orm import configure_mappers

configure_mappers()
