"""Measures of confidence, calibration, fidelity and text: pure functions on arrays, in log space
and float64.

Functions are named by metric id and return an `Estimate`, which acts as a float. Top-label measures
take (confidence, correct); measures of whole distributions take log scores (log-likelihoods,
logits), a `Scores` or a `Distributions`, so that nothing underflows; probabilities enter through
`Distributions.from_probabilities`.
"""

from calibit.measures import paper_code
from calibit.measures.binning import DEFAULT_BINS, ReliabilityBin, reliability
from calibit.measures.calibration import (
    debiased_l1,
    debiased_l2,
    ece,
    ece_mass,
    ece_null,
    mce,
    plugin_l2,
    rmsce,
)
from calibit.measures.classwise import ace_nixon, debiased_l2_marginal, sce, tace
from calibit.measures.confidence import (
    abs_gap,
    acc,
    conf,
    conf_correct,
    conf_err,
    conf_true,
    entropy,
    margin,
    overconfidence,
)
from calibit.measures.distributions import Distributions
from calibit.measures.estimate import Estimate, Interval
from calibit.measures.fidelity import (
    all_flips,
    d_conf,
    d_conf_true,
    flips,
    js_distance,
    jsd,
    kl_ab,
    kl_ba,
    recovery,
    rr,
    rw,
    tv,
    wr,
    ww,
)
from calibit.measures.intervals import clopper_pearson, t_interval, tango, wilson
from calibit.measures.paired import (
    McNemar,
    SignificanceTest,
    clustered_standard_error,
    holm,
    mcnemar,
    mean_difference,
    paired_t,
    sign_flip_test,
    wilcoxon,
)
from calibit.measures.perplexity import bits_per_byte, d_text_nll, ppl
from calibit.measures.power import mde_accuracy, mde_mean, n_needed
from calibit.measures.proper import brier, brier_top1, nll
from calibit.measures.repetition import (
    distinct_n,
    distinct_n_tok,
    dup_rate,
    dup_words,
    greedy_prefix,
    len_tokens,
    loop_rate,
    nonterm_rate,
    seq_rep_n,
)
from calibit.measures.resampling import Resampling
from calibit.measures.scores import RULES, Scores, choice_scores
from calibit.measures.selective import aurc, auroc, e_aurc, sel_acc
from calibit.measures.slice_search import SliceDamage, SliceSearch, worst_slice
from calibit.measures.slices import Slices
from calibit.measures.smooth import smece
from calibit.measures.summaries import differences, divergences, panel, summarize
from calibit.measures.token_level import TokenFidelity, token_fidelity

__all__ = [
    "DEFAULT_BINS",
    "RULES",
    "Distributions",
    "Estimate",
    "Interval",
    "McNemar",
    "ReliabilityBin",
    "Resampling",
    "Scores",
    "SignificanceTest",
    "SliceDamage",
    "SliceSearch",
    "Slices",
    "TokenFidelity",
    "abs_gap",
    "acc",
    "ace_nixon",
    "all_flips",
    "aurc",
    "auroc",
    "bits_per_byte",
    "brier",
    "brier_top1",
    "choice_scores",
    "clopper_pearson",
    "clustered_standard_error",
    "conf",
    "conf_correct",
    "conf_err",
    "conf_true",
    "d_conf",
    "d_conf_true",
    "d_text_nll",
    "debiased_l1",
    "debiased_l2",
    "debiased_l2_marginal",
    "differences",
    "distinct_n",
    "distinct_n_tok",
    "divergences",
    "dup_rate",
    "dup_words",
    "e_aurc",
    "ece",
    "ece_mass",
    "ece_null",
    "entropy",
    "flips",
    "greedy_prefix",
    "holm",
    "js_distance",
    "jsd",
    "kl_ab",
    "kl_ba",
    "len_tokens",
    "loop_rate",
    "margin",
    "mce",
    "mcnemar",
    "mde_accuracy",
    "mde_mean",
    "mean_difference",
    "n_needed",
    "nll",
    "nonterm_rate",
    "overconfidence",
    "paired_t",
    "panel",
    "paper_code",
    "plugin_l2",
    "ppl",
    "recovery",
    "reliability",
    "rmsce",
    "rr",
    "rw",
    "sce",
    "sel_acc",
    "seq_rep_n",
    "sign_flip_test",
    "smece",
    "summarize",
    "t_interval",
    "tace",
    "tango",
    "token_fidelity",
    "tv",
    "wilcoxon",
    "wilson",
    "worst_slice",
    "wr",
    "ww",
]
