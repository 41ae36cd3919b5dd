"""The losses of the preference methods, computed from their papers' formulas with a model's plain `forward`
on single rows without padding. Nothing of TRL's or of fmstune's training is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """The log-probabilities of an answer's tokens, of the tokens before it, and of the answer's if tokens
    were drawn twice (Σ π², for WPO)."""

    own: torch.Tensor
    before: torch.Tensor
    squares: torch.Tensor

    def total(self, shared: int | None = None, alpha: float | None = None) -> torch.Tensor:
        """The sum; with `alpha`, tokens after the first `shared` count less (LD-DPO)."""
        if alpha is None:
            return self.own.sum()
        return self.own[:shared].sum() + alpha * self.own[shared:].sum()


def next_token_logs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """The log-probabilities of all tokens after each but the last of `ids`, a row of its own."""
    logs: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return logs


def read(model: Any, prompt: Sequence[int], answer: Sequence[int], args: Any) -> Answer:
    """The scores of an answer after a prompt, truncated as `max_length` says."""
    ids, first = [*prompt, *answer], len(prompt)
    most = args.max_length
    if most is not None and getattr(args, "truncation_mode", "keep_start") == "keep_end":
        first, ids = max(0, first - max(0, len(ids) - most)), ids[-most:]
    elif most is not None:
        ids = ids[:most]
    logs = next_token_logs(model, ids)
    each = logs.gather(-1, torch.tensor(ids)[1:, None])[:, 0]
    begin = max(first - 1, 0)
    return Answer(each[begin:], each[:begin], logs[begin:].exp().square().sum(-1).log())


@dataclass(frozen=True)
class Batch:
    """The loss of each row of a batch, and its metrics."""

    losses: torch.Tensor
    metrics: dict[str, tuple[float, int]]
    """Each with the number of rows that it is a mean over."""
    tokens: torch.Tensor | None = None
    """Log-probabilities whose negative mean over the tokens of the update is a part of the loss."""
    share: float = 0.0


def dpo(model: Any, reference: Any, rows: Sequence[Row], args: Any) -> Batch:
    """Rafailov et al. 2023 and its variants."""
    losses, found = [], []
    for row in rows:
        answers = [read(model, row["prompt_ids"], row[key], args) for key in ("chosen_ids", "rejected_ids")]
        with torch.no_grad():
            initial = [
                read(reference, row["prompt_ids"], row[key], args) for key in ("chosen_ids", "rejected_ids")
            ]
        shared = min(len(each.own) for each in answers)
        good, bad = (each.total(shared, args.ld_alpha) for each in answers)
        good0, bad0 = (each.total(shared, args.ld_alpha) for each in initial)
        found.append((answers, good, bad, good0, bad0))
    names = args.loss_type
    kinds = zip(names, args.loss_weights or [1.0] * len(names), strict=True)
    total: Any = 0.0
    weights = torch.ones(len(rows), dtype=torch.double)
    if args.use_weighting:
        weights = torch.stack(
            [
                torch.stack([(a.own - a.squares).mean() for a in answers]).sum().exp().detach()
                for answers, *_ in found
            ]
        )
    likelihood = 0.0
    for name, share in kinds:
        if name == "sft":
            likelihood = share
        else:
            total = total + share * weights * _dpo(name, found, args)
    losses = total if torch.is_tensor(total) else torch.zeros(len(rows))
    rewards = [
        (args.beta * float((g - g0).detach()), args.beta * float((b - b0).detach()))
        for _, g, b, g0, b0 in found
    ]
    count = len(rows)
    metrics = {
        "rewards/chosen": sum(g for g, _ in rewards) / count,
        "rewards/rejected": sum(b for _, b in rewards) / count,
        "rewards/margins": sum(g - b for g, b in rewards) / count,
        "logps/chosen": sum(float(g.detach()) for _, g, *_ in found) / count,
        "logps/rejected": sum(float(b.detach()) for _, _, b, *_ in found) / count,
    }
    tokens = torch.cat([answers[0].own for answers, *_ in found])
    return Batch(losses, {name: (value, count) for name, value in metrics.items()}, tokens, likelihood)


def _score(ratio: torch.Tensor, args: Any) -> torch.Tensor:
    """f'(ratio) of f-DPO (Wang et al. 2023), from the logarithm of the ratio."""
    kind = args.f_divergence_type
    if kind == "reverse_kl":
        return ratio
    if kind == "forward_kl":
        return 1 - 1 / ratio.exp()
    if kind == "js_divergence":
        return (2 * ratio.exp() / (1 + ratio.exp())).log()
    power = args.f_alpha_divergence_coef - 1
    return (ratio.exp() ** power - 1) / power


def _dpo(name: str, found: Sequence[Any], args: Any) -> torch.Tensor:
    beta, smooth = args.beta, args.label_smoothing
    goods = torch.stack([g - g0 for _, g, _, g0, _ in found])
    bads = torch.stack([b - b0 for _, _, b, _, b0 in found])
    lengths = torch.tensor([[len(a.own) for a in answers] for answers, *_ in found])
    good, bad = _score(goods, args), _score(bads, args)
    delta = good - bad
    if name == "sigmoid":
        return -logsigmoid(beta * delta)
    if name == "hinge":
        return (1 - beta * delta).clamp(min=0)
    if name == "ipo":
        return (good / lengths[:, 0] - bad / lengths[:, 1] - 1 / (2 * beta)) ** 2
    if name == "sigmoid_norm":
        return -logsigmoid(beta * (good / lengths[:, 0] - bad / lengths[:, 1]))
    if name == "exo_pair":
        mine = torch.stack([beta * delta, torch.zeros_like(delta)]).log_softmax(0)
        human = torch.tensor([1 - smooth, smooth], dtype=torch.double).log()[:, None]
        return (mine.exp() * (mine - human)).sum(0)
    if name == "nca_pair":
        return -logsigmoid(beta * goods) - 0.5 * logsigmoid(-beta * goods) - 0.5 * logsigmoid(-beta * bads)
    if name == "robust":
        right, wrong = -logsigmoid(beta * delta), -logsigmoid(-beta * delta)
        return ((1 - smooth) * right - smooth * wrong) / (1 - 2 * smooth)
    if name == "bco_pair":
        return -logsigmoid(beta * goods) - logsigmoid(-beta * bads)
    if name == "sppo_hard":
        return (goods - 0.5 / beta) ** 2 + (bads + 0.5 / beta) ** 2
    if name in ("aot", "aot_unpaired"):
        if name == "aot":
            policy = torch.stack([g - b for _, g, b, _, _ in found])
            initial = torch.stack([g0 - b0 for _, _, _, g0, b0 in found])
            sorted_delta = policy.sort()[0] - initial.sort()[0]
        else:
            sorted_delta = goods.sort()[0] - bads.sort()[0]
        return -(1 - smooth) * logsigmoid(beta * sorted_delta) - smooth * logsigmoid(-beta * sorted_delta)
    if name == "apo_zero":
        return 1 - torch.sigmoid(beta * goods) + torch.sigmoid(beta * bads)
    if name == "apo_down":
        return torch.sigmoid(beta * goods) + 1 - torch.sigmoid(beta * (goods - bads))
    assert name == "discopop"
    mixed = torch.sigmoid(beta * delta / args.discopop_tau)
    return -logsigmoid(beta * delta) * (1 - mixed) + torch.exp(-beta * delta) * mixed


def kto(model: Any, reference: Any, rows: Sequence[Row], args: Any) -> Batch:
    """Ethayarajh et al. 2024, equation 8; its reference point comes from each prompt with the answer of a row
    before it in the batch, at the smallest distance at which the fewest rows meet their own prompt."""
    ratios, compared = [], []
    prompts = [row["prompt_ids"] for row in rows]
    met = {by: sum(prompts[at - by] == each for at, each in enumerate(prompts)) for by in range(1, len(rows))}
    distance = min(met, key=lambda by: (met[by], by), default=0)
    for at, row in enumerate(rows):
        other = rows[at - distance]["completion_ids"]
        with torch.no_grad():
            initial = read(reference, row["prompt_ids"], row["completion_ids"], args).total()
            compared.append(
                read(model, row["prompt_ids"], other, args).total()
                - read(reference, row["prompt_ids"], other, args).total()
            )
        ratios.append(read(model, row["prompt_ids"], row["completion_ids"], args).total() - initial)
    point = torch.stack(compared).mean().clamp(min=0) if args.loss_type == "kto" else torch.tensor(0.0)
    losses = torch.stack(
        [
            args.desirable_weight * (1 - torch.sigmoid(args.beta * (ratio - point)))
            if row["label"]
            else args.undesirable_weight * (1 - torch.sigmoid(args.beta * (point - ratio)))
            for row, ratio in zip(rows, ratios, strict=True)
        ]
    )
    metrics = {"kl": (float(point), len(rows))}
    for name, label in (("chosen", True), ("rejected", False)):
        own = [
            args.beta * float(r.detach())
            for row, r in zip(rows, ratios, strict=True)
            if row["label"] == label
        ]
        if own:
            metrics[f"rewards/{name}"] = sum(own) / len(own), len(own)
    return Batch(losses, metrics)


def orpo(model: Any, reference: Any, rows: Sequence[Row], args: Any) -> Batch:
    """Hong et al. 2024, equations 2 to 7."""
    odds, ratios, nll = [], [], []
    for row in rows:
        answers = [read(model, row["prompt_ids"], row[key], args) for key in ("chosen_ids", "rejected_ids")]
        good, bad = (each.own.mean() for each in answers)
        odds.append(good - torch.log1p(-good.exp()) - bad + torch.log1p(-bad.exp()))
        nll.append(torch.cat([answers[0].before, answers[0].own]))
        ratios.append((args.beta * float(good.detach()), args.beta * float(bad.detach())))
    tokens, count = torch.cat(nll), len(rows)
    metrics = {
        "rewards/margins": (sum(g - b for g, b in ratios) / count, count),
        "rewards/accuracies": (sum(g > b for g, b in ratios) / count, count),
        "log_odds_chosen": (float(torch.stack(odds).detach().mean()), count),
        "nll_loss": (-float(tokens.detach().mean()), len(torch.cat(nll))),
    }
    return Batch(-args.beta * logsigmoid(torch.stack(odds)), metrics, tokens, 1.0)


def reward(model: Any, reference: Any, rows: Sequence[Row], args: Any) -> Batch:
    """Bradley and Terry; the margin is Touvron et al. 2023's, the centring Eisenstein et al. 2023's."""
    scores = [
        [
            model(input_ids=torch.tensor([row[key]])).logits[0, 0].double()
            for key in ("chosen_ids", "rejected_ids")
        ]
        for row in rows
    ]
    centre = args.center_rewards_coefficient or 0.0
    losses = torch.stack(
        [
            -logsigmoid(good - bad - row.get("margin", 0.0)) + centre * (good + bad) ** 2
            for row, (good, bad) in zip(rows, scores, strict=True)
        ]
    )
    found, count = [[float(each.detach()) for each in pair] for pair in scores], len(rows)
    metrics = {
        "accuracy": (sum(good > bad for good, bad in found) / count, count),
        "margin": (sum(good - bad for good, bad in found) / count, count),
        "mean_reward": (sum(map(sum, found)) / count / 2, count),
    }
    return Batch(losses, metrics)


METHODS: dict[str, Callable[[Any, Any, Sequence[Row], Any], Batch]] = {
    "dpo": dpo, "kto": kto, "orpo": orpo, "reward": reward,
}  # fmt: skip


def trained(
    method: str, model: Any, reference: Any, rows: Sequence[Row], args: Any, updates: int
) -> tuple[list[float], list[dict[str, float]]]:
    """Train `model` on `rows` in their order by plain SGD. Returns the loss and the metrics of each update,
    which are means over all its rows."""
    losses, metrics = [], []
    size, several = args.per_device_train_batch_size, args.gradient_accumulation_steps
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    epoch = [batches[at : at + several] for at in range(0, len(batches), several)]
    for update in range(updates):
        parts = epoch[update % len(epoch)]
        model.zero_grad()
        made = [METHODS[method](model, reference, part, args) for part in parts]
        loss = torch.cat([batch.losses for batch in made]).mean()
        if made[0].tokens is not None and made[0].share:
            loss = loss - made[0].share * torch.cat([batch.tokens for batch in made]).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        metrics.append({name: _mean(made, name) for name in {name for each in made for name in each.metrics}})
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= args.learning_rate * weight.grad
            if getattr(args, "sync_ref_model", False) and (update + 1) % args.ref_model_sync_steps == 0:
                share = args.ref_model_mixup_alpha
                for old, new in zip(reference.parameters(), model.parameters(), strict=True):
                    old.copy_(share * new + (1 - share) * old)
    return losses, metrics


def _mean(made: Sequence[Batch], name: str) -> float:
    found = [batch.metrics[name] for batch in made if name in batch.metrics]
    return sum(value * count for value, count in found) / sum(count for _, count in found)
