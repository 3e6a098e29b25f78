"""Names and shapes of the released model's tensors, written down independently of the model."""

from __future__ import annotations


def linear(prefix, d_out, d_in, bias=True):
    return {f"{prefix}.weight": (d_out, d_in), **({f"{prefix}.bias": (d_out,)} if bias else {})}


def norm(prefix, d):
    return {f"{prefix}.weight": (d,), f"{prefix}.bias": (d,)}


def expected_keys(
    d, depth, tokens, d_in, batches, classes, zeros, mvc, adversarial, dsbn, modalities=0, affine=False
):
    """Return names and shapes of the pre-trained or fine-tuned model's tensors."""
    keys = {
        "encoder.embedding.weight": (tokens, d),
        **norm("encoder.enc_norm", d),
        **linear("value_encoder.linear1", d, 1),
        **linear("value_encoder.linear2", d, d),
        **norm("value_encoder.norm", d),
        **linear("cls_decoder.out_layer", classes, d),
    }
    for i in range(depth):
        prefix = f"mamba_encoder.layers.{i}.mamba"
        keys |= {
            f"{prefix}.in_proj.weight": (4 * d + 128 + d // 32, d),
            f"{prefix}.conv1d.weight": (2 * d + 128, 1, 4),
            f"{prefix}.conv1d.bias": (2 * d + 128,),
            f"{prefix}.norm.weight": (2 * d,),
            f"{prefix}.out_proj.weight": (d, 2 * d),
        }
        keys |= {f"{prefix}.{name}": (2 * d // 64,) for name in ("dt_bias", "A_log", "D")}
    for prefix in ["decoder.fc", *(["decoder.zero_logit"] if zeros else [])]:
        keys |= linear(f"{prefix}.0", d, d_in) | linear(f"{prefix}.2", d, d)
        keys |= linear(f"{prefix}.4", 1, d)
    heads = ["cls_decoder", *(["grad_reverse_discriminator"] if adversarial else [])]
    for prefix in heads:
        for i in (0, 3):
            keys |= linear(f"{prefix}._decoder.{i}", d, d) | norm(f"{prefix}._decoder.{i + 2}", d)
    if adversarial:
        keys |= linear("grad_reverse_discriminator.out_layer", batches, d)
    if mvc:
        keys |= linear("mvc_decoder.gene2query", d_in, d_in)
        keys |= linear("mvc_decoder.W", d_in, d_in, bias=False)
        if zeros:
            keys |= linear("mvc_decoder.W_zero_logit", d_in, d_in)
    if batches:
        keys |= {
            "batch_encoder.embedding.weight": (batches, d),
            **norm("batch_encoder.enc_norm", d),
        }
    if modalities:
        keys |= {"mod_encoder.embedding.weight": (modalities + 3, d), **norm("mod_encoder.enc_norm", d)}
    for prefix in [f"dsbn.bns.{k}" for k in range(batches)] if dsbn else ["bn"]:
        keys |= {f"{prefix}.running_mean": (d,), f"{prefix}.running_var": (d,)}
        keys |= {f"{prefix}.num_batches_tracked": ()} | ({} if dsbn and not affine else norm(prefix, d))
    return keys


def generator_keys(d, depth, tokens, zeros):
    """Return names and shapes of the perturbation model's tensors."""
    keys = {"pert_encoder.weight": (3, d)}
    for key, shape in expected_keys(d, depth, tokens, d, 0, 1, zeros, False, False, False).items():
        first, rest = key.split(".", 1)
        if first in ("encoder", "value_encoder"):
            keys[key] = shape
        elif first == "mamba_encoder":
            keys[f"transformer_encoder.{rest}"] = shape
        elif first == "decoder":
            keys |= {f"decoder.{part}_decoder.{rest}": shape for part in ("coeff", "bias")}
    return keys
