"""Generators of the golden vectors.

Integers from numpy's pcg64, so that every language starts from the same bits.
"""

from __future__ import annotations

import hashlib

import numpy as np


def softmax(z: np.ndarray) -> np.ndarray:
    """Plain softmax over the last axis.

    The definition the labels of the golden vectors were drawn with.
    """
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Pair:
    """Reference logits A and candidate logits B (integers x 1e-4), labels y."""

    def __init__(self, seed: int, n: int, k: int) -> None:
        r = np.random.default_rng(seed)
        u, v, w = r.random((n, k)), r.random((n, k)), r.random(n)
        self.A = np.floor(60000 * u).astype(np.int64)
        self.B = (9 * self.A) // 10 + np.floor(12000 * v).astype(np.int64) - 6000
        self.a, self.b = self.A / 10000.0, self.B / 10000.0
        self.pa, self.pb = softmax(self.a), softmax(self.b)
        t = np.where(self.pa.max(1) < 0.65, 0.6, 2.2)
        c = np.cumsum(softmax(self.a / t[:, None]), 1)
        self.y = (w[:, None] >= c[:, : k - 1]).sum(1)

    def sha256(self) -> str:
        """Hash of the integers, C order, little-endian int32."""
        return hashlib.sha256(
            b"".join(x.astype("<i4").tobytes() for x in (self.A, self.B, self.y))
        ).hexdigest()


def v1() -> Pair:
    """500 items, 4 choices."""
    return Pair(20261121, 500, 4)


def v2() -> Pair:
    """300 items, 2 choices."""
    return Pair(20261123, 300, 2)


def v4() -> Pair:
    """64 positions, 50 tokens: token level, y = true token."""
    return Pair(20261123, 64, 50)


def v5(A: np.ndarray) -> np.ndarray:
    """Three re-runs of V1's reference, logits x 1e4, int64 [3, N, K]."""
    x = np.random.default_rng(20261124).random((3, *A.shape))
    return A[None] + np.floor(400 * x).astype(np.int64) - 200


def v6(A: np.ndarray) -> np.ndarray:
    """Four builds of V1's candidate that differ in scale, int64 [4, N, K]."""
    v = np.random.default_rng(20261125).random((4, *A.shape))
    s = np.array([7, 8, 9, 10])[:, None, None]
    return (s * A[None]) // 10 + np.floor(12000 * v).astype(np.int64) - 6000


def v7() -> np.ndarray:
    """y[model, prompt, T = 0.1..1.0, seed] with an effect of 0.05 planted in 0.5..0.8."""
    u = np.random.default_rng(20261126).random((2, 10, 10, 3))
    y = 0.2 * u
    y[1, :, 4:8, :] += 0.05
    return y


V3_Y = np.array([0, 0, 0, 1, 1, 0, 3, 2, 3, 0])
V3_A = np.array(
    [
        [0.70, 0.10, 0.10, 0.10],
        [0.40, 0.30, 0.20, 0.10],
        [0.25, 0.25, 0.25, 0.25],
        [0.05, 0.90, 0.03, 0.02],
        [0.10, 0.20, 0.60, 0.10],
        [0.34, 0.33, 0.22, 0.11],
        [0.15, 0.15, 0.15, 0.55],
        [0.80, 0.05, 0.10, 0.05],
        [0.02, 0.03, 0.05, 0.90],
        [0.30, 0.45, 0.15, 0.10],
    ]
)
V3_B = np.array(
    [
        [0.60, 0.20, 0.10, 0.10],
        [0.30, 0.40, 0.20, 0.10],
        [0.30, 0.25, 0.25, 0.20],
        [0.10, 0.80, 0.05, 0.05],
        [0.20, 0.20, 0.40, 0.20],
        [0.33, 0.34, 0.22, 0.11],
        [0.20, 0.20, 0.20, 0.40],
        [0.85, 0.05, 0.05, 0.05],
        [0.05, 0.05, 0.10, 0.80],
        [0.45, 0.30, 0.15, 0.10],
    ]
)

V8_ITEMS = (
    ((" yes", -1.25, 1, -4.0), (" no", -2.5, 1, -3.0)),
    ((" très bien", -6.0, 3, -9.0), (" bad", -5.0, 1, -6.5)),
    (
        (" a long wrong answer", -9.0, 4, -15.0),
        (" short", -4.0, 1, -7.0),
        (" 日本語", -7.5, 3, -14.0),
    ),
)
"""Per item and choice: text with delimiter, log-likelihood, tokens.

Unconditional log-likelihood.
"""

V8_EXPECTED = {
    "sum": (
        (0, 0.7772998612, 0.2227001388),
        (1, 0.2689414214, 0.7310585786),
        (1, 0.0064979433, 0.9643802951, 0.0291217615),
    ),
    "token": (
        (0, 0.7772998612, 0.2227001388),
        (0, 0.9525741268, 0.0474258732),
        (0, 0.5121442915, 0.0889973332, 0.3988583753),
    ),
    "char": (
        (0, 0.6970592840, 0.3029407160),
        (0, 0.7310585786, 0.2689414214),
        (0, 0.5395496456, 0.3893267684, 0.0711235861),
    ),
    "byte": (
        (0, 0.6970592840, 0.3029407160),
        (0, 0.7439624913, 0.2560375087),
        (0, 0.4133087991, 0.2982342411, 0.2884569597),
    ),
    "pmi": (
        (0, 0.9046505351, 0.0953494649),
        (0, 0.8175744762, 0.1824255238),
        (2, 0.3705751009, 0.0184498479, 0.6109750512),
    ),
}
"""Per rule and item: predicted choice, then the probabilities."""

_ONE_MODEL = """
acc                   0.5640000000 0.5560000000 0.7366666667 0.7300000000
conf                  0.6686484737 0.6517166193 0.8131285277 0.8034517176
conf_true             0.4749661561 0.4583447554 0.6896116982 0.6887692935
conf_err              0.6467277993 0.6370668252 0.7345256257 0.7123748595
conf_correct          0.6855942433 0.6634153757 0.8412263977 0.8371376788
entropy nats          0.8124618876 0.8553260869 0.3999041822 0.4190141118
entropy bits          1.1721347362 1.2339747039 0.5769397805 0.6045095812
entropy normalised    0.5860673681 0.6169873520 0.5769397805 0.6045095812
margin                0.4408712799 0.4225518876 0.6262570555 0.6069034353
ece 10                0.1566742719 0.1345656746 0.0764618611 0.0928957843
ece 15                0.1547083155 0.1345656746 0.0938825104 0.1069361495
ece 100               0.1994030985 0.1969424615 0.1501636699 0.1751328584
mce 10, 1             0.7237343851 0.2449260275 0.1190290246 0.1928493324
mce 15, 1             0.7237343851 0.6947143636 0.1607847117 0.2167664606
mce 15, 10            0.2915317730 0.2905458850 0.1607847117 0.2167664606
rmsce                 0.1855457987 0.1661736296 0.0997750091 0.1180844484
ece_mass 10           0.1512754532 0.1409363471 0.0810075631 0.0986362011
ece_mass 15           0.1743211839 0.1588194873 0.0969925032 0.1120973436
ace_nixon 10          0.0660854329 0.0750726560 0.0874496423 0.0842501957
ace_nixon 15          0.0802881253 0.0825228922 0.0930490656 0.1050256815
sce 10                0.0723485456 0.0686240208 0.0936071885 0.1042449769
sce 15                0.0796911321 0.0714357054 0.1071160553 0.1127800036
tace 10               0.0751227591 0.0689240663 0.0950458055 0.0811800315
tace 15               0.0836417736 0.0851934217 0.0967411838 0.0870079468
debiased_l2           0.1753120667 0.1623377536 0.0616054293 0.1076272861
plugin_l2             0.1941666177 0.1831649580 0.1125328839 0.1406605385
debiased_l2_marginal  0.0923217501 0.0872568304 0.0628556483 0.0893901465
debiased_l1           0.1684300486 0.1492882977 0.0790694775 0.0955420761
smece                 0.1079520759 0.1147806931 0.0765146697 0.0735499143
smece at 0.05         0.1395370394 0.1298844556 0.0767698323 0.0802311175
smece bandwidth       0.1083984375 0.1152343750 0.0771484375 0.0742187500
brier                 0.5989491825 0.6112006561 0.3631077373 0.3512198037
brier_top1            0.2624324734 0.2676270217 0.1815538687 0.1756099018
nll                   1.1131225080 1.1207581235 0.5754400025 0.5670064053
auroc                 0.5651473746 0.5454663296 0.7006701415 0.7259146513
aurc                  0.3771993501 0.3895503162 0.1678121021 0.1710952731
e_aurc                0.2637671326 0.2714714939 0.1291803542 0.1303847093
abs_gap               0.4592981673 0.4699987215 0.3103883018 0.3112307065
sel_acc@0.1           0.7400000000 0.7000000000 0.8666666667 0.8000000000
paper_code.ece        0.8892299836 0.9000054095 0.3565484006 0.3670275210
paper_code.ace        0.2088733216 0.2003832997 0.1166789826 0.1368793886
paper_code.mce_binary 0.4053767835 0.9201113930 0.6890017271 0.8167819313
paper_code.mce        0.9878378074 0.9892304453 0.8141265442 0.8167819313
paper_code.sce        0.0419495391 0.0431319827 0.0397100347 0.0446543705
"""
COLUMNS = ("V1 a", "V1 b", "V2 a", "V2 b")
ONE_MODEL = {
    line[:22].strip(): dict(zip(COLUMNS, map(float, line[22:].split()), strict=True))
    for line in _ONE_MODEL.strip().splitlines()
}
"""Quantity -> column -> value, as printed by independent implementations."""
