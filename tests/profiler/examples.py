"""Profiles from formulas, as realistic as a report needs them; nothing is measured here."""

from dataclasses import replace
from functools import cache
from random import Random

from sparse_tx.accounting import attended_pairs, cache_bytes, count_parameters, useful_flops
from sparse_tx.accounting import nominal_flops as count_nominal_flops
from sparse_tx.config import ModelConfig, TrainingConfig
from sparse_tx.patterns import Dense
from sparse_tx.profiler.records import (
    Ceilings,
    Crossover,
    Fit,
    Measurement,
    PowerLaw,
    Prediction,
    Profile,
    Reach,
    Row,
    Setting,
)

LENGTHS = (1024, 4096, 16_384, 65_536, 262_144)
PATTERNS = ("dense", "local:128,strided:128", "fixed:128:32")
RATE = 6e10
MEMORY = 24_000_000_000
NASTY_LABEL = "</script><script>window.hacked = 1</script><b>&\"'"

PROVENANCE = {
    "command": "sparse-tx profile --preset cpu --seq_lens 1024,4096,16384,65536,262144 --measure",
    "commit": "d2ce544",
    "versions": {"sparse_tx": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
    "machine": {"cpu": "Intel Xeon (AVX-512)", "cores": 2, "memory_bytes": MEMORY},
    "date": "2026-03-01T12:00:00+00:00",
    "rounds": [5, 5, None, True, 0.5],
}


def setting(label="dense", T=1024, *, work="train", recompute=False, notation=None, **training):
    """A setting of a small model; ``notation`` where the label itself cannot be parsed."""
    model = ModelConfig(
        seq_len=T, n_layer=4, n_head=4, pattern=notation or label, recompute=recompute
    )
    training = TrainingConfig(**{"max_steps": 1, **training})
    return Setting(work=work, label=label, model=model, training=training)


def prediction(asked: Setting) -> Prediction:
    """Exact counts, and round formulas for memory and time."""
    model, batch = asked.model, asked.training.batch_size
    useful = useful_flops(model, batch=batch)
    only_forward = asked.work in ("forward", "prefill", "decode")

    def parts_of(flops):
        passes = flops.parts.items()
        return {name: p.forward if only_forward else p.total for name, p in passes}

    flops = parts_of(useful)
    rows = batch * model.seq_len * model.n_embd * 4
    state = 16 * count_parameters(model).total
    peak = {
        "weights": state // 4,
        "gradients": state // 4,
        "optimiser_state": state // 2,
        "activations": rows * (6 if model.recompute else 20 * model.n_layer),
        "logits": 2 * model.seq_len * model.vocab_size * 4,
        "attention_workspace": rows,
        "allocator_slack": rows // 3,
    }
    cache = cache_bytes(model)
    return Prediction(
        pairs=attended_pairs(model).total,
        dense_pairs=Dense().count_pairs(model.seq_len) * model.n_head * model.n_layer,
        useful_flops=flops,
        nominal_flops=parts_of(count_nominal_flops(model, batch=batch)),
        peak_bytes=sum(peak.values()),
        peak_parts=peak,
        cache_stored_bytes=cache.stored.total,
        cache_read_bytes=cache.read.total,
        cache_allocated_bytes=cache.allocated.total,
        parameters=count_parameters(model).total,
        seconds=sum(flops.values()) / RATE + 0.01,
        useful_tile_share=0.5,
    )


def measurement(asked: Setting, told: Prediction, noise: Random) -> Measurement:
    """Near the prediction, with some spread."""
    middle = told.seconds * noise.uniform(0.85, 1.2)
    parts = {
        "attention.forward": 0.22,
        "attention.backward": 0.35,
        "feed_forward.forward": 0.1,
        "feed_forward.backward": 0.2,
        "head.forward": 0.03,
        "head.backward": 0.06,
        "embeddings.forward": 0.01,
        "embeddings.backward": 0.01,
        "optimiser": 0.02,
    }
    return Measurement(
        engine="cpu",
        seconds=tuple(middle * noise.uniform(0.93, 1.12) for _ in range(5)),
        peak_bytes=int(told.peak_bytes * noise.uniform(0.96, 1.04)),
        baseline_bytes=310_000_000,
        parts_s={name: middle * share for name, share in parts.items()},
    )


@cache
def realistic_profile(works=("train",), lengths=LENGTHS, recomputes=(False,)) -> Profile:
    """Several patterns and lengths: measured up to a length, predicted beyond, one failure."""
    noise = Random(7)
    rows = []
    for work in works:
        for recompute in recomputes:
            for label in PATTERNS:
                for T in lengths:
                    asked = setting(label, T, work=work, recompute=recompute)
                    told = prediction(asked)
                    row = Row(setting=asked, prediction=told)
                    if label == "dense" and T > 65_536:
                        failed = Measurement(
                            engine="cpu",
                            peak_bytes=22_900_000_000,
                            baseline_bytes=310_000_000,
                            failure="out of memory at 22.9 GB: the process was killed",
                        )
                        row = replace(row, measurement=failed)
                    elif label == "fixed:128:32" and T > 65_536:
                        row = replace(row, not_measured="would take about 3 h")
                    else:
                        row = replace(row, measurement=measurement(asked, told, noise))
                    rows.append(row)
    return Profile(
        title="Preset cpu: 4 layers, 4 heads, width 128",
        provenance=PROVENANCE,
        rows=tuple(rows),
        ceilings=Ceilings(gemm_flops_per_s=1.1e11, copy_bytes_per_s=1.6e10, fresh_bytes_per_s=4e9),
        **findings(works[0]),
        training_tokens=1_000_000_000,
    )


def findings(work="train") -> dict:
    """Laws, crossovers, reaches and fits, one of every kind."""
    laws = [
        PowerLaw(
            label=label,
            work=work,
            recompute=False,
            quantity=quantity,
            exponent=exponent,
            low=exponent - 0.06,
            high=exponent + 0.07,
            coefficient=1e-5,
            lengths=LENGTHS[:4],
            measured=quantity != "useful_flops",
        )
        for label, exponents in (("dense", (1.83, 1.0)), ("local:128,strided:128", (1.08, 1.0)))
        for quantity, exponent in zip(("seconds", "peak_bytes"), exponents, strict=True)
    ]
    crossing = {"work": work, "recompute": False}
    strided = {**crossing, "label": "local:128,strided:128"}
    fixed = {**crossing, "label": "fixed:128:32"}
    crossovers = (
        Crossover(**strided, quantity="seconds", length=2048, how="measured"),
        Crossover(**strided, quantity="useful_flops", length=1024, how="below"),
        Crossover(**fixed, quantity="seconds", length=900_000, how="extrapolated"),
        Crossover(**fixed, quantity="peak_bytes", length=None, how="never"),
    )
    reaches = (
        Reach(
            label="local:128,strided:128",
            quantity="seconds",
            dense_len=16_384,
            budget=5.7,
            length=262_144,
            how="forward and backward by cpu against torch's fused dense attention",
            measured=True,
        ),
        Reach(
            label="local:128,strided:128",
            quantity="weights_bytes",
            dense_len=16_384,
            budget=1.07e9,
            length=1_048_576,
            how="bytes of the attention weights if they were stored",
            measured=False,
        ),
    )
    fits = (
        Fit(
            setting=setting("local:128,strided:128", 524_288, work="train"),
            memory_bytes=MEMORY,
            baseline_bytes=310_000_000,
            largest="seq_len",
            value=524_288,
            peak_bytes=23_900_000_000,
            confirmation=Measurement(
                engine="cpu", seconds=(61.0,), peak_bytes=22_700_000_000, baseline_bytes=310_000_000
            ),
        ),
        Fit(
            setting=setting("dense", 262_144, work="train"),
            memory_bytes=MEMORY,
            baseline_bytes=310_000_000,
            largest="batch_size",
            value=2,
            peak_bytes=21_000_000_000,
            not_confirmed="would take about 2 h",
        ),
    )
    return {
        "laws": tuple(laws),
        "crossovers": crossovers,
        "reaches": reaches,
        "fits": fits,
    }


def one_row_profile() -> Profile:
    """The least there can be: one setting, predicted without a rate."""
    asked = setting("local:128", 1)
    told = replace(prediction(asked), seconds=None)
    return Profile(title="One row", provenance={}, rows=(Row(setting=asked, prediction=told),))


def nasty_profile() -> Profile:
    """Text that would break a page that forgets to escape it."""
    asked = setting(NASTY_LABEL, 1024, notation="local:64")
    told = prediction(asked)
    failed = Measurement(engine="cpu", failure="<img src=x onerror=alert(1)> & more")
    rows = (
        Row(setting=asked, prediction=told, measurement=failed),
        Row(
            setting=setting(NASTY_LABEL, 2048, notation="local:64"),
            prediction=told,
            not_measured="<i>no time</i>",
        ),
    )
    return Profile(title="<u>title</u> {{ 7 * 7 }}", provenance={"<k>": "</script><v>"}, rows=rows)
