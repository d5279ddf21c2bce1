-- One run is one file, `run.duckdb`. Tables are append-only; rowid is the reader's watermark.
-- A comment after a column says what it holds; docs/schema.md is checked against this file.

CREATE TABLE IF NOT EXISTS steps (      -- one row per optimizer step and rank
    step BIGINT,                        -- optimizer step, from 1
    rank SMALLINT,                      -- process that measured it
    time DOUBLE,                        -- Unix seconds at the end of the step
    logged BIGINT                       -- ns since 1970, rising; of a step logged twice the last is valid
);
CREATE TABLE IF NOT EXISTS metrics (    -- every scalar, long form
    step BIGINT,
    rank SMALLINT,
    metric VARCHAR,                     -- TRL's name where TRL has one
    value DOUBLE,
    logged BIGINT                       -- as in steps; valid if not older than the step's row there
);
CREATE TABLE IF NOT EXISTS observations ( -- what the detectors read
    step BIGINT,
    stream VARCHAR,                     -- `hazard:<tool_call>@text`, `polluted`, `parse_failure`, ...
    value DOUBLE,                       -- hazard per turn, or a rate or probability in [0, 1]
    n BIGINT,                           -- prompt groups behind it
    stderr DOUBLE,                      -- standard error, clustered by prompt group
    logged BIGINT                       -- as in steps; valid if not older than the step's row there
);
CREATE TABLE IF NOT EXISTS evidence (   -- what the detectors made of it
    step BIGINT,
    detector VARCHAR,
    stream VARCHAR,                     -- '' for the detector's global evidence
    log_e DOUBLE,                       -- log evidence (global row only)
    log_bound DOUBLE,                   -- the alarm bound it is compared with (global row only)
    share DOUBLE,                       -- this stream's share of the evidence
    level DOUBLE,                       -- the observed level, as the detector reads it
    baseline DOUBLE,                    -- the stream's own slow baseline
    tolerance DOUBLE                    -- the level that would still have been tolerated
);
CREATE TABLE IF NOT EXISTS control (    -- control-token probabilities by slot
    step BIGINT,
    rank SMALLINT,
    token VARCHAR,
    slot VARCHAR,
    legal BOOLEAN,                      -- may this token stand in this slot?
    n BIGINT,                           -- scored positions
    mean DOUBLE,                        -- of the probability
    p50 DOUBLE,
    p99 DOUBLE,
    max DOUBLE,
    hazard DOUBLE,                      -- mean over turns of the sum of -log(1-p)
    expected DOUBLE,                    -- sum of p: emissions expected
    sampled BIGINT,                     -- emissions seen
    forced DOUBLE,                      -- mean probability of the whole marker where it was drawn
    turn_n BIGINT[],                    -- n by turn; the last entry holds all later turns too
    turn_mean DOUBLE[],                 -- mean by turn
    pressure_self DOUBLE,               -- policy gradient on its logit from where it was drawn, per trained token
    pressure_other DOUBLE,              -- the same from where another token was drawn
    probe VARCHAR,                      -- policy, fixed, alternate: whose dialogues
    logged BIGINT                       -- as in steps; valid if not older than the step's row there
);
CREATE TABLE IF NOT EXISTS turns (      -- one row per assistant message
    step BIGINT,
    rank SMALLINT,
    rollout INTEGER,
    turn INTEGER,
    structure VARCHAR,                  -- tool_call, response, polluted, collapsed
    reason VARCHAR,
    stop VARCHAR,                       -- eos, length, unknown
    tokens INTEGER,
    calls INTEGER,                      -- calls that parse strictly
    hazard DOUBLE,                      -- illegal control-token emissions expected in this turn
    logged BIGINT                       -- as in steps; valid if not older than the step's row there
);
CREATE TABLE IF NOT EXISTS rollouts (   -- one row per trajectory; text for a sampled part
    step BIGINT,
    rank SMALLINT,
    rollout INTEGER,
    "group" INTEGER,                    -- rollouts of one prompt share it
    reward DOUBLE,
    advantage DOUBLE,
    turns INTEGER,
    tokens INTEGER,
    calls INTEGER,
    env_errors INTEGER,                 -- tool or environment failures, never turned into reward
    structure VARCHAR,                  -- the worst turn's
    hazard DOUBLE,
    prompt VARCHAR,
    text VARCHAR,                       -- control tokens kept as written
    logged BIGINT                       -- as in steps; valid if not older than the step's row there
);
CREATE TABLE IF NOT EXISTS tokens (     -- a part of the rollouts, token by token: lists with one entry per position
    step BIGINT,
    rank SMALLINT,
    rollout INTEGER,
    advantage DOUBLE,
    token INTEGER[],                    -- id
    piece VARCHAR[],                    -- its text
    turn SMALLINT[],                    -- -1 where the environment wrote
    slot VARCHAR[],                     -- '' where the environment wrote
    logp FLOAT[],                       -- as trained
    sampler_logp FLOAT[],               -- as the sampler gave it; NaN where it gives none
    entropy FLOAT[],                    -- nats
    names VARCHAR[],                    -- the K control tokens of `control`
    control FLOAT[],                    -- their log-probabilities, K entries per position
    logged BIGINT                       -- as in steps; valid if not older than the step's row there
);
CREATE TABLE IF NOT EXISTS alarms (
    step BIGINT,
    tier VARCHAR,                       -- watch, alarm, hold, cleared, rebaselined
    detector VARCHAR,
    kind VARCHAR,                       -- control_token_spike, eos_loss, format_breakage, ...
    onset_step BIGINT,                  -- when it began, estimated
    log_e DOUBLE,
    log_bound DOUBLE,
    drivers VARCHAR                     -- JSON list of {stream, share, level, baseline, tolerance}
);
CREATE TABLE IF NOT EXISTS interventions (
    step BIGINT,
    name VARCHAR,
    schedule VARCHAR,                   -- triggered, interleaved, synchronous, first
    trigger_step BIGINT,                -- the alarm that asked for it
    status VARCHAR,                     -- applied, begin, end, effect, skipped, failed
    detail VARCHAR                      -- JSON: examples, updates, loss, streams before and after
);
CREATE TABLE IF NOT EXISTS events (
    step BIGINT,
    time DOUBLE,
    name VARCHAR,                       -- started, finished, interrupted, failed, fault, mark, finding, checkpoint, resumed, rolled_back
    detail VARCHAR
);
CREATE TABLE IF NOT EXISTS _offsets (   -- how far each journal segment has been merged
    file VARCHAR PRIMARY KEY,
    offset_bytes BIGINT
);
