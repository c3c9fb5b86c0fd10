"""The model artifact: a SavedModel with the preprocessing inside, and what it was made of."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import artifact, models
from trainer.config import Config, to_dict
from trainer.data.preprocess import fit, pixels, standardize

HISTORY_COLUMNS = (
    "epoch",
    "step",
    "learning_rate",
    "loss",
    "training_accuracy_top_1",
    "eval_loss",
    "accuracy_top_1",
)


def write(
    output: Path,
    manifest: dict[str, Any],
    config: Config,
    weights: Sequence[np.ndarray],
    history: Sequence[Mapping[str, Any]],
    *,
    clean: bool,
) -> dict[str, Any]:
    """Writes the model artifact and returns its manifest.

    `weights`: all variables of the model in its order; `manifest`: what is known beside
    them, class_names and image_shape [H, W, C] among it.  The exported network computes in
    float32, channels last, whatever it was trained in: it has to run on processors that are
    not known.

    Raises:
      UsageError: something is at `output`, and not `clean`.
      StorageError: `output` cannot be written.
    """
    classes, shape = manifest["class_names"], tuple(manifest["image_shape"])
    anywhere = replace(config, data_format="channels_last", enable_xla=False)
    network = models.build(anywhere, shape, len(classes), "float32")
    network.set_weights(weights)
    manifest = {**manifest, "kind": "model", "weights_sha256": weights_sha256(weights)}
    with artifact.building(output, manifest, clean=clean) as partial:
        _save(network, config, classes, partial / "1")
        (partial / "labels.txt").write_text("".join(f"{name}\n" for name in classes))
        (partial / "config.json").write_text(json.dumps(to_dict(config), indent=1) + "\n")
        write_history(partial / "history.csv", history)
    return artifact.read_manifest(output, "model")


def write_history(file: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """One row an epoch, in HISTORY_COLUMNS; what was not measured stays empty."""
    with open(file, "w", newline="") as stream:
        rows = csv.DictWriter(stream, HISTORY_COLUMNS, lineterminator="\n")
        rows.writeheader()
        rows.writerows(history)


def weights_sha256(weights: Sequence[np.ndarray]) -> str:
    """One digest over the shape, type and bytes of each array in turn."""
    digest = hashlib.sha256()
    for array in weights:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _save(network: keras.Model, config: Config, classes: Sequence[str], directory: Path) -> None:
    size, _, channels = network.input_shape[1:]
    names = tf.constant(list(classes))

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = network(standardize(images, config), training=False)
        best = tf.argmax(logits, axis=-1)
        return {"probabilities": tf.nn.softmax(logits), "class": best, "label": tf.gather(names, best)}

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, channels], tf.uint8, name="images")], autograph=False
    )
    def serving_default(images):
        return classify(fit(images, config))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)
    def encoded(image_bytes):
        spec = tf.TensorSpec([size, size, channels], tf.uint8)
        return classify(tf.map_fn(lambda each: pixels(each, config, channels), image_bytes, fn_output_signature=spec))

    module = tf.Module()
    # In the network's order, under the names of its paths: what `pretrained` starts from.
    module.weights = [variable.value for variable in network.variables]
    tf.saved_model.save(module, str(directory), {"serving_default": serving_default, "encoded": encoded})
