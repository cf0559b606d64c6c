"""A retry of a failed request drops the trailing failures in its log, so that they run again."""

from __future__ import annotations

from asgi_durable.storage.postgres.rows import PostgresNames

__all__ = ["drop_statement"]


def drop_statement(names: PostgresNames) -> str:
    """Return the statement that drops the failed records that nothing follows that stays.

    A success stays, and so does what a step that runs at most once has left.
    A step's record is deleted. A child that was called and ended in ERROR is PENDING again,
    the executor's, and loses its own trailing failures. A child that was only started keeps
    its fate, and so does one that was cancelled. An error that was caught and followed by such
    a record, or by a success, stays recorded.

    Its parameters are the executor and the ids of the workflows that it resumes.
    """
    # The failure of a step that runs at most once has an output beside it, and stands.
    is_dropped = "s.error IS NOT NULL AND s.output IS NULL"
    # Where the last record of a workflow is that stays; what failed behind it is dropped.
    last_kept = (
        "greatest("
        f"(SELECT max(s.step_number) FROM {names.steps} AS s"
        f" WHERE s.workflow_id = {{id}} AND NOT ({is_dropped})), "
        f"(SELECT max(c.parent_step) FROM {names.workflows} AS c"
        " WHERE c.parent_id = {id} AND c.state IN ('SUCCESS', 'CANCELLED')), -1)"
    )
    return (
        "WITH RECURSIVE resumed(workflow_id, last_kept) AS ("
        f'SELECT id COLLATE "C", {last_kept.format(id="id")} FROM unnest($2::text[]) AS id '
        "UNION ALL "
        f"SELECT child.workflow_id, {last_kept.format(id='child.workflow_id')} "
        f"FROM resumed JOIN {names.workflows} AS child ON child.parent_id = resumed.workflow_id "
        "WHERE child.state = 'ERROR' AND child.awaited "
        "AND child.parent_step > resumed.last_kept"
        f"), dropped AS (DELETE FROM {names.steps} AS s USING resumed "
        f"WHERE s.workflow_id = resumed.workflow_id AND {is_dropped} "
        "AND s.step_number > resumed.last_kept) "
        f"UPDATE {names.workflows} AS w SET state = 'PENDING', error = NULL, executor_id = $1 "
        "FROM resumed WHERE w.workflow_id = resumed.workflow_id AND w.state = 'ERROR'"
    )
