"""The audit passes what is sound, and names what is not, wherever it is planted."""

from functools import partial

import numpy as np
import pytest
import torch

from sparse_tx.attention import views
from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError
from sparse_tx.evaluation.audit import (
    DecodingPath,
    audit,
    choose_engines,
    choose_lengths,
    draw_weights_if_untrained,
)
from sparse_tx.evaluation.audit.lengths import spread
from sparse_tx.evaluation.audit.lookups import followers
from sparse_tx.generation import RecomputeDecoder
from sparse_tx.model import GPT, lookups
from sparse_tx.patterns import Local, Strided, parse_layer, parse_pattern
from tests.helpers import paper_mask
from tests.planted_faults import (
    Meddling,
    SmallDecoder,
    engine_that_counts,
    engine_with_pairs,
    forget_the_oldest,
    read_one_more,
    rotate_again,
)

T = 31
RECOMPUTE = DecodingPath("recompute", lambda model, room: RecomputeDecoder(model))
SMALL = DecodingPath("small", SmallDecoder)

MODELS = {
    "paper": dict(),
    "split heads": dict(pattern="local:3/strided:5,fixed:7:2"),
    "rotary": dict(
        position="rope", norm="rmsnorm", qk_norm=True, activation="relu2", bias=False, dropout=0.5
    ),
    "tied, in a table": dict(activation="swiglu", tie_embeddings=True, position="table"),
    "look-ups": dict(
        recent_tokens=3, ngrams=(2, 5), ngram_rows=11, recall=3, position="none", n_qk=4
    ),
    "a head at a time": dict(head_chunk=1, chunk=7, stored_precision="bf16", recompute=True),
    "incomplete": dict(pattern="local:3", n_layer=2),
    "two symbols": dict(vocab_size=2, recall=2),
}


def make_model(**settings) -> GPT:
    defaults = dict(vocab_size=17, seq_len=T, n_layer=3, n_head=2, n_embd=12)
    torch.manual_seed(0)
    model = GPT(ModelConfig(**defaults | dict(pattern="local:5,strided:7", n_qk=8) | settings))
    draw_weights_if_untrained(model)
    return model


def look_at(model, engines=("reference", "views"), decoders=(), **options):
    lengths = choose_lengths(model.config.stack, model.config.seq_len)
    return audit(model, engines=engines, lengths=lengths, decoders=decoders, **options)


def the_fault(*args, **options):
    """The only one that is found."""
    result = look_at(*args, **options)
    assert not result.holds
    [fault] = result.faults
    return fault


def masks(model):
    """(n_layer, n_head, T, T) by the paper's definitions."""
    layers = model.config.pattern.split(",")
    H, found = model.config.n_head, []
    for n in range(model.config.n_layer):
        groups = layers[n % len(layers)].split("/")
        found.append([paper_mask(groups[h * len(groups) // H], T, h) for h in range(H)])
    return np.array(found)


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_sound_models_pass(settings):
    model = make_model(**settings)
    result = look_at(model, decoders=[RECOMPUTE])
    assert result.holds and not result.notes
    expected = masks(model)
    for proof in result.heads:
        assert proof.engines == ("reference", "views")
        for layer in proof.layers:
            for head in proof.heads:
                assert proof.allowed == expected[layer, head].sum()
        assert proof.allowed + proof.forbidden == T * T
    pairs = [(layer, head) for p in result.heads for layer in p.layers for head in p.heads]
    assert sorted(pairs) == [(n, h) for n in range(model.config.n_layer) for h in range(2)]
    reached = np.eye(T, dtype=bool)
    for layer in expected:
        reached = (layer.any(0) | np.eye(T, dtype=bool)) @ reached
    for proof, engine in zip(result.models, ("reference", "views"), strict=True):
        assert (proof.engine, proof.seq_len, proof.finds_gaps) == (engine, T, True)
        assert (proof.flips, proof.queries) == (T, T)
        assert (proof.reached, proof.unreached) == (reached.sum(), T * T - reached.sum())
    assert [(p.engine, p.dtype) for p in result.decoders] == [
        ("reference", "float32"),
        ("reference", "float64"),
        ("views", "float32"),
    ]
    assert all(p.error <= p.rounding for p in result.decoders)
    assert result.decoders[0].logits > 2 * T
    assert result.decoders[1].rounding < 1e-8


def test_every_engine_that_can_run():
    model = make_model(pattern="local:5/fixed:7:2,strided:7")
    names, absent = choose_engines(model, "all")
    assert {"reference", "views", "flex"} <= set(names)
    assert set(names) | set(absent) == {"reference", "views", "cpu", "flex", "triton"}
    result = look_at(model, engines=names)
    assert result.holds
    for proof in result.heads:
        assert proof.engines == tuple(names)
    [note] = result.notes
    assert note.startswith("engine 'flex', no gradients: ")
    by_name = {proof.engine: proof for proof in result.models}
    assert by_name["flex"].flips == T and by_name["flex"].queries == 0
    assert by_name["views"].queries == T


def test_half_precision():
    result = look_at(make_model(), engines=["views"], dtypes=(torch.float32, torch.bfloat16))
    assert result.holds
    assert all(proof.engines == ("views", "views (bfloat16)") for proof in result.heads)


def test_many_positions_at_once_or_few_are_the_same(monkeypatch):
    from sparse_tx.evaluation.audit import flips, gradients, heads
    from sparse_tx.evaluation.audit import lookups as audited_lookups

    model = make_model(recall=2)
    whole = look_at(model)
    for module in (heads, flips, gradients, audited_lookups):
        monkeypatch.setattr(module, "_AT_ONCE", 1)
    assert look_at(model) == whole


def test_a_model_is_left_as_it_was():
    model = make_model(dropout=0.5, recompute=True).train()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = model.config
    look_at(model, decoders=[RECOMPUTE])
    assert model.training and model.blocks[0].training
    assert model.config is config and model.blocks[1].attention.config is config
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_steps_are_told_before_they_are_taken():
    told = []
    look_at(make_model(), decoders=[RECOMPUTE], on_step=lambda *step: told.append(step))
    done, totals, labels = zip(*told, strict=True)
    assert list(done) == list(range(totals[0])) and set(totals) == {len(told)}
    assert labels[0] == "heads by reference, 1 position"
    assert {"flips by views", "gradients by views", "decoder recompute with views"} <= set(labels)


def test_large_models_are_looked_at_in_few_places_unless_thoroughly(monkeypatch):
    from sparse_tx.evaluation.audit import rounds

    monkeypatch.setattr(rounds, "_FLOPS", 1)
    model = make_model()
    result = look_at(model, engines=["views"], decoders=[RECOMPUTE])
    [proof] = result.models
    assert (proof.flips, proof.queries) == (4, 4)
    assert len(result.decoders[0].prefixes) == 2 and result.decoders[0].logits < T
    result = look_at(model, engines=["views"], decoders=[RECOMPUTE], thorough=True)
    [proof] = result.models
    assert (proof.flips, proof.queries) == (T, T)
    assert result.decoders[0].logits > 2 * T


def sees_a_future_key(pattern, head, mask):
    if isinstance(pattern, Strided) and head == 1 and len(mask) > 21:
        mask[20, 21] = True


def drops_a_key(pattern, head, mask):
    if isinstance(pattern, Local) and head == 1 and len(mask) > 20:
        mask[20, 17] = False


def window_off_by_one(pattern, head, mask):
    if isinstance(pattern, Local):
        mask |= torch.ones_like(mask).triu(-5).tril()


def window_too_short(pattern, head, mask):
    if isinstance(pattern, Local):
        mask &= torch.ones_like(mask).triu(-3)


@pytest.mark.parametrize(
    ("change", "kind", "layers", "head", "query", "key", "seq_len"),
    [
        (sees_a_future_key, "leak", (1,), 1, 20, 21, 31),
        (drops_a_key, "gap", (0, 2), 1, 20, 17, 31),
        (window_off_by_one, "leak", (0, 2), 0, 5, 0, 6),
        (window_too_short, "gap", (0, 2), 0, 4, 0, 5),
    ],
)
def test_an_engine_with_a_wrong_pair(change, kind, layers, head, query, key, seq_len, monkeypatch):
    monkeypatch.setattr(views, "attend", engine_with_pairs(change))
    result = look_at(make_model(), engines=("views", "reference"), decoders=[RECOMPUTE])
    [fault] = result.faults
    assert (fault.kind, fault.path, fault.layers) == (kind, "engine 'views'", layers)
    assert (fault.head, fault.query, fault.key, fault.seq_len) == (head, query, key, seq_len)
    read = "reads" if kind == "leak" else "does not read"
    numbers = "layers 0, 2" if len(layers) == 2 else "layer 1"
    assert str(fault).startswith(
        f"engine 'views', {numbers}, head {head}, {seq_len} positions: query {query} {read} key"
        f" {key}, which '"
    )
    # The other engine is looked at to the end, this one no further.
    assert [proof.engine for proof in result.models] == ["reference"]
    assert {proof.engine for proof in result.decoders} <= {"reference"}
    for proof in result.heads:
        assert "reference" in proof.engines
        assert "views" not in proof.engines or proof.layers != layers


def test_a_key_that_counts_and_is_not_read(monkeypatch):
    monkeypatch.setattr(views, "attend", engine_that_counts(sees_a_future_key))
    fault = the_fault(make_model(), engines=["views"])
    assert (fault.kind, fault.layers, fault.head, fault.query) == ("wrong", (1,), 1, 20)
    assert "gives key 6 the weight" in str(fault)


def leaking_gradient(which, amount):
    """Right in the forward pass; query 5 has a gradient of key or value 9, or lacks that of 3."""
    attend = engine_with_pairs(lambda *_: None)

    def wrong(q, k, v, heads, scale):
        inputs = [q, k, v]
        if amount == 0:
            x = inputs[which]
            held = torch.arange(x.shape[2])[:, None] == 3
            inputs[which] = torch.where(held, x.detach(), x)
        out = attend(*inputs, heads, scale)
        if amount and q.shape[2] > 9:
            x = inputs[which][:, :, 9, 1:2]  # the number that query 5 has to itself
            out = out.clone()
            out[:, :, 5] += amount * (x - x.detach())
        return out

    return wrong


@pytest.mark.parametrize(
    ("which", "amount", "kind", "query", "key"),
    [
        (1, 0.1, "leak", 5, 9),
        (2, 0.1, "leak", 5, 9),
        (1, 0, "gap", 3, 3),
        (2, 0, "gap", 3, 3),
    ],
)
def test_an_engine_with_a_wrong_gradient(which, amount, kind, query, key, monkeypatch):
    monkeypatch.setattr(views, "attend", leaking_gradient(which, amount))
    fault = the_fault(make_model(pattern="local:5"), engines=["views"])
    assert (fault.kind, fault.head, fault.layers) == (kind, 0, (0, 1, 2))
    assert (fault.query, fault.key) == (query, key)
    what = "key" if which == 1 else "value"
    assert f"gradient with respect to the {what} of key {key}, which 'local:5'" in str(fault)


def test_an_engine_that_shifts_a_sum_by_a_forbidden_key(monkeypatch):
    """By less than a rounding of the weights: only bits show it."""
    attend = engine_with_pairs(lambda *_: None)

    def wrong(q, k, v, heads, scale):
        out = attend(q, k, v, heads, scale)
        if q.shape[2] > 9:
            out = out.clone()
            out[:, :, 5] *= 1 + 1e-6 * k[:, :, 9, :1].detach()
        return out

    monkeypatch.setattr(views, "attend", wrong)
    fault = the_fault(make_model(), engines=["views"])
    assert (fault.kind, fault.layers, fault.query, fault.key) == ("leak", (0, 2), 5, 9)
    assert "the output of query 5 changes with key 9" in str(fault)


def test_a_pattern_that_allows_the_future(monkeypatch):
    monkeypatch.setattr(Local, "allows", lambda self, q, k, causal=True: q - k < self.window)
    fault = the_fault(make_model(pattern="local:5"), engines=["views"])
    assert (fault.kind, fault.query, fault.key, fault.seq_len) == ("leak", 0, 1, 2)
    assert "'local:5' allows query 0 the later key 1" in str(fault)


def test_a_layer_with_another_pattern_than_its_own():
    model = make_model()
    model.blocks[2].attention.layer = parse_layer("local:6")
    fault = the_fault(model, engines=["views"])
    assert (fault.kind, fault.layers, fault.query, fault.key) == ("leak", (2,), 5, 0)
    model.blocks[2].attention.layer = parse_layer("local:5/local:4")
    fault = the_fault(model, engines=["views"])
    assert (fault.kind, fault.layers, fault.head) == ("gap", (2,), 1)
    assert (fault.query, fault.key) == (4, 0)


def ahead(x):
    """What stands one position later, and zero at the end: ``(B, T, C)``."""
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)


def test_a_look_up_that_reads_the_next_token(monkeypatch):
    rows = lookups.Lookups.rows

    def peek(self, tokens):
        return rows(self, torch.cat([tokens[:, 1:], tokens[:, -1:]], 1))

    monkeypatch.setattr(lookups.Lookups, "rows", peek)
    fault = the_fault(make_model(ngrams=(2, 3), recall=3))
    assert (fault.kind, fault.path, fault.query, fault.key) == ("leak", "look-ups", 0, 1)
    assert (fault.layers, fault.head) == ((), None)
    assert "at position 0, the n-gram of" in str(fault)


def test_recall_that_sees_what_follows(monkeypatch):
    recall = lookups.recall
    monkeypatch.setattr(lookups, "recall", lambda tokens, least: recall(tokens.roll(-1, 1), least))
    fault = the_fault(make_model(recall=3))
    assert (fault.kind, fault.path) == ("leak", "look-ups")
    assert fault.query < fault.key and "what is recalled changes" in str(fault)


def test_recall_that_finds_nothing(monkeypatch):
    def nothing(tokens, least):
        return tokens, torch.full_like(tokens, -1)

    monkeypatch.setattr(lookups, "recall", nothing)
    fault = the_fault(make_model(recall=3))
    assert (fault.kind, fault.path) == ("gap", "look-ups")
    # The text's second half repeats its first, from position 16 and 1 on.
    assert fault.query >= 16 + 2 and fault.query - fault.key == 14


def test_followers():
    assert followers([1, 2, 1, 2, 3, 2, 3], 2) == [None, None, None, 2, None, None, 5]
    assert followers([7, 7, 7], 1) == [None, 1, 2]
    assert followers([1], 3) == [None]


def test_an_embedding_of_the_next_token():
    model = make_model()
    model.token_embedding.register_forward_hook(lambda _, inputs, out: out + ahead(out))
    fault = the_fault(model, engines=["views"])
    assert (fault.kind, fault.path, fault.layers) == ("leak", "engine 'views'", ())
    assert (fault.query, fault.key) == (0, 1)
    assert "the input of the first layer at position 0 changes" in str(fault)


def test_an_embedding_that_is_missing():
    model = make_model(recent_tokens=2)
    model.earlier_embeddings[0].register_forward_hook(lambda _, inputs, out: 0 * out)
    fault = the_fault(model, engines=["views"])
    assert (fault.kind, fault.query, fault.key) == ("gap", 1, 0)


def test_a_head_that_leaks_in_the_model_alone():
    model = make_model()

    def leak(module, inputs):
        heads = inputs[0].unflatten(-1, (2, 6)).clone()
        heads[..., 1, :] += ahead(heads[..., 1, :])
        return (heads.flatten(2),)

    model.blocks[2].attention.to_out.register_forward_pre_hook(leak)
    fault = the_fault(model, engines=["views"])
    assert (fault.kind, fault.layers, fault.head) == ("leak", (2,), 1)
    assert (fault.query, fault.key) == (0, 1)
    assert str(fault).startswith("engine 'views', layer 2, head 1, 31 positions: the output at")


def test_a_feed_forward_that_mixes_positions():
    model = make_model()
    model.blocks[1].feed_forward.register_forward_hook(lambda _, inputs, out: out + ahead(out))
    fault = the_fault(model, engines=["views"])
    assert (fault.kind, fault.layers, fault.head) == ("leak", (1,), None)
    # What position 7 reads of the first token, 6 gets from it.
    assert (fault.query, fault.key) == (6, 0)


def test_a_final_norm_that_mixes_positions():
    model = make_model()
    model.final_norm.register_forward_hook(lambda _, inputs, out: out + ahead(out))
    fault = the_fault(model, engines=["views"])
    assert (fault.kind, fault.layers, fault.query, fault.key) == ("leak", (), 0, 1)
    assert "the logits at position 0 change" in str(fault)


def test_a_layer_that_lets_nothing_through():
    model = make_model()
    with torch.no_grad():
        model.blocks[1].attention.to_out.weight.zero_()
    fault = the_fault(model, engines=["views"])
    # Without the strided layer, two windows of 5 reach 8 back.
    assert (fault.kind, fault.query, fault.key) == ("gap", 9, 0)
    assert "the logits at position 9 do not depend on the input at position 0" in str(fault)


def test_a_gradient_that_leaks_in_the_model_alone():
    model = make_model()

    def leak(module, inputs, out):
        return out + (ahead(out) - ahead(out).detach())

    model.blocks[0].feed_forward.register_forward_hook(leak)
    fault = the_fault(model, engines=["views"])
    assert (fault.kind, fault.path) == ("leak", "engine 'views', gradients in float64")
    assert (fault.query, fault.key) == (0, 1)


def test_broken_weights_are_no_leak():
    model = make_model()
    model.blocks[0].feed_forward.expand.weight.data[3, 4] = float("nan")
    with pytest.raises(UserError, match="weights are not finite"):
        look_at(model)


ONE_LAYER = dict(n_layer=1, pattern="local:5", position="rope")


@pytest.mark.parametrize("name", ["paper", "split heads", "rotary", "tied, in a table"])
def test_a_decoder_with_a_cache_passes(name):
    result = look_at(make_model(**MODELS[name]), engines=["views"], decoders=[SMALL])
    assert result.holds
    assert [(p.decoder, p.dtype) for p in result.decoders] == [
        ("small", "float32"),
        ("small", "float64"),
    ]
    assert result.decoders[1].error < 1e-10


@pytest.mark.parametrize(
    ("change", "kind", "distance"), [(forget_the_oldest, "gap", 4), (read_one_more, "leak", 5)]
)
def test_a_decoder_that_reads_other_keys(change, kind, distance):
    decoder = DecodingPath("ring", partial(SmallDecoder, change=change))
    result = look_at(make_model(**ONE_LAYER), engines=["views"], decoders=[decoder])
    for fault, dtype in zip(result.faults, ("float32", "float64"), strict=True):
        assert fault.path == f"decoder 'ring' with engine 'views' in {dtype}"
        assert (fault.kind, fault.query - fault.key) == (kind, distance)
        assert "where rounding is" in str(fault)
    assert [proof.engine for proof in result.models] == ["views"]


def test_a_decoder_that_rotates_a_key_again():
    decoder = DecodingPath("turning", partial(SmallDecoder, change=rotate_again))
    result = look_at(make_model(**ONE_LAYER), engines=["views"], decoders=[decoder])
    for fault in result.faults:
        assert (fault.kind, fault.query, fault.key) == ("wrong", 4, 3)
        assert "they depend most wrongly on position 3" in str(fault)
    assert len(result.faults) == 2


@pytest.mark.parametrize("which", [0, 1])
def test_a_decoder_that_lets_a_token_change_what_it_must_not(which):
    decoder = DecodingPath("meddling", partial(Meddling, which=which))
    result = look_at(make_model(**ONE_LAYER), engines=["views"], decoders=[decoder])
    fault = result.faults[0]
    assert (fault.kind, fault.key) == ("leak", 1)
    if which == 0:  # the token itself may change what five positions see
        assert fault.query >= 6 and "no layers lead there" in str(fault)
    else:
        assert "of text 0, which is of another text of the batch" in str(fault)


def test_a_decoder_that_cannot_run_is_named():
    decoder = DecodingPath(
        "native",
        SmallDecoder,
        lambda model: None if model.head_weight.dtype == torch.float32 else "it is for float32",
    )
    result = look_at(make_model(), engines=["views"], decoders=[decoder])
    assert result.holds and [proof.dtype for proof in result.decoders] == ["float32"]
    assert result.notes == ["decoder 'native' with engine 'views' (float64): it is for float32"]


@pytest.mark.parametrize(
    ("pattern", "seq_len", "longest", "among", "unreached"),
    [
        ("local:128,strided:128", 4096, 257, {1, 2, 63, 64, 65, 127, 128, 129}, ()),
        ("local:8,strided:8", 64, 64, {1, 2, 7, 8, 9, 61, 63}, ()),
        ("local:384*3,strided:1024", 1 << 20, 1153, {385, 1025}, ()),
        ("fixed:128:32", 12_288, 257, {31, 32, 33, 129}, ()),
        ("local:5000", 8192, 257, {129}, (5000,)),
        ("local:5000", 1000, 257, {129}, ()),
        ("dense", 1, 1, set(), ()),
    ],
)
def test_lengths(pattern, seq_len, longest, among, unreached):
    lengths = choose_lengths(parse_pattern(pattern), seq_len)
    assert lengths.longest == longest
    assert among <= set(lengths.shorter) <= set(range(1, longest))
    assert list(lengths.shorter) == sorted(set(lengths.shorter))
    assert lengths.unreached == unreached


def test_a_length_that_is_asked_for():
    stack = parse_pattern("local:128")
    lengths = choose_lengths(stack, 4096, 100)
    assert lengths.longest == 100 and 97 in lengths.shorter and lengths.unreached == (128,)
    for asked, seq_len, words in (
        (0, 4096, "seq_len is 0; it must be 1 or more"),
        (65, 64, "takes texts of 64 tokens at most"),
        (5000, 8192, "takes 4,096 at most"),
    ):
        with pytest.raises(UserError, match=words):
            choose_lengths(stack, seq_len, asked)


def test_positions_are_spread():
    assert spread(7, 7, ()) == spread(7, 100, (3,)) == list(range(7))
    for n in (2, 5, 40, 96):
        chosen = spread(97, n, (50, 200, -1, 49))
        assert len(set(chosen)) == n and chosen == sorted(chosen)
        assert {0, 96} <= set(chosen) <= set(range(97))
        assert n < 5 or {49, 50} <= set(chosen)


@pytest.mark.parametrize("init", ["paper", "zero-out"])
def test_untrained_weights_are_drawn_and_trained_ones_kept(init):
    config = ModelConfig(seq_len=T, n_head=2, n_embd=12, init=init, recall=2, bias=True)
    models = [GPT(config) for _ in range(2)]
    names = [draw_weights_if_untrained(model, seed=3) for model in models]
    assert names[0] == names[1] is not None
    for (name, one), other in zip(
        models[0].named_parameters(), models[1].parameters(), strict=True
    ):
        assert torch.equal(one, other), name
        assert one.dim() < 2 or one.count_nonzero() == one.numel(), name
    before = {name: weight.clone() for name, weight in models[0].named_parameters()}
    assert draw_weights_if_untrained(models[0], seed=4) is None
    assert all(torch.equal(before[name], now) for name, now in models[0].named_parameters())
    logits = models[0](torch.randint(0, 256, (2, T)))
    assert 0.1 < logits.std() < 10


def test_engines_are_chosen_by_name():
    model = make_model()
    assert choose_engines(model, "views, reference,views") == (["views", "reference"], {})
    [best], absent = choose_engines(model, "auto")
    assert best in ("cpu", "views") and absent == {}
    names, absent = choose_engines(model, "all")
    assert names[0] == best and len(names) == len(set(names))
    assert "triton" in {*names, *absent} and all(absent.values())
    mistakes = ((",", "write all, auto"), ("vews", "did you mean 'views'"), ("", "write all"))
    for wanted, words in mistakes:
        with pytest.raises(UserError, match=words):
            choose_engines(model, wanted)
