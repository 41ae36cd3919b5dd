"""Write `config.toml` of a run directory, with the origin of each setting."""

from __future__ import annotations

from pathlib import Path

from fmstune.access import reason
from fmstune.config.inspect.dump import HEADER, to_mapping, to_toml
from fmstune.config.inspect.provenance import with_origins, written_origins
from fmstune.config.schema.tables import RunConfig
from fmstune.errors import RunError
from fmstune.launch.environment import is_main_process
from fmstune.layout import CONFIG_NAME
from fmstune.secrets.redaction import Redactor
from fmstune.system.files import replace_text


def write_config(config: RunConfig, directory: Path, redactor: Redactor, header: str = HEADER) -> None:
    """Write it on rank zero. Raises `RunError` if the directory cannot be written to."""
    if not is_main_process():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = to_toml(config, redactor.configuration(to_mapping(config)), header=redactor.text(header))
        known = written_origins(directory / CONFIG_NAME)
        # Settings that a resumed run reads from its own file keep their original origin.
        own = {str(directory / CONFIG_NAME), CONFIG_NAME}
        origins = {
            key: known.get(key, "default") if origin in own else origin
            for key, origin in config.origins.items()
        }
        text = with_origins(text, {key: redactor.text(origin) for key, origin in origins.items()})
        replace_text(directory / CONFIG_NAME, text)  # atomically, since a resumed run reads it
    except OSError as error:
        raise RunError(f"{directory} cannot be written to: {reason(error, directory)}.") from error
