"""What the families share: the keys of every configuration and the usual tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenspeed.model.fields import Fields
from tokenspeed.model.rope import rope
from tokenspeed.model.spec import ModelSpec

STORED_DTYPES = ("bfloat16", "float16", "float32")
MOST_HEAD_DIM, MOST_LAYERS = 4096, 4096  # far beyond any checkpoint; more is a broken file
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class TensorNames:
    """How a checkpoint names its tensors. `layer` maps a field of `LayerWeights` to the name behind
    `layer_prefix`, in which {layer} is the layer's number."""

    embedding: str
    norm: str
    head: str
    layer_prefix: str
    layer: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family:
    """A checkpoint's shape and the names of its tensors."""

    spec: ModelSpec
    names: TensorNames


Describe = Callable[[Fields, int | None], Family]

USUAL_NAMES = TensorNames(
    embedding="model.embed_tokens.weight",
    norm="model.norm.weight",
    head="lm_head.weight",
    layer_prefix="model.layers.{layer}.",
    layer=MappingProxyType(
        {
            "input_norm": "input_layernorm.weight",
            "query": "self_attn.q_proj.weight",
            "query_bias": "self_attn.q_proj.bias",
            "query_norm": "self_attn.q_norm.weight",
            "key": "self_attn.k_proj.weight",
            "key_bias": "self_attn.k_proj.bias",
            "key_norm": "self_attn.k_norm.weight",
            "value": "self_attn.v_proj.weight",
            "value_bias": "self_attn.v_proj.bias",
            "output": "self_attn.o_proj.weight",
            "output_bias": "self_attn.o_proj.bias",
            "mlp_norm": "post_attention_layernorm.weight",
            "gate": "mlp.gate_proj.weight",
            "gate_bias": "mlp.gate_proj.bias",
            "up": "mlp.up_proj.weight",
            "up_bias": "mlp.up_proj.bias",
            "down": "mlp.down_proj.weight",
            "down_bias": "mlp.down_proj.bias",
        }
    ),
)


@dataclass(frozen=True, slots=True)
class Traits:
    """What sets a family apart from the plain decoder. `head_dim` None: hidden size over heads."""

    name: str
    windows: tuple[int | None, ...]
    kv_heads: int | None = None  # where the configuration states none; None: as many as heads
    head_dim: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


def decoder(config: Fields, context: int | None, traits: Traits) -> Family:
    """A pre-norm decoder of the usual shape, from the keys that all families share and its own traits."""
    _reject_unsupported(config)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if not (config.has("head_dim") or traits.head_dim) and hidden % heads:
        raise config.error("hidden_size", f"must be a multiple of the {heads} attention heads, not {hidden}")
    head_dim = config.integer("head_dim", traits.head_dim or hidden // heads, at_most=MOST_HEAD_DIM)
    kv_heads = config.integer("num_key_value_heads", traits.kv_heads or heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"must divide the {heads} attention heads, not {kv_heads}")
    rotation, max_context = rope(config, head_dim, context)
    spec = ModelSpec(
        family=traits.name,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        layers=layer_count(config),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=config.integer("intermediate_size"),
        norm_eps=config.number("rms_norm_eps", above=0.0),
        rope=rotation,
        windows=traits.windows,
        max_context=max_context,
        dtype=_stored_dtype(config),
        tied_embeddings=config.flag("tie_word_embeddings", False),
        qkv_bias=traits.qkv_bias,
        output_bias=traits.output_bias,
        mlp_bias=traits.mlp_bias,
        qk_norm=traits.qk_norm,
    )
    return Family(spec, USUAL_NAMES)


def layer_count(config: Fields) -> int:
    return config.integer("num_hidden_layers", at_most=MOST_LAYERS)


def full_attention(config: Fields) -> tuple[None, ...]:
    """No window on any layer."""
    return (None,) * layer_count(config)


def layered_windows(config: Fields) -> tuple[int | None, ...]:
    """The windows of a family that lists its layers' kinds, or slides from layer `max_window_layers` on."""
    layers = layer_count(config)
    window = sliding_window(config) if config.flag("use_sliding_window", False) else None
    if config.has("layer_types"):
        kinds = config.texts("layer_types")
    else:
        first = config.integer("max_window_layers", 28, at_least=0)
        kinds = tuple(SLIDING if window and layer >= first else FULL for layer in range(layers))
    if len(kinds) != layers:
        raise config.error("layer_types", f"must list {layers} layers, not {len(kinds)}")
    if unknown := sorted(set(kinds) - {FULL, SLIDING}):
        raise config.error("layer_types", f"names {unknown[0]!r}; supported are {FULL} and {SLIDING}")
    if window is None and SLIDING in kinds:
        raise config.error(
            "layer_types", f"names {SLIDING}, but use_sliding_window and sliding_window give no window"
        )
    return tuple(window if kind == SLIDING else None for kind in kinds)


def sliding_window(config: Fields) -> int | None:
    """The window in tokens: none where it is null, 4096 where older configurations leave it out."""
    if "sliding_window" in config.values and not config.has("sliding_window"):
        return None
    return config.integer("sliding_window", 4096)


def _reject_unsupported(config: Fields) -> None:
    if config.has("quantization_config"):
        raise config.error(
            "quantization_config",
            "is set, but only unquantised weights are supported; use the original checkpoint",
        )
    if (activation := config.text("hidden_act", "silu")) not in ("silu", "swish"):
        raise config.error("hidden_act", f"is {activation!r}; supported is silu")


def _stored_dtype(config: Fields) -> str:
    """`dtype`, which the older form calls `torch_dtype`; the tensors themselves have the last word."""
    key = "dtype" if config.has("dtype") else "torch_dtype"
    dtype = config.text(key, "float32").removeprefix("torch.")
    if dtype not in STORED_DTYPES:
        raise config.error(key, f"is {dtype!r}; supported are {', '.join(STORED_DTYPES)}")
    return dtype
