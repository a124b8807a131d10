-- The state of the fleet. Times are unix seconds. Numbers of 64 bits without sign are 8 bytes, big-endian, so
-- that they sort; digests and chains are bytes. Columns named *_json hold JSON.

CREATE TABLE probe (count INTEGER NOT NULL);
INSERT INTO probe VALUES (0);

-- Single values: the trust domain, the present key epoch, and the like.
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;

CREATE TABLE defenders (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    folded TEXT NOT NULL UNIQUE,            -- the name as names are compared
    enrolled REAL NOT NULL,
    token TEXT NOT NULL,        -- id of the join token
    lock TEXT NOT NULL DEFAULT '',          -- why it is shut out
    generation INTEGER NOT NULL DEFAULT 0,  -- of its newest session
    last_seen REAL,
    address TEXT NOT NULL DEFAULT '',
    program TEXT NOT NULL DEFAULT '',
    status_json TEXT NOT NULL DEFAULT '{}'  -- as it last described itself
) WITHOUT ROWID;

CREATE TABLE labels (
    defender TEXT NOT NULL REFERENCES defenders (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (defender, name)
) WITHOUT ROWID;
CREATE INDEX labels_by_value ON labels (name, value);

CREATE TABLE certificates (
    fingerprint BLOB PRIMARY KEY,   -- SHA-256 of its DER
    defender TEXT NOT NULL REFERENCES defenders (id) ON DELETE CASCADE,
    key BLOB NOT NULL,              -- SHA-256 of its SubjectPublicKeyInfo
    not_before INTEGER NOT NULL,
    not_after INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('used', 'offered', 'superseded')),
    since INTEGER NOT NULL,         -- when it came into this state
    chain BLOB NOT NULL             -- PEM, as it was sent
) WITHOUT ROWID;
CREATE INDEX certificates_by_defender ON certificates (defender, not_before);

CREATE TABLE join_tokens (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,       -- SHA-256 of the secret
    created REAL NOT NULL,
    expires REAL NOT NULL,
    max_uses INTEGER NOT NULL CHECK (max_uses >= 1),
    uses INTEGER NOT NULL DEFAULT 0 CHECK (uses BETWEEN 0 AND max_uses),
    revoked REAL,
    author TEXT NOT NULL,
    terms_json TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE join_uses (
    token TEXT NOT NULL REFERENCES join_tokens (id),
    key BLOB NOT NULL,          -- SHA-256 of the SubjectPublicKeyInfo
    defender TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'approved', 'denied', 'issued')),
    address TEXT NOT NULL,
    begun REAL NOT NULL,
    issued REAL NOT NULL,       -- 0 before
    PRIMARY KEY (token, key)
) WITHOUT ROWID;
CREATE INDEX join_uses_by_state ON join_uses (state, begun);

-- Those that are in the fleet. Their targets and drafts are the publisher's documents.
CREATE TABLE policies (
    name TEXT PRIMARY KEY,
    published INTEGER,          -- the version that is in force
    draft_json TEXT             -- NULL: nothing is being worked on
) WITHOUT ROWID;

-- The versions of a policy stay when it is removed.
CREATE TABLE policy_versions (
    policy TEXT NOT NULL,
    number INTEGER NOT NULL CHECK (number >= 1),
    text TEXT NOT NULL,
    target_json TEXT NOT NULL,
    digest TEXT NOT NULL,
    author TEXT NOT NULL,
    published REAL NOT NULL,
    comment TEXT NOT NULL,
    rolled_back_to INTEGER,     -- the version that its content is from
    PRIMARY KEY (policy, number)
);
CREATE TRIGGER policy_versions_stay BEFORE UPDATE ON policy_versions
BEGIN
    SELECT raise(ABORT, 'a published version never changes');
END;
CREATE TRIGGER policy_versions_remain BEFORE DELETE ON policy_versions
BEGIN
    SELECT raise(ABORT, 'a published version is never removed');
END;

CREATE TABLE bundles (
    stream TEXT NOT NULL,
    key_epoch INTEGER NOT NULL CHECK (key_epoch >= 0),
    version BLOB NOT NULL CHECK (length(version) = 8),
    line TEXT NOT NULL,         -- what of the stream it is: a policy's name, ''
    origin_epoch INTEGER NOT NULL,  -- where its content was published first
    origin_version BLOB NOT NULL CHECK (length(origin_version) = 8),
    digest BLOB NOT NULL,
    audience_json TEXT NOT NULL,    -- null: the whole fleet
    envelope BLOB NOT NULL,
    created REAL NOT NULL,
    PRIMARY KEY (stream, key_epoch, version)
);
CREATE INDEX bundles_by_line ON bundles (stream, line, key_epoch, version);
CREATE TRIGGER bundles_stay BEFORE UPDATE ON bundles
BEGIN
    SELECT raise(ABORT, 'a signed bundle never changes');
END;

-- Which line of a stream a defender follows, and what it says it has in force.
CREATE TABLE positions (
    defender TEXT NOT NULL REFERENCES defenders (id) ON DELETE CASCADE,
    stream TEXT NOT NULL,
    line TEXT,
    key_epoch INTEGER,
    version BLOB,
    digest BLOB,
    at REAL,
    PRIMARY KEY (defender, stream)
) WITHOUT ROWID;

-- What defenders refused, by the position of its origin; they are not asked again.
CREATE TABLE refusals (
    defender TEXT NOT NULL REFERENCES defenders (id) ON DELETE CASCADE,
    stream TEXT NOT NULL,
    key_epoch INTEGER NOT NULL,
    version BLOB NOT NULL,
    code TEXT NOT NULL,
    detail TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (defender, stream, key_epoch, version)
) WITHOUT ROWID;

-- How far each line has come through the fleet; what a document says is the distribution's business.
CREATE TABLE lines (
    stream TEXT NOT NULL,
    line TEXT NOT NULL,
    document_json TEXT NOT NULL,
    changed REAL NOT NULL,
    PRIMARY KEY (stream, line)
) WITHOUT ROWID;

CREATE TABLE locks (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    issuer TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL,
    author TEXT NOT NULL,
    created REAL NOT NULL,
    UNIQUE (kind, value, issuer)
) WITHOUT ROWID;

-- Where each defender should listen. `serial` rises with every change.
CREATE TABLE modes (
    defender TEXT PRIMARY KEY REFERENCES defenders (id) ON DELETE CASCADE,
    listener TEXT NOT NULL,
    drain REAL,
    serial INTEGER NOT NULL,
    author TEXT NOT NULL,
    changed REAL NOT NULL
) WITHOUT ROWID;

-- What was asked of several defenders at once, to show how far it is.
CREATE TABLE mode_changes (
    id TEXT PRIMARY KEY,
    listener TEXT NOT NULL,
    drain REAL,
    author TEXT NOT NULL,
    asked REAL NOT NULL,
    serials_json TEXT NOT NULL  -- of each defender
) WITHOUT ROWID;

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    folded TEXT NOT NULL UNIQUE,            -- the name as names are compared
    roles_json TEXT NOT NULL,
    password TEXT NOT NULL,     -- the hash, with its parameters
    disabled INTEGER NOT NULL DEFAULT 0,
    must_change INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    changed REAL NOT NULL,
    last_login REAL
) WITHOUT ROWID;

CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,    -- SHA-256 of the secret
    user TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created REAL NOT NULL,
    expires REAL NOT NULL,
    used REAL NOT NULL,
    address TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX sessions_by_user ON sessions (user);

CREATE TABLE api_tokens (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,    -- SHA-256 of the secret
    user TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    permissions_json TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL NOT NULL,
    used REAL,
    revoked REAL
) WITHOUT ROWID;
CREATE INDEX api_tokens_by_user ON api_tokens (user);

-- The controller's own audit records, written with the change that they tell of and moved to the events later.
-- The last one stays: the next one is chained to it.
CREATE TABLE trail (
    epoch BLOB NOT NULL,
    seq INTEGER NOT NULL,
    chain BLOB NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (epoch, seq)
);

-- How far each forwarding of events has come.
CREATE TABLE forwarding (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    changed REAL NOT NULL
) WITHOUT ROWID;
