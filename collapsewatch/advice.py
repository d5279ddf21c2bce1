"""What to try next, by kind of failure, and what each advice rests on.

`evidence` is what arXiv 2606.26027 reports of its own runs (Qwen2.5-1.5B and Qwen3-1.7B on BFCL-V3);
`inference` is our reading of its text or of its released code, not tested by anybody there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

PAPER = "https://arxiv.org/abs/2606.26027"


class Advice(NamedTuple):
    """Something to try, the reason, and the place in the paper; `tested` is whether the paper reports it."""

    what: str
    why: str
    place: str
    tested: bool


_EARLIER = Advice(
    "Go on from a checkpoint before the onset, and evaluate every checkpoint, not only the last.",
    "Some of the paper's runs are best in mid-training and end collapsed.",
    "appendix D",
    True,
)
_INTERLEAVE = Advice(
    "Between segments of RL, make short supervised updates on correct dialogues of the prompts that now fail "
    "(the intervention `erroneous`).",
    "In the paper that ended at 20.0 and 23.25 points on the two models, where GRPO alone ended at 0.0 and 1.5; a "
    "learning rate of 1e-5 in these updates served better than 1e-6.",
    "table 1, figure 4",
    True,
)
_APART = Advice(
    "Keep expert trajectories and hints out of the RL batch itself.",
    "Replacing or hinting rollouts within the batch ended at 1.5 points or less, with a higher KL.",
    "table 1, figure 5",
    True,
)
_INTACT = Advice(
    "Before giving a checkpoint up, test it in another call format.",
    "A model at 0.0 in the format it was trained in still had 24.75 points in another, 26.0 before training: the "
    "format was lost, not the ability.",
    "table 2",
    True,
)
_TRANSFER = Advice(
    "After supervised updates, test other tools and another call format too.",
    "Supervised training alone ended at 0.0 points in the other format, 26.0 before training.",
    "table 2",
    True,
)
_WARM = Advice(
    "Train on tool dialogues by supervision before RL.",
    "With that start one model's curves stayed smooth (17.25 points against 0.0); the other model collapsed "
    "all the same.",
    "section 4.2, table 1",
    True,
)
_LEASH = Advice(
    "Lower the learning rate, or raise the weight of the KL term.",
    "In the paper the reward fell with a lasting rise of KL, at a weight of 1e-4; that more weight prevents it is "
    "not shown.",
    "section 4.2",
    False,
)
_IDS = Advice(
    "Check that the ids trained on are the ids sampled: nothing decoded and encoded again, no end-of-turn token "
    "appended that the model did not sample.",
    "The paper's rollout code does both, so that training rewards end tokens nobody chose.",
    "released code",
    False,
)
_STRICT = Advice(
    "Reward strictly parsed calls only, and let no broken or missing call end an episode early.",
    "In the paper's environment a broken call counts as the final answer: the shortest way through an episode is a "
    "broken one.",
    "released code",
    False,
)
_GROUPS = Advice(
    "Look at the groups whose rollouts all got the same reward; choose prompts of middling difficulty.",
    "They give no gradient. The few others are mostly failures, and pushing mass off sampled tokens raises those "
    "that are likely already.",
    "released code",
    False,
)
_LIMIT = Advice(
    "Leave truncated rollouts out of the loss, or give them no reward, and look whether the limit is too low.",
    "A rollout that is cut off teaches no end of turn.",
    "",
    False,
)
_TEMPLATE = Advice(
    "Compare the prompt as sampled with the model's own chat template, and the stop tokens with its generation "
    "settings.",
    "What is broken before the first update was not broken by training.",
    "",
    False,
)
_REWARD = Advice(
    "Read rollouts and the parts of the reward: what is judged here kept its structure.",
    "A reward may fall because the task got harder, or a tool failed; failures of tools are no failures of format.",
    "",
    False,
)

_ENTROPY = Advice(
    "Bound the ratio between sampling and training policy, and look for a difference between their log-probs.",
    "What pushes mass off sampled tokens without bound makes every other token more likely.",
    "",
    False,
)
_EXPLORE = Advice(
    "Raise the sampling temperature or the entropy bonus, and mix in prompts with more than one answer.",
    "A policy that writes one text whatever it is asked has no two rollouts that differ, and so no gradient.",
    "",
    False,
)
_CLIP = Advice(
    "Clip the gradient norm lower, and look at the batch of the step at which it rose.",
    "One batch of extreme advantages or ratios is enough.",
    "",
    False,
)
_SCORE = Advice(
    "Trust the held-out score, not the reward: read rollouts that are rewarded and wrong.",
    "A reward that holds while the score falls is being served by something else than the task.",
    "",
    False,
)

_STEADY = (_EARLIER, _INTERLEAVE, _LEASH)


class Failure(NamedTuple):
    """A kind of failure in words, completing "it broke: ...", and what to try."""

    words: str
    advice: tuple[Advice, ...]


FAILURES: Mapping[str, Failure] = {
    "control_token_spike": Failure(
        "control tokens became likely where the chat format forbids them",
        (_EARLIER, _INTERLEAVE, _APART, _INTACT, _IDS, _TRANSFER),
    ),
    "format_breakage": Failure(
        "calls and turns no longer keep to the chat format",
        (_EARLIER, _INTERLEAVE, _APART, _STRICT, _INTACT, _TRANSFER),
    ),
    "eos_loss": Failure("turns no longer end where they should", (_IDS, _LIMIT, *_STEADY)),
    "early_stop": Failure("turns end at once, empty", (_STRICT, _IDS, _EARLIER, _INTERLEAVE, _INTACT)),
    "length_runaway": Failure("turns run on to the length limit", (_LIMIT, _IDS, *_STEADY)),
    "tool_abandonment": Failure("the tools are no longer called", (_STRICT, _GROUPS, *_STEADY)),
    "repetition": Failure("the model repeats itself", (_LIMIT, *_STEADY)),
    "broken_start": Failure("broken from the first steps on", (_TEMPLATE, _WARM, _GROUPS)),
    "no_reward": Failure("no rollout was ever rewarded, and none better than another", (_REWARD, _WARM, _GROUPS)),
    "lock_in": Failure("the policy writes one text whatever it is asked", (_EXPLORE, _GROUPS, *_STEADY)),
    "entropy_explosion": Failure("the policy became random", (_ENTROPY, *_STEADY)),
    "kl_explosion": Failure("the policy ran away from its reference", (*_STEADY, _ENTROPY)),
    "grad_explosion": Failure("the gradient exploded", (_CLIP, *_STEADY, _ENTROPY)),
    "not_finite": Failure("the updates have no finite numbers any more", (_CLIP, *_STEADY, _ENTROPY)),
    "reward_masked": Failure("the score fell while the reward held", (_SCORE, _STRICT, *_STEADY)),
    "reward_loss": Failure("the reward fell, and no structure explains it", (_REWARD, _GROUPS, *_STEADY)),
}
"""By kind, as verdicts and alarms name it."""


def failure(kind: str) -> Failure:
    """What is known of a kind of failure; of one that is not listed, its name and what helps against most.

    >>> failure("bad_weather").words
    'bad weather'
    """
    return FAILURES.get(kind) or Failure(kind.replace("_", " "), _STEADY)
