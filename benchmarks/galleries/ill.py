"""The ill cases, by family. New ones go to the end of their family: the halves alternate in the order of this list.

The roots are written down from what was done to the net, before any run was judged: the initialisation where the weights
start wrong (GW401, or GW101 and GW102, which tell its effect and name the weights as its cause), the function where that
takes the signal, the learning rate where the same net learns with another one.
"""

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
    SGD,
    SINES,
    SPIRALS,
    WINE,
    dense,
    family,
)
from benchmarks.galleries.spec import HE, XAVIER, Conv, Data, Dense, Gan, Start, Towers, Training, Transformer, Unrolled

SMALL = Start(method="normal_", arguments={"std": 0.01})

VANISHING_ACTIVATION = family(
    "vanishing-activation",
    ("sigmoid-8-sgd", DIGITS, dense(8, "Sigmoid", XAVIER), SGD),
    ("sigmoid-12-momentum", DIGITS, dense(12, "Sigmoid", XAVIER), MOMENTUM),
    ("sigmoid-12-adam", DIGITS, dense(12, "Sigmoid", XAVIER), ADAM),
    ("sigmoid-30-adam", DIGITS, dense(30, "Sigmoid", XAVIER), replace(ADAM, steps=200)),
    ("sigmoid-50-sgd", DIGITS, dense(50, "Sigmoid", XAVIER), replace(SGD, steps=200)),
    ("sigmoid-6-cancer", CANCER, dense(6, "Sigmoid", XAVIER, 32), SGD),
    ("sigmoid-8-iris", IRIS, dense(8, "Sigmoid", XAVIER, 16), MOMENTUM),
    ("sigmoid-8-diabetes", DIABETES, dense(8, "Sigmoid", XAVIER, 32), SGD),
    ("tanhshrink-8-wine", WINE, dense(8, "Tanhshrink", XAVIER, 32), SGD),
    (
        "sigmoid-conv",
        DIGITS,
        Conv(widths=(8,) * 8, activation="Sigmoid", start=XAVIER, pooled=(3,)),
        replace(MOMENTUM, steps=200),
    ),
    ("sigmoid-unrolled", DIGITS, Unrolled(width=32, activation="Sigmoid"), SGD),
    ("hardsigmoid-10", DIGITS, dense(10, "Hardsigmoid", XAVIER), SGD),
    roots=("GW101",),
)

VANISHING_START = family(
    "vanishing-start",
    ("tanh-20-default-sgd", DIGITS, dense(20, "Tanh", None), SGD),
    ("relu-10-default-sgd", DIGITS, dense(10, "ReLU", None), SGD),
    ("relu-30-default-adam", DIGITS, dense(30, "ReLU", None), replace(ADAM, steps=200)),
    ("tanh-8-small-sgd", DIGITS, dense(8, "Tanh", SMALL), SGD),
    ("relu-8-small-adam", DIGITS, dense(8, "ReLU", SMALL), ADAM),
    ("relu-6-small-wine", WINE, dense(6, "ReLU", SMALL, 32), SGD),
    ("elu-24-default-sgd", DIGITS, dense(24, "ELU", None), SGD),
    ("gelu-16-default-sgd", DIGITS, dense(16, "GELU", None), SGD),
    ("silu-12-default-momentum", DIGITS, dense(12, "SiLU", None), MOMENTUM),
    ("leaky-12-default-cancer", CANCER, dense(12, "LeakyReLU", None, 32), SGD),
    (
        "conv-8-default",
        DIGITS,
        Conv(widths=(12,) * 8, start=None, pooled=(2,)),
        replace(MOMENTUM, steps=200),
    ),
    ("relu-12-default-diabetes", DIABETES, dense(12, "ReLU", None, 32), replace(SGD, rate=0.02)),
    ("tanh-50-default-adam", DIGITS, dense(50, "Tanh", None), replace(ADAM, steps=200)),
    roots=("GW401", "GW101"),
)

EXPLODING = family(
    "exploding",
    ("relu-20-large-sgd", DIGITS, dense(20, "ReLU", Start(method="kaiming_normal_", gain=1.7)), SGD),
    ("tanh-20-large-sgd", DIGITS, dense(20, "Tanh", Start(method="xavier_normal_", gain=4.0)), SGD),
    ("tanh-12-unit-normal-adam", DIGITS, dense(12, "Tanh", Start(method="normal_")), ADAM),
    ("leaky-16-large-adam", DIGITS, dense(16, "LeakyReLU", Start(method="kaiming_normal_", gain=3.0)), ADAM),
    ("relu-8-unit-normal-wine", WINE, dense(8, "ReLU", Start(method="normal_"), 32), SGD),
    (
        "relu-unrolled-large",
        DIGITS,
        Unrolled(width=32, activation="ReLU", start=Start(method="orthogonal_", gain=4.0)),
        Training(rate=0.05),
    ),
    ("elu-24-large-momentum", DIGITS, dense(24, "ELU", Start(method="xavier_normal_", gain=2.5)), MOMENTUM),
    roots=("GW401", "GW102"),
)

NON_FINITE = family(
    "non-finite",
    ("rate-relu-sgd", DIGITS, dense(4, "ReLU"), Training(rate=30.0)),
    ("rate-regression", SINES, dense(3, "ReLU"), Training(rate=2.0)),
    ("log-of-zero", CANCER, dense(3, "ReLU", output="ReLU"), Training(loss="log"), ("GW103",)),
    ("root-of-zero", DIABETES, dense(2, "ReLU", None, 32), Training(rate=0.05, loss="root"), ("GW103",)),
    ("inputs-never-vary", Data(task="digits", inputs="unguarded"), dense(3, "ReLU"), SGD, ("GW103",)),
    (
        "rate-momentum-conv",
        DIGITS,
        Conv(widths=(8, 16), pooled=(0,)),
        Training(rate=50.0, options={"momentum": 0.9}),
    ),
    roots=("GW103", "GW302", "GW102"),
)

DYING = family(
    "dying",
    ("rate-6-sgd", DIGITS, dense(6, "ReLU"), Training(rate=3.0), ("GW201", "GW302")),
    ("rate-4-adam", DIGITS, dense(4, "ReLU"), Training(optimizer="Adam", rate=0.3), ("GW201", "GW302")),
    ("bias-4", DIGITS, dense(4, "ReLU", Start(method="kaiming_normal_", bias=-8.0)), SGD),
    ("bias-3-wine", WINE, dense(3, "ReLU", Start(method="kaiming_normal_", bias=-10.0), 32), ADAM),
    ("narrow-4-by-16-cancer", CANCER, dense(16, "ReLU", width=4), QUICK),
    ("narrow-4-by-16-wine", WINE, dense(16, "ReLU", width=4), QUICK),
    ("hardtanh-wine-raw", Data(task="wine", inputs="raw"), dense(3, "Hardtanh", XAVIER, 32), SGD),
    (
        "conv-rate",
        DIGITS,
        Conv(widths=(8, 16, 16), pooled=(0,)),
        Training(optimizer="Adam", rate=0.5, steps=300),
        ("GW201", "GW302"),
    ),
    roots=("GW201",),
)

SATURATION = family(
    "saturation",
    ("tanh-wine-raw", Data(task="wine", inputs="raw"), dense(4, "Tanh", XAVIER, 32), SGD),
    ("tanh-cancer-raw", Data(task="cancer", inputs="raw"), dense(4, "Tanh", XAVIER, 32), SGD),
    ("tanh-input-scale", Data(task="digits", scale=300.0), dense(3, "Tanh", XAVIER), SGD),
    ("sigmoid-bias", DIGITS, dense(3, "Sigmoid", Start(method="xavier_normal_", bias=12.0)), SGD),
    ("elu-bias", DIGITS, dense(4, "ELU", Start(method="kaiming_normal_", bias=-15.0)), SGD),
    ("softsign-wine-raw", Data(task="wine", inputs="raw"), dense(4, "Softsign", XAVIER, 32), SGD),
    roots=("GW202",),
)

RATE_SMALL = family(
    "rate-small",
    ("relu-sgd", DIGITS, dense(4, "ReLU"), Training(rate=1e-06)),
    ("tanh-adam", DIGITS, dense(4, "Tanh", XAVIER), Training(optimizer="Adam", rate=1e-07)),
    ("wine-momentum", WINE, dense(3, "ReLU", width=32), Training(rate=1e-06, options={"momentum": 0.9})),
    ("sines-sgd", SINES, dense(3, "Tanh", XAVIER), Training(rate=1e-06)),
    ("adam-large-eps", DIGITS, dense(4, "ReLU"), Training(optimizer="Adam", rate=0.001, options={"eps": 1000.0})),
    roots=("GW301",),
)

RATE_LARGE = family(
    "rate-large",
    ("layer-norm-adam", DIGITS, dense(4, "ReLU", norm="LayerNorm"), Training(optimizer="Adam", rate=3.0)),
    ("leaky-adam", DIGITS, dense(6, "LeakyReLU"), Training(optimizer="Adam", rate=1.0)),
    ("transformer-adam", DIGITS, Transformer(depth=2), Training(optimizer="Adam", rate=0.5, steps=200)),
    ("batch-norm-spirals", SPIRALS, dense(4, "ReLU", norm="BatchNorm", width=32), Training(optimizer="Adam", rate=3.0)),
    ("tanh-sgd", DIGITS, dense(4, "Tanh", XAVIER), Training(rate=50.0), ("GW302", "GW202")),
    roots=("GW302",),
)

CUT = family(
    "cut",
    ("digits-narrow", DIGITS, Dense(widths=(64, 64, 6), activation="LeakyReLU", detached=3), QUICK),
    ("spirals", SPIRALS, Dense(widths=(32, 32, 8), activation="Tanh", start=XAVIER, detached=2), QUICK),
    ("second-tower", Data(task="halves"), Towers(tower=dense(2, "ReLU", width=32), detached=True), QUICK),
    (
        "autoencoder",
        Data(task="digits-themselves"),
        Dense(widths=(64, 16, 64), activation="Tanh", start=XAVIER, detached=2),
        Training(optimizer="Adam", rate=3e-3),
    ),
    roots=("GW104",),
)

ONE_UNIT = family(
    "one-unit",
    ("softmax-cancer", CANCER, dense(2, "ReLU", width=32, output="Softmax"), Training(loss="bce")),
    (
        "softmax-xor",
        Data(task="xor"),
        dense(3, "Tanh", XAVIER, 16, output="Softmax"),
        Training(optimizer="Adam", rate=0.01, loss="bce"),
    ),
    roots=("GW104",),
)

TARGETS = family(
    "targets",
    ("diabetes-raw-sgd", Data(task="diabetes", targets="raw"), dense(3, "ReLU", width=32), Training(rate=0.05)),
    ("diabetes-raw-adam", Data(task="diabetes", targets="raw"), dense(3, "Tanh", XAVIER, 32), ADAM, ("GW102",)),
    ("sines-raw-momentum", Data(task="sines", targets="raw"), dense(3, "Tanh", XAVIER), MOMENTUM),
    roots=("GW102", "GW103", "GW302"),
)

HALF_PRECISION = family(
    "half-precision",
    (
        "true-small-loss",
        DIGITS,
        dense(4, "ReLU"),
        Training(rate=6e4, loss_scale=1e-6, precision="16-true"),
    ),
    (
        "mixed-small-loss",
        DIGITS,
        dense(4, "ReLU"),
        Training(rate=100000.0, loss_scale=1e-06, precision="16-mixed", scaler=False),
    ),
    (
        "mixed-tanh-deep",
        DIGITS,
        dense(8, "Tanh", None),
        Training(optimizer="Adam", rate=0.001, loss_scale=1e-5, precision="16-mixed", scaler=False),
        ("GW104", "GW101"),
    ),
    roots=("GW104",),
)

# Wiring. A logarithm of 0 in the very first step is as well told by what it makes of the loss.
OUTPUT_TWICE = family(
    "output-twice",
    (
        "softmax-conv",
        DIGITS,
        Conv(widths=(8, 16), start=None, pooled=(0,), output="Softmax"),
        replace(SGD, rate=0.3, steps=500),
    ),
    ("softmax-digits", DIGITS, dense(3, "ReLU", None, output="Softmax"), SGD),
    ("softmax-wine-raw", Data(task="wine", inputs="raw"), dense(2, "ReLU", None, 32, output="Softmax"), QUICK),
    (
        "sigmoid-cancer",
        CANCER,
        dense(2, "ReLU", None, 32, output="Sigmoid"),
        Training(rate=0.02, loss="bce_of_logits"),
    ),
    ("softmax-slowly", DIGITS, dense(2, "ReLU", None, output="Softmax"), Training(rate=0.03)),
    (
        "sigmoid-xor",
        Data(task="xor"),
        dense(2, "Tanh", XAVIER, 16, output="Sigmoid"),
        Training(loss="bce_of_logits"),
    ),
    roots=("GW501",),
)

LOG_OF_OUTPUT = family(
    "log-of-output",
    ("wine-raw", Data(task="wine", inputs="raw"), dense(3, "ReLU", output="Softmax"), Training(loss="log")),
    ("digits-scaled", Data(task="digits", scale=30.0), dense(3, "ReLU", output="Softmax"), replace(ADAM, loss="log")),
    ("digits-rate", DIGITS, dense(3, "ReLU", output="Softmax"), Training(rate=5.0, loss="log"), ("GW501", "GW302")),
    ("cancer-raw", Data(task="cancer", inputs="raw"), dense(2, "ReLU", output="Softmax"), Training(loss="log")),
    roots=("GW501", "GW103"),
)

STALE = family(
    "stale-gradient",
    ("momentum-by-hand", DIGITS, dense(3, "ReLU"), replace(MOMENTUM, by_hand=1, empties=False)),
    ("sgd", DIGITS, dense(3, "ReLU"), replace(SGD, empties=False)),
    ("adam-by-hand", DIGITS, dense(3, "ReLU"), replace(QUICK, by_hand=1, empties=False)),
    ("diabetes", DIABETES, dense(2, "ReLU", None, 32), replace(QUICK, by_hand=1, empties=False)),
    ("zen", Data(task="zen"), dense(1, "ReLU", None), replace(QUICK, empties=False)),
    (
        "momentum-conv",
        DIGITS,
        Conv(widths=(8, 16), pooled=(0,)),
        Training(rate=0.05, options={"momentum": 0.9}, empties=False, steps=200),
    ),
    roots=("GW502",),
)

LISTED = family(
    "listed-layers",
    ("tanh-narrow", DIGITS, Dense(widths=(16, 8, 4), activation="Tanh", start=None, listed=3), QUICK),
    ("spirals", SPIRALS, dense(4, "Tanh", XAVIER, 16, listed=4), QUICK),
    ("relu-deep", DIGITS, dense(8, "ReLU", None, 16, listed=8), QUICK),
    ("diabetes", DIABETES, dense(3, "ReLU", None, 8, listed=3), QUICK),
    roots=("GW503",),
)

UNHELD = family(
    "unheld",
    ("spirals", SPIRALS, dense(4, "Tanh", XAVIER, 16), replace(QUICK, held="head")),
    ("halves", Data(task="halves"), dense(3, "ReLU", None, 16), replace(QUICK, held="head")),
    ("relu-deep", DIGITS, dense(8, "ReLU", None, 16), replace(QUICK, held="head")),
    ("diabetes", DIABETES, dense(3, "ReLU", None, 8), replace(QUICK, held="head")),
    roots=("GW503",),
)

SINGLE_VALUE = family(
    "single-value",
    ("digits", DIGITS, dense(2, "ReLU", norm="SingleNorm"), QUICK),
    ("wine", WINE, dense(3, "Tanh", XAVIER, 32, norm="SingleNorm"), SGD),
    ("cancer", CANCER, dense(2, "Sigmoid", XAVIER, 32, norm="SingleNorm"), ADAM),
    ("diabetes", DIABETES, dense(1, "GELU", None, 32, norm="SingleNorm"), QUICK),
    roots=("GW504",),
)

SINGLE_SAMPLE = family(
    "single-sample",
    (
        "conv",
        DIGITS,
        Conv(widths=(8, 16), start=None, norm="BatchNorm"),
        Training(optimizer="Adam", rate=2e-3, batch=1, steps=900),
    ),
    (
        "conv-skip",
        DIGITS,
        Conv(widths=(16, 16), norm="BatchNorm", skip=1.0),
        Training(optimizer="Adam", rate=1e-3, batch=1, steps=900),
    ),
    roots=("GW504",),
)

EVALUATED = family(
    "evaluated",
    ("relu-10", DIGITS, dense(10, "ReLU", None, norm="BatchNorm"), replace(SGD, evaluated=("",))),
    ("tanh-20", DIGITS, dense(20, "Tanh", None, norm="BatchNorm"), replace(SGD, evaluated=("",))),
    (
        "conv-8",
        DIGITS,
        Conv(widths=(8,) * 8, norm="BatchNorm", start=None, pooled=(3,)),
        replace(MOMENTUM, evaluated=("",), steps=200),
    ),
    ("sigmoid-6-cancer", CANCER, dense(6, "Sigmoid", XAVIER, 32, norm="BatchNorm"), replace(SGD, evaluated=("",))),
    roots=("GW506",),
)

CLIPPED = family(
    "clipped",
    ("relu-sgd-norm", DIGITS, dense(4, "ReLU"), replace(SGD, clip=1e-4)),
    ("tanh-momentum-wine", WINE, dense(3, "Tanh", XAVIER, 32), replace(MOMENTUM, clip=1e-4)),
    ("relu-sgd-value", DIGITS, dense(3, "ReLU"), replace(SGD, clip=1e-7, clip_by="value")),
    ("relu-adam-below-eps", DIGITS, dense(4, "ReLU"), replace(ADAM, clip=1e-5, options={"eps": 1e-3})),
    ("conv-sgd-norm", DIGITS, Conv(widths=(8, 16), pooled=(0,)), replace(SGD, clip=1e-4)),
    roots=("GW303",),
)

DECAYED = family(
    "decayed",
    ("relu-sgd", DIGITS, dense(4, "ReLU"), replace(SGD, options={"weight_decay": 0.5})),
    (
        "tanh-momentum-wine",
        WINE,
        dense(3, "Tanh", XAVIER, 32),
        replace(MOMENTUM, options={"momentum": 0.9, "weight_decay": 0.5}),
    ),
    ("relu-adam", DIGITS, dense(4, "ReLU"), replace(ADAM, options={"weight_decay": 2.0})),
    ("relu-adamw", DIGITS, dense(4, "ReLU"), replace(ADAM, optimizer="AdamW", options={"weight_decay": 100.0})),
    ("relu-rmsprop", DIGITS, dense(4, "ReLU"), Training(optimizer="RMSprop", rate=1e-3, options={"weight_decay": 2.0})),
    roots=("GW304",),
)

# Outputs far larger than the targets ask for, and steps too small to bring them down in time.
FAR_OFF = family(
    "far-off",
    ("digits-0-to-1600", Data(task="digits", inputs="raw", scale=100.0), dense(2, "ReLU"), Training(rate=1e-8)),
    ("wine-raw", Data(task="wine", inputs="raw"), dense(2, "ReLU", width=32), Training(rate=1e-8)),
    ("gain-of-5", DIGITS, dense(3, "ReLU", replace(HE, gain=5.0)), Training(rate=1e-8)),
    ("gain-of-8-diabetes", DIABETES, dense(2, "Tanh", replace(XAVIER, gain=8.0), 32), Training(rate=1e-7)),
    roots=("GW505", "GW301", "GW401"),
)

# A discriminator that tells the ring's points from the generator's with certainty, and steps faster than the generator can.
WON = Dense(widths=(64, 64), activation="LeakyReLU", start=None)
LOST = replace(ADAM, options={"beta1": 0.5}, steps=800)
STARVED = family(
    "starved",
    (
        "saturating-far",
        Data(task="ring", scale=5.0),
        Gan(generator=WON, discriminator=WON, loss="saturating", rates=(1e-4, 5e-3)),
        LOST,
    ),
    (
        "saturating-relu",
        Data(task="ring", scale=5.0),
        Gan(generator=dense(2, "ReLU", None, 16), discriminator=WON, loss="saturating", rates=(1e-4, 5e-3)),
        LOST,
    ),
    (
        "squares-far",
        Data(task="ring", scale=5.0),
        Gan(generator=WON, discriminator=WON, loss="squares", rates=(1e-4, 5e-3)),
        LOST,
    ),
    (
        "by-turns",
        Data(task="ring", scale=5.0),
        Gan(generator=WON, discriminator=WON, loss="saturating", rates=(1e-4, 5e-3), alternating=True),
        replace(LOST, steps=1600),
    ),
    roots=("GW106",),
)

# One batch unlike all others throws a net out of what it has learned, or before it has.
THROWN_OUT = family(
    "thrown-out",
    ("sgd-early", DIGITS, dense(3, "ReLU"), replace(SGD, odd=(3, 1000.0))),
    ("sgd-late", DIGITS, dense(3, "ReLU"), replace(SGD, odd=(150, 3000.0))),
    ("momentum-diabetes", DIABETES, dense(2, "ReLU", width=32), replace(MOMENTUM, odd=(99, 300.0))),
    ("conv", DIGITS, Conv(widths=(8, 16), start=None, pooled=(0,)), replace(SGD, odd=(99, 3000.0))),
    roots=("GW102", "GW103", "GW302"),
)

NO_PROGRESS = family(
    "no-progress",
    ("shuffled-digits", Data(task="digits", shuffled=True), dense(2, "ReLU", width=16), Training(rate=0.02, steps=400)),
    (
        "shuffled-cancer",
        Data(task="cancer", shuffled=True),
        dense(1, "ReLU", width=8),
        Training(rate=0.01, loss="bce_of_logits", steps=300),
    ),
    (
        "shuffled-conv-stopped",
        Data(task="digits", shuffled=True),
        Conv(widths=(8, 16), start=None, pooled=(0,)),
        Training(rate=0.02, steps=1000, stopped=220),
    ),
    (
        "shuffled-digits-stopped",
        Data(task="digits", shuffled=True),
        dense(2, "Tanh", XAVIER, 16),
        Training(rate=0.02, steps=2000, stopped=150),
    ),
    (
        "shuffled-transformer",
        Data(task="digits", shuffled=True),
        Transformer(depth=1, width=16),
        Training(rate=0.02, steps=300),
    ),
    (
        "shuffled-diabetes",
        Data(task="diabetes", shuffled=True),
        dense(2, "ReLU", None, 8),
        Training(rate=0.01, steps=400),
    ),
    roots=("GW601",),
)

ILL = [
    *VANISHING_ACTIVATION,
    *VANISHING_START,
    *EXPLODING,
    *NON_FINITE,
    *DYING,
    *SATURATION,
    *RATE_SMALL,
    *RATE_LARGE,
    *CUT,
    *ONE_UNIT,
    *TARGETS,
    *HALF_PRECISION,
    *OUTPUT_TWICE,
    *LOG_OF_OUTPUT,
    *STALE,
    *LISTED,
    *UNHELD,
    *SINGLE_VALUE,
    *SINGLE_SAMPLE,
    *EVALUATED,
    *CLIPPED,
    *DECAYED,
    *FAR_OFF,
    *STARVED,
    *THROWN_OUT,
    *NO_PROGRESS,
]
