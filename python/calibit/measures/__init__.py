"""Measures of confidence, calibration, fidelity and text: pure functions on arrays, in log space
and float64.

Functions are named by metric id and return an `Estimate`, which acts as a float. Top-label measures
take (confidence, correct); measures of whole distributions take log scores (log-likelihoods,
logits), a `Scores` or a `Distributions`, so that nothing underflows; probabilities enter through
`Distributions.from_probabilities`.
"""

from calibit.measures import paper_code
from calibit.measures.ablation import Ablation, ablation
from calibit.measures.anatomy import FlipAnatomy, flip_anatomy, perturbation
from calibit.measures.attribution import Attribution, attribute, shares
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
from calibit.measures.calibrators import (
    Isotonic,
    Platt,
    SliceTemperatures,
    Temperature,
    fit_isotonic,
    fit_platt,
    fit_slice_temperatures,
    fit_temperature,
    label_free_temperature,
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
from calibit.measures.conformal import (
    ConformalLadder,
    ConformalTransfer,
    conformal_ladder,
    conformal_transfer,
    coverage_band,
    threshold_jump,
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
from calibit.measures.folds import fold_of, folds_of
from calibit.measures.gain import CalibrationGain, calibration_gain
from calibit.measures.initial import InitialConfidence, initial_confidence, oldham, slope
from calibit.measures.intervals import clopper_pearson, t_interval, tango, wilson
from calibit.measures.length_rules import RuleSensitivity, rule_sensitivity
from calibit.measures.noise import NoiseFloor, noise_floor
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
from calibit.measures.signed import Direction, direction, silent_zone
from calibit.measures.slice_search import SliceDamage, SliceSearch, worst_slice
from calibit.measures.slices import Slices
from calibit.measures.smooth import smece
from calibit.measures.summaries import differences, divergences, panel, summarize
from calibit.measures.thresholds import ThresholdTransfer, threshold_transfer
from calibit.measures.token_level import TokenFidelity, token_fidelity
from calibit.measures.variance import DrawVariance, draw_variance, ece_draw_spread

__all__ = [
    "DEFAULT_BINS",
    "RULES",
    "Ablation",
    "Attribution",
    "CalibrationGain",
    "ConformalLadder",
    "ConformalTransfer",
    "Direction",
    "Distributions",
    "DrawVariance",
    "Estimate",
    "FlipAnatomy",
    "InitialConfidence",
    "Interval",
    "Isotonic",
    "McNemar",
    "NoiseFloor",
    "Platt",
    "ReliabilityBin",
    "Resampling",
    "RuleSensitivity",
    "Scores",
    "SignificanceTest",
    "SliceDamage",
    "SliceSearch",
    "SliceTemperatures",
    "Slices",
    "Temperature",
    "ThresholdTransfer",
    "TokenFidelity",
    "ablation",
    "abs_gap",
    "acc",
    "ace_nixon",
    "all_flips",
    "attribute",
    "aurc",
    "auroc",
    "bits_per_byte",
    "brier",
    "brier_top1",
    "calibration_gain",
    "choice_scores",
    "clopper_pearson",
    "clustered_standard_error",
    "conf",
    "conf_correct",
    "conf_err",
    "conf_true",
    "conformal_ladder",
    "conformal_transfer",
    "coverage_band",
    "d_conf",
    "d_conf_true",
    "d_text_nll",
    "debiased_l1",
    "debiased_l2",
    "debiased_l2_marginal",
    "differences",
    "direction",
    "distinct_n",
    "distinct_n_tok",
    "divergences",
    "draw_variance",
    "dup_rate",
    "dup_words",
    "e_aurc",
    "ece",
    "ece_draw_spread",
    "ece_mass",
    "ece_null",
    "entropy",
    "fit_isotonic",
    "fit_platt",
    "fit_slice_temperatures",
    "fit_temperature",
    "flip_anatomy",
    "flips",
    "fold_of",
    "folds_of",
    "greedy_prefix",
    "holm",
    "initial_confidence",
    "js_distance",
    "jsd",
    "kl_ab",
    "kl_ba",
    "label_free_temperature",
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
    "noise_floor",
    "nonterm_rate",
    "oldham",
    "overconfidence",
    "paired_t",
    "panel",
    "paper_code",
    "perturbation",
    "plugin_l2",
    "ppl",
    "recovery",
    "reliability",
    "rmsce",
    "rr",
    "rule_sensitivity",
    "rw",
    "sce",
    "sel_acc",
    "seq_rep_n",
    "shares",
    "sign_flip_test",
    "silent_zone",
    "slope",
    "smece",
    "summarize",
    "t_interval",
    "tace",
    "tango",
    "threshold_jump",
    "threshold_transfer",
    "token_fidelity",
    "tv",
    "wilcoxon",
    "wilson",
    "worst_slice",
    "wr",
    "ww",
]
