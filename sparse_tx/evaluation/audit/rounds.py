"""All rounds of an audit in their order: attention alone, the whole model, decoding."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from sparse_tx.errors import UserError
from sparse_tx.evaluation.audit.decoding import (
    DecodingCase,
    DecodingPath,
    Walks,
    measured_rounding,
)
from sparse_tx.evaluation.audit.engines import computing_by, why_no_gradients, why_not
from sparse_tx.evaluation.audit.findings import (
    Audit,
    DecoderProof,
    Fault,
    HeadsProof,
    ModelProof,
)
from sparse_tx.evaluation.audit.flips import FlipTest
from sparse_tx.evaluation.audit.gradients import (
    dependencies,
    find_dependency_fault,
    reachable_pairs,
)
from sparse_tx.evaluation.audit.heads import Case, Heads, heads_of, type_suffix
from sparse_tx.evaluation.audit.lengths import Lengths, sizes, spread
from sparse_tx.evaluation.audit.lookups import find_lookup_fault
from sparse_tx.evaluation.audit.texts import draw_text
from sparse_tx.masks.cells import counted
from sparse_tx.model import GPT

# FLOPs of all flips, all gradients and all decoding of one engine, unless it is to be thorough. Of
# gradients, engines but the first take a quarter: what each makes of every head is shown before.
_FLOPS = 1e12
# So many positions are flipped and differentiated, and prompts decoded, in a model of any size.
_FEWEST = 4
# Positions between two signs of life.
_AT_ONCE = 64
# Of the work of a forward pass: forward and backward, at half the speed of float32.
_PASSES_OF_A_GRADIENT = 6
# Forward passes over a text that a short walk takes where a decoder has no cache, without flips.
_PASSES_OF_A_WALK = 10


def audit(
    model: GPT,
    *,
    engines: Sequence[str],
    lengths: Lengths,
    decoders: Sequence[DecodingPath] = (),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    thorough: bool = False,
    on_step: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> Audit:
    """Audit a model where it is, with the weights that it has.

    An engine that is at fault is not looked at any further; the others are.

    Args:
        model: put in eval mode meanwhile. See ``draw_weights_if_untrained`` for one without
            training.
        engines: names of those that can run there; the first one is used for the longest walks of
            decoders.
        lengths: see ``choose_lengths``.
        decoders: ways of decoding.
        dtypes: in which attention alone is looked at.
        thorough: look at every position of the whole model, however long that takes; without it, at
            as many as a few seconds allow.
        on_step: called before each step, with the steps done and in all, and what is next.

    Raises:
        UserError: a weight is infinite or NaN.
    """
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise UserError(
            "the model's weights are not finite (NaN or infinite): they are broken; take an earlier"
            " checkpoint"
        )
    was_training = model.training
    model.eval()
    try:
        rounds = _Rounds(model, engines, lengths, decoders, dtypes, thorough)
        steps = list(rounds.steps())
        for number, (label, step) in enumerate(steps):
            on_step(number, len(steps), label)
            step()
        return rounds.finished()
    finally:
        model.train(was_training)


class _Rounds:
    """What is planned, and what came of it so far."""

    def __init__(
        self,
        model: GPT,
        engines: Sequence[str],
        lengths: Lengths,
        decoders: Sequence[DecodingPath],
        dtypes: Sequence[torch.dtype],
        thorough: bool,
    ):
        self.model, self.engines, self.lengths = model, engines, lengths
        self.decoders, self.dtypes, self.thorough = decoders, dtypes, thorough
        self.device = model.token_embedding.weight.device
        self.result = Audit(lengths=lengths)
        self.groups = heads_of(model)
        self.no_gradients = {name: why_no_gradients(model, name) for name in engines}
        self.tokens = draw_text(model, lengths.longest)
        # Of attention alone: how many lengths are done; and what is at fault, and left out then.
        self.passed: Counter[tuple[Heads, str, torch.dtype]] = Counter()
        self.at_fault: set[tuple[str, torch.dtype]] = set()
        self.all_at_fault = False
        # Of the whole model, by engine: flips, and the gradients' queries, reached and unreached.
        self.flips: Counter[str] = Counter()
        self.flipping: tuple[str, FlipTest | None] = "", None
        self.gradients: dict[str, Counter[str]] = {name: Counter() for name in engines}

    def steps(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """What there is to do, in order: words for a person, and the work."""
        all_lengths = [*self.lengths.shorter, self.lengths.longest]
        for engine in self.engines:
            for dtype in self.dtypes:
                if reason := why_not(self.model, engine, dtype):
                    self.result.notes.append(f"engine '{engine}'{type_suffix(dtype)}: {reason}")
                    continue
                for group in self.groups:
                    for T in all_lengths:
                        label = f"heads by {engine}{type_suffix(dtype)}, {counted(T, 'position')}"
                        yield label, partial(self._look_at_heads, engine, dtype, group, T)
        if self.model.lookups is not None:
            yield "look-ups", self._look_at_lookups
        for engine in self.engines:
            for some in self._positions(1, _FLOPS).split(_AT_ONCE):
                yield f"flips by {engine}", partial(self._flip, engine, some)
            if reason := self.no_gradients[engine]:
                self.result.notes.append(f"engine '{engine}', no gradients: {reason}")
                continue
            if reason := why_not(self.model, engine, torch.float64):
                self.result.notes.append(
                    f"engine '{engine}', gradients in float32 alone, which show leaks and no gaps:"
                    f" {reason}"
                )
            flops = _FLOPS if engine == self.engines[0] else _FLOPS / 4
            for some in self._positions(_PASSES_OF_A_GRADIENT, flops).split(_AT_ONCE):
                yield f"gradients by {engine}", partial(self._differentiate, engine, some)
        for decoder in self.decoders:
            for engine in self.engines:
                types = (False, True) if engine == self.engines[0] else (False,)
                for in_float64 in types:
                    label = f"decoder {decoder.name} with {engine}"
                    yield label, partial(self._decode, decoder, engine, in_float64)

    def finished(self) -> Audit:
        """What was proven of heads and of the whole model, beside what the steps found."""
        for group in self.groups:
            engines = tuple(
                f"{engine}{type_suffix(dtype)}"
                for engine in self.engines
                for dtype in self.dtypes
                if self.passed[group, engine, dtype] == len(self.lengths.shorter) + 1
            )
            self.result.heads.extend(self._proofs(group, engines))
        self.result.heads.sort(key=lambda proof: (proof.layers, proof.heads))
        for engine in self.engines:
            if not self._is_out(engine):
                self.result.models.append(
                    ModelProof(
                        engine=engine,
                        seq_len=self.lengths.longest,
                        flips=self.flips[engine],
                        queries=self.gradients[engine]["queries"],
                        reached=self.gradients[engine]["reached"],
                        unreached=self.gradients[engine]["unreached"],
                        finds_gaps=self._takes_float64(engine),
                    )
                )
        return self.result

    def _proofs(self, group: Heads, engines: tuple[str, ...]) -> Iterator[HeadsProof]:
        """One for each pattern of a layer's heads."""
        T = self.lengths.longest
        for pattern in dict.fromkeys(group.patterns):
            allowed = pattern.count_pairs(T)
            yield HeadsProof(
                layers=group.numbers,
                heads=tuple(n for n, other in enumerate(group.patterns) if other == pattern),
                pattern=str(pattern),
                seq_len=T,
                allowed=allowed,
                forbidden=T * T - allowed,
                engines=engines,
            )

    def _look_at_heads(self, engine: str, dtype: torch.dtype, group: Heads, T: int) -> None:
        if (engine, dtype) in self.at_fault:
            return
        config = self.model.config
        case = Case(
            heads=group,
            engine=engine,
            T=T,
            D=config.qk_width // config.n_head,
            D_v=config.n_embd // config.n_head,
            dtype=dtype,
            device=self.device,
            gradients=self.no_gradients[engine] is None,
        )
        if fault := case.find_fault():
            self._add(fault, engine, dtype)
        else:
            self.passed[group, engine, dtype] += 1

    def _look_at_lookups(self) -> None:
        if fault := find_lookup_fault(self.model, self.tokens):
            self.result.faults.append(fault)
            self.all_at_fault = True  # every engine would be blamed for it

    def _flip(self, engine: str, positions: Tensor) -> None:
        if self._is_out(engine):
            return
        with computing_by(self.model, engine):
            if engine != self.flipping[0]:
                test = FlipTest(self.model, f"engine '{engine}'", self.tokens)
                self.flipping = engine, test
            fault = self.flipping[1].find_leak(positions)
        self.flips[engine] += len(positions)
        if fault is not None:
            self._add(fault, engine)

    def _differentiate(self, engine: str, queries: Tensor) -> None:
        if self._is_out(engine):
            return
        exact = self._takes_float64(engine)
        model = self.exact if exact else self.model
        with computing_by(model, engine):
            dependent = dependencies(model, self.tokens, queries)
        path = f"engine '{engine}', gradients in {'float64' if exact else 'float32'}"
        queries = queries.cpu()
        fault = find_dependency_fault(dependent, self.reached, queries, path, finds_gaps=exact)
        if fault is not None:
            self._add(fault, engine)
        reached = self.reached[queries].sum().item()
        self.gradients[engine] += Counter(
            queries=len(queries), reached=reached, unreached=dependent.numel() - reached
        )

    def _decode(self, decoder: DecodingPath, engine: str, in_float64: bool) -> None:
        if self._is_out(engine):
            return
        model = self.exact if in_float64 else self.model
        with computing_by(model, engine):
            reason = why_not(model, engine) or decoder.why_not(model)
            if reason:
                suffix = type_suffix(model.token_embedding.weight.dtype)
                self.result.notes.append(
                    f"decoder '{decoder.name}' with engine '{engine}'{suffix}: {reason}"
                )
                return
            found = DecodingCase(
                decoder=decoder,
                model=model,
                engine=engine,
                texts=self.texts,
                reached=self.reached,
                walks=self._walks(is_first=engine == self.engines[0]),
                roundings=self.roundings,
            ).run()
        if isinstance(found, DecoderProof):
            self.result.decoders.append(found)
        else:
            self.result.faults.append(found)

    @cached_property
    def exact(self) -> GPT:
        """The model in float64."""
        return copy.deepcopy(self.model).double().requires_grad_(False)

    @cached_property
    def reached(self) -> Tensor:
        return reachable_pairs(self.model, self.lengths.longest)

    @cached_property
    def texts(self) -> Tensor:
        """Two texts without their start symbols, on the CPU."""
        other = draw_text(self.model, self.lengths.longest, seed=1)
        return torch.stack([self.tokens, other])[:, 1:].cpu()

    @cached_property
    def roundings(self) -> float:
        with computing_by(self.model, "views"), computing_by(self.exact, "views"):
            return measured_rounding(self.model, self.exact, self.tokens)

    def _add(self, fault: Fault, engine: str, dtype: torch.dtype = torch.float32) -> None:
        self.result.faults.append(fault)
        self.at_fault.add((engine, dtype))

    def _is_out(self, engine: str) -> bool:
        """Whether an engine, or all of the model, was found at fault before."""
        return self.all_at_fault or (engine, torch.float32) in self.at_fault

    def _takes_float64(self, engine: str) -> bool:
        return why_not(self.model, engine, torch.float64) is None

    @cached_property
    def _flops(self) -> int:
        """Of the weights, for one text of the longest length, forward."""
        weights = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, nn.Linear))
        if self.model.config.tie_embeddings:
            weights += self.model.head_weight.numel()
        return 2 * weights * self.lengths.longest

    def _positions(self, passes: int, flops: float) -> Tensor:
        """The positions to flip or to differentiate: those at the patterns' edges first."""
        T = self.lengths.longest
        n = T if self.thorough else max(_FEWEST, int(flops / (passes * self._flops)))
        return torch.tensor(spread(T, n, self._edges), device=self.device)

    @property
    def _edges(self) -> list[int]:
        known = sizes(self.model.config.stack)
        return [size + step for size in known for step in (0, -1, 1)]

    def _walks(self, is_first: bool) -> Walks:
        """What is decoded: with all engines but the first, less of it."""
        text = self.lengths.longest - 1
        prompts = [n for n in (0, text - 1, *self._edges, 1) if 0 <= n <= text]
        prompts = tuple(dict.fromkeys(prompts))
        if self.thorough:
            return Walks(prompts=prompts, whole=True, flips=True)
        affordable = int(_FLOPS / (_PASSES_OF_A_WALK * self._flops))
        n = affordable if is_first else min(affordable, _FEWEST)
        return Walks(
            prompts=prompts[: max(2, n)],
            whole=is_first and self.lengths.longest * self._flops <= _FLOPS,
            flips=is_first and affordable >= 4 * _FEWEST,
        )
