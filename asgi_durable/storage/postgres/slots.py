"""The statements that check the place of a transaction's record, and that fill it."""

from __future__ import annotations

from asgi_durable.storage import tables
from asgi_durable.storage.postgres.rows import OWNED, PostgresNames, columns
from asgi_durable.storage.transaction_port import SlotTakenError, StepSlot

__all__ = ["SlotStatements", "slot_taken"]

# Only from a transaction's record to its COMMIT, which follows at once.
LONGEST_PAUSE = "15s"


class SlotStatements:
    """SQL with parameters by number.

    Attributes:
        check: Whether a place is free: the executor, the workflow, the step's number.
        record: Fills it, if it is free still: the executor, and the row.
    """

    def __init__(self, names: PostgresNames) -> None:
        self.check = (
            f"SELECT EXISTS (SELECT 1 FROM {names.workflows} AS w "
            f"JOIN {names.executors} AS e ON e.executor_id = w.executor_id "
            f"WHERE w.workflow_id = $2::text AND {OWNED} AND e.state = 'ALIVE') "
            f"AND NOT EXISTS (SELECT 1 FROM {names.steps} AS s "
            "WHERE s.workflow_id = $2::text AND s.step_number = $3::int4)"
        )
        # The executor is $1, as in OWNED, and the row follows.
        # Invariant: the fence is locked by the last statement before the COMMIT, so that a
        # takeover never waits for the application; and if the process stops between the two,
        # the server ends the transaction. So is the workflow's row: in an older snapshot it
        # may be this executor's still.
        self.record = (
            f"WITH executor AS MATERIALIZED ({names.fence('$1::text')}), pause AS MATERIALIZED ("
            f"SELECT set_config('idle_in_transaction_session_timeout', '{LONGEST_PAUSE}', true)) "
            f"INSERT INTO {names.steps} ({', '.join(columns(tables.steps))}) "
            "SELECT $2::text, $3::int4, $4::text, $5::bytea, $6::bytea, $7::bytea, $8::int8 "
            f"FROM {names.workflows} AS w, executor, pause WHERE w.workflow_id = $2::text "
            f"AND {OWNED} FOR SHARE OF w ON CONFLICT DO NOTHING"
        )


def slot_taken(slot: StepSlot) -> SlotTakenError:
    """Return the error of a place that is not free."""
    return SlotTakenError(f"step {slot.step_number} of workflow {slot.workflow_id!r} is not free")
