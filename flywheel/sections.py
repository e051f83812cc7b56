"""The sections of `params.yaml`: pydantic models, one docstring a field, the paper's value beside ours."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flywheel.records import Estimate

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Temperature = Annotated[float, Field(gt=0.0, le=10.0)]
RewardName = Literal["exact", "majority", "outcome", "process", "oracle_steps", "function", "noisy"]
SearcherName = Literal["best_of_n", "adaptive", "beam", "dvts", "tree", "gumbel", "puct"]
BOARD_SEARCHERS = ("gumbel", "puct")
Aggregate = Literal["last", "min", "prod"]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class Problems(Section):
    domain: Literal["countdown", "file", "hex"] = "countdown"
    """What is to be solved: `countdown`; `file`, problems of your own in JSONL, Parquet or CSV; or the game of Hex,
    `hex`: training problems are openings of at most two moves, valid and test ones positions of known value."""
    numbers: Annotated[int, Field(ge=2, le=6)] = 3
    """Countdown: how many numbers a hand has."""
    smallest: PositiveInt = 1
    """Countdown: the smallest number in a hand."""
    largest: PositiveInt = 16
    """Countdown: the largest number in a hand."""
    largest_target: PositiveInt = 100
    """Countdown: targets are integers from 1 to this."""
    size: Annotated[int, Field(ge=3, le=8)] = 5
    """Hex: cells a side. The exact solver, which says what valid and test positions are worth, knows boards up to 8."""
    swap: bool = False
    """Hex: the second player may take the first stone over."""
    path: str | None = None
    """File: training problems (.jsonl, .parquet or .csv, also .gz), or all of them, where no other file is given;
    `package:gsm8k/train.jsonl.gz` ships with Flywheel."""
    valid_path: str | None = None
    """File: an official valid split; null takes a share of `path` by hash."""
    test_path: str | None = None
    """File: an official test split, kept as it is; null takes a share of `path` by hash."""
    prompt_column: str = "prompt"
    """File: the column with the question."""
    messages_column: str | None = None
    """File: a column with chat messages (role, content) instead of a question."""
    answer_column: str = "answer"
    """File: the column with the reference: a final answer, or a worked solution from which `extractor` takes it."""
    template: str = "{prompt}\n"
    """File: how a question is put to the model, where `chat` is off."""
    chat: bool = False
    """Ask by the tokenizer's chat template, the question as the user's message."""
    system: str | None = None
    """The system message, where `chat` is on."""
    extractor: Literal["final", "boxed", "last_number", "regex", "whole"] = "final"
    """File: where an answer's final answer stands. final: after `####`, `A:`, `answer is`, or boxed; last_number: the
    last number of the text; regex: the first group of `pattern`; whole: all of it."""
    pattern: str | None = None
    """File: for the extractor `regex`."""
    checker: Literal["number", "math", "text"] = "number"
    """File: when a final answer is right. number: equal as an exact decimal or fraction; math: by Math-Verify (extra
    `math`); text: equal after trimming and case folding."""
    step_end: str = "\n"
    """What ends a step of an answer, for the searches that stand on steps."""
    decontaminate: PositiveInt | None = 13
    """File: drop training problems that share this many words in a row with a test or valid problem (GPT-3: 13); null
    keeps all."""
    near_duplicates: Share | None = 0.8
    """File: drop training problems whose words overlap an earlier one's by at least this share (Jaccard, 5-word
    shingles); null keeps all."""
    train: PositiveInt = 6000
    """Training problems; fewer where the split's hands (or the file) do not yield as many."""
    valid: PositiveInt = 128
    """Problems on which everything is chosen: stopping, temperature, champion."""
    test: PositiveInt = 256
    """Problems that are only reported."""
    shares: tuple[Share, Share, Share] = (0.6, 0.12, 0.28)
    """Share of the hands (file: of the problems, without an official split) in train, valid and test, by hash."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(f"smallest ({self.smallest}) is above largest ({self.largest}); give smallest <= largest")
        if self.numbers > self.largest - self.smallest + 1 and self.largest == self.smallest:
            raise ValueError(f"numbers ({self.numbers}) of a single value make one hand; widen smallest..largest")
        if abs(sum(self.shares) - 1.0) > 1e-9 or min(self.shares) <= 0.0:
            raise ValueError(f"shares {list(self.shares)} must be three positive numbers that add up to 1")
        if self.domain == "file" and self.path is None:
            raise ValueError("domain `file` needs path, the file with the training problems")
        if (self.extractor == "regex") != (self.pattern is not None):
            raise ValueError("extractor `regex` and pattern go together; give both or neither")
        return self


class SeedLabels(Section):
    problems: Annotated[int, Field(ge=0)] = 800
    """How many training problems the seed labeller (Countdown: the solver; file: the reference solutions) solves for
    generation 0; 0 takes the base model as it is."""
    per_problem: PositiveInt = 1
    """Different solutions kept a problem."""


class Model(Section):
    base: str | None = None
    """A local folder or hub id of a pretrained causal LM; null makes a Llama from scratch with the sizes below."""
    hidden_size: PositiveInt = 64
    """From scratch: width of the residual stream."""
    layers: PositiveInt = 4
    """From scratch: decoder layers."""
    heads: PositiveInt = 4
    """From scratch: attention heads; divides hidden_size into even parts."""
    intermediate_size: PositiveInt = 176
    """From scratch: width of the gated feed-forward layer."""
    network: Literal["mlp", "conv"] = "mlp"
    """Hex: a perceptron with ReZero residuals over the flattened board, `layers` deep and `hidden_size` wide (Jones
    2021), or a residual convolution net of so many blocks and channels."""
    vocabulary: PositiveInt = 2048
    """From scratch, where a domain names no words of its own: size of the byte-pair vocabulary learned from its
    training problems."""


class Generate(Section):
    teacher: str = "champion"
    """Who searches: `champion` (the best student so far), any causal LM by local folder or hub id, or a server of the
    OpenAI protocol by its address (`http://127.0.0.1:8000/v1`)."""
    teacher_model: str | None = None
    """The model's name on that server; null takes the only one it has."""
    searcher: SearcherName = "best_of_n"
    """How it searches. best_of_n: sample N answers, let the reward judge; adaptive: N on average, in rounds, where
    they still help; beam, dvts: step by step, by step scores; tree: Monte Carlo tree search over steps. Hex: gumbel
    (sequential halving at the root), puct (AlphaZero)."""
    samples: PositiveInt = 16
    """N: answers sampled a problem (ReST-EM: 32); beams of beam and dvts, iterations of tree; games an opening."""
    width: PositiveInt = 4
    """Beam, dvts and tree: next steps sampled from one prefix (Snell et al.: 4)."""
    lookahead: Annotated[int, Field(ge=0)] = 0
    """Beam and dvts: greedy steps beyond a step before it is scored."""
    max_steps: PositiveInt = 10
    """Beam, dvts and tree: steps an answer may have; the last runs to the end token (Beeching et al.: 40)."""
    rounds: PositiveInt = 4
    """Adaptive: rounds in which the samples are given out."""
    simulations: PositiveInt = 64
    """Hex: simulations a move (Jones 2021: 64; AlphaZero: 800)."""
    considered: PositiveInt = 16
    """gumbel: moves that the root considers at most (Danihelka et al.: 16)."""
    exploration: Annotated[float, Field(ge=0.0)] = 1.25
    """puct: weight of the priors (AlphaZero: 1.25)."""
    noise_share: Share = 0.25
    """puct: share of Dirichlet noise in the root's priors (AlphaZero: 0.25)."""
    full_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Hex: share of the moves that get all their simulations and are learned from; the others only carry the game on
    (playout cap randomisation, KataGo: 0.25)."""
    fast_simulations: PositiveInt = 8
    """Hex: simulations of those others."""
    sampled_plies: Annotated[int, Field(ge=0)] = 8
    """Hex: in the first so many plies of a game the move is drawn from the policy that the search found, to the power
    1 / temperature; later it is the search's own choice (AlphaZero: 30 in chess)."""
    temperature: Temperature = 1.0
    """Sampling temperature (ReST-EM: 0.7)."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    top_k: PositiveInt | None = None
    """Draw from so many likeliest tokens."""
    max_new_tokens: PositiveInt = 16
    """Tokens an answer may have; one cut off here has stop_reason `length` and no answer."""
    max_flops: Annotated[float, Field(gt=0.0)] | None = None
    """A problem's search stops once it has taken so many FLOPs of model and reward; null: the samples say when."""
    problems: PositiveInt = 2500
    """Training problems searched a generation, drawn anew each time. Hex: openings, each played `samples` times."""
    solved_share: Share | None = None
    """At most this share of them were solved in an earlier generation, the others were not: unsolved ones are tried
    again, solved ones retire. null draws without looking."""
    unit: PositiveInt = 50
    """Problems a batch unit: they are padded and sampled together, so this is part of the recipe. Hex: the games
    of so many openings are played side by side."""

    @field_validator("teacher")
    @classmethod
    def _without_credentials(cls, value: str) -> str:
        """Params are committed: whoever reads the registry would read a key in them."""
        head, scheme, rest = value.partition("://")
        if scheme and head in {"http", "https"}:
            place = rest.partition("/")[0]
            if "@" in place or "?" in rest:
                host = place.rpartition("@")[2].partition("?")[0]
                raise ValueError(
                    f"the address of the server at {host} holds a user, a password or a query, and params are kept in "
                    "git; leave them out and set OPENAI_API_KEY in the environment"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.searcher in {"beam", "dvts"} and self.samples % self.width and self.samples > 1:
            raise ValueError(
                f"samples ({self.samples}) must be a multiple of width ({self.width}) for {self.searcher}: each of "
                "samples / width prefixes is continued in width ways"
            )
        return self


class Reward(Section):
    name: RewardName = "exact"
    """What judges an answer. exact: the domain's own checker; majority: the answers of a problem vote, no checker;
    outcome, process: a reward model scores answers, or their steps; oracle_steps: steps scored by Countdown's
    solver, a bound and no deployable search; function: your own; noisy: another reward, flipped at a stated rate."""
    model: str | None = None
    """outcome and process: the reward model, a local folder or hub id; null is the registry's own, which the stage
    `supervise` trains."""
    aggregate: Aggregate = "last"
    """process: how the scores of the steps make the answer's."""
    style: Literal["auto", "sequence", "token", "words"] = "auto"
    """outcome and process: sequence or token classification, or a causal LM that says a good or a bad word after each
    step (Math-Shepherd: `+`, `-`); auto reads it from the model's config."""
    step_tag: str = "\n"
    """outcome and process, styles token and words: what stands after each step; the score is read there (Math-Shepherd:
    `ки`)."""
    good: str = "+"
    """style words: the word whose probability is the score."""
    bad: str = "-"
    """style words: the word it is weighed against."""
    batch_size: PositiveInt = 64
    """outcome and process: answers scored together."""
    function: str | None = None
    """function: `module:function`, called in a process of its own with (problem, answers); returns a number in 0..1
    for each answer, or None where it cannot say."""
    seconds: Annotated[float, Field(gt=0.0)] = 10.0
    """function: seconds for one call, in a process that is killed beyond them."""
    memory_mb: PositiveInt = 2048
    """function: memory that process may have, MiB."""
    base: Literal["exact", "function"] = "exact"
    """noisy: the reward that is flipped."""
    flip: Share = 0.05
    """noisy: share of the well-formed answers whose reward is turned round (1 - reward); always the same ones of a
    seed."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.function is None and (self.name == "function" or (self.name, self.base) == ("noisy", "function")):
            raise ValueError("reward `function` needs function, the place of your code as module:function")
        if self.function is not None and len([part for part in self.function.split(":") if part]) != 2:
            raise ValueError(f"function {self.function!r} is not of the form module:function")
        return self

    @property
    def by_own_model(self) -> bool:
        """Whether it is the reward model that the registry trains itself."""
        return self.name in {"outcome", "process"} and self.model is None


class Filter(Section):
    threshold: float = 1.0
    """Rewards below this are rejected. Hex: a position's reward is how near the search's value came to the outcome of
    the game, from 0 (the opposite) to 1."""
    per_problem: PositiveInt | None = 4
    """At most so many labels a problem and generation (ReST-EM: 10); null keeps all."""
    pass_rate: tuple[Share, Share] | None = None
    """Only problems of which a share of attempts strictly between these two passes the threshold yield labels; null
    takes all. For best_of_n: the other searchers do not sample a problem evenly."""
    window: PositiveInt | None = None
    """How many generations of labels a student trains on, newest first; null means all since the seed."""
    relabel: PositiveInt | None = None
    """Hex: where at most so many cells are empty the exact solver says what a position is worth, and the policy keeps
    to the moves that win; null keeps what search and game said."""
    surprise: Share = 0.0
    """Hex: share of the labels' weight that is given in proportion to how far the search moved the policy, by
    Kullback-Leibler divergence (KataGo: 0.5)."""
    search_value: Share = 0.0
    """Hex: share of the search's own value in the value to be learned; the rest is the outcome of the game."""


class Train(Section):
    start: Literal["parent", "base"] = "parent"
    """Warm from the champion's weights, or restarted from the base each generation (ReST-EM)."""
    method: Literal["full", "lora"] = "full"
    """All weights, or low-rank adapters that are merged into the student at the end (extra `lora`)."""
    lora_rank: PositiveInt = 16
    """lora: rank of the adapters."""
    lora_alpha: PositiveInt = 32
    """lora: their scale is alpha / rank."""
    epochs: PositiveInt = 10
    """Passes over the window's labels a generation."""
    flops: Annotated[float, Field(gt=0.0)] | None = None
    """Spend about so many FLOPs on training in a generation after the seed: as many whole passes as they pay for, one
    at least and `epochs` at most; null makes `epochs` passes whatever they cost."""
    seed_epochs: PositiveInt = 60
    """Generation 0 trains at most so many passes over the seed labels ..."""
    patience: PositiveInt = 6
    """... and stops after so many evaluations of the valid loss without a new best; the best is kept."""
    batch_size: PositiveInt = 64
    """Labels an optimiser step."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 4e-3
    """Peak learning rate of AdamW."""
    warmup_share: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How it falls after the warm-up; generation 0, whose end is not known before, holds it constant."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """AdamW's decoupled weight decay."""
    gradient_clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest norm of the gradient."""
    value_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Hex: weight of the value's squared error beside the policy's cross-entropy (AlphaZero: 1)."""
    augment: bool = True
    """Hex: each time a position is learned it is turned by 180 degrees, or not, by chance."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Hex: the student's weights are an exponential moving average over the steps, with this decay; null takes the
    last."""
    window_law: PositiveInt | None = None
    """Hex: of the window's n labels only the newest c (1 + 0.4 ((n / c)^0.75 - 1) / 0.75) are learned, where c is this
    number (KataGo's power law, which has c = 250,000); null learns all."""
    dedupe: bool = True
    """A label found again in a later generation is learned once (same content id). Hex learns all: how often a
    position comes up is part of what is to be learned."""
    seed_share: Share | None = None
    """Share of the training examples that are seed labels, repeated or left out to make it so; null takes each label
    once."""
    preference: Literal["none", "dpo"] = "none"
    """After the labels, learn from (right, wrong) pairs of one problem's attempts: direct preference optimisation
    (extra `preference`)."""
    preference_beta: Annotated[float, Field(gt=0.0)] = 0.1
    """dpo: how hard the student is held to what it was before (Rafailov et al.: 0.1)."""
    preference_epochs: PositiveInt = 1
    """dpo: passes over the pairs."""
    preference_learning_rate: Annotated[float, Field(gt=0.0)] = 1e-5
    """dpo: peak learning rate."""


class Supervise(Section):
    """A reward model of the registry's own: step labels, by rollouts or by outcome, and a model that learns them."""

    enabled: bool = False
    """Make step labels from answers of the new student and train the registry's reward model on them."""
    problems: PositiveInt = 1000
    """Training problems whose attempts are labelled a generation."""
    attempts: PositiveInt = 4
    """Attempts a problem, sampled by the student; each of their steps is labelled."""
    rollouts: PositiveInt = 8
    """Completions sampled from each step (Math-Shepherd: 8)."""
    temperature: Temperature = 1.0
    """Their sampling temperature."""
    estimate: Estimate = "soft"
    """hard: 1 where any completion is right (Math-Shepherd); soft: the share that is (OmegaPRM); outcome: the attempt's
    own verdict at each of its steps, no completions: an outcome model, and many attempts (Cobbe et al.: 100)."""
    start: Literal["previous", "base"] = "base"
    """Go on from the reward model of the generation before, or begin anew from `base`."""
    base: str | None = "student"
    """What a reward model begins from: `student`, the new student's weights under a head of its own; a pretrained model
    by folder or hub id; null makes one with the sizes below and the student's tokenizer."""
    hidden_size: PositiveInt = 128
    """From scratch: width; the reward model may be larger than the student, which never needs it at run time."""
    layers: PositiveInt = 4
    """From scratch: layers."""
    heads: PositiveInt = 4
    """From scratch: attention heads."""
    intermediate_size: PositiveInt = 352
    """From scratch: width of the gated feed-forward layer."""
    epochs: PositiveInt = 2
    """Passes over the step labels."""
    batch_size: PositiveInt = 64
    """Attempts an optimiser step."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Peak learning rate of AdamW."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_heads(self.hidden_size, self.heads)
        return self


class Evaluate(Section):
    budgets: tuple[PositiveInt, ...] = (1, 4, 16, 64)
    """Runtime budgets: samples a problem. Hex: simulations a move; the network alone is `greedy`."""
    temperature: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Sampling temperature of every budget; greedy has none."""
    margin: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """A student becomes champion unless its greedy valid accuracy is below the champion's by more than this. Hex has
    `gate` instead."""
    openings: PositiveInt = 32
    """Hex: openings that each pair of players plays from both sides."""
    match_budget: PositiveInt = 64
    """Hex: simulations a move of the players that search."""
    gate: Share | None = None
    """Hex: a student becomes champion only with at least this share of the searched games against the champion
    (AlphaGo Zero: 0.55); null lets every student take over (AlphaZero)."""

    @field_validator("budgets")
    @classmethod
    def _rising(cls, budgets: tuple[int, ...]) -> tuple[int, ...]:
        if not budgets or list(budgets) != sorted(set(budgets)):
            raise ValueError(f"budgets {list(budgets)} must be a rising list of at least one number, e.g. [1, 4, 16]")
        return budgets


class Campaign(Section):
    generations: PositiveInt = 5
    """How many `flywheel run` adds when not told."""
    plateau: PositiveInt | None = None
    """Stop after so many generations in a row without a new champion."""
    max_flops: Annotated[float, Field(gt=0.0)] | None = None
    """Stop before the next generation once the ledger's total passes this."""
    max_hours: Annotated[float, Field(gt=0.0)] | None = None
    """Stop before the next generation once this run has lasted so long."""
    max_disk_gb: Annotated[float, Field(gt=0.0)] | None = None
    """Stop before the next generation once the registry takes this much."""


class Execution(Section):
    """How the work is run, no part of the recipe. Shards, retries and the like change nothing at all; device and
    threads (which the `processes` runner shares out) are part of `numerics`: other last bits, the same distribution."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto takes CUDA where there is one."""
    threads: PositiveInt | None = None
    """Threads of a CPU model; null is the machine's cores. Part of `numerics`: other threads, other last bits."""
    shards: PositiveInt = 4
    """Task runs that generation and evaluation are cut into; any number gives the same rows."""
    runner: Literal["serial", "processes"] = "serial"
    """serial: a shard at a time with the library's own threads; processes: `workers` shards at once."""
    workers: PositiveInt = 2
    """Processes of the `processes` runner."""
    checkpoint_seconds: Annotated[float, Field(gt=0.0)] = 15.0
    """Training saves a checkpoint this often; a killed run goes on from the last."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Times a failed task is tried again."""
    server_requests: PositiveInt = 8
    """Requests that a teacher's server has to answer at once."""
    server_seconds: Annotated[float, Field(gt=0.0)] = 300.0
    """Seconds it may take for one."""
    server_retries: Annotated[int, Field(ge=0, le=20)] = 5
    """Times a request that failed is sent again, after waits that double."""
    reward_processes: PositiveInt = 2
    """Processes that run a user's reward function."""
    training_processes: PositiveInt = 1
    """Processes that training is spread over by accelerate's launcher (several GPUs); part of `numerics`."""
    openlineage: str | None = None
    """A file to which each published generation appends its OpenLineage events (extra `openlineage`)."""
    device_hour_price: Annotated[float, Field(ge=0.0)] | None = None
    """What an hour of the device costs that one process works on (a GPU, or a share of a machine); with it
    `flywheel ledger` says what a generation cost, orchestration included. null: no money is told."""
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "USD"
    """What `device_hour_price` is in; amounts in different currencies are never added."""
    on_failure: str | None = None
    """A command run when a generation fails; it finds FLYWHEEL_REGISTRY, _GENERATION and _ERROR in its environment."""


def check_heads(hidden_size: int, heads: int, section: str = "") -> None:
    """Raise ValueError where the width of a transformer is not made of heads."""
    if hidden_size % heads or (hidden_size // heads) % 2:
        raise ValueError(
            f"{section}hidden_size ({hidden_size}) must be heads ({heads}) times an even head size (rotary halves)"
        )
