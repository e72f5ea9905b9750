"""Architectures of all families, built from `transformers` configurations: tiny, with random weights, nothing downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

VOCABULARY = 50
SEED = 7


@dataclass(frozen=True)
class Architecture:
    """How to build a net and a batch whose loss it computes by itself."""

    family: str
    model: str
    """Class name of the model."""
    settings: dict[str, Any]
    batch: Callable[[], dict[str, Any]]

    def build(self) -> torch.nn.Module:
        """Return the model, in training mode, with weights drawn from the global generator."""
        import transformers  # noqa: PLC0415 - an extra, and slow to import

        model = getattr(transformers, self.model)
        return model(model.config_class(**self.settings)).train()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def words(length: int = 8, **more: Any) -> Callable[[], dict[str, Any]]:
    """Make batches of tokens that are their own labels."""

    def make() -> dict[str, Any]:
        tokens = torch.randint(3, VOCABULARY, (2, length), generator=_generator())
        return {"input_ids": tokens, "labels": tokens.clone(), **more}

    return make


def padded() -> dict[str, Any]:
    """Return tokens of which the last ones of one row are padding."""
    batch = words()()
    mask = torch.ones_like(batch["input_ids"])
    mask[1, -3:] = 0
    return batch | {"attention_mask": mask, "labels": batch["input_ids"].masked_fill(mask == 0, -100)}


def labelled(length: int = 8) -> dict[str, Any]:
    """Return tokens with one label a row."""
    return words(length)() | {"labels": torch.tensor([0, 1])}


def images(size: int = 32, channels: int = 3) -> Callable[[], dict[str, Any]]:
    """Make batches of images with labels."""

    def make() -> dict[str, Any]:
        pixels = torch.randn(2, channels, size, size, generator=_generator())
        return {"pixel_values": pixels, "labels": torch.tensor([0, 1])}

    return make


def waves(length: int = 800) -> Callable[[], dict[str, Any]]:
    """Make batches of sound with a label."""
    return lambda: {
        "input_values": torch.randn(2, length, generator=_generator()),
        "labels": torch.tensor([0, 1]),
    }


def spectra() -> dict[str, Any]:
    """Return spectrograms with the words that are spoken."""
    return {
        "input_features": torch.randn(2, 8, 40, generator=_generator()),
        "labels": words(5)()["labels"],
    }


def pairs() -> dict[str, Any]:
    """Return images with the words that describe them."""
    return {"pixel_values": images()()["pixel_values"], "input_ids": words(6)()["input_ids"], "return_loss": True}


_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
}
_DECODER = {
    **_SMALL,
    "max_position_embeddings": 32,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 2,
}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_SOUND = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 4),
    "conv_stride": (5, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": VOCABULARY,
    "num_labels": 2,
    "classifier_proj_size": 8,
}

ZOO: dict[str, Architecture] = {
    "gpt2": Architecture("decoder", "GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 32}, padded),
    "llama": Architecture("decoder", "LlamaForCausalLM", _DECODER, words()),
    "mistral": Architecture("decoder", "MistralForCausalLM", _DECODER | {"sliding_window": 4}, words()),
    "qwen3": Architecture("decoder", "Qwen3ForCausalLM", _DECODER | {"head_dim": 8}, words()),
    "gemma2": Architecture("decoder", "Gemma2ForCausalLM", _DECODER | {"head_dim": 8}, words()),
    "phi": Architecture("decoder", "PhiForCausalLM", _DECODER, words()),
    "opt": Architecture("decoder", "OPTForCausalLM", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "vocab_size": VOCABULARY, "max_position_embeddings": 32, "word_embed_proj_dim": 16, "pad_token_id": 0}, words()),
    "bloom": Architecture("decoder", "BloomForCausalLM", {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY}, words()),
    "gpt-neox": Architecture("decoder", "GPTNeoXForCausalLM", _DECODER, words()),
    "bert": Architecture("encoder", "BertForMaskedLM", _SMALL | {"max_position_embeddings": 32}, padded),
    "roberta": Architecture("encoder", "RobertaForSequenceClassification", _SMALL | {"max_position_embeddings": 32}, labelled),
    "albert": Architecture("encoder", "AlbertForMaskedLM", _SMALL | {"embedding_size": 8, "max_position_embeddings": 32}, words()),
    "electra": Architecture("encoder", "ElectraForSequenceClassification", _SMALL | {"embedding_size": 8, "max_position_embeddings": 32}, labelled),
    "distilbert": Architecture("encoder", "DistilBertForSequenceClassification", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": VOCABULARY, "max_position_embeddings": 32}, labelled),
    "deberta-v2": Architecture("encoder", "DebertaV2ForSequenceClassification", _SMALL | {"max_position_embeddings": 32, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, labelled),
    "modernbert": Architecture("encoder", "ModernBertForMaskedLM", _SMALL | {"max_position_embeddings": 32, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2}, words()),
    "xlnet": Architecture("encoder", "XLNetForSequenceClassification", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "vocab_size": VOCABULARY}, labelled),
    "t5": Architecture("encoder-decoder", "T5ForConditionalGeneration", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": VOCABULARY, "decoder_start_token_id": 0}, words()),
    "t5-gated": Architecture("encoder-decoder", "T5ForConditionalGeneration", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": VOCABULARY, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"}, words()),
    "bart": Architecture("encoder-decoder", "BartForConditionalGeneration", _SEQ2SEQ, words()),
    "marian": Architecture("encoder-decoder", "MarianMTModel", _SEQ2SEQ, words()),
    "vit": Architecture("vision", "ViTForImageClassification", _VISION, images()),
    "beit": Architecture("vision", "BeitForImageClassification", _VISION, images()),
    "dinov2": Architecture("vision", "Dinov2ForImageClassification", _VISION, images()),
    "swin": Architecture("vision", "SwinForImageClassification", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 32, "patch_size": 4, "num_labels": 2}, images()),
    "clip": Architecture("vision", "CLIPModel", {"text_config": _SMALL | {"max_position_embeddings": 32, "eos_token_id": 2, "projection_dim": 8}, "vision_config": {**_VISION, "projection_dim": 8}, "projection_dim": 8}, pairs),
    "resnet": Architecture("convolutional", "ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 2}, images()),
    "convnextv2": Architecture("convolutional", "ConvNextV2ForImageClassification", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": 2, "drop_path_rate": 0.2}, images()),
    "mobilenet-v2": Architecture("convolutional", "MobileNetV2ForImageClassification", {"depth_multiplier": 0.25, "num_labels": 2, "image_size": 32}, images()),
    "efficientnet": Architecture("convolutional", "EfficientNetForImageClassification", {"image_size": 32, "width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 256, "num_labels": 2}, images()),
    "regnet": Architecture("convolutional", "RegNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8, "num_labels": 2}, images()),
    "wav2vec2": Architecture("audio", "Wav2Vec2ForSequenceClassification", _SOUND, waves()),
    "hubert": Architecture("audio", "HubertForSequenceClassification", _SOUND, waves()),
    "wavlm": Architecture("audio", "WavLMForSequenceClassification", _SOUND, waves()),
    "whisper": Architecture("audio", "WhisperForConditionalGeneration", {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16}, spectra),
    "mixtral": Architecture("mixture of experts", "MixtralForCausalLM", _DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}, words()),
    "qwen2-moe": Architecture("mixture of experts", "Qwen2MoeForCausalLM", _DECODER | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}, words()),
    "mamba": Architecture("state space", "MambaForCausalLM", {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "state_size": 4}, words()),
    "mamba2": Architecture("state space", "Mamba2ForCausalLM", {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": VOCABULARY, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4, "expand": 2}, words()),
    "rwkv": Architecture("state space", "RwkvForCausalLM", {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "attention_hidden_size": 16, "intermediate_size": 24}, words()),
    "recurrent-gemma": Architecture("state space", "RecurrentGemmaForCausalLM", _DECODER | {"head_dim": 8, "lru_width": 16, "num_hidden_layers": 3, "attention_window_size": 8}, words()),
    "fnet": Architecture("encoder", "FNetForMaskedLM", {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": VOCABULARY, "max_position_embeddings": 32}, words()),
}  # fmt: skip
