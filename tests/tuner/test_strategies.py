"""Every routing strategy's formula, in training and in evaluation, with numbers worked out by
hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from by_hand import ByHand
from peft_smop.errors import ConfigError
from peft_smop.rows import RowAdapters
from peft_smop.tuner.noise import choice, fingerprints, gumbel, normal, row_keys, uniform
from peft_smop.tuner.routing import RowState
from peft_smop.tuner.strategies import (
    STRATEGIES,
    Fixed,
    Gumbel,
    Hashed,
    Linear,
    Released,
    Single,
    Stochastic,
    Uniform,
)

LN2, LN3 = math.log(2.0), math.log(3.0)
LOGITS = [[LN3, 0.0, -0.5], [0.2, -1.0, 0.7], [-0.3, 0.9, 0.1], [1.1, 1.0, 0.4]]
KEYS = row_keys(torch.full((4,), 7), torch.zeros(4, dtype=torch.int64), torch.arange(4))
# three prompts of two tokens in two dimensions, far enough apart to be told from their sum
PROMPTS = torch.tensor(
    [[[1.0, 2.0], [3.0, 4.0]], [[10.0, 20.0], [30.0, 40.0]], [[100.0, 200.0], [300.0, 400.0]]]
)


def logits():
    return torch.tensor(LOGITS)


def softmax(values):
    """In Python's double precision."""
    exponentials = [math.exp(v) for v in values]
    return [x / sum(exponentials) for x in exponentials]


def best(values):
    return max(range(len(values)), key=lambda j: values[j])


def spread(routing):
    """The weight of every prompt for every row, whatever the order of the choices."""
    return torch.zeros(routing.logits.shape).scatter_add(
        1, routing.indices, routing.weights.detach()
    )


def weights_of(rows):
    """[{prompt: weight}, ...] as a table over three prompts."""
    return torch.tensor([[row.get(j, 0.0) for j in range(3)] for row in rows])


def layer(strategy, *, training=False, router=None, seed=7, steps=0):
    """One adapter over `PROMPTS`, whose router reads the first coordinates as the logits."""
    made = ByHand()
    if router is None and strategy.has_router:
        router = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    made.add_adapter("a", prompts=PROMPTS.clone(), router=router, strategy=strategy, seed=seed)
    made["a"].steps.fill_(steps)
    return made.train(training)


def all_rows(count):
    return RowAdapters(("a",), None, count)


# -- linear --------------------------------------------------------------------------------------


def test_linear_in_evaluation_is_the_largest_softmax():
    routing = Linear()(logits(), RowState())
    expected = [{best(row): max(softmax(row))} for row in LOGITS]
    assert routing.indices.tolist() == [[0], [2], [1], [0]]
    assert_close(spread(routing), weights_of(expected))
    assert torch.equal(routing.logits, logits())


def test_linear_in_training_perturbs_before_it_chooses():
    noise = normal(KEYS, 3).tolist()
    noisy = (torch.tensor(LOGITS) * (1 + torch.tensor(noise))).tolist()
    routing = Linear()(logits(), RowState(KEYS))
    assert routing.indices[:, 0].tolist() == [best(row) for row in noisy]
    assert_close(spread(routing), weights_of([{best(r): max(softmax(r))} for r in noisy]))
    # the noise changes some choice, or it would show nothing
    assert [best(row) for row in noisy] != [best(row) for row in LOGITS]


def test_linear_without_perturbation_is_in_training_what_it_is_in_evaluation():
    strategy = Linear(perturbation=False)
    noisy, quiet = strategy(logits(), RowState(KEYS)), strategy(logits(), RowState())
    for mine, other in zip(noisy[:3], quiet[:3], strict=True):
        assert torch.equal(mine, other)


def test_the_gradient_of_equation_5_goes_through_the_noise():
    """d(logit (1 + δ)) / d logit = 1 + δ."""
    w = logits().requires_grad_()
    Linear()(w, RowState(KEYS)).logits.sum().backward()
    assert_close(w.grad, 1 + normal(KEYS, 3))


@pytest.mark.parametrize("state", [RowState(), RowState(KEYS)], ids=["evaluation", "training"])
def test_top_2_sums_the_two_most_probable_prompts_by_their_own_probabilities(state):
    """logits (ln 3, ln 2, 0): p = (1/2, 1/3, 1/6), and nothing is normalised anew."""
    w = torch.tensor([[LN3, LN2, 0.0], [0.0, LN3, LN2]])
    routing = Linear(perturbation=False, top_k=2)(w, RowState(None if state.keys is None else KEYS))
    assert routing.indices.tolist() == [[0, 1], [1, 2]]
    assert_close(routing.weights, torch.tensor([[1 / 2, 1 / 3], [1 / 2, 1 / 3]]))


def test_top_2_prompts_are_the_weighted_sum():
    """p = (1/2, 1/3, 1/6): P_1 / 2 + P_2 / 3."""
    router = torch.tensor([[LN3, LN2, 0.0], [0.0, 0.0, 0.0]])
    made = layer(Linear(perturbation=False, top_k=2), router=router)
    found = made.soft_prompts(torch.tensor([[1.0, 5.0]]), all_rows(1))
    expected = [[[0.5 + 10 / 3, 1 + 20 / 3], [1.5 + 10, 2 + 40 / 3]]]
    assert_close(found, torch.tensor(expected))


def test_router_dropout_zeroes_logits_in_training_and_scales_the_others():
    p = 0.4
    kept = (uniform(KEYS, 3) >= p).tolist()
    assert 0 < sum(map(sum, kept)) < 12
    thinned = (torch.tensor(LOGITS) / 0.6).where(torch.tensor(kept), 0.0).tolist()
    strategy = Linear(perturbation=False, router_dropout=p)
    routing = strategy(logits(), RowState(KEYS))
    assert_close(routing.logits, torch.tensor(thinned))
    assert_close(routing.weights[:, 0], torch.tensor([max(softmax(row)) for row in thinned]))
    assert torch.equal(strategy(logits(), RowState()).logits, logits())


def test_router_dropout_drops_its_share():
    keys = row_keys(*(torch.zeros(5000, dtype=torch.int64),) * 2, torch.arange(5000))
    routing = Linear(perturbation=False, router_dropout=0.2)(torch.ones(5000, 4), RowState(keys))
    assert abs((routing.logits == 0).float().mean().item() - 0.2) < 0.01
    assert_close(routing.logits.unique(), torch.tensor([0.0, 1.25]))


@pytest.mark.parametrize("state", [RowState(), RowState(KEYS)], ids=["evaluation", "training"])
def test_a_temperature_divides_the_logits(state):
    """logits (2 ln 3, 0, ...) at τ = 2 are (ln 3, 0, ...)."""
    w = torch.tensor([[2 * LN3, 0.0], [0.0, 2 * LN3], [2 * LN3, 0.0], [0.0, 2 * LN3]])
    routing = Linear(perturbation=False, temperature=2.0)(w, state)
    assert_close(routing.weights, torch.full((4, 1), 0.75))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(
    ("steps", "temperature"), [(0, 4.0), (1, 2.0), (2, 1.0), (3, 0.5), (4, 0.25), (9, 0.25)]
)
def test_a_temperature_that_moves_halves_at_equal_distances(steps, temperature, training):
    """From 4 to 1/4 in four batches, geometrically: 4, 2, 1, 1/2, 1/4, and then it stays."""
    strategy = Linear(
        perturbation=False, temperature=4.0, final_temperature=0.25, annealing_steps=4
    )
    assert strategy.is_annealed
    state = RowState(KEYS if training else None, torch.full((4,), steps))
    found = strategy(logits(), state).logits
    assert_close(found, torch.tensor([[w / temperature for w in row] for row in LOGITS]))


def test_rows_of_adapters_that_have_come_differently_far_have_different_temperatures():
    strategy = Linear(perturbation=False, final_temperature=0.25, annealing_steps=2)
    found = strategy(torch.ones(3, 3), RowState(None, torch.tensor([0, 1, 2]))).logits
    assert_close(found, torch.tensor([[1.0] * 3, [2.0] * 3, [4.0] * 3]))


def test_the_temperature_moves_with_the_steps():
    """The n-th training step, counted from 0, has the temperature of step n; evaluation after it
    that of step n + 1."""
    strategy = Linear(perturbation=False, final_temperature=0.25, annealing_steps=2)
    made = layer(strategy, training=True)
    mean = torch.tensor([[0.3, 0.4]])
    raw = torch.tensor([[0.3, 0.4, -0.1]])
    for factor in (1.0, 2.0, 4.0, 4.0):
        made.soft_prompts(mean, all_rows(1))
        assert_close(made.last_routes().logits, raw * factor)
        made.end_step()
    made = layer(strategy, training=True)
    made.soft_prompts(mean, all_rows(1))
    made.end_step()
    made.eval().soft_prompts(mean, all_rows(1))
    assert_close(made.last_routes().logits, raw * 2)
    made.soft_prompts(mean, all_rows(1))  # evaluation counts nothing
    assert_close(made.last_routes().logits, raw * 2)


# -- gumbel --------------------------------------------------------------------------------------


def test_gumbel_in_evaluation_is_the_best_prompt_unscaled_and_without_noise():
    routing = Gumbel(temperature=0.5)(logits(), RowState())
    assert spread(routing).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_gumbel_in_training_adds_noise_and_weighs_one_prompt_by_exactly_1(temperature):
    noise = gumbel(KEYS, 3).tolist()
    noisy = (torch.tensor(LOGITS) + torch.tensor(noise)).tolist()
    assert [best(row) for row in noisy] != [best(row) for row in LOGITS]
    w = (logits() * 1.0).requires_grad_()
    routing = Gumbel(temperature=temperature)(w, RowState(KEYS))
    chosen = [best(row) for row in noisy]
    assert routing.indices[:, 0].tolist() == chosen
    assert spread(routing).tolist() == [[float(j == c) for j in range(3)] for c in chosen]


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_gumbel_s_gradients_are_those_of_the_softmax(temperature):
    """dy_j / dw_m = y_j (δ_jm - y_m) / τ, written out."""
    w = logits().requires_grad_()
    routing = Gumbel(temperature=temperature)(w, RowState(KEYS))
    worth = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, 2.0], [1.0, 1.5, -1.0], [0.0, 4.0, 1.0]])
    (routing.weights * worth.gather(1, routing.indices)).sum().backward()
    expected = []
    for row, g, v in zip(LOGITS, gumbel(KEYS, 3).tolist(), worth.tolist(), strict=True):
        y = softmax([(a + b) / temperature for a, b in zip(row, g, strict=True)])
        mean = sum(a * b for a, b in zip(y, v, strict=True))
        expected.append([y[m] * (v[m] - mean) / temperature for m in range(3)])
    assert_close(w.grad, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_gumbel_s_prompt_is_the_chosen_one_to_the_last_bit_in_training_and_evaluation():
    mean = torch.tensor([[0.3, 0.4], [-2.0, 0.1], [0.1, 3.0]])
    for training in (False, True):
        made = layer(Gumbel(), training=training)
        found = made.soft_prompts(mean, all_rows(3))
        assert torch.equal(found, PROMPTS[made.last_routes().chosen])


# -- stochastic ----------------------------------------------------------------------------------


def test_stochastic_in_evaluation_is_the_mean_of_all_prompts():
    found = layer(Stochastic()).soft_prompts(torch.randn(2, 2), all_rows(2))
    assert_close(found, torch.tensor([[[37.0, 74.0], [111.0, 148.0]]] * 2))


def test_stochastic_in_training_is_one_random_prompt_unscaled_for_every_row():
    made = layer(Stochastic(), training=True)
    found = made.soft_prompts(torch.randn(64, 2), all_rows(64))
    keys = row_keys(torch.full((64,), 7), torch.zeros(64, dtype=torch.int64), torch.arange(64))
    drawn = choice(keys, 3)
    assert set(drawn.tolist()) == {0, 1, 2}
    assert torch.equal(found, PROMPTS[drawn])
    other = made.soft_prompts(torch.randn(64, 2), all_rows(64), draw=1)
    assert not torch.equal(other, found)
    made.end_step()
    assert not torch.equal(made.soft_prompts(torch.randn(64, 2), all_rows(64)), found)
    # it names no prompt for a row: another pass names another
    assert made.last_routes().chosen.tolist() == [-1] * 64


def test_stochastic_chooses_every_prompt_equally_often():
    n = 20_000
    zeros = torch.zeros(n, dtype=torch.int64)
    routing = Stochastic()(torch.zeros(n, 5), RowState(row_keys(zeros, zeros + 3, zeros.cumsum(0))))
    assert routing.indices.unique().numel() == 1  # one key, one choice
    routing = Stochastic()(torch.zeros(n, 5), RowState(row_keys(zeros, zeros, torch.arange(n))))
    shares = torch.bincount(routing.indices[:, 0], minlength=5) / n
    # five standard deviations of a share of 1/5
    assert (shares - 0.2).abs().max() < 5 * math.sqrt(0.2 * 0.8 / n)
    assert routing.weights.eq(1).all()


# -- without a router ----------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_uniform_is_the_mean_of_all_prompts(training):
    made = layer(Uniform(), training=training)
    found = made.soft_prompts(torch.randn(3, 2), all_rows(3))
    assert_close(found, torch.tensor([[[37.0, 74.0], [111.0, 148.0]]] * 3))
    assert made.last_routes().chosen.tolist() == [-1] * 3


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_single_is_the_one_prompt(training):
    made = ByHand()
    made.add_adapter("a", prompts=PROMPTS[:1].clone(), router=None, strategy=Single(), seed=0)
    found = made.train(training).soft_prompts(torch.randn(3, 2), all_rows(3))
    assert torch.equal(found, PROMPTS[:1].expand(3, -1, -1))
    assert made.last_routes().chosen.tolist() == [0] * 3


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_hashed_is_the_prompt_of_the_row_s_hash_unscaled(training):
    content = torch.tensor([3, 2**31, 2**32 - 1, 12345, 3])
    made = layer(Hashed(), training=training)
    for _ in range(2):  # and the step changes nothing
        found = made.soft_prompts(torch.randn(5, 2), all_rows(5), content)
        assert torch.equal(found, PROMPTS[choice(content, 3)])
        assert torch.equal(found[0], found[4])
    assert torch.equal(made.last_routes().chosen, choice(content, 3))


# -- fixed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [RowState(), RowState(KEYS)], ids=["evaluation", "training"])
@pytest.mark.parametrize("j", [0, 1, 2])
def test_fixed_is_one_prompt_at_the_scale_of_each_row_s_own_choice(j, state):
    routing = Fixed(fixed_prompt=j)(logits(), state)
    assert_close(spread(routing), weights_of([{j: max(softmax(row))} for row in LOGITS]))


def test_fixed_scales_the_forced_prompt():
    """logits (ln 3, ln 2, 0): p_1 = 1/2 is the largest, and P_3 is forced: P_3 / 2."""
    router = torch.tensor([[LN3, LN2, 0.0], [0.0, 0.0, 0.0]])
    found = layer(Fixed(fixed_prompt=2), router=router).soft_prompts(torch.ones(1, 2), all_rows(1))
    assert_close(found, torch.tensor([[[50.0, 100.0], [150.0, 200.0]]]))


# -- released ------------------------------------------------------------------------------------

MEANS = torch.tensor([[0.3, 0.4], [-2.0, 0.1], [0.1, 3.0], [0.6, 0.2], [2.0, -1.0]])


def as_described(made, means):
    """The published code's product of (b, 1, 1, 1) and (b, l, e), summed over its second axis."""
    p = (means @ made["a"].router).softmax(dim=1)
    c = p.argmax(dim=1)
    scale = p.max(dim=1).values[:, None, None, None]
    product = scale * made["a"].prompts[c]
    assert product.shape == (len(means), len(means), 2, 2)
    return product.sum(dim=1), p.max(dim=1).values, c


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("b", [1, 2, 3, 5])
def test_released_is_the_sum_of_the_batch_s_choices_times_the_row_s_probability(b, training):
    made = layer(Released(perturbation=False), training=training)
    found = made.soft_prompts(MEANS[:b], all_rows(b))
    described, p, c = as_described(made, MEANS[:b])
    assert_close(found, described)
    total = sum(PROMPTS[int(j)] for j in c)
    assert_close(found, torch.stack([p_i * total for p_i in p]))
    assert torch.equal(made.last_routes().chosen, c)


def test_released_by_hand():
    """p = (1/2, 1/3, 1/6) chooses P_1, p = (1/6, 1/3, 1/2) P_3: each gets half their sum."""
    router = torch.tensor([[LN3, LN2, 0.0], [0.0, LN2, LN3]])
    made = layer(Released(), router=router)
    found = made.soft_prompts(torch.eye(2), all_rows(2))
    assert_close(found, torch.tensor([[[50.5, 101.0], [151.5, 202.0]]] * 2))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_released_on_one_row_is_linear(training):
    mean = torch.tensor([[0.3, 0.4]])
    found = layer(Released(), training=training).soft_prompts(mean, all_rows(1))
    expected = layer(Linear(), training=training).soft_prompts(mean, all_rows(1))
    assert_close(found, expected)


def test_released_depends_on_the_neighbours_and_linear_does_not():
    for strategy, same in ((Released(), False), (Linear(), True)):
        made = layer(strategy)
        whole = made.soft_prompts(MEANS, all_rows(5))[:2]
        alone = made.soft_prompts(MEANS[:2], all_rows(2))
        assert torch.allclose(whole, alone) is same


def test_released_perturbs_as_linear_but_its_gradient_ignores_the_noise():
    w = logits().requires_grad_()
    routing = Released()(w, RowState(KEYS))
    assert_close(routing.logits, logits() * (1 + normal(KEYS, 3)))
    routing.logits.sum().backward()
    assert torch.equal(w.grad, torch.ones(4, 3))
    assert torch.equal(Released()(logits(), RowState()).logits, logits())


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_released_is_refused_where_rows_of_several_adapters_meet(training):
    made = layer(Released(), training=training)
    made.add_adapter(
        "b", prompts=PROMPTS.clone(), router=torch.ones(2, 3), strategy=Linear(), seed=0
    )
    for rows in (RowAdapters(("a", "b"), (0, 1), 2), RowAdapters(("a",), (0, -1), 2)):
        with pytest.raises(ConfigError, match=r"adapter 'a' .*neighbours.*'released'.*of its own"):
            made.soft_prompts(MEANS[:2], rows)


# -- all of them ---------------------------------------------------------------------------------

INDEPENDENT = [name for name in STRATEGIES if name != "released"]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", INDEPENDENT)
@pytest.mark.parametrize("b", [2, 3, 5])  # l, k, and another
def test_a_row_is_what_it_is_whatever_its_neighbours_are(name, b, training):
    content = torch.arange(b) * 977
    outcomes = []
    for change in (0.0, 1.0):
        strategy = STRATEGIES[name]()
        made = ByHand()
        prompts = PROMPTS[: 1 if name == "single" else 3].clone()
        router = torch.ones(2, 3).cumsum(1) if strategy.has_router else None
        made.add_adapter("a", prompts=prompts, router=router, strategy=strategy, seed=1)
        means = MEANS[:b].clone()
        means[-1] += change
        outcomes.append(made.train(training).soft_prompts(means, all_rows(b), content))
    assert_close(outcomes[0][:-1], outcomes[1][:-1])
    if name == "linear":
        assert not torch.allclose(outcomes[0][-1], outcomes[1][-1])


def test_equal_strategies_are_one_and_unequal_ones_two():
    """By this rows of several adapters are computed together."""
    assert Linear() == Linear() != Linear(top_k=2)
    assert hash(Gumbel()) == hash(Gumbel())
    assert Linear() != Released()
    assert Stochastic() != Stochastic(consistency=0.0)


# -- noise ---------------------------------------------------------------------------------------


def draws(of, count=20_000, columns=4):
    zeros = torch.zeros(count, dtype=torch.int64)
    return of(row_keys(zeros + 5, zeros + 2, torch.arange(count)), columns)


def test_uniform_draws_have_the_mean_and_variance_of_the_unit_interval_and_stay_inside():
    u = draws(uniform)
    assert 0 < u.min() < 0.001 < 0.999 < u.max() < 1
    assert abs(u.mean().item() - 1 / 2) < 0.005
    assert abs(u.var().item() - 1 / 12) < 0.002
    assert (torch.corrcoef(u.T) - torch.eye(4)).abs().max() < 0.03


def test_gumbel_draws_have_gumbel_s_mean_and_variance_and_quantiles():
    g = draws(gumbel)
    assert g.isfinite().all()
    assert abs(g.mean().item() - 0.5772) < 0.02
    assert abs(g.var().item() - math.pi**2 / 6) < 0.05
    # P(g < 0) = exp(-1)
    assert abs((g < 0).float().mean().item() - math.exp(-1)) < 0.01


def test_the_largest_of_perturbed_logits_follows_the_softmax():
    """The Gumbel-max trick: argmax (w + g) = j with probability softmax(w)_j = 1/2, 1/3, 1/6."""
    n = 20_000
    zeros = torch.zeros(n, dtype=torch.int64)
    w = torch.tensor([LN3, LN2, 0.0]).expand(n, 3)
    routing = Gumbel()(w, RowState(row_keys(zeros, zeros, torch.arange(n))))
    shares = torch.bincount(routing.indices[:, 0], minlength=3) / n
    assert_close(shares, torch.tensor([1 / 2, 1 / 3, 1 / 6]), rtol=0, atol=0.015)


# -- the hash of a row ---------------------------------------------------------------------------


def test_padding_does_not_enter_the_hash():
    ids = torch.tensor([[5, 6, 7]])
    plain = fingerprints(ids, None)
    assert torch.equal(fingerprints(ids, torch.ones(1, 3, dtype=torch.bool)), plain)
    padded = torch.tensor([[9, 9, 5, 6, 7], [5, 6, 7, 9, 1], [1, 5, 6, 7, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()
    assert torch.equal(fingerprints(padded, mask), plain.expand(3))


def test_tokens_and_their_order_enter_the_hash():
    ids = torch.tensor([[5, 6, 7], [7, 6, 5], [6, 5, 7], [5, 6, 8], [5, 5, 7]])
    assert fingerprints(ids, None).unique().numel() == 5
    # a token more is another row, though a hash of ids alone might add nothing for id 0
    assert fingerprints(torch.tensor([[5, 6, 7, 0]]), None) != fingerprints(ids[:1], None)


def test_hashes_spread_rows_evenly():
    n, k = 20_000, 4
    ids = torch.randint(0, 1000, (n, 6), generator=torch.Generator().manual_seed(0))
    hashes = fingerprints(ids, None)
    assert hashes.unique().numel() > n - 20
    shares = torch.bincount(choice(hashes, k), minlength=k) / n
    assert (shares - 1 / k).abs().max() < 5 * math.sqrt(0.25 * 0.75 / n)
    # neighbouring texts, too: only the last token differs
    ids = torch.cat([torch.full((n, 5), 3), torch.arange(n)[:, None]], dim=1)
    shares = torch.bincount(choice(fingerprints(ids, None), k), minlength=k) / n
    assert (shares - 1 / k).abs().max() < 5 * math.sqrt(0.25 * 0.75 / n)


def test_no_uniform_draw_is_0_or_1_whatever_the_hash(monkeypatch):
    from peft_smop.tuner import noise

    for word in (0, 0xFFFFFFFF):
        monkeypatch.setattr(noise, "_mix", lambda x, word=word: torch.full_like(x, word))
        drawn = noise.uniform(torch.zeros(2, dtype=torch.int64), 3)
        assert ((drawn > 0) & (drawn < 1)).all()
        assert noise.gumbel(torch.zeros(2, dtype=torch.int64), 3).isfinite().all()
        assert noise.normal(torch.zeros(2, dtype=torch.int64), 3).isfinite().all()
