"""mibf bench network: the network patch by patch, in a loader loop, dense, and in training, in one run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench.harness.baseline import PLAIN_BATCH, Patches, PlainSteps
from jobs.bench.harness.timing import Case, Timing, measure
from jobs.bench.harness.working_set import working_set
from jobs.config.config import Config
from jobs.runtime.progress import info, progress_bar
from jobs.workflow.workspace import Workspace
from mibf.device import DTYPES, Precision, best_device, ieee_float32, to_device
from mibf.errors import InputError
from mibf.inference.cell import CELL
from mibf.inference.dense import Dense
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import BETWEEN, NARROW, WIDE, NetworkSpec, SourceSpec
from mibf.training.batch import Batch
from mibf.training.epoch import TrainState, train_epoch
from mibf.training.optimizer import make_optimizer
from pipeline.grid import Window
from pipeline.maps.predictor import check_sources
from pipeline.store.patch_store import PatchStore, scaled_window

PATCHES, LOADED, TILE, TORCH = "patch by patch", "loader loop", "dense", "dense, torch"
PLAIN, TRAINING = "plain training", "training"
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")
#: Patches per batch, in inference and training.
BATCH = 256
#: Timed functions by name and precision: pixels or samples per call, and the function.
Workloads = dict[tuple[str, Precision], tuple[int, Callable[[], object]]]
#: Sides of the tiles whose working sets are compared, in pixels.
SIDES = (4 * CELL, 8 * CELL)


@dataclass(frozen=True)
class Subject:
    """A network and the tile (with halo) that it runs on."""

    name: str
    network: MIBFNet
    tile: list[Tensor]
    side: int


@dataclass(frozen=True)
class Row:
    """One row of the table; rates in pixels (samples) per second, median and range over rounds."""

    what: str
    precision: str
    rate: float
    slowest: float
    fastest: float
    ratios: dict[str, float]  #: to named baselines of the same run: in float32, but `TORCH` in the row's own precision
    multiply_adds: float  #: of convolutions and matrix products, per pixel or sample
    gemm_share: float  #: multiply-add rate relative to the fastest measured matrix product in that precision


@dataclass(frozen=True)
class Result:
    """Result of the benchmark for one subject."""

    name: str
    rows: list[Row]
    gemm: dict[str, float]  #: multiply-adds per second, by precision
    largest_difference: float  #: in logits, between dense float32 and patch by patch
    labels_equal: dict[str, float]  #: share of pixels with the same label as dense float32: patch by patch, and in bf16
    sides: tuple[int, int]  #: of the tiles whose working sets are compared, in pixels
    working_set: dict[str, list[int]]  #: bytes by precision, one per side


@dataclass(frozen=True)
class NetworkBench:
    """The results of all subjects."""

    results: list[Result]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        return table(self.results).split("\n")

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), "results": [asdict(result) for result in self.results]}


def bench_network(
    config: Config | None, *, bands: Sequence[Sequence[int]], rounds: int, sides: tuple[int, int] = SIDES
) -> NetworkBench:
    """Benchmark networks with random weights for these band counts or, with a configuration, its trained model on its scene.

    The first of `sides` is the side of the timed tile; the working sets of both sides are compared.

    Raises:
        InputError: the configuration's run has no model, or its stores do not match the model.
    """
    info("keep the machine idle during the benchmark: other load affects the measurements")
    device = best_device()
    subjects = [_random(each, sides[0]) for each in bands] if config is None else [_trained(config, sides[1])]
    results = []
    for subject in subjects:
        to_device(subject.network, device)
        with progress_bar(f"bench {subject.name}", rounds + 1, unit="rounds") as advance:
            results.append(_measured(subject, rounds=rounds, sides=sides, each=lambda: advance(1)))
    return NetworkBench(results)


def _random(bands: Sequence[int], side: int) -> Subject:
    torch.manual_seed(0)
    sources = tuple(SourceSpec(f"source {i + 1}", b, NARROW if i else WIDE) for i, b in enumerate(bands))
    spec = NetworkSpec(sources, classes=11, without=BETWEEN if len(sources) == 1 else ())
    tile = [torch.rand(b, side + 2 * spec.halo, side + 2 * spec.halo) for b in bands]
    return Subject(f"{'+'.join(map(str, bands))} bands, random weights", MIBFNet(spec).eval(), tile, side)


def _trained(config: Config, side: int) -> Subject:
    """Return a run's model and the middle of its first scene."""
    workspace = Workspace.of(config)
    bundle = workspace.read_bundle()
    store = PatchStore(workspace.store(config.scenes[0].name))
    check_sources(store, bundle)
    side = min(side, *(size // CELL * CELL for size in store.shape))
    if not side:
        raise InputError(
            f"{store.url}: is {store.shape[0]} x {store.shape[1]} pixels; the benchmark needs at least {CELL} x {CELL}."
        )
    y, x = ((size - side) // 2 for size in store.shape)
    halo = bundle.spec.halo
    windows = scaled_window(store, Window(y, x, side, side), bundle.scaling, halo=halo)
    names = "+".join(str(s.bands) for s in bundle.spec.sources)
    name = f"{names} bands, run {config.run!r} of {config.name!r} on {side} x {side} pixels"
    return Subject(name, bundle.network(), [torch.from_numpy(w) for w in windows], side)


def _measured(subject: Subject, *, rounds: int, sides: tuple[int, int], each: Callable[[], None]) -> Result:
    network, device = subject.network, best_device()
    dense = {precision: Dense(network, precision=precision) for precision in PRECISIONS}
    torch_alone = {precision: Dense(network, precision=precision, kernels=False) for precision in PRECISIONS}
    patches = _patches(subject, CELL // 2, CELL)
    batches = [
        [x.to(device, memory_format=torch.channels_last) for x in sources]
        for sources, _ in DataLoader(patches, batch_size=BATCH)
    ]
    workloads = _inference(subject, sides[0], dense, torch_alone, patches, batches) | _training(network.spec, batches[:4])
    cases = [Case(f"{what}, {precision}", units, work) for (what, precision), (units, work) in workloads.items()]
    gemms = {precision: list(_gemms(precision, device)) for precision in PRECISIONS}
    timings = measure([*cases, *gemms["float32"], *gemms["bf16"]], rounds=rounds, each=each)
    gemm = {str(precision): max(timings[case.name].rate for case in gemms[precision]) for precision in PRECISIONS}
    exact = dense["float32"](subject.tile, products=["class", "logits"])
    same = exact["logits"][:, : CELL // 2, :CELL].flatten(1).T
    by_patch = torch.cat([_logits(network, batch) for batch in batches])
    fast = dense["bf16"](subject.tile, products=["class"])
    return Result(
        name=subject.name,
        rows=[
            # torch does not count the operations of kernels and vector code
            _row(
                what,
                precision,
                units,
                multiply_adds(work if what != TILE else workloads[TORCH, precision][1]),
                timings,
                gemm,
            )
            for (what, precision), (units, work) in workloads.items()
        ],
        gemm=gemm,
        largest_difference=float((by_patch - same).abs().max()),
        labels_equal={
            PATCHES: float((by_patch.argmax(dim=1) == same.argmax(dim=1)).float().mean()),
            "bf16": float((fast["class"] == exact["class"]).float().mean()),
        },
        sides=sides,
        working_set={p: [working_set(network.spec, side, p) for side in sides] for p in PRECISIONS},
    )


def _inference(
    subject: Subject,
    side: int,
    dense: dict[Precision, Dense],
    torch_alone: dict[Precision, Dense],
    patches: Patches,
    batches: Sequence[Sequence[Tensor]],
) -> Workloads:
    """Return every way to classify pixels."""
    network = subject.network
    side = min(subject.side, side)
    reach = side + 2 * network.spec.halo
    small = [x[:, : reach * s.scale, : reach * s.scale] for x, s in zip(subject.tile, network.spec.sources, strict=True)]
    plain = MIBFNet(network.spec).eval().to(dense["float32"].device)  # in torch's default layout
    plain.load_state_dict(network.state_dict())

    def loop() -> None:
        for sources, _ in DataLoader(patches, batch_size=PLAIN_BATCH):
            _labels(plain, [x.to(dense["float32"].device) for x in sources])

    workloads: Workloads = {
        (PATCHES, "float32"): (len(patches), lambda: [_labels(network, batch) for batch in batches]),
        (LOADED, "float32"): (len(patches), loop),
    }
    for precision in PRECISIONS:
        workloads[TORCH, precision] = (side**2, partial(torch_alone[precision], small))
        workloads[TILE, precision] = (side**2, partial(dense[precision], small))
    return workloads


def _training(spec: NetworkSpec, batches: Sequence[Sequence[Tensor]]) -> Workloads:
    """Return every way to run the same training steps."""
    labels = torch.randint(0, spec.classes, (BATCH,))
    workloads: Workloads = {(PLAIN, "float32"): (len(batches) * BATCH, _plain_steps(spec, batches, labels))}
    for precision in PRECISIONS:
        workloads[TRAINING, precision] = (len(batches) * BATCH, _our_steps(spec, batches, labels, precision))
    return workloads


def _row(
    what: str,
    precision: Precision,
    units: int,
    adds: float,
    timings: dict[str, Timing],
    gemm: dict[str, float],
) -> Row:
    timing = timings[f"{what}, {precision}"]
    ratios = {
        name: timing.ratio(timings[f"{name}, float32"])
        for name in ((PLAIN,) if what in (PLAIN, TRAINING) else (PATCHES, LOADED))
    }
    if what == TILE:
        ratios[TORCH] = timing.ratio(timings[f"{TORCH}, {precision}"])
    return Row(
        what=what,
        precision=precision,
        rate=timing.rate,
        slowest=min(timing.rates),
        fastest=max(timing.rates),
        ratios=ratios,
        multiply_adds=adds / units,
        gemm_share=adds / units * timing.rate / gemm[precision],
    )


def _patches(subject: Subject, rows: int, columns: int) -> Patches:
    """Return the patches of the tile's first pixels, all labelled 0."""
    pixels = np.argwhere(np.ones((rows, columns), bool))
    spec = subject.network.spec
    arrays = [x.permute(1, 2, 0).contiguous().numpy() for x in subject.tile]
    return Patches(arrays, [s.scale for s in spec.sources], spec.patch, pixels, np.zeros(len(pixels), np.int64))


@torch.inference_mode()
def _logits(network: MIBFNet, batch: Sequence[Tensor]) -> Tensor:
    with ieee_float32(batch[0].device):
        return network(batch).logits  # type: ignore[no-any-return]  # torch's modules return Any


def _labels(network: MIBFNet, batch: Sequence[Tensor]) -> Tensor:
    return _logits(network, batch).argmax(dim=1).cpu()


def _plain_steps(spec: NetworkSpec, batches: Sequence[Sequence[Tensor]], labels: Tensor) -> Callable[[], None]:
    """Return plain training steps: float32, torch's default layout, Adam, the loss read at every step."""
    plain = PlainSteps(MIBFNet(spec), batches[0][0].device)
    contiguous = [[x.contiguous() for x in batch] for batch in batches]

    def steps() -> None:
        for batch in contiguous:
            plain.step(batch, labels)

    return steps


def _our_steps(
    spec: NetworkSpec, batches: Sequence[Sequence[Tensor]], labels: Tensor, precision: Precision
) -> Callable[[], object]:
    """Return training steps as `mibf train` runs them."""
    network = to_device(MIBFNet(spec), batches[0][0].device)
    data = [Batch(tuple(x.cpu().numpy() for x in batch), labels.numpy()) for batch in batches]
    optimizer, schedule = make_optimizer(
        network.parameters(), learning_rate=1e-3, weight_decay=5e-4, steps=10_000, warmup=100
    )
    return partial(train_epoch, TrainState(network, optimizer, schedule, beta=1e-4, precision=precision), data)


def _gemms(precision: Precision, device: torch.device) -> Iterator[Case]:
    """Yield large matrix products in both forms that torch offers; which one is faster depends on the machine."""
    dtype = DTYPES[precision]
    size = 2048
    left, right = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    yield Case(f"matrix product, {precision}", size**3, lambda: torch.mm(left, right))
    kernel = torch.rand(size, size, 1, 1, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    image = torch.rand(1, size, 32, size // 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    yield Case(f"pointwise convolution, {precision}", size**3, lambda: _pointwise(image, kernel))


@torch.inference_mode()
def _pointwise(image: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(image, kernel)


def multiply_adds(work: Callable[[], object]) -> float:
    """Count the multiply-adds of the matrix products and convolutions of a call."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter sees only this thread
    try:
        with FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.set_num_threads(threads)
    return float(counter.get_total_flops()) / 2


def machine() -> str:
    """Describe the machine, to print with the measurements."""
    device = best_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{platform.machine()}, {platform.system()}, {name}, torch {torch.__version__}"


def table(results: Sequence[Result]) -> str:
    """Format the results as text; see `Row` for the columns."""
    lines = [machine()]
    for result in results:
        lines += ["", result.name, f"{'':<18}{'':<9}{'per second':>11} {'range':>17} {'M mul-add':>9} {'of GEMM':>8}  ratio"]
        for row in result.rows:
            ratios = ", ".join(f"{value:.2f}x {name}" for name, value in row.ratios.items())
            lines.append(
                f"{row.what:<18}{row.precision:<9}{row.rate:>11,.0f} {row.slowest:>8,.0f}-{row.fastest:<8,.0f}"
                f" {row.multiply_adds / 1e6:>9.2f} {row.gemm_share:>8.0%}  {ratios}"
            )
        gemms = ", ".join(f"{precision} {2 * rate / 1e9:,.0f} GFLOP/s" for precision, rate in result.gemm.items())
        lines.append(f"fastest matrix product: {gemms}")
        lines.append(
            f"dense float32 and patch by patch: logits differ by at most {result.largest_difference:.1e}, "
            f"{result.labels_equal[PATCHES]:.4%} of labels equal; bf16 and float32: {result.labels_equal['bf16']:.3%}"
        )
        sets = "; ".join(
            f"{precision} {', '.join(f'{size / 1e6:.0f} MB' for size in sizes)}"
            for precision, sizes in result.working_set.items()
        )
        lines.append(f"working set for tiles of {' and '.join(f'{side} x {side}' for side in result.sides)} pixels: {sets}")
    return "\n".join(lines)
