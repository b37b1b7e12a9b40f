"""Names of sections and settings that are Luigi's own, or those of a task that is loaded.

Luigi knows most of them itself: each of its sections is a `luigi.Config`, and each task may have one. The
tables below are what Luigi reads without one.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from luigi.task_register import Register

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

# Where Luigi's sections are; not all of them are loaded by `import luigi`.
_MODULES = ("luigi.batch_notifier", "luigi.execution_summary", "luigi.interface", "luigi.retcodes")
# Read by luigi.rpc, luigi.setup_logging, luigi and luigi.db_task_history.
_READ_DIRECTLY = {
    "core": {
        "autoload_range",
        "history_filename",
        "logging_conf_file",
        "no_configure_logging",
        "rpc_connect_timeout",
        "rpc_log_retries",
        "rpc_retry_attempts",
        "rpc_retry_wait",
        "tmp_dir",
    },
    "task_history": {"db_connection"},
}
# Any name may stand in them: those of resources and loggers, and sections of parts of Luigi that are not
# loaded here (its documentation of the configuration, and luigi.contrib).
_ANY_NAME = (
    "resources",
    "logging",
    "batch_notifier",
    "batch_email",
    "cors",
    "datadog",
    "elasticsearch",
    "hadoop",
    "hadoopcli",
    "hdfs",
    "hive",
    "kubernetes",
    "mssql",
    "mysql",
    "mysqldb",
    "OpenPai",
    "pai",
    "pig",
    "postgres",
    "presto",
    "prometheus",
    "pyspark_runner",
    "redis",
    "redshift",
    "s3",
    "salesforce",
    "scalding",
    "sendgrid",
    "spark",
    "sqlalchemy",
    "sqs",
    "upstream",
    "webhdfs",
)


def known_names() -> Mapping[str, AbstractSet[str] | None]:
    """Return the names of settings by section; None: any name may stand there."""
    for module in _MODULES:
        importlib.import_module(module)
    return _names_of(tuple(Register.task_names()))


@functools.lru_cache(maxsize=2)
def _names_of(families: tuple[str, ...]) -> Mapping[str, AbstractSet[str] | None]:
    """Return the names for the tasks and sections that are loaded; asking Luigi takes milliseconds."""
    own: dict[str, set[str]] = {section: set(names) for section, names in _READ_DIRECTLY.items()}
    for family, _, name, parameter in Register.get_all_params():
        own.setdefault(family, set()).add(name)
        old = parameter._config_path  # noqa: SLF001 - the name that a setting had before it had a section
        if old is not None:
            own.setdefault(old["section"], set()).add(old["name"].replace("-", "_"))
    # A family without parameters is a base class, or stands for two tasks of one name.
    return {**dict.fromkeys(families), **dict.fromkeys(_ANY_NAME), **own}
