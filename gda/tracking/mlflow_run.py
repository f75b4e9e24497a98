"""One run in MLflow: found or made, and filled in calls of a size that MLflow takes.

Functions and not a class, because whoever calls them may be killed between any two: what has been
done is kept in MLflow and in the ledger, never in an object.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gda.errors import UserError
from gda.tracking.mlflow_content import Value
from gda.tracking.mlflow_store import artifact_location, clean_name
from gda.tracking.mlflow_tags import RUN_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def known_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """Fetch a run by its id, unless that is empty or the run is gone or in MLflow's trash."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """Return the id of an experiment, which is made if there is none of that name.

    Raises:
        UserError: It is in MLflow's trash.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location(uri, name)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another run of the study was faster
    if found is None or found.lifecycle_stage != "active":
        raise UserError(
            f"The MLflow experiment {name!r} is in MLflow's trash. Restore it, with "
            f"mlflow experiments restore, or give the study another name."
        )
    return str(found.experiment_id)


def find_or_create(
    client: "MlflowClient", experiment: str, name: str, tags: Mapping[str, str], created: int = 0
) -> tuple["Run", bool]:
    """Return the run that has the `RUN_TAG` among ``tags``, and whether it has been made just now.

    It may exist although the caller does not know: a creation whose answer got lost, a ledger that
    was deleted, a store that is reached by another URI.

    Args:
        client: The store.
        experiment: Id of the experiment.
        name: The run's name, if it is made.
        tags: Its tags, if it is made.
        created: Its start in milliseconds since 1970, if it is made; 0 for now.
    """
    found = runs_tagged(client, experiment, RUN_TAG, tags[RUN_TAG])
    if found:
        return client.get_run(found[0].info.run_id), False
    start = created or int(1000 * time.time())
    return client.create_run(experiment, start_time=start, tags=dict(tags), run_name=name), True


def runs_tagged(
    client: "MlflowClient", experiment: str, tag: str, value: str, also: str | None = None
) -> list["Run"]:
    """Return the runs of an experiment that have a tag, the oldest first; equally old ones by id.

    Args:
        client: The store.
        experiment: Id of the experiment.
        tag: Name of the tag.
        value: Its value; not with both kinds of quotation marks in it.
        also: Another condition, in MLflow's words.
    """
    quote = '"' if "'" in value else "'"
    condition = f"tags.`{tag}` = {quote}{value}{quote}"
    if also:
        condition += f" and {also}"
    page = client.search_runs([experiment], condition)
    found = list(page)
    while page.token:
        page = client.search_runs([experiment], condition, page_token=page.token)
        found += page
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def update_tags(client: "MlflowClient", run: "Run", tags: Mapping[str, str]) -> bool:
    """Set the tags that a run lacks or has with another value; says whether there were any."""
    new = {name: value for name, value in tags.items() if run.data.tags.get(name) != value}
    for name, value in new.items():
        client.set_tag(run.info.run_id, name, value)
    return bool(new)


def without_present(client: "MlflowClient", run_id: str, values: Sequence[Value]) -> list[Value]:
    """Leave out the values that MLflow has: the last sender did not live to note them."""
    present = {
        (key, metric.step)
        for key in {value.key for value in values}
        for metric in client.get_metric_history(run_id, key)
    }
    return [value for value in values if (value.key, value.epoch) not in present]


def log_values(
    client: "MlflowClient", run_id: str, values: Sequence[Value], moments: Mapping[int, int]
) -> None:
    """Log metrics, each dated by its epoch."""
    from mlflow.entities import Metric

    metrics = [Metric(v.key, v.value, moments.get(v.epoch, 0), v.epoch) for v in values]
    for start in range(0, len(metrics), _METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH], synchronous=True)


def log_params(client: "MlflowClient", run: "Run", config: Mapping[str, str]) -> None:
    """Log the parameters that the run lacks: MLflow refuses to change one."""
    from mlflow.entities import Param
    from mlflow.utils import validation

    longest = getattr(validation, "MAX_PARAM_VAL_LENGTH", 500)
    clean = {clean_name(key): value[:longest] for key, value in config.items()}
    params = [Param(key, value) for key, value in clean.items() if key not in run.data.params]
    for start in range(0, len(params), _PARAMS_PER_BATCH):
        batch = params[start : start + _PARAMS_PER_BATCH]
        client.log_batch(run.info.run_id, params=batch, synchronous=True)


def set_state(client: "MlflowClient", run_id: str, state: str, ended_at: int) -> None:
    """Tell MLflow how the run stands.

    Args:
        client: The store.
        run_id: The MLflow run.
        state: The state in ``status.json``.
        ended_at: When it was written, in milliseconds, so that a late sync shows when the run ended.
    """
    if state in _STATUS:
        client.set_terminated(run_id, _STATUS[state], end_time=ended_at)
    else:
        # Also a killed run that has been resumed. A preempted one waits in the queue.
        client.update_run(run_id, status="SCHEDULED" if state == "preempted" else "RUNNING")
