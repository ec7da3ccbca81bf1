"""What arrived in experiment trackers that ran offline: values by name, and the names of pictures."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

#: Nothing leaves the machine.
OFFLINE = {
    "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_ALLOW_FILE_STORE": "true",
    "GIT_PYTHON_REFRESH": "quiet", "HF_HUB_OFFLINE": "1",
}  # fmt: skip


def environment(folder):
    """The variables of an offline run whose trackers write into `folder`."""
    own = {"WANDB_DIR": folder, "TENSORBOARD_LOGGING_DIR": folder / "tensorboard", "MLFLOW_TRACKING_URI": uri(folder)}
    return {**OFFLINE, **{name: str(value) for name, value in own.items()}}


def uri(folder):
    return (folder / "mlflow").as_uri()


def in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [path] = Path(folder).rglob("events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    tags = events.Tags()
    return {name: events.Scalars(name)[-1].value for name in tags["scalars"]}, set(tags["images"])


def tensorboard_picture(folder, name):
    """The last picture's file, as bytes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [path] = Path(folder).rglob("events.out.tfevents.*")
    return EventAccumulator(str(path)).Reload().Images(name)[-1].encoded_image_string


def in_mlflow(folder):
    import mlflow

    client = mlflow.MlflowClient(uri(folder))
    [run] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    images = {found.path for found in client.list_artifacts(run.info.run_id, "images")}
    names = {Path(path).name.partition("+step+")[0].replace("~", "/") for path in images}
    return run.data.metrics, names


def in_wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = Path(folder).rglob("run-*.wandb")
    found = {}
    for data in _records(path.read_bytes()):
        record = Record.FromString(data)
        for item in record.history.item:
            found[tuple(item.nested_key) or (item.key,)] = json.loads(item.value_json)
    pictures = {name for name, *field in found if field == ["path"] and found[name, "_type"] == "image-file"}
    assert all((path.parent / "files" / found[name, "path"]).stat().st_size for name in pictures)
    return {"/".join(name): value for name, value in found.items() if isinstance(value, float)}, pictures


def _records(data):
    """The records of a file in LevelDB's log format, which begins with seven bytes of wandb's own."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


class Trackio(SimpleNamespace):
    """Stands in for trackio, whose pillow<13 keeps it out of the environment of the tests: what lm-eval and we call of it."""

    def __init__(self):
        super().__init__(
            logged=[],
            config={},
            init=lambda **options: None,
            finish=lambda: None,
            log=self._log,
            Image=_Image,
            Trace=dict,
        )

    def _log(self, metrics, step=None):
        self.logged.append(metrics)

    def found(self):
        """Values by name, and the names of pictures."""
        merged = {name: value for entry in self.logged for name, value in entry.items()}
        pictures = {name for name, value in merged.items() if isinstance(value, _Image)}
        return {name: value for name, value in merged.items() if isinstance(value, float)}, pictures


class _Image:
    def __init__(self, value):
        assert value.dtype == "uint8"
        assert value.shape[2] == 3
