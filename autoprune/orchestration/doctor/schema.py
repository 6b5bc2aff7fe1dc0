"""The schema of a tracking database, looked at without bringing it up to date."""

from dataclasses import dataclass
from enum import Enum, auto
from importlib.resources import files

import mlflow
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from autoprune.domain.errors import shown
from autoprune.orchestration.doctor.findings import Verdict, fault, ok


class SchemaState(Enum):
    """How the tables of a database stand to those that this version of MLflow expects."""

    NONE = auto()
    FOREIGN = auto()
    OLDER = auto()
    NEWER = auto()
    CURRENT = auto()


@dataclass(frozen=True, slots=True)
class Schema:
    """The revision of a database's tables, None where MLflow made none, and the one expected."""

    state: SchemaState
    revision: str | None
    expected: str | None


def schema_verdict(uri: str, schema: Schema) -> Verdict:
    """Whether a sweep can use a database as it is."""
    where = shown(uri)
    here = f"MLflow {mlflow.__version__}"
    match schema.state:
        case SchemaState.CURRENT:
            return ok(f"the tables of {where} are those of {here} (revision {schema.revision})")
        case SchemaState.NONE:
            return ok(f"{where} is empty; the first sweep makes its tables")
        case SchemaState.FOREIGN:
            return fault(
                f"{where} holds tables, and none of MLflow's",
                "name a database for MLflow alone in tracking.uri",
            )
        case SchemaState.OLDER:
            return fault(
                f"{where} has an older schema (revision {schema.revision}) than {here} expects "
                f"({schema.expected})",
                "back the database up, then run `mlflow db upgrade URI` where nobody uses it",
            )
        case SchemaState.NEWER:
            return fault(
                f"{where} has a newer schema (revision {schema.revision}) than {here} knows, which "
                f"expects {schema.expected}",
                "install the version of mlflow that made it, here and on every node",
            )


def schema_of(uri: str) -> Schema:
    """How the tables of a database stand; none of them is touched."""
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
            empty = not sqlalchemy.inspect(connection).get_table_names()
    finally:
        engine.dispose()
    history = ScriptDirectory(str(files("mlflow.store.db_migrations")))
    expected = history.get_current_head()
    if revision is None:
        state = SchemaState.NONE if empty else SchemaState.FOREIGN
    elif revision == expected:
        state = SchemaState.CURRENT
    else:
        state = SchemaState.OLDER if _known(history, revision) else SchemaState.NEWER
    return Schema(state, revision, expected)


def _known(history: ScriptDirectory, revision: str) -> bool:
    try:
        return history.get_revision(revision) is not None
    except CommandError:
        return False
