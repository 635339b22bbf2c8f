"""calibit's models inside lm-evaluation-harness: the same numbers as `evaluate`."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import calibit
import tiny_models
import tiny_tokenizers
import toy_tasks
from calibit.tasks import Item

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra 'lm-eval')")

from calibit.io.lm_eval import read_lm_eval
from calibit.lm_eval import CalibitLM

pytestmark = pytest.mark.slow


def asked(*args: Any) -> Any:
    return SimpleNamespace(args=args)


@pytest.fixture(scope="module")
def subject() -> tuple[Any, Any]:
    return tiny_models.build("llama"), tiny_tokenizers.build()


def test_same_numbers_as_evaluate_in_the_order_of_the_requests(subject):
    items = toy_tasks.toy_items()
    run = calibit.evaluate(*subject, items)
    requests = [
        (asked(item.context, " " + choice), ll, greedy)
        for item, line in zip(items, run.items(), strict=True)
        for choice, ll, greedy in zip(item.choices, line["ll"], line["is_greedy"], strict=True)
    ]
    order = np.random.default_rng(0).permutation(len(requests))
    lm = CalibitLM(*subject)
    answers = lm.loglikelihood([requests[i][0] for i in order])
    for i, (ll, greedy) in zip(order, answers, strict=True):
        assert ll == pytest.approx(requests[i][1], abs=1e-4) and greedy == requests[i][2]


def test_encoded_requests_and_empty_contexts(subject):
    lm = CalibitLM(*subject, bos="never")
    texts = [("be a", " cat"), ("", "dog"), ("be a", " fox")]
    encoded = [
        (pair, lm.tok_encode(pair[0]) or [1], lm.tok_encode(pair[1], add_special_tokens=False))
        for pair in texts
    ]
    again = lm.loglikelihood([asked(*pair) for pair in texts])
    for (one, _), (other, _) in zip(lm._loglikelihood_tokens(encoded), again, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_rolling_covers_every_token_once(subject):
    lm = CalibitLM(*subject, max_length=8)
    text = "the dog saw a cat and a fox"
    ids = lm.tok_encode(text)
    logits = []
    for start in range(0, len(ids), 8):
        window = [1 if not start else ids[start - 1], *ids[start : start + 8]]
        if len(window) < 9 and start:  # the last window reaches back as far as it can
            window = ids[len(ids) - 9 : len(ids)]
        logp = tiny_models.logits(subject[0], torch.tensor([window[:-1]]))[0].double()
        logp = logp.log_softmax(-1)
        fresh = len(ids) - start if len(ids) - start < 8 else 8
        logits += [float(logp[-k, window[-k]]) for k in range(1, fresh + 1)]
    assert len(logits) == len(ids)
    (found,) = lm.loglikelihood_rolling([asked(text)])
    assert found == pytest.approx(sum(logits), abs=1e-3)


def test_generation_is_greedy_and_stops(subject):
    lm = CalibitLM(*subject)
    (whole,) = lm.generate_until([asked("the dog", {"until": [], "max_gen_toks": 6})])
    assert len(whole) >= 3
    stop = whole[2]
    (cut,) = lm.generate_until([asked("the dog", {"until": stop, "max_gen_toks": 6})])
    assert cut == whole.split(stop)[0]
    with pytest.raises(ValueError, match="expected greedy generation, got"):
        lm.generate_until([asked("the dog", {"until": [], "do_sample": True})])


def test_what_cannot_be_scored_is_refused(subject):
    with pytest.raises(ValueError, match="scorable requests, got: choice 0 has no tokens"):
        CalibitLM(*subject).loglikelihood([asked("a", "")])
    with pytest.raises(ValueError, match="expected a tokenizer with a loaded model"):
        CalibitLM(subject[0])


def test_the_command_knows_the_model_and_its_output_is_imported(subject, tmp_path):
    """A task of the user on a quantized model, through the harness's own command, equals our own
    evaluation of it."""
    tokenizer = subject[1]
    model = tiny_models.build("llama")
    calibit.quantize_model(model, "nf4")
    calibit.save_model(model, tmp_path / "model", tokenizer=tokenizer)
    rows = [{"q": f"what is {i}", "label": i % 2} for i in range(6)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "c")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}?",
        "doc_to_choice": ["a cat", "no"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(yaml.safe_dump(task))
    words = ["--model", "calibit", "--model_args", f"pretrained={tmp_path / 'model'}"]
    words += ["--tasks", "mine", "--include_path", str(tmp_path / "tasks"), "--log_samples"]
    words += ["--output_path", str(tmp_path / "output")]
    done = subprocess.run(
        [sys.executable, "-m", "calibit.lm_eval", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    imported = read_lm_eval(tmp_path / "output")
    items = [
        Item(f"i{k}", "mine", f"{row['q']}?", ("a cat", "no"), row["label"])
        for k, row in enumerate(rows)
    ]
    own = calibit.evaluate(model, tokenizer, items)
    results = json.loads(next((tmp_path / "output").rglob("results_*.json")).read_text())
    assert results["config"]["scheme"] == "nf4"
    assert imported.meta["bos"] == "tokenizer" and len(imported.items()) == 6
    for theirs, ours in zip(imported.items(), own.items(), strict=True):
        assert theirs["ll"] == pytest.approx(ours["ll"], abs=1e-4)
    found = calibit.compare(own, imported, resamples=200)
    assert found.protocol["n"] == 6 and found.flips.all_flips == 0
