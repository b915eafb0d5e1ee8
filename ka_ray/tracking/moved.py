"""Keep the files of a run findable after its output folder was moved.

MLflow writes absolute paths into its database. One that lies in an output folder is ours alone, and its files
lie beside it, so their paths can be corrected whenever the folder is found somewhere else.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from ka_ray.errors import InputError

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
"""MLflow's database in an output folder, and the folder with its files."""


def follow_moved_folder(output: Path) -> bool:
    """Correct the paths in the database of an output folder that was moved or copied.

    Args:
        output: The output folder; one without a database and files is left alone.

    Returns:
        Whether paths were corrected.

    Raises:
        InputError: The database is damaged, or cannot be written to.
    """
    path = output.absolute() / DATABASE
    if not path.exists() or not (path.parent / ARTIFACTS).is_dir():
        return False
    new, changed = (path.parent / ARTIFACTS).as_uri(), False
    try:
        with closing(sqlite3.connect(path)) as database, database:
            for old in _list_old_places(database, new):
                for table, column in _list_text_columns(database):
                    # As plain text, because `%` and `_` of a path would be wildcards of LIKE.
                    changed |= (
                        database.execute(
                            f'UPDATE "{table}" SET "{column}" = ? || substr("{column}", ?) '
                            f'WHERE "{column}" = ? OR substr("{column}", 1, ?) = ?',
                            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                        ).rowcount
                        > 0
                    )
    except sqlite3.Error as error:
        raise InputError(f"the tracking database {path} cannot be opened: {error}") from None
    return changed


def _list_old_places(database: sqlite3.Connection, new: str) -> list[str]:
    """Return the places of files, as URIs, that experiments name and that are not the new one."""
    try:
        rows = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    except sqlite3.OperationalError:  # MLflow has not made its tables yet
        return []
    ending = f"/{ARTIFACTS}"
    return [old for (old,) in rows if old and old.startswith("file:") and old.endswith(ending) and old != new]


def _list_text_columns(database: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return the tables and columns that can hold paths."""
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        (table, column[1])
        for table in tables
        for column in database.execute(f'PRAGMA table_info("{table}")')
        if any(kind in column[2].upper() for kind in ("CHAR", "TEXT", "CLOB"))
    ]
