"""Capture the attention of any model, as layers, while it runs; the model is not changed.

Inside the block ``F.scaled_dot_product_attention`` is replaced in every Python module that has it,
the fast path of ``nn.MultiheadAttention`` is off, a call of it with weights is repeated without
them, and compiled code runs eagerly. In a Hugging Face model with ``attn_implementation="eager"``
each module's formula is wrapped, with its soft cap and its sinks. The output is that of the same
kernel or formula; on the CPU the kernel's logsumexp is kept. A module that multiplies a softmax by
values is captured by that matrix. Modules that attend in another way (another package's kernel,
other products) are named in an error with the cause. A rollout needs a chain of reads that is
proved from what every tensor was computed from (``flows.py``); nothing is guessed.

The rule is docs/attention.md, A37.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType, ModuleType, TracebackType
from typing import Any, Final, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.nn import functional
from torch.nn.attention import SDPBackend

from .checks import AXES, check_rows, explanation
from .errors import AttentionInvalid
from .flows import INPUTS, NO_PRODUCT, Flows, HandwrittenProduct, Lineage
from .generation import is_whole, joined, unpacked, without_unused
from .handwritten import matrix_read
from .layer import Layer
from .masks import Mask, check_tensor
from .methods import PLAIN, AttendedTokens, Rollout, rollout
from .passage_shares import SOURCE, TARGET, Passages, Span, passages
from .reads import TOKENS, MatrixRead
from .replacing import EAGER, HEADS, homes_of_formulas, put, put_flex, replaced, uncompiled
from .showing import Shown, shown

_HELP: Final = (
    "call the model inside the block, in eval mode, as modules and no traced graph, and with "
    "attn_implementation 'sdpa' or 'eager'. Else let the module call "
    "F.scaled_dot_product_attention, or give a rollout the reads of your hooks: "
    "Layer.of(query, key, value, mask) or MatrixRead(matrices)"
)
_FLASH: Final = SDPBackend.FLASH_ATTENTION.value
_DIGITS: Final = re.compile(r"\d+")
_ENTRIES: Final = 1 << 22
"""How many entries of a matrix are compared at a time."""
_TOLERANCE: Final = {torch.float64: 1e-5, torch.float32: 1e-5}
"""How closely a layer must reproduce a formula's output, by type; half types: 1e-2."""


@dataclass(eq=False)
class _ModuleCall:
    """A call of a module that runs, and the tensor that it was given first."""

    name: str
    tokens: Tensor | None
    attentions: int  # that were captured before
    heads_by_key: int = 1
    has_missed: bool = False  # an attention of its own that was not captured


class _Call(NamedTuple):
    """One attention: its layer, and the output [batch, head, query, dim] that its caller got."""

    layer: Layer | MatrixRead
    output: Tensor
    module: _ModuleCall | None  # that attended
    query: int  # the sources of its queries, as Flows has them
    key: int
    turns: int  # the axes of the query that were swapped
    versions: list[int | None]  # of its tensors, which writing in place raises
    has_all: bool  # a running module was given all tokens of the keys
    is_rearranged: bool  # its batch is none of the layer's: tokens were moved to another axis
    is_transposed: bool = False  # the output is [batch, query, head, dim]

    @property
    def is_cross(self) -> bool:
        """Whether one sequence reads another."""
        if self.query >> INPUTS != self.key >> INPUTS:
            return True
        return self.query != self.key and not self.query & self.key

    @property
    def name(self) -> str:
        """The module's name."""
        return (self.module.name if self.module is not None else "") or "the model"


class capture:  # noqa: N801 - it is called as a function is
    """Capture every attention of *model*, or of all models, inside the ``with`` block.

    ``reads`` are then its layers [batch, head, query, key], the lowest first, and ``rollout``,
    ``passages`` and ``show`` explain them (Abnar and Zuidema, 2020, arXiv:2005.00928). With a
    *model*, each of its calls starts a new capture, and calls that extend one cache are joined. Of
    an encoder and a decoder, the tokens that are read are the stream ``source`` and those that are
    written ``target``. *backward* keeps the graph for :meth:`gradient`. Raises ``AttentionInvalid``
    for attention with dropout, and at the end of the block if nothing was captured.
    """

    def __init__(self, model: nn.Module | None = None, *, backward: bool = False) -> None:
        self.missed: list[str] = []
        """Modules of attention that ran and were not captured."""
        self.skipped: list[str] = []
        """Layers without a captured attention, as a hybrid has: a rollout warns of them once."""
        self._causes: dict[str, str] = {}  # by module: why its softmax is no attention
        self._running: list[_ModuleCall] = []
        self._counts: dict[str, dict[str, int]] = {}  # of each layer's attentions, by list
        self._attentions = 0  # of the last call: heads that were joined count too
        self._model, self._backward = model, backward
        self._calls: list[list[_Call]] = []  # by call of the model
        self._is_running = False
        self._has_warned = False  # of what was skipped
        self._flows = Flows(self)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Begin to capture."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Put back what was replaced; raise ``AttentionInvalid`` where nothing was captured."""
        self.stop()
        if kind is None:
            _ = self.reads

    def start(self) -> Self:
        """Begin to capture, until :meth:`stop`: many calls cost less than a block for each.

        Compiled code runs eagerly meanwhile. Functions of torch are replaced while the model runs,
        or without a model all the time.
        """
        self._stack.enter_context(uncompiled())
        if self._model is None:
            self._is_running = True
            self._replace_attention(self._stack)
            self._stack.enter_context(self._flows)
        else:
            self._watch(self._model)
        return self

    def stop(self) -> None:
        """Put back what was replaced."""
        self._is_running = False
        self._stack.close()

    def __repr__(self) -> str:
        """Name the layers, tokens and mask of the last call, or why there are none."""
        try:
            reads = self.reads
        except AttentionInvalid as error:
            return f"capture: {error}"
        heads = sorted({read.shape[1] for read in reads})
        sizes = " to ".join(dict.fromkeys(str(tokens) for tokens in _tokens(reads)))
        masks = ", ".join(dict.fromkeys(read.masked for read in reads))
        skipped = ", ".join(self.skipped) or "none"
        return (
            f"capture: {len(reads)} layers × {'/'.join(map(str, heads))} heads, {sizes} tokens, "
            f"{masks}; skipped: {skipped}"
        )

    @property
    def reads(self) -> list[Layer | MatrixRead]:
        """The layers of the model's last call, the lowest first; matrices if written by hand.

        Raises ``AttentionInvalid`` if nothing, or only a part, was captured.
        """
        if self.missed:
            missed = [f"{name}{self._cause(name)}" for name in self.missed[:3]]
            raise AttentionInvalid(
                f"{', '.join(missed)} attended in a way that is not captured; {_HELP}."
            )
        if not self._calls or not self._calls[-1]:
            raise AttentionInvalid(f"No attention was captured{self._cause('')}; {_HELP}.")
        for call in self._calls[-1]:
            if _versions(call.layer) != call.versions:
                raise AttentionInvalid(
                    f"{call.name} has written into its query, key or value since it attended; let "
                    "it write into a copy."
                )
        calls = [_by_stream(calls) for calls in self._calls]
        return calls[-1] if self._model is None else _joined(calls)

    @property
    def _layers(self) -> list[Layer]:
        """The reads, if each has the query, key and value of its attention."""
        layers = [read for read in self.reads if isinstance(read, Layer)]
        if len(layers) < len(self.reads):
            raise AttentionInvalid(
                "A module writes its attention out, so only its matrix is captured; for passages "
                "and gradients let it call F.scaled_dot_product_attention."
            )
        return layers

    def _cause(self, name: str) -> str:
        """Return in brackets why the softmax in the module *name* is no attention, if one ran."""
        inside = f"{name}." if name else ""
        causes = [why for at, why in self._causes.items() if at == name or at.startswith(inside)]
        return f" ({causes[0]})" if causes else ""

    def rollout(self, queries: Sequence[int] = (-1,), method: Rollout = PLAIN) -> AttendedTokens:
        """Return the rollout of *queries* of the top layer; negative ones count from the end.

        Raises ``AttentionInvalid`` if the layers are not proved to read what the ones below wrote.
        """
        reads = self.reads
        self._warn_of_skipped()
        tokens, count = reads[-1].shape[3], reads[-1].shape[2]
        if reads[-1].target == TARGET:
            _require_chain(self._calls[-1])
            return rollout(reads, check_rows(queries, count, from_end=True), method)
        others = {read.shape[2:] for read in reads[:-1]}
        if len({read.shape[0] for read in reads}) > 1:
            raise AttentionInvalid(
                "The layers have not all one batch, so they attend in windows of other sizes, as "
                "Swin does; take the entropy or the rows of each of captured.reads."
            )
        if count < tokens and others == {(count, tokens)}:
            raise AttentionInvalid(
                f"The last call has queries of {count} of {tokens} tokens, and its cache does not "
                "go on from the calls before, as with beams or a static cache of a window; call "
                "the model once with all tokens."
            )
        if count > tokens or others - {(tokens, tokens)}:
            raise AttentionInvalid(
                "The layers have not all the same tokens, so one sequence reads another or tokens "
                "are joined; capture a part in which each layer reads what the one below it gave."
            )
        _require_chain(self._calls[-1])
        last = self._calls[-1][-1]
        if count < tokens and (others or last.has_all):
            raise AttentionInvalid(
                f"The attention of {last.name} has queries of {count} of {tokens} tokens, and "
                "nothing tells of which; take its rows from captured.reads, or capture a part in "
                "which each layer has all queries."
            )
        return rollout(reads, check_rows(queries, count, from_end=True), method)

    def show(self, words: Sequence[str], query: int = -1, *, target: Sequence[str] = ()) -> Shown:
        """Return *words*, one for each token, coloured by the rollout of the token *query*.

        Of an encoder and a decoder *words* are the source's, and *target* what was written. Raises
        ``AttentionInvalid`` as ``rollout`` does, and unless each token has a word.
        """
        attended = self.rollout([query])
        return shown(attended, {TOKENS: words, SOURCE: words, TARGET: target})

    def passages(
        self,
        spans: Mapping[str, Span],
        method: Rollout = PLAIN,
        *,
        special: Span = (),
        attention_mask: Tensor | None = None,
    ) -> Passages:
        """Return every token's shares by the passages *spans*, sets of token positions.

        Of an encoder and a decoder they are the source's, and what is written is ``target``.
        *special* tokens and those where *attention_mask* [batch, token] is 0 stand apart. Raises
        ``AttentionInvalid`` for passages that are empty, overlap or are out of range.
        """
        layers = self._layers
        self._warn_of_skipped()
        _require_chain(self._calls[-1])
        return passages(
            layers,
            spans,
            method,
            special=special,
            attention_mask=attention_mask,
            model=self._model,
        )

    def _warn_of_skipped(self) -> None:
        """Warn once of the layers that a rollout does not pass."""
        if self.skipped and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"No attention of {', '.join(self.skipped)} was captured, so the rollout leaves "
                "out what these layers move between tokens.",
                stacklevel=3,
            )

    def gradient(self, output: Tensor) -> None:
        """Store in each layer the gradient of the scalar *output*, for ``fusion="gradient"``.

        Raises ``AttentionInvalid`` without ``backward=True``, and if no gradient reaches a layer.
        """
        if not self._backward:
            raise AttentionInvalid("No graph was kept; capture with backward=True.")
        _ = self._layers
        was_running, self._is_running = self._is_running, False  # a checkpoint computes again
        calls = self._calls[-1]
        try:
            slopes = torch.autograd.grad(output, [call.output for call in calls], retain_graph=True)
        except RuntimeError as error:
            raise AttentionInvalid(
                f"No gradient reaches the attention ({str(error).split('.')[0]}); run the model "
                "with gradients and without re-entrant checkpointing."
            ) from None
        finally:
            self._is_running = was_running
        self._calls[-1] = [
            call._replace(
                layer=replace(
                    cast("Layer", call.layer),
                    gradient=_gradient(call, slope),
                )
            )
            for call, slope in zip(calls, slopes, strict=True)
        ]

    # ------------------------------------------------------------ what is replaced

    def _watch(self, model: nn.Module) -> None:
        """Follow the calls of *model* and its modules, and find attention that is not captured."""
        self._follow_calls(model)
        modules = dict(model.named_modules())
        attending = [n for n, module in modules.items() if "Attention" in type(module).__name__]
        lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
        for name, module in modules.items():
            is_innermost = not any(other.startswith(f"{name}.") for other in attending)
            must_attend = bool(name) and name in attending and is_innermost
            group = name.rpartition(".")[0]
            # A list inside a layer, as of T5, holds the layer's parts.
            inside = any(group.startswith(f"{outer}.") for outer in lists)
            is_layer = group in lists and not inside
            self._follow(name, module, must_attend=must_attend, group=group if is_layer else None)

    def _replace_attention(self, stack: ExitStack, homes: Sequence[ModuleType] = ()) -> None:
        """Replace the functions that attend, and the formulas of *homes*, until *stack* closes."""
        attend = functional.scaled_dot_product_attention
        heads = functional.multi_head_attention_forward
        if isinstance(getattr(heads, "func", None), MethodType):
            raise AttentionInvalid("Two captures are open while a model runs; stop one of them.")
        stack.enter_context(replaced(attend, partial(self._attend, attend)))
        put(stack, functional, "multi_head_attention_forward", partial(self._attend_heads, heads))
        put_flex(stack, self._refuse_flex)
        for home in homes:
            put(stack, home, EAGER, self._eager(getattr(home, EAGER)))

    def _attend_heads(
        self, heads: Callable[..., Any], query: Tensor, key: Tensor, *args: Any, **options: Any
    ) -> Any:
        """Attend as ``nn.MultiheadAttention`` does; without its weights, which are captured."""
        given = HEADS.bind(query, key, *args, **options).arguments
        if self._is_running and not self._running and query.data_ptr() != key.data_ptr():
            raise AttentionInvalid("One sequence reads another; give capture the model.")
        if self._is_running and (given["bias_k"] is not None or given["add_zero_attn"]):
            raise AttentionInvalid(
                "This attention has a key that is no token (add_bias_kv, add_zero_attn), so a "
                "rollout has no place for it; take its relevance."
            )
        if not self._is_running or not given.get("need_weights", True):
            return heads(query, key, *args, **options)
        output, _ = heads(query, key, *args, **options | {"need_weights": False})
        self._is_running = False  # torch writes the weights out; they are captured already
        try:
            result = heads(query, key, *args, **options)
        finally:
            self._is_running = True
        self._flows.add(result[0], self._flows.of(output).sources)
        # A gradient has to pass through what was captured.
        return (output, result[1]) if self._backward else result

    def _follow_calls(self, model: nn.Module) -> None:
        """Start a new capture at each call of *model*, or of its encoder alone."""
        started: list[nn.Module] = []
        homes = homes_of_formulas(model)
        running = ExitStack()  # a mode is of one thread: it is entered where the model runs

        def starts(module: nn.Module, *given: object) -> None:
            if module is model or not started:
                if not started:
                    self._replace_attention(running, homes)
                    running.enter_context(self._flows)
                self._calls.append([])
                self._running.clear()
                self._is_running = True
                started.append(module)
                self._flows.begin(given)

        def ends(module: nn.Module, *_: object) -> None:
            if started and started[-1] is module:
                started.pop()
                self._is_running = bool(started)
                if not started:
                    running.close()
                if is_whole([call.layer for call in self._calls[-1]]):
                    del self._calls[:-2]  # none goes on from those before, but for an encoder's

        # A generation calls the encoder by itself before the model.
        encoders = [
            part for name, part in model.named_modules() if name.split(".")[-1] == "encoder"
        ]
        for module in (model, *encoders):
            self._stack.callback(module.register_forward_pre_hook(starts, with_kwargs=True).remove)
            self._stack.callback(module.register_forward_hook(ends, always_call=True).remove)

    def _follow(
        self, name: str, module: nn.Module, *, must_attend: bool, group: str | None
    ) -> None:
        """Keep the calls of *module* while it runs, the innermost last.

        One that *must_attend* and adds no layer is ``missed``. One of a *group* of layers that adds
        none is ``skipped`` if others of the group add any.
        """

        def enters(module: nn.Module, args: Any, options: Any) -> None:
            if not self._is_running:
                return  # a checkpoint computes again, or a part is called by itself
            given = [x for x in (*args, *options.values()) if isinstance(x, Tensor)]
            tokens = given[0] if given else None
            heads = getattr(module, "num_key_value_groups", 1)
            self._running.append(_ModuleCall(name, tokens, self._attentions, heads))

        def leaves(_module: nn.Module, args: Any, options: Any, result: object) -> None:
            if not self._running:
                return
            call = self._running.pop()
            added = self._attentions - call.attentions
            if result is None:  # it raised
                return
            self._flows.hand_on((args, options), result)
            is_missed = call.has_missed or (must_attend and not added)
            if is_missed and name not in self.missed:
                self.missed.append(name)
            if group is not None:
                counts = self._counts.setdefault(group, {})
                counts[name] = added
                if any(counts.values()):
                    without = [each for each, count in counts.items() if not count]
                    self.skipped = [*dict.fromkeys([*self.skipped, *without])]

        self._stack.callback(module.register_forward_pre_hook(enters, with_kwargs=True).remove)
        handle = module.register_forward_hook(leaves, with_kwargs=True, always_call=True)
        self._stack.callback(handle.remove)

    # ------------------------------------------------------------ one attention

    def saw_attention(self, attend: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        """Attend and keep the layer: torch's function was called by a name of its own."""
        return self._attend(attend, *args, **options)

    def saw_softmax(self) -> None:
        """Keep why a softmax that no values follow is no attention."""
        if self._is_running and self._running:
            self._causes.setdefault(self._running[-1].name, NO_PRODUCT)

    def saw_other(self, cause: str) -> None:
        """Keep that the module attends in a way that is not captured."""
        if self._is_running and self._running:
            self._causes[self._running[-1].name] = cause
            self._running[-1].has_missed = True

    def saw_product(self, product: HandwrittenProduct) -> None:
        """Keep the matrix of a softmax that its module multiplies by values."""
        if not (self._is_running and self._running):
            return
        module, calls = self._running[-1], self._calls[-1]
        read = matrix_read(product, module.tokens)
        if isinstance(read, str):
            self._causes[module.name] = read
            module.has_missed |= product.scores is not None
            return
        assert product.scores is not None
        query, key, _ = product.scores
        last = calls[-1].module if calls and calls[-1].query == query else None
        if last is module:
            raise AttentionInvalid(
                f"{module.name or 'The model'} writes out several attentions of the same tokens, "
                "so nothing tells what becomes of them; give each head a module."
            )
        if last is not None and last.tokens is module.tokens:
            # Modules that are given the same tokens, as they were, are heads of one layer.
            before = calls.pop().layer
            assert isinstance(before, MatrixRead)
            read = replace(before, matrices=torch.cat((before.matrices, read.matrices), dim=1))
        self._keep(read, product.output.detach(), (Lineage(query), Lineage(key)))

    def _add(
        self,
        layer: Layer,
        output: Tensor,
        origins: tuple[Lineage, Lineage],
        *,
        is_transposed: bool = False,
    ) -> None:
        """Keep the *layer* of an attention whose query and key have these *origins*."""
        kept = output if self._backward else output.detach()
        self._keep(layer, kept, origins, is_transposed=is_transposed)
        query, key = (origin.sources for origin in origins)
        self._flows.add(output, query | key | 1 << INPUTS + len(self._calls[-1]) - 1)

    def _keep(
        self,
        read: Layer | MatrixRead,
        output: Tensor,
        origins: tuple[Lineage, Lineage],
        *,
        is_transposed: bool = False,
    ) -> None:
        if not self._calls:
            self._calls.append([])
        calls, module = self._calls[-1], self._running[-1] if self._running else None
        is_rearranged = _is_rearranged(read.shape[0], self._running)
        query, key = origins
        calls.append(
            _Call(
                read,
                output,
                module,
                query.sources,
                key.sources,
                query.turns,
                _versions(read),
                any(_has_tokens(each.tokens, read.shape[3]) for each in self._running),
                is_rearranged,
                is_transposed,
            )
        )
        self._flows.captured |= 1 << len(calls) - 1
        self._attentions += 1

    def _attend(
        self,
        attend: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002 - as torch calls it
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: FBT001, FBT002
    ) -> Tensor:
        """Attend as torch does, and keep the layer."""
        options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        if not self._is_running:
            return attend(query, key, value, attn_mask, dropout_p, is_causal, **options)
        for name, tensor in {"query": query, "key": key, "value": value}.items():
            check_tensor(name, tensor)
            if is_batchedtensor(tensor):
                raise AttentionInvalid("torch.vmap hides a batch; call the model on all of it.")
            if tensor.is_nested:
                raise AttentionInvalid(f"{name} is a nested tensor; pad it, and give a mask.")
        _require_no_dropout(dropout_p)
        origins = self._flows.of_call(query, key)
        logsumexp: Tensor | None = None
        with self._flows.attending():
            kernel = torch._fused_sdp_choice(  # pyright: ignore[reportPrivateImportUsage] - its own
                query, key, value, attn_mask, 0.0, is_causal=is_causal, **options
            )
            # The kernel divides by the size of an axis, which torch's function checks before.
            has_entries = 0 not in (*query.shape, *key.shape)
            if query.device.type == "cpu" and kernel == _FLASH and has_entries:
                added = attn_mask
                if attn_mask is not None and attn_mask.dtype == torch.bool:
                    added = query.new_zeros(attn_mask.shape).masked_fill_(~attn_mask, -torch.inf)
                output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    query, key, value, 0.0, is_causal, attn_mask=added, scale=scale
                )
            else:
                output = attend(query, key, value, attn_mask, 0.0, is_causal, **options)
        if self._is_packed(query):
            query = unpacked(query)
            attn_mask = None if attn_mask is None else unpacked(attn_mask)
            logsumexp = None if logsumexp is None else unpacked(logsumexp)
        mask = _mask_of(query, key, attn_mask, is_causal=is_causal)
        layer = _layer(query, key, value, mask, scale=scale, logsumexp=logsumexp)
        self._add(layer, output, origins)
        return output

    def _is_packed(self, query: Tensor) -> bool:
        """Return whether the queries are the heads of one key and token, as Hugging Face packs."""
        if not self._running:
            return False
        tokens, heads = self._running[-1].tokens, self._running[-1].heads_by_key
        is_single = tokens is not None and tokens.ndim == AXES - 1 and tokens.shape[1] == 1
        return is_single and query.ndim == AXES and query.shape[2] == heads > 1

    def _refuse_flex(self, *_: object, **__: object) -> None:
        where = self._running[-1].name if self._running else ""
        raise AttentionInvalid(
            f"{where or 'The model'} calls flex_attention, which keeps no layer and no matrix; let "
            "it call F.scaled_dot_product_attention with a mask."
        )

    def _eager(self, formula: Callable[..., Any]) -> Callable[..., Any]:
        """Return *formula*, a module's attention in plain operations, with its layer kept."""

        def attended(
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            *args: Any,
            **options: Any,
        ) -> Any:
            count = len(self._calls[-1]) if self._calls else 0
            has_missed = bool(self._running) and self._running[-1].has_missed
            result = formula(module, query, key, value, attention_mask, *args, **options)
            if self._is_running and not args:
                if module.training:
                    _require_no_dropout(options.get("dropout") or 0.0)
                table, bias = attention_mask, options.get("position_bias")  # T5 has both
                if bias is not None:
                    table = bias if table is None else table + bias
                layer = _layer(
                    query,
                    key,
                    value,
                    _mask_of(query, key, table, is_causal=False),
                    scale=options.get("scaling"),
                    softcap=options.get("softcap"),
                    sinks=getattr(module, "sinks", None),
                )
                if _reproduces(layer, result[0]):
                    if self._calls:
                        del self._calls[-1][count:]  # the formula's own matrix
                    if self._running:
                        self._running[-1].has_missed = has_missed
                    origins = self._flows.of_call(query, key)
                    self._add(layer, result[0], origins, is_transposed=True)
            return result

        return attended


def _by_stream(calls: Sequence[_Call]) -> list[Layer | MatrixRead]:
    """Return the reads of *calls*, of an encoder and a decoder with the streams that they join.

    The encoder attends before its decoder, whose first layer reads itself before the source.
    """
    if not any(call.is_cross for call in calls):
        return [call.layer for call in calls]
    begins = _written_from(calls)
    return [
        replace(
            call.layer,
            target=SOURCE if place < begins else TARGET,
            source=TARGET if place >= begins and not call.is_cross else SOURCE,
        )
        for place, call in enumerate(calls)
    ]


def _written_from(calls: Sequence[_Call]) -> int:
    """Return the place of the first attention of what is written: those before it are read."""
    read = next((call.key for call in calls if call.is_cross), 0) >> INPUTS
    return read.bit_length()


def _gradient(call: _Call, slope: Tensor) -> Tensor:
    """Return the gradient *slope* of the output of *call* as [batch, head, query, dim]."""
    if call.is_transposed:
        return slope.transpose(1, 2)
    return _by_head(slope).reshape(*call.layer.shape[:3], -1)  # heads may be packed as queries


def _tokens(reads: Sequence[Layer | MatrixRead]) -> list[int]:
    """Return the tokens of each stream of *reads*, the stream that is read first."""
    sizes = {read.source: read.shape[3] for read in reads}
    return [*(sizes | {read.target: read.shape[2] for read in reads}).values()]


def _require_chain(calls: Sequence[_Call]) -> None:
    """Raise ``AttentionInvalid`` unless each attention reads what the one before it wrote.

    Of two streams, each that reads the source reads what its last attention wrote. Modules of one
    stream have one name but for its numbers: elsewhere tokens may be others, as a model's of
    pictures and of words are, or stand along another axis.
    """
    begins = _written_from(calls)
    read = (1 << begins) - 1  # all attentions of the source
    kinds: dict[tuple[bool, bool], dict[str, str]] = {}
    for place, call in enumerate(calls):
        query, key = call.query >> INPUTS, call.key >> INPUTS
        before = (1 << place) - 1
        wanted = before if place < begins else before & ~read
        follows = query == wanted if place < begins else query & ~read == wanted
        reads = key == read if call.is_cross else key == query
        if not (follows and reads and not (place == begins and query & read)):
            lower = calls[place - 1].name if place else "the input"
            raise AttentionInvalid(
                f"The attention of {call.name} does not read what that of {lower} wrote, as if "
                "heads, sequences or models stand side by side; capture a part in which each layer "
                "reads what the one below it gave, and attend once in each."
            )
        batch, _, _, keys = call.layer.shape
        is_turned = not call.is_cross and batch % keys == 0 and call.turns != calls[0].turns
        if call.is_rearranged or is_turned:
            raise AttentionInvalid(
                f"The attention of {call.name} takes other tokens together than its layer or those "
                "below it, as in windows or along the other axis of a grid; take the entropy or "
                "the rows of each of captured.reads."
            )
        kind = kinds.setdefault((place < begins, call.is_cross), {})
        kind.setdefault(_DIGITS.sub("#", call.name), call.name)
        if len(kind) > 1:
            raise AttentionInvalid(
                f"The attentions {' and '.join(kind.values())} are not of one list of layers, and "
                "their tokens may differ; capture a part, or give attention.rollout the reads."
            )


def _has_tokens(given: Tensor | None, count: int) -> bool:
    """Return whether *given*, [.., token, dim] or whole numbers [.., token], has *count* tokens."""
    if given is None:
        return False
    return count in (given.shape[:-1] if given.is_floating_point() else given.shape)


def _versions(read: Layer | MatrixRead) -> list[int | None]:
    """Return how often each tensor of *read* was written in place, None if it is not counted."""
    if isinstance(read, MatrixRead):  # whose matrix is a copy
        return []
    given = [x for x in (read.query, read.key, read.value) if x is not None]
    return [None if x.is_inference() else x._version for x in given]


def _is_rearranged(batch: int, running: Sequence[_ModuleCall]) -> bool:
    """Return whether a *batch* is no axis of the tokens of a running module, but for the model."""
    if not running or running[-1].tokens is None:
        return False
    like = running[-1].tokens
    return any(
        call.tokens is not None
        and call.tokens.ndim == like.ndim == AXES - 1
        and call.tokens.shape[-1] == like.shape[-1]
        and batch not in call.tokens.shape[:-1]
        for call in running[1:] or running
    )


def _require_no_dropout(share: float) -> None:
    if share > 0.0:
        raise AttentionInvalid("Attention with dropout differs at each call; call model.eval().")


def _by_head(x: Tensor) -> Tensor:
    """Return *x* [.., time, dim] as [batch, head, time, dim], with one head if it has no axis."""
    if x.ndim < AXES:
        x = x[..., None, :, :]
    return x[None] if x.ndim < AXES else x.flatten(0, -AXES)


@explanation
def _layer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    *,
    scale: float | None,
    logsumexp: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Layer:
    """Return the layer of one call; its tensors may have other axes, or one batch for all."""
    query, key, value = (_by_head(x.detach()) for x in (query, key, value))
    batch = max(len(x) for x in (query, key, value))
    query, key, value = (
        x.expand(batch, -1, -1, -1) if len(x) == 1 else x for x in (query, key, value)
    )
    if logsumexp is None:
        sinks = None if sinks is None else sinks.detach()
        return Layer.of(query, key, value, mask, scale=scale, softcap=softcap, sinks=sinks)
    layer = Layer(query, key, value, logsumexp.detach(), mask, scale)
    if mask.dense is None and mask.starts is None and mask.stops is None:
        return layer
    blind = layer.visible().to(logsumexp.device) == 0  # there the kernel writes 0
    return replace(layer, logsumexp=layer.logsumexp.masked_fill(blind, -torch.inf))


@explanation
def _reproduces(layer: Layer, output: Tensor) -> bool:
    """Return whether *layer* reproduces *output* [batch, query, head, dim], in every row.

    A query that sees no key, as padding outside its window, is left out: formulas give it any mean.
    """
    assert layer.value is not None
    batch, heads, queries, keys = layer.shape
    sees = (layer.visible() > 0).to(output.device)  # [batch, head, query]
    values = layer.value.repeat_interleave(heads // layer.value.shape[1], dim=1)
    output = output.detach()
    limit = _TOLERANCE.get(output.dtype, 1e-2) * max(1.0, float(values.abs().amax()))
    size = max(1, _ENTRIES // (batch * heads * keys))
    for start in range(0, queries, size):
        part = slice(start, min(start + size, queries))
        weights = layer.rows(range(part.start, part.stop))
        error = weights @ values.to(weights.dtype) - output[:, part].transpose(1, 2)
        if not bool((error.abs().amax(dim=-1) <= limit)[sees[:, :, part]].all()):
            return False
    return True


def _mask_of(query: Tensor, key: Tensor, table: Tensor | None, *, is_causal: bool) -> Mask:
    """Return the mask of a call: torch's causal one begins at the first key."""
    queries, keys = query.shape[-2], key.shape[-2]
    if table is None:
        if not is_causal:
            return Mask.full()
        return Mask() if queries == keys else Mask(first=0)
    table = table.detach()[..., :keys]
    if query.ndim != AXES:
        table = _by_head(table.expand(*query.shape[:-1], keys))
    if is_causal:
        shown = torch.ones(queries, keys, dtype=torch.bool, device=table.device).tril()
        is_flag = table.dtype == torch.bool
        table = table & shown if is_flag else table.masked_fill(~shown, -torch.inf)
    return Mask.from_dense(table)


def _joined(calls: Sequence[Sequence[Layer | MatrixRead]]) -> list[Layer | MatrixRead]:
    """Return the layers of the last call, joined with the calls whose cache it extends."""
    if any(isinstance(read, MatrixRead) for call in calls for read in call):
        return list(calls[-1])  # matrices hold no keys to compare
    layers = cast("Sequence[Sequence[Layer]]", calls)
    last = joined([[without_unused(layer) for layer in call] for call in layers])
    if not is_whole(last):
        last = list(layers[-1])
    encoders = [call for call in layers if call and call[0].target == TOKENS]
    if last[0].target == TARGET and encoders:  # a generation called the encoder by itself
        encoded = [replace(layer, target=SOURCE, source=SOURCE) for layer in encoders[-1]]
        return [*encoded, *last]
    return [*last]
