"""The healthy cases, which no warning should meet. New ones go to the end of their family, see `ill`."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.galleries.shorthand import (
    ADAM,
    CANCER,
    DIABETES,
    DIGITS,
    IRIS,
    MOMENTUM,
    QUICK,
    RING,
    SGD,
    SINES,
    SPIRALS,
    WINE,
    XOR,
    ZEN,
    dense,
    family,
)
from benchmarks.galleries.spec import (
    HE,
    XAVIER,
    Conv,
    Data,
    Dense,
    Gan,
    Recurrent,
    Start,
    Training,
    Transformer,
    Unrolled,
    Variational,
)

LEAKY = dense(2, "LeakyReLU", width=64, start=None)

PLAIN = family(
    "plain",
    ("relu-6-sgd", DIGITS, dense(6, "ReLU"), SGD),
    ("relu-3-default-adam", DIGITS, dense(3, "ReLU", None), ADAM),
    ("tanh-8-momentum", DIGITS, dense(8, "Tanh", Start(method="xavier_normal_", gain=5 / 3)), MOMENTUM),
    ("gelu-4-adamw", DIGITS, dense(4, "GELU"), replace(ADAM, optimizer="AdamW")),
    ("leaky-10-adam", DIGITS, dense(10, "LeakyReLU"), ADAM),
    ("elu-6-sgd", DIGITS, dense(6, "ELU"), replace(SGD, rate=0.05)),
    ("selu-12-momentum", DIGITS, dense(12, "SELU", XAVIER), replace(MOMENTUM, rate=0.01)),
    ("silu-4-rmsprop", DIGITS, dense(4, "SiLU"), Training(optimizer="RMSprop", rate=0.001)),
    ("mish-5-adam", DIGITS, dense(5, "Mish"), ADAM),
    ("sigmoid-2-adam", DIGITS, dense(2, "Sigmoid", XAVIER), QUICK),
    ("tanh-3-default-sgd", DIGITS, dense(3, "Tanh", None), SGD),
    ("relu-20-adam", DIGITS, dense(20, "ReLU"), ADAM),
    ("prelu-6-nesterov", DIGITS, dense(6, "PReLU"), replace(MOMENTUM, options={"momentum": 0.9, "nesterov": True})),
    ("dropout-3-adam", DIGITS, dense(3, "ReLU", dropout=0.5, width=128), ADAM),
)

SMALL_DATA = family(
    "small-data",
    ("iris", IRIS, dense(2, "ReLU", width=16), QUICK),
    ("wine", WINE, dense(3, "Tanh", XAVIER, 32), SGD),
    ("cancer", CANCER, dense(3, "ReLU", width=32), MOMENTUM),
    ("diabetes", DIABETES, dense(2, "ReLU", width=32), QUICK),
    ("spirals", SPIRALS, dense(4, "Tanh", XAVIER, 32), QUICK),
    ("xor", XOR, dense(2, "Tanh", XAVIER, 16), QUICK),
    ("sines", SINES, dense(3, "SiLU"), QUICK),
)

CONVERGED = family(
    "converged",
    ("digits-adam", DIGITS, dense(3, "ReLU"), replace(ADAM, steps=1000)),
    ("digits-sgd", DIGITS, dense(4, "Tanh", XAVIER), replace(SGD, steps=1000)),
    ("iris-adam", IRIS, dense(2, "ReLU", width=32), replace(QUICK, steps=1500)),
    ("wine-momentum", WINE, dense(3, "LeakyReLU", width=32), replace(MOMENTUM, steps=1500)),
    ("confident-sigmoid", CANCER, dense(2, "ReLU", width=32, output="Sigmoid"), replace(QUICK, steps=1000, loss="bce")),
)

NORMALISED = family(
    "normalised",
    ("batch-norm-10-sgd", DIGITS, dense(10, "ReLU", norm="BatchNorm"), SGD),
    ("batch-norm-12-adam", DIGITS, dense(12, "ReLU", norm="BatchNorm"), ADAM),
    ("layer-norm-6-adam", DIGITS, dense(6, "GELU", None, norm="LayerNorm"), ADAM),
    ("batch-norm-conv", DIGITS, Conv(widths=(8, 16, 16), norm="BatchNorm", pooled=(0,)), replace(SGD, steps=250)),
    ("layer-norm-sigmoid", DIGITS, dense(3, "Sigmoid", XAVIER, norm="LayerNorm"), QUICK),
)

RESIDUAL = family(
    "residual",
    ("dense-24-sgd", DIGITS, dense(24, "ReLU", skip=1 / 24), SGD),
    ("dense-30-default-adam", DIGITS, dense(30, "ReLU", None, skip=1.0), replace(ADAM, steps=300)),
    ("conv", DIGITS, Conv(widths=(16,) * 6, norm="BatchNorm", skip=1.0, pooled=(1, 3)), replace(MOMENTUM, steps=150)),
    ("zero-branches", DIGITS, dense(12, "ReLU", norm="BatchNorm", skip=1.0, zero_branch=True), MOMENTUM),
)

ATTENTION = family(
    "attention",
    ("pre-norm-digits", DIGITS, Transformer(depth=3), replace(ADAM, steps=250)),
    ("post-norm-digits", DIGITS, Transformer(depth=2, norm_first=False, activation="relu"), replace(ADAM, steps=250)),
    ("pre-norm-zen", ZEN, Transformer(depth=2), replace(ADAM, rate=0.003, steps=300)),
    ("zero-head", DIGITS, Transformer(depth=2, zero_head=True), replace(ADAM, steps=250)),
    ("warm-up", DIGITS, Transformer(depth=4, norm_first=False), replace(ADAM, steps=250, schedule="warmup")),
)

RECURRENT = family(
    "recurrent",
    ("lstm-digits", DIGITS, Recurrent(cell="LSTM", width=48), QUICK),
    ("gru-digits", DIGITS, Recurrent(cell="GRU", width=48), QUICK),
    ("rnn-digits", DIGITS, Recurrent(cell="RNN", width=48), replace(ADAM, rate=0.003)),
    ("unrolled-tanh", DIGITS, Unrolled(width=48, start=Start(method="orthogonal_")), replace(ADAM, rate=0.003)),
    ("lstm-zen", ZEN, Recurrent(cell="LSTM", width=64), QUICK),
)

STARTS_AT_ZERO = family(
    "starts-at-zero",
    ("head", DIGITS, dense(4, "ReLU", zero_head=True), SGD),
    ("head-adam", DIGITS, dense(4, "Tanh", XAVIER, zero_head=True), ADAM),
    ("lora", DIGITS, dense(2, "ReLU", width=128, frozen=2, lora=4), QUICK),
    ("lora-pretrained", DIGITS, dense(3, "GELU", frozen=3, lora=4), replace(QUICK, pretrained=200)),
)

FINE_TUNING = family(
    "fine-tuning",
    ("frozen-half", DIGITS, dense(4, "ReLU", frozen=2), replace(ADAM, pretrained=200)),
    ("random-features", DIGITS, Dense(widths=(512,), frozen=1), QUICK),
    ("all-slowly", DIGITS, dense(3, "ReLU"), replace(SGD, rate=0.02, pretrained=300)),
)

SHAPES = family(
    "shapes",
    ("tapering", DIGITS, Dense(widths=(128, 64, 32, 16)), ADAM),
    ("narrow-8", WINE, dense(3, "LeakyReLU", width=8), QUICK),
    ("sparse-relu", DIGITS, dense(2, "ReLU", Start(method="kaiming_normal_", bias=-1.0), 256), ADAM),
    ("autoencoder", Data(task="digits-themselves"), Dense(widths=(64, 24, 64)), replace(ADAM, rate=0.003)),
    (
        "autoencoder-tanh",
        Data(task="digits-themselves"),
        Dense(widths=(64, 24, 64), activation="Tanh", start=XAVIER),
        replace(ADAM, rate=0.003),
    ),
    ("embedding-zen", ZEN, dense(2, "ReLU", width=128), QUICK),
)

LOOPS = family(
    "loops",
    ("batch-of-2", DIGITS, dense(3, "ReLU"), Training(rate=0.01, batch=2, steps=1000)),
    ("batch-of-4-adam", WINE, dense(2, "ReLU", width=32), Training(optimizer="Adam", rate=0.001, batch=4, steps=800)),
    ("warm-up-sgd", DIGITS, dense(4, "ReLU"), replace(SGD, schedule="warmup")),
    ("cosine", DIGITS, dense(4, "ReLU"), replace(MOMENTUM, schedule="cosine")),
    ("accumulation", DIGITS, dense(4, "ReLU"), replace(SGD, batch=16, accumulate=4)),
    ("clipped-norm", DIGITS, dense(4, "ReLU"), replace(SGD, clip=1.0)),
    ("clipped-value", DIGITS, dense(4, "Tanh", XAVIER), replace(SGD, clip=0.1, clip_by="value")),
    ("weight-decay", DIGITS, dense(4, "ReLU"), replace(MOMENTUM, options={"momentum": 0.9, "weight_decay": 0.01})),
    ("adagrad", DIGITS, dense(3, "ReLU"), Training(optimizer="Adagrad", rate=0.01)),
    (
        "lbfgs",
        IRIS,
        dense(2, "Tanh", XAVIER, 16),
        Training(optimizer="LBFGS", rate=0.1, options={"max_iter": 4}, batch=150, steps=100),
    ),
)

LOSS_SCALES = family(
    "loss-scales",
    ("million-sgd", DIGITS, dense(4, "ReLU"), replace(SGD, rate=1e-07, loss_scale=1000000.0)),
    ("millionth-sgd", DIGITS, dense(4, "ReLU"), replace(SGD, rate=100000.0, loss_scale=1e-06)),
    ("million-adam", DIGITS, dense(4, "Tanh", XAVIER), replace(ADAM, loss_scale=1000000.0)),
    ("thousandth-adam", DIGITS, dense(4, "GELU"), replace(ADAM, loss_scale=0.001)),
)

PRECISION = family(
    "precision",
    ("bf16-mixed", DIGITS, dense(4, "ReLU"), replace(ADAM, precision="bf16-mixed", steps=250)),
    ("bf16-mixed-transformer", DIGITS, Transformer(depth=2), replace(ADAM, precision="bf16-mixed", steps=150)),
    ("float16-with-scaler", DIGITS, dense(4, "ReLU"), replace(ADAM, precision="16-mixed", steps=250)),
    ("float64", DIGITS, dense(4, "Tanh", XAVIER), replace(ADAM, precision="64-true")),
)

ADVERSARIAL = family(
    "adversarial",
    ("ring", RING, Gan(generator=LEAKY, discriminator=LEAKY), replace(ADAM, options={"beta1": 0.5}, steps=1200)),
    (
        "ring-squares",
        RING,
        Gan(generator=dense(2, "ReLU", width=64), discriminator=LEAKY, loss="squares"),
        replace(ADAM, options={"beta1": 0.5}, steps=800),
    ),
    (
        "two-critic-steps",
        RING,
        Gan(generator=LEAKY, discriminator=LEAKY, critic_steps=2),
        replace(ADAM, options={"beta1": 0.5}, steps=800),
    ),
)

# What looks like wiring that is wrong, and is meant, or does no harm.
OUTPUT_ONCE = family(
    "output-once",
    ("log-softmax", DIGITS, dense(3, "ReLU", output="LogSoftmax"), replace(ADAM, loss="nll")),
    ("log-softmax-twice", DIGITS, dense(3, "ReLU", output="LogSoftmax"), SGD),
    ("tempered-sigmoid", DIGITS, dense(3, "ReLU", output="Sigmoid"), replace(ADAM, loss="tempered")),
    ("tempered-softmax", DIGITS, dense(3, "ReLU", output="Softmax"), replace(ADAM, loss="tempered")),
    ("learns-with-softmax", DIGITS, dense(3, "ReLU", output="Softmax"), ADAM),
    ("learns-with-softmax-long", DIGITS, dense(3, "ReLU", output="Softmax"), replace(ADAM, steps=1000)),
    (
        "learns-with-sigmoid",
        CANCER,
        dense(2, "ReLU", width=32, output="Sigmoid"),
        replace(QUICK, loss="bce_of_logits"),
    ),
    ("logits", CANCER, dense(2, "ReLU", width=32), replace(QUICK, loss="bce_of_logits")),
)

EMPTIED = family(
    "emptied",
    ("by-hand", DIGITS, dense(4, "ReLU"), replace(MOMENTUM, by_hand=1)),
    ("added-by-hand", DIGITS, dense(4, "ReLU"), replace(SGD, batch=16, by_hand=4)),
    ("penalty", DIGITS, dense(3, "Tanh", XAVIER), replace(ADAM, penalty=0.1)),
    ("penalty-by-hand", SINES, dense(3, "Tanh", XAVIER), replace(QUICK, penalty=1e-3, by_hand=2, batch=32)),
)

PARTLY_TRAINED = family(
    "partly-trained",
    ("listed-and-frozen", DIGITS, Dense(widths=(512,), frozen=1, listed=1), QUICK),
    ("head-alone", DIGITS, Dense(widths=(512,)), replace(QUICK, held="head")),
    ("thawed", DIGITS, dense(3, "ReLU", frozen=2), replace(ADAM, pretrained=200, thawed=100)),
    ("blocks-alone", DIGITS, dense(3, "ReLU"), replace(ADAM, held="blocks")),
)

MODES = family(
    "modes",
    (
        "norms-alone",
        DIGITS,
        dense(3, "ReLU", norm="BatchNorm"),
        replace(ADAM, pretrained=200, evaluated=("blocks.0.norm", "blocks.1.norm", "blocks.2.norm")),
    ),
    (
        "dropouts-alone",
        DIGITS,
        dense(3, "ReLU", dropout=0.3),
        replace(ADAM, evaluated=("blocks.0.dropout", "blocks.1.dropout")),
    ),
    (
        "frozen-part",
        DIGITS,
        dense(3, "ReLU", norm="BatchNorm", frozen=2),
        replace(QUICK, pretrained=200, evaluated=("blocks.0", "blocks.1")),
    ),
    (
        "all-pretrained",
        DIGITS,
        dense(3, "ReLU", norm="BatchNorm"),
        replace(ADAM, pretrained=300, evaluated=("",)),
    ),
)

FEW_SAMPLES = family(
    "few-samples",
    (
        "layer-norm-of-1",
        DIGITS,
        dense(3, "ReLU", norm="LayerNorm"),
        Training(optimizer="Adam", rate=1e-3, batch=1, steps=1000),
    ),
    (
        "batch-norm-of-4",
        DIGITS,
        dense(2, "ReLU", norm="BatchNorm"),
        Training(optimizer="Adam", rate=1e-3, batch=4, steps=800),
    ),
)

RECOVERS = family(
    "recovers",
    ("digits-scaled", Data(task="digits", scale=20.0), dense(2, "ReLU"), Training(optimizer="Adam", rate=3e-3)),
    ("gain-of-3", DIGITS, dense(2, "ReLU", replace(HE, gain=3.0)), Training(optimizer="Adam", rate=3e-3)),
    (
        "gain-of-3-wine",
        WINE,
        dense(1, "ReLU", replace(HE, gain=3.0), 32),
        Training(optimizer="Adam", rate=1e-2),
    ),
)

# The loss jumps, and comes back.
SPIKES = family(
    "spikes",
    ("odd-batch-adam", DIGITS, dense(3, "ReLU"), replace(ADAM, odd=(149, 30.0), steps=400)),
    ("odd-batch-sgd", DIGITS, dense(3, "ReLU"), replace(SGD, odd=(149, 5.0), steps=400)),
    ("odd-batch-clipped", DIGITS, dense(3, "ReLU"), replace(SGD, odd=(149, 100.0), clip=1.0, steps=400)),
    ("odd-batch-tanh", WINE, dense(2, "Tanh", XAVIER, 32), replace(MOMENTUM, odd=(99, 50.0), steps=400)),
    ("restarts", DIGITS, dense(3, "ReLU"), replace(MOMENTUM, schedule="restarts", steps=400)),
)

RATES = family(
    "rates",
    ("cyclic", DIGITS, dense(4, "ReLU"), replace(MOMENTUM, schedule="cyclic")),
    ("cyclic-adam", DIGITS, dense(3, "Tanh", XAVIER), replace(QUICK, schedule="cyclic")),
    (
        "clipped-gradients-of-20",
        DIGITS,
        dense(4, "ReLU", replace(HE, gain=1.5)),
        replace(SGD, rate=0.02, loss_scale=10.0, clip=1.0, steps=600),
    ),
    (
        "clipped-scaled-inputs",
        Data(task="digits", scale=5.0),
        dense(2, "ReLU"),
        replace(SGD, rate=0.02, clip=1.0, steps=600),
    ),
    (
        "decay-converged",
        IRIS,
        dense(2, "ReLU", width=16),
        Training(optimizer="AdamW", rate=1e-2, options={"weight_decay": 0.1}, steps=1000),
    ),
    ("decay-converged-sgd", DIGITS, dense(3, "ReLU"), replace(SGD, options={"weight_decay": 1e-3}, steps=1000)),
)

VARIATIONAL = family(
    "variational",
    (
        "settles",
        Data(task="digits-themselves"),
        Variational(encoder=dense(1, "ReLU"), decoder=dense(1, "ReLU")),
        replace(ADAM, rate=3e-3, steps=600),
    ),
    (
        "settles-tanh",
        Data(task="digits-themselves"),
        Variational(encoder=dense(1, "Tanh", XAVIER), decoder=dense(1, "Tanh", XAVIER), latent=16, weight=3e-4),
        replace(ADAM, rate=3e-3, steps=600),
    ),
)

STOPPED = family(
    "stopped",
    ("digits", DIGITS, dense(3, "ReLU"), replace(SGD, steps=1000, stopped=250)),
    ("warm-up", DIGITS, dense(4, "ReLU"), replace(ADAM, steps=800, schedule="warmup", stopped=300)),
    ("diabetes", DIABETES, dense(2, "ReLU", width=32), replace(QUICK, steps=2000, stopped=200)),
    ("cancer", CANCER, dense(2, "Tanh", XAVIER, 32), replace(SGD, steps=1000, stopped=150, loss="bce_of_logits")),
)

IN_BALANCE = family(
    "in-balance",
    (
        "by-turns",
        RING,
        Gan(generator=LEAKY, discriminator=LEAKY, alternating=True),
        replace(ADAM, options={"beta1": 0.5}, steps=2000),
    ),
    (
        "squares-by-turns",
        RING,
        Gan(generator=LEAKY, discriminator=LEAKY, loss="squares", alternating=True),
        replace(ADAM, options={"beta1": 0.5}, steps=2000),
    ),
    (
        "saturating",
        RING,
        Gan(generator=LEAKY, discriminator=LEAKY, loss="saturating"),
        replace(ADAM, options={"beta1": 0.5}, steps=1200),
    ),
    (
        "two-rates",
        RING,
        Gan(generator=LEAKY, discriminator=LEAKY, rates=(1e-3, 2e-3)),
        replace(ADAM, options={"beta1": 0.5}, steps=1200),
    ),
)

HEALTHY = [
    *PLAIN,
    *SMALL_DATA,
    *CONVERGED,
    *NORMALISED,
    *RESIDUAL,
    *ATTENTION,
    *RECURRENT,
    *STARTS_AT_ZERO,
    *FINE_TUNING,
    *SHAPES,
    *LOOPS,
    *LOSS_SCALES,
    *PRECISION,
    *ADVERSARIAL,
    *OUTPUT_ONCE,
    *EMPTIED,
    *PARTLY_TRAINED,
    *MODES,
    *FEW_SAMPLES,
    *RECOVERS,
    *SPIKES,
    *RATES,
    *VARIATIONAL,
    *STOPPED,
    *IN_BALANCE,
]
