"""What arrived in experiment trackers that ran offline: values by name, and the names of pictures."""

import json
import re
import sqlite3
import struct
import sys
from contextlib import closing
from pathlib import Path

#: Nothing leaves the machine.
OFFLINE = {
    "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_ALLOW_FILE_STORE": "true",
    "GIT_PYTHON_REFRESH": "quiet", "HF_HUB_OFFLINE": "1",
}  # fmt: skip


def offline(folder, monkeypatch):
    """Set the variables of an offline run whose trackers write into `folder`."""
    own = {
        "WANDB_DIR": folder, "TENSORBOARD_LOGGING_DIR": folder / "tensorboard", "MLFLOW_TRACKING_URI": uri(folder),
        "TRACKIO_DIR": folder / "trackio",
    }  # fmt: skip
    for name, value in {**OFFLINE, **own}.items():
        monkeypatch.setenv(name, str(value))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it reads its folder when it is imported


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
    # "%" and "#" in earlier versions.
    names = {re.split("[+%]step[+%]", Path(path).name)[0].replace("~", "/").replace("#", "/") for path in images}
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


def in_trackio(folder):
    found = {name: value for _, metrics in trackio_entries(folder) for name, value in metrics.items()}
    pictures = {
        name: value for name, value in found.items() if isinstance(value, dict) and value["_type"] == "trackio.image"
    }
    files = [folder / "trackio" / "media" / value["file_path"] for value in pictures.values()]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)
    return {name: value for name, value in found.items() if isinstance(value, float)}, set(pictures)


def trackio_entries(folder):
    """The step and the metrics of each call of its `log`."""
    return [
        (step, json.loads(metrics)) for step, metrics in _trackio_rows(folder, "step, metrics FROM metrics ORDER BY id")
    ]


def trackio_samples(folder):
    """The names under which samples were logged as conversations, and what was logged beside the messages."""
    return [(name, json.loads(metadata)) for name, metadata in _trackio_rows(folder, "key, metadata FROM traces")]


def _trackio_rows(folder, what):
    [database] = (folder / "trackio").glob("*.db")  # of the only project
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(f"SELECT {what}").fetchall()
