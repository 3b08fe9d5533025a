"""The tables of results: the columns of each, with types and units.

The comment above each table describes one row.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

Columns = Mapping[str, pa.DataType]
# One row is one image of a prepared data set, in the order of images.npy.
INDEX: Columns = {
    "image": pa.int32(),  # row in images.npy
    "label": pa.int32(),  # 0 to K - 1
    "split": pa.string(),  # train, validation or test
    "source": pa.string(),  # where it came from: a file name or a row
    "hash": pa.string(),  # of the pixels, to find duplicates
}
# One row is one named loss or metric of one epoch.
HISTORY: Columns = {
    "epoch": pa.int32(),  # from 1
    "name": pa.string(),  # loss of a term, "total", "learning_rate", "validation_accuracy", ...
    "value": pa.float64(),
}
# One row is one layer of a teacher.
SCORES: Columns = {
    "layer": pa.string(),  # name of the block whose output was read
    "depth": pa.int32(),  # 0 is the first layer
    "shape": pa.list_(pa.int32()),  # of its output for one image
    "separation": pa.float64(),
    "information": pa.float64(),
    "efficiency": pa.float64(),
    "quality": pa.float64(),
    "root_information_efficiency": pa.float64(),
    "rank": pa.int32(),  # by the score that selects, 1 is best
    "chosen": pa.bool_(),
    "reason": pa.string(),  # for choosing it or not
}
# One row is one test image and the prediction of one network.
PREDICTIONS: Columns = {
    "image": pa.int32(),  # row in images.npy
    "label": pa.int32(),
    "predicted": pa.int32(),
    "logits": pa.list_(pa.float32()),
}
# One row is one student; the columns of its metrics follow (`kdsteps.evaluation.metrics`).
RUNS: Columns = {
    "pair": pa.string(),
    "dataset": pa.string(),
    "teacher": pa.string(),
    "student": pa.string(),
    "method": pa.string(),
    "seed": pa.int64(),
    "diverged": pa.bool_(),  # then there are no metrics of its predictions
    "num_images": pa.int64(),  # test images
    "best_validation_accuracy": pa.float64(),  # fraction, of any epoch
    "seconds": pa.float64(),  # that the training took
}
