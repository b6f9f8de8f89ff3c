"""What counts the same in the loss of a minibatch: tokens, completions, or tokens by a constant."""

from dataclasses import replace

import pytest
import torch

from llm_lightning.modules.ppo.metrics import Averages
from llm_lightning.modules.ppo.settings import Advantages, KLPenalty, Update
from tests.llm_lightning.modules.ppo_fits import ROLLOUT


@pytest.mark.parametrize(("average", "ratio"), [("completions", "sequence"), ("constant", "token")])
def test_a_minibatch_is_averaged_as_it_is_said(fit, average, ratio):
    """The gradient of a step against a loss by single completions, in float64, whatever the micro-batches."""
    update = Update(1, 1, clip_range=0.01, clip_range_high=0.02, ratio=ratio, average=average)
    module = fit(
        1, batch_size=8, update=update, advantages=Advantages("dr_grpo"), rollout=replace(ROLLOUT, num_samples=2)
    )
    e = module.experiences[0]
    with torch.no_grad():
        torch.manual_seed(4)
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    module.double()
    expected = 0.0
    for row in range(len(e.prompts)):
        prompt, answer = e.prompts[row], e.completions[row].tokens
        logprobs = module.model(torch.cat([prompt, answer])[None]).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        gaps = [logprobs[t, token] - float(e.logprobs[row, t]) for t, token in enumerate(answer.tolist())]
        if ratio == "sequence":
            gaps = [sum(gaps) / len(gaps)] * len(gaps)
        for gap in gaps:
            advantage = float(e.advantages[row, 0])
            clipped = gap.exp().clamp(0.99, 1.02)
            share = 1 / len(answer) if average == "completions" else 1 / 12
            expected = expected - torch.minimum(gap.exp() * advantage, clipped * advantage) * share / len(e.prompts)
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(expected, [dict(module.named_parameters())[name] for name in names])
    for tokens in (8192, 30):
        module.update_settings.micro_batch_tokens = tokens
        module.zero_grad()
        losses = [module.loss(e, rows, Averages(module.device))[0] for rows in module._groups(e, range(len(e.prompts)))]
        (sum(losses) / len(e.prompts)).backward()
        for name, gradient in zip(names, gradients, strict=True):
            found = dict(module.named_parameters())[name].grad
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-7)


def test_other_averages_are_of_the_whole_minibatch(fit):
    """Gradients are divided by completions, not by tokens."""
    norms = {}
    for average in ("tokens", "completions", "constant"):
        module = fit(1, update=Update(1, 1, average=average), advantages=Advantages("rloo"), kl=KLPenalty(0.0),
                     rollout=replace(ROLLOUT, num_samples=2), batch_size=32)  # fmt: skip
        norms[average] = module.history[0]["train/grad_norm"]
        mask = module.experiences[0].mask
    assert norms["constant"] == pytest.approx(norms["tokens"] * float(mask.sum()) / (12 * len(mask)), rel=1e-4)
    assert len(set(mask.sum(1).tolist())) > 1
    assert norms["completions"] != pytest.approx(norms["tokens"], rel=1e-4)
