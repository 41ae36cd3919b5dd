"""The text, images and histograms in each tracker's storage, read through its own SDK, in one common shape:
[[kind, key, step, content], …].

The content is the text; the pixels of an image, as a nested list, and its caption; or the counts of a
histogram with its range.
"""

from __future__ import annotations

import html
import io
import json
import re
from pathlib import Path
from typing import Any

Found = list[list[Any]]


def from_aim(folder: Path) -> Found:
    """The only run of the Aim repository in `folder`."""
    import aim
    from aim.sdk.sequences.distribution_sequence import Distributions
    from aim.sdk.sequences.image_sequence import Images
    from aim.sdk.sequences.text_sequence import Texts

    (run,) = aim.Repo.from_path(str(folder)).iter_runs()
    found: Found = []
    for of, get in (
        (Texts, run.get_text_sequence),
        (Images, run.get_image_sequence),
        (Distributions, run.get_distribution_sequence),
    ):
        for name, kept, _ in run.iter_sequence_info_by_type(of.allowed_dtypes()):
            sequence, context = get(name, kept), kept.to_dict()
            key = f"{context['subset']}/{name}" if "subset" in context else name
            for step, (value, *_) in sequence.data.items():
                for each in value if isinstance(value, list) else [value]:
                    found.append([*_of_aim(each), key, step])
    return [[kind, key, step, content] for kind, content, key, step in found]


def _of_aim(value: Any) -> tuple[str, Any]:
    if type(value).__name__ == "Text":
        return "text", value.data
    if type(value).__name__ == "Image":
        return "image", [_pixels(value.to_pil_image()), value.caption]
    return "histogram", [value.weights.tolist(), *map(float, value.range)]


def from_wandb(folder: Path) -> Found:
    """The only run in W&B's offline files under `folder`."""
    from PIL import Image

    from tests.support.readers import read_wandb_offline, wandb_offline_dirs

    found: Found = []
    last = -1
    for path in wandb_offline_dirs(folder):
        for row in read_wandb_offline(path).history:
            # `wandb sync` merges the folders of a run, and W&B drops a row whose step it already has. A
            # process killed after it closed a folder, but before that was recorded, leaves it to be delivered
            # again.
            if row["_step"] <= last:
                continue
            last = row["_step"]
            step = row.get("train/global_step")
            for key in [name.removesuffix("._type") for name in row if name.endswith("._type")]:
                kind = row[f"{key}._type"]
                if kind == "html-file":
                    page = (path / "files" / row[f"{key}.path"]).read_text("utf-8")
                    text = re.fullmatch(r"<meta[^>]*><pre[^>]*>(.*)</pre>", page, re.S)
                    assert text
                    found.append(["text", key, step, html.unescape(text[1])])
                elif kind == "image-file":
                    with Image.open(path / "files" / row[f"{key}.path"]) as image:
                        found.append(["image", key, step, [_pixels(image), row.get(f"{key}.caption", "")]])
                elif kind == "histogram":
                    if f"{key}.packedBins.min" in row:
                        raise AssertionError(row)
                    bins = row[f"{key}.bins"]
                    found.append(
                        ["histogram", key, step, [row[f"{key}.values"], float(bins[0]), float(bins[-1])]]
                    )
    return found


def from_mlflow(folder: Path) -> Found:
    """The only run in the store `mlflow.db`."""
    from mlflow.tracking import MlflowClient
    from PIL import Image

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(["0"])
    found: Found = []

    def walk(path: str | None) -> None:
        for each in client.list_artifacts(run.info.run_id, path):
            if each.is_dir:
                walk(each.path)
                continue
            saved = Path(client.download_artifacts(run.info.run_id, each.path))
            if each.path.startswith("texts/"):
                *stage, name = each.path.split("/")[1:]
                stem, _, rest = name.removesuffix(".txt").rpartition(".")[0].rpartition(".step")
                key = "/".join([*stage, stem])
                found.append(["text", key, int(rest), saved.read_text("utf-8")])
            elif each.path.startswith("images/") and "compressed" not in each.path:
                key, _, rest = each.path.removeprefix("images/").partition("+step+")
                with Image.open(saved) as image:
                    step = int(rest.partition("+")[0])
                    found.append(["image", key.replace("~", "/"), step, [_pixels(image), ""]])

    walk(None)
    return found


def from_tensorboard(folder: Path) -> Found:
    """The run `run` in the folder of event files."""
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    read = EventAccumulator(str(folder / "run"), {"tensors": 0, "images": 0}).Reload()
    found: Found = []
    for tag in read.Tags()["images"]:
        for each in read.Images(tag):
            with Image.open(io.BytesIO(each.encoded_image_string)) as image:
                assert image.size == (each.width, each.height)
                found.append(["image", tag, each.step, [_pixels(image), ""]])
    for tag in read.Tags()["tensors"]:
        about = read.SummaryMetadata(tag).plugin_data
        for each in read.Tensors(tag):
            if about.plugin_name == "histograms":
                rows = make_ndarray(each.tensor_proto).tolist()
                counts = [int(row[2]) for row in rows]
                found.append(["histogram", tag, each.step, [counts, rows[0][0], rows[-1][1]]])
            elif about.plugin_name == "text" and "/" in tag and not each.tensor_proto.tensor_shape.dim:
                (text,) = each.tensor_proto.string_val
                fence, _, rest = text.decode().partition("\n")
                found.append(["text", tag, each.step, rest.removesuffix(f"\n{fence}")])
    return found


def from_file(folder: Path) -> Found:
    """The only run in the file `stored.jsonl` of the tracker `file`."""
    from PIL import Image

    found: Found = []
    for line in (folder / "stored.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] not in ("text", "image", "histogram"):
            continue
        ((name, said),) = row["values"].items()
        key = f"{row['stage']}/{name}" if "stage" in row else name
        content = said
        if row["kind"] == "histogram":
            content = [said["counts"], said["low"], said["high"]]
        elif row["kind"] == "image":
            with Image.open(io.BytesIO(Path(said["file"]).read_bytes())) as image:
                content = [_pixels(image), said["caption"]]
        found.append([row["kind"], key, row.get("step"), content])
    return found


def from_trackio(folder: Path) -> Found:
    """The only run of the project `fmstune` in the folder `trackio`."""
    import os

    from PIL import Image
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import MEDIA_DIR

    os.chdir(folder)  # the SDK opens its folder by a relative path
    (run,) = SQLiteStorage.get_run_records("fmstune")
    found: Found = []
    for row in SQLiteStorage.get_logs("fmstune", run_id=run["id"]):
        for key, said in row.items():
            kind = said["_type"].removeprefix("trackio.") if isinstance(said, dict) else None
            if kind == "markdown":
                found.append(["text", key, row["step"], said["_value"]])
            elif kind == "image":
                with Image.open(MEDIA_DIR / said["file_path"]) as image:
                    found.append([kind, key, row["step"], [_pixels(image), said["caption"] or ""]])
            elif kind == "histogram":
                bins = said["bins"]
                found.append([kind, key, row["step"], [said["values"], bins[0], bins[-1]]])
    return found


def from_dvclive(folder: Path) -> Found:
    """The only run below the folder `dvclive`."""
    from PIL import Image

    (run,) = (folder / "dvclive").iterdir()
    found: Found = []
    for path in (run / "plots" / "images").rglob("*.*"):
        key, step = str(path.parent.relative_to(run / "plots" / "images")), int(path.stem.partition("-")[0])
        with Image.open(path) as image:
            found.append(["image", key, step, [_pixels(image), ""]])
    return found


def from_swanlab(folder: Path) -> Found:
    """The only run in the folder `swanlog`. A second value of a step is in a series `… (2)`."""
    from PIL import Image

    found: Found = []
    for run, record in _swanlab_records(folder):
        if not record.HasField("media"):
            continue
        (item,) = record.media.value.items
        key, step = record.media.key.removesuffix(" (2)"), record.media.step
        if record.media.type == 4:
            found.append(["text", key, step, (run / "media" / "text" / item.filename).read_text("utf-8")])
        elif record.media.type == 2:
            with Image.open(run / "media" / "image" / item.filename) as image:
                found.append(["image", key, step, [_pixels(image), item.caption]])
        else:
            chart = json.loads((run / "media" / "echarts" / item.filename).read_text("utf-8"))
            bins = chart["xAxis"]["data"]
            ends = [float(bins[0].split()[0]), float(bins[-1].split()[-1])]
            found.append(["histogram", key, step, [chart["series"][0]["data"], *ends]])
    return found


def _swanlab_records(folder: Path) -> list[tuple[Path, Any]]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (file,) = (folder / "swanlog").glob("run-*/run-*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    return [(file.parent, Record.FromString(data)) for data in reader]


def files_from_swanlab(folder: Path) -> dict[str, str]:
    """The files that the only run in the folder `swanlog` would upload, with their content."""
    saved = [record.save for _, record in _swanlab_records(folder) if record.HasField("save")]
    files = [save for save in saved if not save.type]
    return {save.name: Path(save.source_path).read_bytes().decode("latin-1") for save in files}


def from_comet(folder: Path) -> Found:
    """The only experiment in the folder of Comet archives. Histograms use Comet's own bins."""
    from PIL import Image

    from tests.support.comet_archives import archives

    found: Found = []
    for archive in archives(folder):
        for kept in archive.assets("text-sample"):
            found.append(["text", kept.metadata["name"], kept.said["step"], kept.data.decode()])
        for kept in archive.assets("visualization"):
            with Image.open(io.BytesIO(kept.data)) as image:
                content = [_pixels(image), kept.metadata.get("caption", "")]
            found.append(["image", kept.said["figName"], kept.said["step"], content])
        for kept in archive.assets("histogram3d"):
            counts = [count for _, count in json.loads(kept.data)["index_values"]]
            found.append(["histogram", kept.metadata["name"], kept.said["step"], [counts, 0.0, 1.0]])
    return found


def from_clearml(folder: Path) -> Found:
    """The only offline session in the folder `clearml`."""
    from tests.support.clearml_read import media, session

    place, _, events = session(folder / "clearml")
    return media(events, place / "data")


def files_from_clearml(folder: Path) -> dict[str, str]:
    """The artifacts of the only offline session in the folder `clearml`."""
    from tests.support.clearml_read import session

    _, task, _ = session(folder / "clearml")
    made = task["execution"]["artifacts"]
    return {each["key"]: Path(each["uri"]).read_bytes().decode("latin-1") for each in made}


def files_from_aim(folder: Path) -> dict[str, str]:
    """The files of the only run of the Aim repository in `folder`, by name, as text."""
    import tempfile

    import aim

    (run,) = aim.Repo.from_path(str(folder)).iter_runs()
    with tempfile.TemporaryDirectory() as scratch:
        return {
            name: Path(each.download(f"{scratch}/{number}")).read_bytes().decode("latin-1")
            for number, (name, each) in enumerate(run.artifacts.items())
        }


def files_from_wandb(folder: Path) -> dict[str, str]:
    """The artifact files in W&B's offline files under `folder`, with their content."""
    import base64
    import hashlib

    from tests.support.readers import wandb_artifacts, wandb_offline_dirs

    found = {}
    for path in wandb_offline_dirs(folder):
        for made in wandb_artifacts(path):
            for entry in made.manifest.contents:
                data = Path(entry.local_path).read_bytes()
                assert base64.b64encode(hashlib.md5(data).digest()).decode() == entry.digest
                found[f"{made.name}/{entry.path}"] = data.decode("latin-1")
    return found


def files_from_mlflow(folder: Path) -> dict[str, str]:
    """The artifacts of the only run in the store `mlflow.db`."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(["0"])
    root = Path(client.download_artifacts(run.info.run_id, ""))
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes().decode("latin-1") for path in files}


def files_from_file(folder: Path) -> dict[str, str]:
    """The files that lines of the tracker `file` refer to."""
    found = {}
    for line in (folder / "stored.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, said in row["values"].items() if row["kind"] == "artifact" else ():
            for file in said["files"]:
                found[f"{name}/{file}"] = Path(said["folder"], file).read_bytes().decode("latin-1")
    return found


def files_from_comet(folder: Path) -> dict[str, str]:
    """The artifact files in the folder of Comet archives."""
    from tests.support.comet_archives import archives

    found = {}
    for archive in archives(folder):
        for kept in archive.assets("asset") + archive.assets("model-element"):
            name = kept.said["fileName"]
            model = kept.said.get("groupingName")
            found[f"{model}/{name}" if model else name] = kept.data.decode("latin-1")
    return found


def files_from_trackio(folder: Path) -> dict[str, str]:
    """The newest versions of the artifacts of the project `fmstune` in the folder `trackio`."""
    import os

    from trackio import cas
    from trackio.sqlite_storage import SQLiteStorage

    os.chdir(folder)  # the SDK opens its folder by a relative path
    found = {}
    for made in SQLiteStorage.get_artifacts("fmstune"):
        manifest = SQLiteStorage.get_artifact_manifest("fmstune", made["name"], None)
        for entry in (manifest or {})["manifest"]:
            data = cas.blob_path("fmstune", entry["digest"]).read_bytes()
            found[f"{made['name']}/{entry['path']}"] = data.decode("latin-1")
    return found


def _pixels(image: Any) -> Any:
    import numpy as np

    return np.asarray(image.convert("RGB")).tolist()
