"""Training images of shards that do not fit in memory: tar files, read from end to end by the webdataset library."""

import copy
import functools
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence

import torch

from vitlab import processes
from vitlab.cli import UserError
from vitlab.datasets import augment
from vitlab.datasets.batches import FileBatches
from vitlab.datasets.decoding import DecodedFiles
from vitlab.hardware import send
from vitlab.processes import Share
from vitlab.shards import ReadImage, Shard, ShardImage, image_of, unreadable

BUFFER = 1000  # images that wait in a worker, encoded, for one of them to be drawn
CHUNK = 16  # images that a worker hands over at once


class ShardStream(torch.utils.data.IterableDataset):
    """What one process trains on in an epoch, in chunks: (uint8 n x in_chans x S x S, their places in the data set
    int64 n), or the error of a shard or image that cannot be read. A worker without images gives None.

    webdataset divides the shards between the processes and their workers. Each worker draws its images from a buffer
    of BUFFER.

    places: path of a shard -> of each of its images the place in the data set, -1 if it is left out.
    """

    def __init__(self, places: dict[str, torch.Tensor], decoder: DecodedFiles, *, seed: int, random_crops: bool):
        self.places, self.decoder, self.seed, self.random_crops = places, decoder, seed, random_crops
        self.process, self.processes = processes.rank(), processes.count()
        # What changes from epoch to epoch, in memory that the workers share: they live on
        self.order = torch.arange(len(places)).share_memory_()
        self.now = torch.zeros(2, dtype=torch.int64).share_memory_()  # epoch, rounds to skip

    def counts(self, workers: int) -> list[list[int]]:
        """Of each process, how many images each of its workers reads in this epoch."""
        images = [int((self.places[url] >= 0).sum()) for url in self.urls()]
        shares = [images[process :: self.processes] for process in range(self.processes)]
        return [[sum(share[worker::workers]) for worker in range(workers)] for share in shares]

    def urls(self) -> list[str]:
        """The shards in the order of this epoch."""
        names = list(self.places)
        return [names[i] for i in self.order.tolist()]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor] | str | None]:
        import webdataset as wds  # optional

        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch, skipped = self.now.tolist()
        rounds = most_chunks(self.counts(workers)[self.process])
        key = (self.seed, epoch, self.process, worker)
        samples = wds.DataPipeline(
            wds.SimpleShardList(self.urls()),
            wds.split_by_node,
            wds.split_by_worker,
            self.read,
            wds.shuffle(BUFFER, initial=BUFFER, rng=random.Random(augment.seed_of("stream", *key))),
        )
        crops = random.Random(augment.seed_of("crop", *key))
        samples = ((place, image, crops.getrandbits(62)) for place, image in samples)
        samples = itertools.islice(samples, skipped * CHUNK, None)
        try:
            for _ in range(skipped, rounds):
                yield self.decode(list(itertools.islice(samples, CHUNK)))
        except UserError as error:
            yield str(error)

    def read(self, sources: Iterable[dict]) -> Iterator[tuple[int, ReadImage]]:
        """The images of shards that are trained on, in order, each after its place."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        for url in (source["url"] for source in sources):
            places, number = self.places[url].tolist(), 0
            try:
                with open(url, "rb") as stream:  # webdataset would take the letter of a drive for a protocol
                    for sample in group_by_keys(tar_file_expander([{"url": url, "stream": stream}])):
                        if suffix := image_of([name for name in sample if not name.startswith("__")]):
                            if number < len(places) and places[number] >= 0:
                                yield places[number], ReadImage(Shard(url, len(places)), number, sample[suffix])
                            number += 1
            except Exception as error:  # tarfile and webdataset raise whatever they like
                raise UserError(unreadable(url, error)) from None
            Shard(url, len(places)).check(number)

    def decode(self, samples: list[tuple[int, ReadImage, int]]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A chunk of pixels and places; None of no samples. Raises UserError if an image cannot be read."""
        if not samples:
            return None
        pixels = [self.decoder.read(image, seed if self.random_crops else None) for _, image, seed in samples]
        return torch.stack(pixels), torch.tensor([place for place, _, _ in samples])


def most_chunks(counts: Sequence[int]) -> int:
    """How many chunks the worker with the most images makes; the others make as many, of which the last are empty. So
    the order in which chunks arrive, one of each worker in turn, does not depend on how fast they are."""
    return math.ceil(max(counts) / CHUNK)


def rounds_before(counts: Sequence[int], images: int) -> tuple[int, int]:
    """(r, n): r rounds, of one chunk of each worker, and n more images are the first `images` of a process."""
    for rounds in range(most_chunks(counts) + 1):
        before = sum(min(count, rounds * CHUNK) for count in counts)
        after = sum(min(count, (rounds + 1) * CHUNK) for count in counts)
        if before <= images < after or before == after:
            return rounds, images - before
    raise AssertionError("more images than there are")


def cut(chunks: Iterator[Sequence[torch.Tensor]], sizes: Iterable[int]) -> Iterator[list[torch.Tensor]]:
    """Chunks of tensors, cut again into batches of these sizes."""
    rest = next(chunks)
    for size in sizes:
        parts, missing = [], size
        while missing > len(rest[0]):
            parts.append(rest)
            missing -= len(rest[0])
            rest = next(chunks)
        parts.append([tensor[:missing] for tensor in rest])
        rest = [tensor[missing:] for tensor in rest]
        yield [torch.cat(tensors) for tensors in zip(*parts)]


def places_of(files: Sequence[tuple[ShardImage, int]]) -> dict[str, torch.Tensor]:
    """ShardStream's places: where each image of each shard is in the list."""
    places = {}
    for place, (image, _) in enumerate(files):
        if image.shard.path not in places:
            places[image.shard.path] = [-1] * image.shard.images
        places[image.shard.path][image.number] = place
    return {path: torch.tensor(of_shard) for path, of_shard in places.items()}


class ShardBatches(FileBatches):
    """Training batches that webdataset reads from shards (ShardStream), each image once an epoch.

    Of several processes each reads shards of its own, and mixes only images of its own. So their number must not
    exceed that of the shards. All processes have equally many batches: where one's shards hold fewer images, so do its
    shares of the batches. Order and draws follow from the seed, the epoch, the batch, and the numbers of processes and
    workers.
    """

    def __init__(self, files: Sequence[tuple[ShardImage, int]], labels: torch.Tensor, *, num_workers: int, **options):
        super().__init__(files, labels, num_workers=0, **options)  # what sample() reads, it reads in this process
        decoder = copy.copy(self.dataset)
        decoder.files = ()
        self.stream = ShardStream(places_of(files), decoder, seed=self.seed, random_crops=self.random_crops)
        self.workers = max(1, num_workers)
        self.stream_loader = torch.utils.data.DataLoader(
            self.stream,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=labels.device.type == "cuda",
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((share.images, share.labels) for share in self.shares())

    def shares(self, before: int = 0) -> Iterator[Share]:
        """This process's share of each batch of the epoch (processes.shares). Raises UserError if a shard cannot be
        read, or if one process has too few images."""
        shards, steps, rank = len(self.stream.places), len(self), processes.rank()
        self.stream.order.copy_(torch.randperm(shards, generator=self._random("order", self.epoch)))
        counts = self.stream.counts(self.workers)
        totals = [sum(images) for images in counts]
        if min(totals) < steps:
            raise UserError(
                f"{shards} shards for {len(totals)} processes: one has {min(totals)} images for {steps} batches; "
                "start fewer processes, or pack smaller shards"
            )
        ends = [[total * step // steps for step in range(steps + 1)] for total in totals]
        own = ends[rank]
        rounds, dropped = rounds_before(counts[rank], own[self.start])
        self.stream.now.copy_(torch.tensor([self.epoch, rounds]))
        sizes = [last - first for first, last in itertools.pairwise(own[self.start :])]
        batches = itertools.islice(cut(self._chunks(), [dropped, *sizes]), 1, None)
        mirrored = self._mirrored()
        for step, (pixels, places) in enumerate(batches, start=self.start):
            key = (self.epoch, step, rank) if len(totals) > 1 else (self.epoch, step)
            images = self._finish(
                send(pixels, self.labels.device), places, mirrored, functools.partial(self._random, "augment", *key)
            )
            rows = torch.arange(-before, len(places)) % len(places)
            whole = sum(end[step + 1] - end[step] for end in ends)
            labels = self.labels[send(places[rows], self.labels.device)]
            yield Share(images[rows] if before else images, labels, len(places), whole)

    def _chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The chunks of one pass over the stream."""
        self.passes = this_pass = self.passes + 1
        for chunk in self.stream_loader:
            if isinstance(chunk, str):
                raise UserError(chunk)
            if chunk is not None:
                yield chunk
            if self.passes != this_pass:
                raise RuntimeError("another pass over these batches has begun meanwhile; make one after the other")
