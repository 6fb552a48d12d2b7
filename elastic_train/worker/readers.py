"""Which reader a source is read by."""

from __future__ import annotations

from elastic_train.worker.batch_reader import BatchReader
from elastic_train.worker.batches import ElasticBatches
from elastic_train.worker.reading import Reader
from elastic_train.worker.runtime import Runtime
from elastic_train.worker.stream_reader import StreamReader
from elastic_train.worker.streams import ElasticStreams


def open_reader(
    source: ElasticBatches | ElasticStreams, runtime: Runtime, loop: str, *, per_shard: bool = False
) -> Reader:
    """Return the reader of a loop over this source.

    Args:
        source: What the user gave.
        runtime: This worker's.
        loop: Name of the loop.
        per_shard: Keep logical shards apart: every part has samples of one only.

    Raises:
        ConfigurationError: The source cannot be divided among the job's logical shards.
    """
    if isinstance(source, ElasticStreams):
        return StreamReader(source, runtime, loop, per_shard=per_shard)
    return BatchReader(source, runtime, loop, per_shard=per_shard)
