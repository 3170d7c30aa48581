"""`RDBStorage` of Optuna on SQLite. A study is a session; its user attributes are documents, phase and log.

An error is a failed trial with a user attribute. https://optuna.readthedocs.io/en/stable/tutorial/20_recipes/
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import func, insert, select

from benchmarks.contender import DOCUMENTS, LOG_LINES, MESSAGE, Contender

PHASES = itertools.cycle(["execution", "verification"])
LOG = [f"task-{n} has been started by worker 3" for n in range(LOG_LINES)]
NOTE = (
    "A study is the session, its user attributes are the documents, the phase and the log, and an error is a failed"
    " trial with a user attribute. Each attribute and each trial is a transaction: create takes eight, and"
    " update_phase_and_error two. append loads the study and adds a trial; updates use a study that was loaded before."
    " get reads a new study object with attributes and trials, because an existing one has its trials in memory."
    " list_page reads the names of all studies with all attributes: there are no pages of studies or trials."
)

optuna.logging.set_verbosity(optuna.logging.ERROR)


class SQLite(Contender):
    """`RDBStorage`, used through studies, as its documentation requires."""

    name = "optuna"

    def __init__(self, place: str) -> None:
        self.storage = optuna.storages.RDBStorage(f"sqlite:///{Path(place) / 'studies.db'}")
        self._held: dict[str, optuna.Study] = {}

    def about(self) -> Mapping[str, str]:
        with self.storage.engine.connect() as connection:
            settings = [
                f"{name}={connection.exec_driver_sql(f'PRAGMA {name}').scalar_one()}"
                for name in ("journal_mode", "synchronous")
            ]
        return {
            "version": version("optuna"),
            "durability": ", ".join(settings) + " (as it comes)",
            "note": f"{NOTE} SQLAlchemy {version('sqlalchemy')}.",
        }

    def calls(self) -> Mapping[str, Callable[..., object]]:
        return {
            "create": self._create,
            "append": lambda session_id: self._add_error(self._study(session_id)),
            "get": self._get,
            "update_phase": lambda session_id: self._held[session_id].set_user_attr("phase", next(PHASES)),
            "update_artifact": self._update_artifact,
            "update_phase_and_error": self._update_phase_and_error,
            "list_page": lambda: optuna.get_all_study_names(self.storage),
            "delete": lambda session_id: optuna.delete_study(study_name=session_id, storage=self.storage),
        }

    def prepare(self, entries: int) -> str:
        session_id = uuid.uuid4().hex
        study_id = self._create(session_id)._study_id
        # The rows that add_trial would store: the calls would take minutes, because each counts the earlier trials.
        trial = self._trial()
        made = models.TrialModel(datetime_start=trial.datetime_start, datetime_complete=trial.datetime_complete)
        row = {
            "study_id": study_id,
            "state": trial.state,
            "datetime_start": made._datetime_start_utc,
            "datetime_complete": made._datetime_complete_utc,
        }
        trials, attributes = models.TrialModel.__table__, models.TrialUserAttributeModel.__table__
        value = json.dumps(trial.user_attrs["error"])
        with self.storage.engine.begin() as connection:
            if entries:
                connection.execute(insert(trials), [{**row, "number": number} for number in range(entries)])
                ids = connection.scalars(select(trials.c.trial_id).where(trials.c.study_id == study_id)).all()
                connection.execute(
                    insert(attributes), [{"trial_id": each, "key": "error", "value_json": value} for each in ids]
                )
        return session_id

    def fill(self, sessions: int) -> None:
        # The rows that create_study and two calls of set_user_attr would store.
        studies, directions = models.StudyModel.__table__, models.StudyDirectionModel.__table__
        attributes = models.StudyUserAttributeModel.__table__
        small = {"answers": {"audience": "general"}, "phase": "questionnaire"}
        with self.storage.engine.begin() as connection:
            there = connection.scalar(select(func.count()).select_from(studies))
            first = (connection.scalar(select(func.max(studies.c.study_id))) or 0) + 1
            ids = range(first, first + sessions - there)
            if ids:
                connection.execute(insert(studies), [{"study_id": n, "study_name": f"filled-{n:08}"} for n in ids])
                connection.execute(
                    insert(directions),
                    [{"study_id": n, "direction": StudyDirection.MINIMIZE, "objective": 0} for n in ids],
                )
                for key, value in small.items():
                    connection.execute(
                        insert(attributes),
                        [{"study_id": n, "key": key, "value_json": json.dumps(value)} for n in ids],
                    )

    def hold(self, session_id: str) -> None:
        self._held[session_id] = self._study(session_id)

    def count(self, session_id: str) -> int:
        numbers = [trial.number for trial in self._study(session_id).get_trials(deepcopy=False)]
        assert numbers == list(range(len(numbers)))
        return len(numbers)

    def close(self) -> None:
        self.storage.remove_session()
        self.storage.engine.dispose()

    def _study(self, session_id: str) -> optuna.Study:
        return optuna.load_study(study_name=session_id, storage=self.storage)

    def _create(self, session_id: str) -> optuna.Study:
        study = optuna.create_study(study_name=session_id, storage=self.storage)
        for key, value in {**DOCUMENTS, "phase": "execution", "log": LOG}.items():
            study.set_user_attr(key, value)
        return study

    @staticmethod
    def _trial() -> optuna.trial.FrozenTrial:
        error = {"task_id": "task-7", "phase": "execution", "message": MESSAGE}
        return optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"error": error})

    def _add_error(self, study: optuna.Study) -> None:
        study.add_trial(self._trial())

    def _get(self, session_id: str) -> tuple[dict[str, Any], list[optuna.trial.FrozenTrial]]:
        study = self._study(session_id)
        return study.user_attrs, study.get_trials(deepcopy=False)

    def _update_artifact(self, session_id: str) -> None:
        self._held[session_id].set_user_attr("concept", {**DOCUMENTS["concept"], "version": uuid.uuid4().hex})

    def _update_phase_and_error(self, session_id: str) -> None:
        self._held[session_id].set_user_attr("phase", next(PHASES))
        self._add_error(self._held[session_id])
